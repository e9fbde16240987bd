"""udi-run in C refuses a privilege of its own before it does anything else."""

import os
import shutil
import struct
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.cage import reachable
from tests.kit.places import TREE

pytestmark = [pytest.mark.root, pytest.mark.needs("joiner")]

REVISION_2, EFFECTIVE, NET_RAW = 0x02000000, 1, 1 << 13  # linux/capability.h


@pytest.fixture
def program(user: User) -> Path:
    """A copy that is root's, beside something that must never run."""
    path = reachable(user.home) / "udi-run"
    shutil.copy(TREE / "build/joiner/udi-run", path)
    (user.home / "udi-run-python").touch()
    trap = user.home / "python3"
    trap.write_text("#!/bin/sh\necho RUN\n")
    trap.chmod(0o755)
    return path


@pytest.mark.parametrize("mode", [0o4755, 0o2755])
def test_setuid_and_setgid_are_refused(user: User, program: Path, mode: int) -> None:
    program.chmod(mode)
    assert not os.statvfs(program).f_flag & os.ST_NOSUID
    for words in ([], ["--version"], ["--share=x", "img"]):
        done = user.run(program, *words)
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr.startswith("udi-run: udi-run is setuid or setgid, and refuses to run so")


def test_file_capabilities_are_refused(user: User, program: Path) -> None:
    data = struct.pack("<IIIII", REVISION_2 | EFFECTIVE, NET_RAW, 0, 0, 0)
    os.setxattr(program, "security.capability", data)
    done = user.run(program, "--version")
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.startswith("udi-run: udi-run has file capabilities, and refuses to run so")


def test_without_any_it_hands_over(user: User, program: Path) -> None:
    """The copy and what lies beside it work: the tests above would see it run."""
    done = user.run(program, "--share=x", "img")
    assert done.stdout == "RUN\n"
