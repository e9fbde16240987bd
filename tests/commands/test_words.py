"""Which words of a command are its own, which udi-run's: `udi check`, `udi sshd`."""

import argparse

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.commands.common.words import split


def parser() -> argparse.ArgumentParser:
    one = argparse.ArgumentParser(prog="udi x", add_help=False, allow_abbrev=False)
    one.add_argument("--site", action="append", default=[])
    one.add_argument("--json", action="store_true")
    return one


@pytest.mark.parametrize(
    ("words", "site", "theirs", "image", "command"),
    [
        ("i", [], "", "i", ""),
        ("--site a i --site=b", ["a", "b"], "", "i", ""),
        ("--gpu --site a i", ["a"], "--gpu", "i", ""),
        ("--mpi openmpi i --site a", ["a"], "--mpi openmpi", "i", ""),
        ("-e A=1 i --volume /a:/b --site a -- c -d", ["a"], "-e A=1 --volume /a:/b", "i", "c -d"),
        ("i c --site a -- d", [], "", "i", "c --site a -- d"),
        ("i --entrypoint c d", [], "--entrypoint", "i", "c d"),
        ("--site a -- i c", ["a"], "", "i", "c"),
        ("--edf=e --site a c --site b", ["a"], "--edf=e", "", "c --site b"),
        ("--image=i c", [], "--image=i", "", "c"),
        ("i --site a --env B=2 c", ["a"], "--env B=2", "i", "c"),
    ],
)
def test_each_word_is_somebodys(
    words: str, site: list[str], theirs: str, image: str, command: str
) -> None:
    found = split(words.split(), parser(), "usage")
    assert (found.own.site, found.words) == (site, tuple(theirs.split()))
    assert (found.image, found.command) == (image, tuple(command.split()))


@pytest.mark.parametrize("words", ["", "--site a", "--gpu", "--"])
def test_without_an_image(words: str) -> None:
    with pytest.raises(UdiError, match="udi x: no image is given"):
        split(words.split(), parser(), "usage")


def test_what_udi_run_does_not_know() -> None:
    with pytest.raises(UdiError, match="no-such"):
        split(["--no-such", "i"], parser(), "usage")
