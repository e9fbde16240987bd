"""Where the records of a node's containers are: no other user keeps a job's ranks apart."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.node import election, places
from tests.base.test_trust import OTHER
from tests.conftest import User
from tests.kit.cage import reachable
from tests.kit.nodes import Leftovers, Rank, busybox, counted


@pytest.fixture
def shared(tmp_path: Path) -> list[Path]:
    """Three folders as /tmp is, in which others can make anything."""
    found = [tmp_path / name / "udi" for name in ("a", "b", "c")]
    for path in found:
        path.parent.mkdir()
        path.parent.chmod(0o1777)
    return found


def state(paths: list[Path], make: bool = True) -> str:
    path, fd = places.state(map(str, paths), make)
    if fd >= 0:
        os.close(fd)
    assert path == places.seen(map(str, paths)) or not path
    return path


def test_what_is_missing_is_made_for_its_owner_alone(shared: list[Path]) -> None:
    assert state(shared, make=False) == ""
    mask = os.umask(0o777)
    try:
        assert state(shared) == str(shared[0])
    finally:
        os.umask(mask)
    assert shared[0].stat().st_mode & 0o777 == 0o700
    assert state(shared, make=False) == state(shared) == str(shared[0])
    assert not shared[1].exists()


def refuse(path: Path, how: str) -> None:
    """Put what is no state directory at `path`; another's can't be made here."""
    if how == "link":
        path.symlink_to("/")
    elif how == "dangling":
        path.symlink_to("nowhere")
    elif how == "file":
        path.touch()
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
        path.chmod(0o701)


@pytest.mark.parametrize("how", ["link", "dangling", "file", "pipe", "open"])
def test_what_is_refused_is_passed_over(shared: list[Path], how: str) -> None:
    refuse(shared[0], how)
    assert places.refusal(str(shared[0])).startswith("it is ")
    assert state(shared, make=False) == ""
    assert state(shared) == str(shared[1])
    refuse(shared[2], how)
    assert state(shared) == str(shared[1])


def test_a_place_that_is_given_free_later_changes_nothing(shared: list[Path]) -> None:
    """The attacker takes his away between two ranks: the second comes where the first is."""
    for path in shared[:2]:
        refuse(path, "file")
    assert state(shared) == str(shared[2])
    for path in shared[:2]:
        path.unlink()
    assert state(shared) == state(shared, make=False) == str(shared[2])
    # Two ranks that made one each, at the same time: of these all take the last.
    shared[0].mkdir(mode=0o700)
    assert state(shared) == str(shared[2])


def test_of_two_ranks_that_come_to_two_places_one_waits_for_the_other(
    shared: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another user's came and went between their looks: each made one, and both look in both."""
    for path in shared:
        path.mkdir(mode=0o700)
    paths = [str(path) for path in shared]
    monkeypatch.setattr(places, "directories", lambda environ, uid: paths)
    assert places.beside(paths, paths[1]) == [paths[0], paths[2]]
    both = election.elect({}, "name")
    assert both.path == paths[2] and [each.path for each in both.along] == paths[:2]
    for one in paths:
        fd = os.open(one, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(fd)
    both.release()
    fd = os.open(paths[0], os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(fd)


def test_a_place_that_nobody_else_can_take_comes_first(shared: list[Path], tmp_path: Path) -> None:
    own = tmp_path / "own" / "udi"
    own.parent.mkdir(mode=0o755)
    assert state(shared) == str(shared[0])
    assert state([own, *shared], make=False) == str(shared[0])
    assert state([own, *shared]) == str(own)
    assert state([*shared, own]) == str(shared[0])


def test_all_are_taken_but_those_of_the_site_and_of_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"HOME": str(tmp_path / "home"), "UDI_SITE_DIR": str(tmp_path / "site")}
    taken = tmp_path / "taken"
    taken.touch()
    monkeypatch.setattr(places, "directories", lambda environ, uid: [str(taken)])
    own = f"{tmp_path}/home/.local/state/rootless_udi/{os.uname().nodename}"
    assert places.find(environ, make=False) == ("", -1)
    path, fd = places.find(environ, make=True)
    os.close(fd)
    assert path == own and os.stat(own).st_mode & 0o777 == 0o700
    (tmp_path / "site").mkdir()
    (tmp_path / "site/udi.toml").write_text(f"[state]\ndirectories = ['{tmp_path}/udi-$UID']\n")
    path, fd = places.find(environ, make=True)
    os.close(fd)
    assert path == f"{tmp_path}/udi-{os.getuid()}"
    assert places.find(environ, make=False)[0] == path


def test_a_place_is_final_where_none_before_it_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, there = tmp_path / "login/udi", tmp_path / "udi"
    there.mkdir(mode=0o700)
    monkeypatch.setattr(places, "directories", lambda environ, uid: [str(before), str(there)])
    assert places.final({}, str(there)) and not places.final({}, "/elsewhere")
    before.parent.mkdir()
    assert not places.final({}, str(there)) and places.final({}, str(before))


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found


@pytest.mark.root
@pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")
def test_ranks_agree_though_another_user_was_first(
    user: User, tmp_path: Path, left: Leftovers
) -> None:
    """He has taken the usual places, and gives them free while the ranks are starting."""
    image = busybox(tmp_path)
    reachable(tmp_path)
    folder = tmp_path / "shm"
    folder.mkdir()
    folder.chmod(0o1777)
    user.env["XDG_RUNTIME_DIR"] = str(folder)
    names = places.directories(user.env, user.uid)[2:]
    missing = [path for path in map(Path, names) if not path.exists()]
    planted = [folder / "rootless_udi", *missing[:1]]
    for path in planted:
        path.mkdir(0o755)
        os.chown(path, OTHER, OTHER)
    try:
        old = Rank(user, "udi-run", "--share=job", image).ready()
        for path in planted:
            path.rmdir()
        done = user.run("udi-run", "--share=job", image, "readlink", "/proc/self/ns/mnt")
        assert done.stdout.strip() == os.readlink(f"/proc/{old.pid}/ns/mnt"), done.stderr
        old.kill()
        assert "passed over" not in user.run("udi", "ps").stderr
    finally:
        for path in (*planted, *missing):
            subprocess.run(["rm", "-rf", path], check=True)
