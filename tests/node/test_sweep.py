"""What a killed helper leaves is swept; what lives, or is being made, is not."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base import process
from rootless_udi.node.sweep import sweep

HEAD = "udi 1\nrequest=x\ntoken=1.1\nuser=1\nmnt=1\n\n"
DEAD = "4194303 1\n"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield tmp_path, fd
    os.close(fd)


def me() -> str:
    return f"{os.getpid()} {process.started(os.getpid())}\n"


@pytest.mark.parametrize(
    "files",
    [
        {"a": HEAD + DEAD, "a.lock": ""},
        {"a": HEAD + DEAD, "a.lock": "", "a.new": "udi"},
        {"a": HEAD + DEAD},
        {"a.lock": ""},
        {"a.lock": "", "a.new": ""},
        {"a": "no record", "a.lock": ""},
        {"a": HEAD + f"{os.getpid()} 1\n", "a.lock": ""},
    ],
    ids=["dead", "and unfinished", "alone", "lock", "unfinished", "damaged", "recycled pid"],
)
def test_what_is_dead_goes(place: tuple[Path, int], files: dict[str, str]) -> None:
    path, fd = place
    for name, text in files.items():
        (path / name).write_text(text)
    assert sweep(fd) == ["a"]
    assert list(path.iterdir()) == []
    assert sweep(fd) == []


def test_what_lives_stays(place: tuple[Path, int]) -> None:
    path, fd = place
    (path / "a").write_text(HEAD + DEAD + me())
    (path / "a.lock").touch()
    (path / "alone").write_text(HEAD + me())
    (path / "b").write_text(HEAD + DEAD)
    assert sweep(fd) == ["b"]
    assert sorted(p.name for p in path.iterdir()) == ["a", "a.lock", "alone"]


def test_what_is_being_made_stays(place: tuple[Path, int]) -> None:
    """Its builder holds the lock; a run alone has no lock, and its record is not whole yet."""
    path, fd = place
    with open(path / "a.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (path / "a").write_text(HEAD + DEAD)
        (path / "alone.new").write_text("udi 1\nreq")
        assert sweep(fd) == []
        assert len(list(path.iterdir())) == 3
    assert sweep(fd) == ["a"]
