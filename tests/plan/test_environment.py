"""The environment's grammar and operations, apart from a container."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.host import facts
from rootless_udi.idmap import accounts, maps
from rootless_udi.node import publish
from rootless_udi.node.record import NodeRecord
from rootless_udi.plan import environment

pytestmark = pytest.mark.alike


def applied(before: dict[str, str], *operations: tuple[str, str, str]) -> dict[str, str]:
    result = dict(before)
    environment.apply(result, operations)
    return result


def test_append_and_prepend_join_or_set() -> None:
    """[5]"""
    assert applied({"A": "1"}, ("append", "A", "2")) == {"A": "1:2"}
    assert applied({"A": "1"}, ("prepend", "A", "2")) == {"A": "2:1"}
    for before in ({}, {"A": ""}):
        assert applied(before, ("append", "A", "2")) == {"A": "2"}
    assert applied({"A": "1", "B": "2"}, ("unset", "A", "")) == {"B": "2"}
    assert applied({"A": "1"}, ("clear", "", ""), ("set", "B", "2")) == {"B": "2"}


def test_an_images_odd_variables_are_left_out() -> None:
    """[3]"""
    pairs = ["A=1", "B=", "BARE", "=x", "C=a=b"]
    assert environment.of_image(pairs) == [("set", "A", "1"), ("set", "C", "a=b")]


@given(st.text())
def test_env_files_are_read_or_refused(text: str) -> None:
    try:
        found = environment.of_file(text, "file")
    except UdiError as error:
        assert error.message.startswith("file, line ")
    else:
        assert all(op == "set" and name and "=" not in name for op, name, _ in found)


def test_nul_is_refused() -> None:
    with pytest.raises(UdiError, match="NUL"):
        environment.of_options(["A=x\0y"])


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("5.14.0-427.el9.x86_64", (5, 14)),
        ("6.18.44", (6, 18)),
        ("6.1-rc3", (6, 1)),
        ("6", (0, 0)),
        ("", (0, 0)),
    ],
)
def test_kernel_releases(text: str, numbers: tuple[int, int]) -> None:
    assert facts.release(text) == numbers


def test_an_account_that_nobody_has() -> None:
    found = facts._account(4_000_000_000, {"USER": "ghost", "HOME": "/h"})
    assert found == ("ghost", "", "/h", "/bin/sh")
    assert facts._account(4_000_000_000, {})[0] == "user"


def test_group_file_names_what_is_seen_inside() -> None:
    """[14]: all supplementary groups show as the overflow id."""
    assert accounts.group(100, "a:b", "ada").splitlines() == [
        "root:x:0:",
        "a?b:x:100:ada",
        "nogroup:x:65534:ada",
    ]
    assert "nobody" not in accounts.passwd(65534, 65534, "me", "", "/", "/bin/sh")


def test_maps_have_one_entry() -> None:
    assert maps.entry(0, 1000) == "0 1000 1\n"


def encodable(text: str) -> bool:
    """Tell whether a byte string can be read as `text`: what all of ours can (os.fsdecode)."""
    try:
        return os.fsdecode(os.fsencode(text)) == text
    except UnicodeError:
        return False


SPACES = (("user", "1"), ("mnt", "1"))


@given(st.text(st.characters(exclude_categories=())).filter(encodable))
def test_records_keep_any_text(text: str) -> None:
    read = NodeRecord(publish.content((*SPACES, ("key", text)), b"1 2\n"))
    assert read.get("key") == text and [*read.newest()] == [(1, 2)]


@given(st.data())
def test_a_record_that_is_cut_off_anywhere_is_none(data: st.DataObject) -> None:
    whole = publish.content((*SPACES, ("key", "a\nb=c")), b"")
    with pytest.raises(ValueError):
        NodeRecord(whole[: data.draw(st.integers(0, len(whole) - 1))])


def test_members_are_tried_in_an_order_that_finds_a_living_one() -> None:
    """The last, the builder, then backwards; a torn line and a start of 0 are nobody's."""

    def members(tail: str) -> list[int]:
        record = NodeRecord(publish.content(SPACES, tail.encode()))
        return [pid for pid, _ in record.likely()]

    assert members("1 5\n2 5\n3 5\n4 5\n") == [4, 1, 4, 3, 2, 1]
    assert members("1 5\n") == [1, 1, 1]
    assert members("") == []
    assert members("1 5\n2 5\n3") == [2, 1, 2, 1]
    assert members("x y\n2 0\n3 7\n") == [3, 3]


HOSTS = {
    "PYTHONPATH": "/x",
    "VIRTUAL_ENV": "/x",
    "CONDA_PREFIX": "/x",
    "CONDA_PREFIX_1": "/x",
    "PERL5LIB": "/x",
    "R_LIBS_USER": "/x",
    "LOADEDMODULES": "gcc/12",
    "_LMFILES_": "/x",
    "_ModuleTable001_": "x",
    "LMOD_CMD": "/x",
    "__MODULES_LMCONFLICT": "x",
    "BASH_FUNC_module%%": "() { x; }",
    "BASH_ENV": "/x",
}
KEPT = {"PYTHONUNBUFFERED": "1", "PYTHON": "3", "CONDA": "x", "R_X": "1", "OMP_NUM_THREADS": "4"}


def test_what_the_hosts_interpreters_and_modules_said_stays_outside() -> None:
    """[2]: `shifter` keeps it, as Shifter does."""
    before = {**HOSTS, **KEPT, "LD_LIBRARY_PATH": "/x"}
    assert applied(before, *environment.of_caller(before, False, False)) == KEPT
    assert applied(before, *environment.of_caller(before, False, True)) == {**HOSTS, **KEPT}
    assert applied(before, *environment.of_caller(before, True, False)) == {}


def test_an_image_does_not_say_who_the_user_is() -> None:
    """[1, 7]"""
    pairs = ["HOME=/root", "USER=root", "LOGNAME=root", "HOMEPAGE=x"]
    assert environment.of_image(pairs) == [("set", "HOMEPAGE", "x")]
