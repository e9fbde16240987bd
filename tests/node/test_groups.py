"""Ranks of one user whose groups differ (newgrp(1), sg(1)): a user namespace maps one group."""

import subprocess
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.cage import reachable
from tests.kit.nodes import SHOW, busybox

pytestmark = [pytest.mark.root, pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")]

GROUPS = (54321, 54322)


def start(user: User, image: Path, gid: int, words: str) -> "subprocess.Popen[str]":
    """Start shell words in the container of the ranks of the name `job`, as group `gid`."""
    drop = ("setpriv", f"--reuid={user.uid}", f"--regid={gid}", "--clear-groups")
    return subprocess.Popen(
        [*drop, "udi-run", "--share=job", f"--volume={user.home}", image, "sh", "-c", words],
        env=user.env,
        cwd=user.home,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def test_ranks_of_another_group_have_a_container_of_their_own(user: User, tmp_path: Path) -> None:
    image = busybox(reachable(tmp_path))
    reachable(user.home)
    made = f"{SHOW}; mkdir {user.home}/$$ && stat -c %g {user.home}/$$; read x"
    all_ranks = [start(user, image, gid, made) for gid in (*GROUPS, *GROUPS)]
    seen = []
    for one in all_ranks:
        assert one.stdout is not None
        seen.append([one.stdout.readline().strip() for _ in range(3)])
    for one in all_ranks:
        one.communicate("\n", timeout=60)
        assert one.returncode == 0
    # Files are the group's; who shares are those of one group.
    assert [int(group) for _, _, group in seen] == [*GROUPS, *GROUPS]
    assert seen[0] == seen[2] and seen[1] == seen[3]
    assert not set(seen[0][:2]) & set(seen[1][:2])
