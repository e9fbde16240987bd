"""Launcher, helper, server and udi-ahead, each killed or held at each of its system calls.

Whatever ends first: soon there is no process, no mount and no file of ours, and no launcher that
waits. `programs/killat.c` traces all of them and strikes one.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import OURS
from tests.conftest import User
from tests.kit.nodes import Leftovers, busybox, counted
from tests.kit.places import PROGRAMS
from tests.launch.test_run import wait_for

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox", "gcc")

MANY = ("sh", "-c", "for n in $(seq 150); do test -e /absent$n; done; true")
"""A command that asks its image enough for the next such start to be known."""
FEW = ("true",)
ROLES = ("launcher", "between", "helper", "server", "ahead")

HANGS, STAYS, NEVER = 95, 96, 99

Point = tuple[str, str, int]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture(scope="module")
def killat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("killat") / "killat"
    subprocess.run(["gcc", "-O1", "-o", target, PROGRAMS / "killat.c"], check=True)
    return target


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found


class Starts:
    """Starts under the tracer; `known` where the node knows what they will ask."""

    def __init__(self, user: User, killat: Path, image: Path, known: bool, cpus: str) -> None:
        self.user, self.killat = user, killat
        self.env = dict(user.env)
        command = MANY if known else FEW
        share = "--share=job" if known else "--share=off"
        self.argv = ("taskset", "-c", cpus, "udi-run", share, image, *command)
        # The first start in a tree compiles its modules: calls that no later start makes.
        assert user.run(*self.argv).returncode == 0
        if known:
            notes = Path(user.env["XDG_RUNTIME_DIR"]) / "rootless_udi/starts"
            wait_for(lambda: notes.exists() and [p for p in notes.iterdir() if "." not in p.name])

    def strike(self, point: Point, when: str, how: str) -> int:
        """Run a start, strike it at `point`; return what killat says."""
        role, call, nth = point
        words = (self.killat, role, call, nth, when, how, "1")
        done = self.user.run(*words, *self.argv)
        self.made, self.said = done.stdout, done.stderr
        return done.returncode

    def points(self) -> list[Point]:
        """Return all calls of a start, in order."""
        assert self.strike(("none", "none", 1), "enter", "none") == 0, self.said
        split = [line.split() for line in self.made.splitlines()]
        return [(words[0], words[1], int(words[2])) for words in split if words[0] in ROLES]


def thinned(points: list[Point], most: int) -> list[Point]:
    """Return at most so many of each process's calls of a sort: the last, and what is spread."""
    sorts: dict[tuple[str, str], list[Point]] = {}
    for point in points:
        sorts.setdefault(point[:2], []).append(point)
    return [one for each in sorts.values() for one in each[:: -max(1, len(each) // most)][:most]]


def cpus() -> list[str]:
    have = sorted(os.sched_getaffinity(0))
    return [str(have[0]), ",".join(map(str, have[:2]))]


def struck(starts: Starts, left: Leftovers, points: list[Point], when: str, how: str) -> None:
    assert points
    wrong = []
    for point in points:
        status = starts.strike(point, when, how)
        files = left.files()
        good = status == 0 or (status == OURS and "udi-run: " in starts.said)
        good = good or (point[0] == "launcher" and status == 128 + signal.SIGKILL)
        # A command that has lost its image fails as it will, by SIGBUS for one.
        good = good or (point[0] == "server" and status not in (STAYS, HANGS))
        # How often the server looks for a message before there is one is no constant.
        good = good or (status == NEVER and point[2] > 1)
        if not good or files or "Traceback" in starts.said:
            wrong.append((point, when, how, status, files, starts.said[-500:]))
            left.kill()
            for path in files:
                os.unlink(path)
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("role", ROLES)
def test_killed_at_each_sort_of_call(
    user: User, killat: Path, image: Path, left: Leftovers, role: str
) -> None:
    starts = Starts(user, killat, image, True, cpus()[1])
    chosen = [point for point in thinned(starts.points(), 1) if point[0] == role]
    struck(starts, left, chosen, "enter", "kill")


def test_a_launcher_with_a_squashfs_volume_is_killed(
    user: User, killat: Path, image: Path, left: Leftovers
) -> None:
    starts = Starts(user, killat, image, False, cpus()[1])
    starts.argv = (*starts.argv[:5], f"--volume={image}:/data", *starts.argv[5:])
    chosen = [point for point in thinned(starts.points(), 1) if point[0] == "launcher"]
    struck(starts, left, chosen, "enter", "kill")
    left.check_processes()


@pytest.mark.needs("fuse2fs")
def test_a_cache_server_ends_whose_starter_is_killed(
    user: User, image: Path, left: Leftovers
) -> None:
    """Nothing else would end it: it lives in the mount namespace that has its own mount."""
    real = shutil.which("fuse2fs", path="/usr/sbin:/usr/bin:/sbin:/bin")
    program = user.home / "bin" / "fuse2fs"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\n[ "$1" = -V ] || kill -KILL $PPID\nexec {real} "$@"\n')
    program.chmod(0o755)
    cache = f"--volume={user.home}:/tmp/c:perNodeCache=size=64M,method=file"
    path = {"PATH": f"{program.parent}:{user.env['PATH']}"}
    done = user.run("udi-run", "--writable", cache, image, "true", env=path)
    assert (done.returncode, done.stdout) == (OURS, "")
    assert f"{program} failed" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("number", [0, 1], ids=["one", "two"])
@pytest.mark.parametrize("known", [False, True], ids=["unknown", "known"])
@pytest.mark.parametrize("how", ["kill", "stop"])
@pytest.mark.parametrize("role", ROLES)
def test_the_whole_matrix(
    user: User,
    killat: Path,
    image: Path,
    left: Leftovers,
    role: str,
    known: bool,
    how: str,
    number: int,
) -> None:
    starts = Starts(user, killat, image, known, cpus()[number])
    # A server answers 200 messages, and all alike; a stop takes 2 s.
    chosen = thinned(starts.points(), 100 if how == "kill" else 5)
    chosen = [point for point in chosen if point[0] == role]
    assert chosen or (role == "ahead" and not known)
    if chosen:
        struck(starts, left, chosen, "enter", how)
        chosen = [point for point in chosen if point[1] != "exit_group"]
        struck(starts, left, chosen, "exit", how)


@pytest.mark.root
def test_an_aborted_connection_hangs_nobody(user: User) -> None:
    """The launcher holds the lock of a record that the server takes away at its end."""
    image = busybox(user.home)
    image.chmod(0o644)
    run = user.argv("udi-run", "--share=job", image, "sh", "-c", "read x; ls /bin")
    mount = 'mount -t fusectl none /sys/fs/fuse/connections && exec "$@"'
    words = ["unshare", "--mount", "sh", "-c", mount, "sh", sys.executable]
    words += [str(PROGRAMS / "abortfuse.py"), str(user.uid), "10", *run]
    done = subprocess.run(words, env=user.env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0
