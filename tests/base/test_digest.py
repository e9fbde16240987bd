"""The digest by which files are named: what its authors publish, for whoever writes it again."""

import pytest

from rootless_udi.base.digest import digest

pytestmark = pytest.mark.alike


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "6c62272e07bb014262b821756295c58d"),
        (b"a", "d228cb696f1a8caf78912b704e4a8964"),
        (b"foobar", "343e1662793c64bf6f0d3597ba446f18"),
    ],
)
def test_published_values(data: bytes, text: str) -> None:
    """draft-eastlake-fnv, test vectors of 128 bits."""
    assert digest(data) == text


def test_every_byte_counts() -> None:
    texts = [bytes(300), bytes(299), b"\1" + bytes(299), bytes(299) + b"\1", b"\0\xff" * 150]
    assert len({digest(text) for text in texts}) == len(texts)
