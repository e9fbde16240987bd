"""What is said of a file or a name that is no image."""

import subprocess
from pathlib import Path

import pytest

from rootless_udi.store import find, suggest
from tests.conftest import User

FILES = {
    "a SIF file": (32, b"SIF_MAGIC", "udi import "),
    "a tar file": (257, b"ustar", "docker-archive:"),
    "an ISO image": (32769, b"CD001", "mount it"),
    "an ext file system": (1080, b"\x53\xef", "mount it"),
    "a gzip file": (0, b"\x1f\x8b", "docker-archive:"),
    "a program": (0, b"\x7fELF", "the word after the image"),
    "a qcow2 disk image": (0, b"QFI\xfb", "pull one by name"),
    "an empty file": (0, b"", "broken off"),
}


@pytest.mark.parametrize("what", FILES)
def test_files_are_named_for_what_they_are(user: User, what: str) -> None:
    offset, magic, hint = FILES[what]
    path = user.home / "thing"
    path.write_bytes(b"\0" * offset * bool(magic) + magic)
    done = user.run("udi-run", "./thing", "id")
    assert done.returncode == 125
    said = f"udi-run: image {path} is no squashfs file: it is {what}\n"
    assert done.stderr.startswith(said) and hint in done.stderr


@pytest.mark.needs("fuse2fs")
def test_a_real_ext4(user: User) -> None:
    path = user.home / "disk"
    subprocess.run(["mke2fs", "-q", "-t", "ext4", path, "1M"], check=True)
    assert suggest.kind(str(path))[0] == "an ext file system"


def test_what_is_unknown_is_not_named(user: User) -> None:
    (user.home / "thing").write_bytes(b"nothing that anybody knows")
    done = user.run("udi-run", "./thing", "id")
    assert "does not begin with squashfs's magic number" in done.stderr


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("127.0.0.1:1/app:v2", "did you mean 127.0.0.1:1/app:v1, which the store has?"),
        ("127.0.0.1:1/apq:v1", "did you mean 127.0.0.1:1/app:v1, which the store has?"),
        ("quay.io/entirely/other", ""),
    ],
)
def test_a_name_that_is_near_one_of_the_store(user: User, typed: str, hint: str) -> None:
    names = user.home / "store/names/amd64"
    names.mkdir(parents=True)
    (names / find.escape("127.0.0.1:1/app:v1")).symlink_to("sha256-" + "0" * 64)
    found = suggest.meant(typed, (str(user.home / "store"), "/nowhere"))
    assert found == hint


def test_a_file_that_is_here(user: User, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.tar").write_bytes(b"\0" * 257 + b"ustar")
    (tmp_path / "app").mkdir()
    assert suggest.meant("app.tar", ()) == "did you mean the file: docker-archive:app.tar?"
    assert suggest.meant("app", ()) == "did you mean what is here: ./app?"


def test_a_name_is_suggested_where_a_pull_fails(user: User) -> None:
    """Once, by `udi pull`, whether a person or udi-run calls it."""
    names = user.home / "store/names/amd64"
    names.mkdir(parents=True)
    (names / find.escape("127.0.0.1:1/app:v1")).symlink_to("sha256-" + "0" * 64)
    for argv in (["udi", "pull", "127.0.0.1:1/apq:v1"], ["udi-run", "127.0.0.1:1/apq:v1", "id"]):
        done = user.run(*argv)
        assert done.returncode == 125
        assert done.stderr.count("did you mean 127.0.0.1:1/app:v1, which the store has?") == 1


def test_a_name_is_suggested_where_nothing_may_be_pulled(user: User) -> None:
    names = user.home / "store/names/amd64"
    names.mkdir(parents=True)
    (names / find.escape("docker.io/library/ubuntu:24.04")).symlink_to("sha256-" + "0" * 64)
    for argv in (["--pull=never"], ["--share=job"]):
        done = user.run("udi-run", *argv, "ubuntu:24.4", "id")
        assert done.returncode == 125
        assert done.stderr.endswith("; did you mean ubuntu:24.04, which the store has?\n")
