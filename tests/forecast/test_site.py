"""Captures as data: what is refused, how two are merged, what is left out."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.forecast import site
from rootless_udi.forecast.site import Capture

pytestmark = pytest.mark.alike


def document(**more: Any) -> dict[str, Any]:
    return {"format": site.FORMAT, "version": 1, "name": "lab", **more}


def parsed(**more: Any) -> Capture:
    return site.parse(json.dumps(document(**more)).encode(), "lab.json")


WHOLE = json.dumps(document(memory=1)).encode()
DEEP: Any = 1
for _ in range(12):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (WHOLE[:-1], r"lab\.json failed: .*; was it cut off\?"),
        (b"", r"was it cut off\?"),
        (b"\xff\xfe", r"was it cut off\?"),
        (b"[]", '"format" is not'),
        (b'{"format": "another"}', '"format" is not'),
        (json.dumps(document(version=2)).encode(), "it is of version 2, this is for 1"),
        (json.dumps(document(version="x")).encode(), "it is of version 'x', this is for 1"),
        (json.dumps(document(name="../../etc")).encode(), '"name" is not a word'),
        (json.dumps(document(name=7)).encode(), '"name" is not a word'),
        (json.dumps(document(cpu=[])).encode(), '"cpu" is not an object'),
        (json.dumps(document(gpus={})).encode(), '"gpus" is not a list'),
        (json.dumps(document(x="\x1b[31m")).encode(), r"unprintable characters: \\x1b\[31m"),
        (json.dumps(document(x={"\u202e": 1})).encode(), r"unprintable characters: \\u202e"),
        (json.dumps(document(x="\ud800")).encode(), r"unprintable characters: \\ud800"),
        (json.dumps(document(x="a" * 70_000)).encode(), "a text of more than 65,536"),
        (json.dumps(document(x=[0] * 70_000)).encode(), "more than 60000 values"),
        (json.dumps(document(x=DEEP)).encode(), "nested more than 8 deep"),
        (b"[" * 100_000 + b"]" * 100_000, "nested too deeply"),
        (b" " * (site.LARGEST + 1), "more than 1 MiB"),
        (b'{"memory": NaN}', "NaN is no number"),
        (b'{"memory": ' + b"9" * 5000 + b"}", r"was it cut off\?"),
    ],
)
def test_what_is_no_capture_is_refused_with_its_reason(data: bytes, why: str) -> None:
    with pytest.raises(UdiError, match=why):
        site.parse(data, "lab.json")


def test_every_truncation_is_refused() -> None:
    for size in range(len(WHOLE)):
        with pytest.raises(UdiError):
            site.parse(WHOLE[:size], "lab.json")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)
SECTIONS = ("taken", "source", "system", "cpu", "memory", "mpi", "gpus", "drivers", "config")


@given(st.dictionaries(st.sampled_from(SECTIONS), VALUES))
def test_any_document_is_refused_or_can_be_asked(more: dict[str, Any]) -> None:
    try:
        found = parsed(**more)
    except UdiError:
        return
    for section in SECTIONS:
        assert isinstance(found.table(section), dict)
        assert all(isinstance(row, dict) for row in found.rows(section))
        assert isinstance(found.word(section, "name"), str)
        assert isinstance(found.number(section), int)
        assert isinstance(found.words(section, "features"), tuple)
    assert site.parse(site.text(found).encode(), "again").data == found.data


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(UdiError):
        site.parse(data, "x")


def test_a_compute_node_says_what_the_machine_is() -> None:
    login = parsed(
        taken=[{"on": "login"}], cpu={"name": "zen2"}, config={"home": False}, mpi={"found": []}
    )
    compute = parsed(name="other", taken=[{"on": "compute"}], cpu={"name": "zen3"}, gpus=[])
    for both in (site.merge(login, compute), site.merge(compute, login)):
        assert both.word("cpu", "name") == "zen3"
        assert both.rows("gpus") == [] and both.knows("gpus")
        assert both.table("config") == {"home": False}
        assert {row["on"] for row in both.rows("taken")} == {"login", "compute"}
    assert site.merge(login, compute).name == "lab"
    assert not login.knows("gpus")


def test_secrets_are_replaced_where_they_stand_alone() -> None:
    secrets = [("/home/ann", "$HOME"), ("ann", "$USER"), ("n1", "$HOST")]
    found = site.scrubbed(
        {
            "PATH": ["/home/ann/bin:/opt/ann/lib", "/home/anna", "/opt/home/ann"],
            "ann": "annual banner ann-x n1.example n1",
            "odd": "a\x1b\n",
        },
        secrets,
    )
    assert found == {
        "PATH": ["$HOME/bin:/opt/$USER/lib", "/home/anna", "/opt/home/$USER"],
        "$USER": "annual banner ann-x $HOST.example $HOST",
        "odd": "a\\x1b\\n",
    }


@pytest.mark.parametrize("name", ["", "../x", ".x", "a b", "a/b", "x" * 65, "a\n"])
def test_a_name_becomes_a_files(name: str) -> None:
    with pytest.raises(UdiError, match="is not a name for a site"):
        site.check_name(name)
