"""The command line's table: what it reads, what it refuses, and that every row has a field."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.plan import options
from rootless_udi.plan.options import FLAG, LIST, OPTIONAL, OPTIONS, VALUE, Request, parse

pytestmark = pytest.mark.alike


def test_every_option_is_a_field() -> None:
    assert {option.field for option in OPTIONS} == set(Request.FIELDS) - {"command"}
    assert len({option.short for option in OPTIONS if option.short}) == sum(
        bool(option.short) for option in OPTIONS
    )
    assert {option.kind for option in OPTIONS} == {FLAG, VALUE, LIST, OPTIONAL}


def test_shapes() -> None:
    got = parse(["-qE", "-eA=1", "-e", "B=2", "--workdir", "-w/x", "--gpu", "img", "cmd", "-x"], {})
    assert (got.quiet, got.clearenv, got.env, got.workdir) == (True, True, ("A=1", "B=2"), "/x")
    assert (got.gpu, got.image, got.command) == ("", "img", ("cmd", "-x"))


def test_variables_stand_for_options() -> None:
    environ = {
        "UDI_IMAGE": "img",
        "UDI_VOLUME": "/a:/b",
        "UDI_MODULE": "m",
        "UDI_MPI": "auto",
        "UDI_GPU": "nvidia",
        "UDI_SHARE": "off",
        "UDI_FUSE": "udi",
        "UDI_LAYER": "underlay",
    }
    got = parse(["cmd"], environ)
    assert got == Request(
        image="img",
        command=("cmd",),
        volume=("/a:/b",),
        module="m",
        mpi="auto",
        gpu="nvidia",
        share="off",
        fuse="udi",
        layer="underlay",
    )
    assert parse(["--image=other", "--share=x", "cmd"], environ).share == "x"


@given(st.lists(st.text()))
def test_any_words_are_read_or_refused(words: list[str]) -> None:
    try:
        parse(words, {})
    except UdiError as error:
        assert error.status == 125


def test_usage_names_every_option() -> None:
    text = options.usage()
    assert all(f"--{option.name}" in text for option in OPTIONS)
    assert max(len(line) for line in text.splitlines()) <= 100


@pytest.mark.parametrize("word", ["-Z", "--", "-"])
def test_odd_words(word: str) -> None:
    if word == "-Z":
        with pytest.raises(UdiError, match="unknown option -Z"):
            parse([word, "x"], {})
    else:
        assert parse([word, "x"], {}).image == ("x" if word == "--" else "-")
