"""A bare rank beside one in a container is named on the standard error of that one."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.serve import bareranks
from tests.conftest import User
from tests.kit.nodes import Leftovers, busybox, counted

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")

LAUNCHER = """
export PMI_RANK
PMI_RANK=0 udi-run $OPTIONS "$IMAGE" sh -c 'echo up; read line' <&3 &
PMI_RANK=1 LD_PRELOAD=$LIBRARY sh -c "$WRAPPER cat" <&3 &
wait
"""
"""Starts a rank in a container and a bare one, as mpiexec does."""


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found


def library(folder: Path, name: str) -> Path:
    """A library of this name, which a program can have in its memory."""
    source = next(Path("/usr/lib").glob("*/libz.so.1"), None) or next(
        Path("/lib").glob("*/libm.so.6")
    )
    return Path(shutil.copy(source, folder / name))


def start(user: User, **env: object) -> "subprocess.Popen[str]":
    """Start both ranks, which live until their standard input ends."""
    words = ("sh", "-c", f"exec 3<&0; {LAUNCHER}")
    more = {"OPTIONS": "", "WRAPPER": "exec", **{name: str(value) for name, value in env.items()}}
    launcher = user.popen(*words, env=more, stdin=-1, stdout=-1, stderr=-1)
    assert launcher.stdout is not None and launcher.stdout.readline() == "up\n"
    return launcher


@pytest.mark.parametrize("wrapper", ["exec", "true;"])
def test_a_bare_rank_is_named(
    user: User, image: Path, left: Leftovers, tmp_path: Path, wrapper: str
) -> None:
    launcher = start(user, IMAGE=image, LIBRARY=library(tmp_path, "libmpi.so.40"), WRAPPER=wrapper)
    assert launcher.stderr is not None
    said = launcher.stderr.readline()
    assert said.startswith("udi-run: rank 0 on ") and ": rank 1 of this launcher (process " in said
    assert ", cat) is outside its container: " in said
    assert launcher.stderr.readline().startswith("udi-run: rank 0 on ")
    launcher.communicate("", timeout=60)


def test_who_is_no_bare_rank(tmp_path: Path) -> None:
    """Who has no rank's number, no MPI in its memory, or another user namespace."""
    mpi = {"LD_PRELOAD": str(library(tmp_path, "libmpi.so.40"))}
    wait = ("sh", "-c", "echo; read line")
    ranks = [
        subprocess.Popen(
            argv,
            env={"PATH": "/usr/bin:/bin", **env},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for argv, env in (
            (wait, {"PMI_RANK": "1"}),
            (wait, mpi),
            (("unshare", "--user", *wait), {"PMI_RANK": "3", **mpi}),
            (wait, {"PMI_RANK": "4", **mpi}),
        )
    ]
    for one in ranks:
        assert one.stdout is not None and one.stdout.readline() == b"\n"
    try:
        found = bareranks.bare(os.getpid())
        assert {number: pid for number, (pid, _) in found.items()} == {"4": ranks[3].pid}
    finally:
        for one in ranks:
            one.communicate()
