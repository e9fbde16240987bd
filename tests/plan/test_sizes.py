"""Shifter's sizes: what they mean, and why the others are refused."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.plan import sizes

pytestmark = pytest.mark.alike


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("512b", 512),
        ("1k", 1024),
        ("100G", 100 * 1024**3),
        ("100g", 100 * 1024**3),
        ("10GB", 10 * 1024**3),
        ("10GiB", 10 * 1024**3),
        ("1.5G", 3 * 512 * 1024**2),
        (".5k", 512),
        ("+2T", 2 * 1024**4),
        ("1e", 1024**6),
        ("1e3", 1000),
        ("1e3k", 1024000),
        ("2.5e1m", 25 * 1024**2),
        ("0.1G", 107374182),
        ("7E", 7 * 1024**6),
    ],
)
def test_means(text: str, size: int) -> None:
    assert sizes.parse(text) == size


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "the value is empty"),
        ("0", "size=0: less than one byte"),
        ("0G", "less than one byte"),
        ("0.5", "less than one byte"),
        ("1e-99G", "less than one byte"),
        ("-1", "size=-1: a size can't be negative"),
        ("1e9P", "size=1e9P: more than the largest file (8 EiB)"),
        ("8E", "more than the largest file (8 EiB)"),
        ("1e999999999999", "more than the largest file (8 EiB)"),
        ("nan", "size=nan: not a finite number"),
        ("inf", "size=inf: not a finite number"),
        ("-inf", "can't be negative"),
        ("G", "size=G: not a size"),
        (".", "not a size"),
        ("10Q", "not a size"),
        ("10Gfoo", "not a size"),
        ("0x10", "not a size"),
        ("1 0", "not a size"),
        ("1\n0", r"size='1\n0': not a size"),
        ("٣G", "not a size"),
        ("9" * 50, "too long for a size"),
    ],
)
def test_refused(text: str, why: str) -> None:
    with pytest.raises(UdiError) as caught:
        sizes.parse(text)
    assert why in caught.value.message


@given(st.text(max_size=50))
def test_any_text_is_a_size_or_refused(text: str) -> None:
    with suppress(UdiError):
        assert 1 <= sizes.parse(text) <= sizes.LARGEST


@given(st.integers(1, sizes.LARGEST))
def test_shown_sizes_read_back(size: int) -> None:
    assert sizes.parse(sizes.show(size)) == size
