"""What a killed helper leaves is swept; what lives, or is being made, is not."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base import process
from rootless_udi.node import publish
from rootless_udi.node.sweep import sweep

HEAD = publish.content((("token", "1.1"), ("user", "1"), ("mnt", "1")), b"").decode()
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
        {"a.2": HEAD + DEAD, "a.lock": ""},
        {"a.2": HEAD + DEAD, "a.lock": "", "a.new": "udi"},
        {"a.2": HEAD + DEAD},
        {"a.lock": ""},
        {"a.lock": "", "a.new": ""},
        {"a.2": "no record", "a.lock": ""},
        {"a.2": HEAD + f"{os.getpid()} 1\n", "a.lock": ""},
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
    (path / "a.2").write_text(HEAD + DEAD + me())
    (path / "a.lock").touch()
    (path / "alone.2").write_text(HEAD + me())
    (path / "b.2").write_text(HEAD + DEAD)
    assert sweep(fd) == ["b"]
    assert sorted(p.name for p in path.iterdir()) == ["a.2", "a.lock", "alone.2"]


def test_what_another_version_has_made_stays(place: tuple[Path, int]) -> None:
    """Format 1 had NAME for a record, and its lock is nobody's while the container runs."""
    path, fd = place
    (path / "a").write_text(f"udi 1\nuser=1\nmnt=1\n\n{me()}")
    (path / "a.lock").touch()
    (path / "b.3").write_text(f"udi 3\n{me()}")
    (path / "b.lock").touch()
    (path / "c.2").write_text(f"udi 3 {me()}{me()}")
    (path / "c.lock").touch()
    assert sweep(fd) == []
    assert sorted(p.name for p in path.iterdir()) == [
        *("a", "a.lock", "b.3", "b.lock", "c.2", "c.lock")
    ]


def test_what_is_being_made_stays(place: tuple[Path, int]) -> None:
    """Its builder holds the lock; a run alone has no lock, and its record is not whole yet."""
    path, fd = place
    with open(path / "a.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (path / "a.2").write_text(HEAD + DEAD)
        (path / "alone.new").write_text("udi 2 100\nreq")
        assert sweep(fd) == []
        assert len(list(path.iterdir())) == 3
    assert sweep(fd) == ["a"]
