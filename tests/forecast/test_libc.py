"""The check of the C library: musl and NVIDIA's driver, and what is said without them."""

from typing import Any

import pytest

from rootless_udi.forecast import libc
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import FAILS, RUNS, UNLOOKED, CheckFinding
from rootless_udi.forecast.site import Capture
from rootless_udi.plan.options import parse

pytestmark = pytest.mark.alike
NVIDIA = [{"vendor": "nvidia"}]
GLIBC = {"libc": "glibc", "libc_versions": ["GLIBC_2.2.5", "GLIBC_2.36"]}
MUSL = {"libc": "musl", "libc_versions": []}


def look(elf: Any, *words: str, **sections: Any) -> list[CheckFinding]:
    asked = Asked("i", "/", parse([*words, "i"], {}), {})
    return list(libc.look(Capture("x", sections), {"elf": elf}, asked))


@pytest.mark.parametrize(
    ("elf", "words", "gpus", "verdict", "says"),
    [
        (GLIBC, (), NVIDIA, RUNS, "nothing is put beside it"),
        (MUSL, (), NVIDIA, RUNS, "nothing is put beside it"),
        (MUSL, ("--gpu=auto",), NVIDIA, FAILS, "is musl"),
        (MUSL, ("--gpu=amd",), NVIDIA, RUNS, "nothing is put beside it"),
        (MUSL, ("--gpu=auto",), [{"vendor": "amd"}], RUNS, "nothing is put beside it"),
        (GLIBC, ("--gpu=auto",), NVIDIA, UNLOOKED, "is not in the capture"),
        ({"libc": ""}, (), [], RUNS, "the image has none"),
    ],
)
def test_findings(
    elf: dict[str, Any], words: tuple[str, ...], gpus: list[Any], verdict: str, says: str
) -> None:
    (one,) = look(elf, *words, gpus=gpus)
    assert (one.verdict, says in one.what) == (verdict, True), one


def test_both_sides_are_named() -> None:
    files = {"libc.so.6": ["/lib/libc.so.6", ["GLIBC_2.2.5", "GLIBC_2.31"]]}
    (one,) = look(GLIBC, gpus=[], libc={"files": files})
    assert (one.image.fact, one.site.fact) == ("glibc 2.36", "glibc 2.31")


@pytest.mark.parametrize("elf", [None, 5, {"libc_versions": 7}])
def test_facts_that_are_none(elf: Any) -> None:
    assert look(elf) == []


@pytest.mark.parametrize("table", [{"files": 5}, {"files": {"libc.so.6": 5}}, {}])
def test_a_capture_that_says_nothing(table: dict[str, Any]) -> None:
    (one,) = look(GLIBC, libc=table)
    assert one.site.fact == "not known"
