"""MPI inside the image under MPICH's and Open MPI's own launchers: right results, one container."""

import os
import shlex
import signal
import subprocess
from collections.abc import Iterator

import pytest

from tests.conftest import User
from tests.kit import mpiprogs
from tests.kit.mpiprogs import KINDS, Kind, Result, contained, parse
from tests.kit.nodes import Leftovers, counted, servers
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "mmdebstrap")

kinds = pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.needs(name), id=name) for name, kind in KINDS.items()],
)


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found


def run(user: User, argv: list[str]) -> Result:
    done = user.run(*argv, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return parse(done.stdout)


def check(result: Result, kind: Kind, ranks: int, most: int) -> None:
    """All ranks are there, in one container, of this MPI; all contents were right."""
    assert result.done, "mpicheck verifies every content and says so at its end"
    assert set(result.namespaces) == set(range(ranks))
    (one,) = set(result.namespaces.values())
    assert one[0] != os.readlink("/proc/self/ns/user")
    assert set(result.vm_readv.values()) == {"ok"}
    assert all(text.startswith(kind.version) for text in result.library.values())
    sizes = [8, 64, 1024, 8192, 65536, 524288, 4 << 20]
    expected = [(what, n) for n in sizes if n <= most for what in ("pingpong", "allreduce")]
    assert sorted(result.times) == sorted(expected)


@kinds
@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_messages_of_every_size_arrive(user: User, left: Leftovers, kind: Kind, ranks: int) -> None:
    # Ranks spin while they wait: with more of them, or of other tests, than cores each step takes
    # 50 ms. So there are few.
    result = run(user, contained(kind, ranks, 2))
    check(result, kind, ranks, 4 << 20)
    if set(result.node.values()) != {ranks}:
        # Debian's MPICH 5 calls each rank a node of its own, container or not.
        assert result.node == run(user, mpiprogs.bare(kind, ranks, 2, 8)).node


@kinds
def test_the_same_program_bare(user: User, kind: Kind) -> None:
    """What the tests compare with: were this to fail, it would be the machine's MPI."""
    result = run(user, mpiprogs.bare(kind, 2, 2))
    assert result.done
    assert {user for user, _ in result.namespaces.values()} == {os.readlink("/proc/self/ns/user")}


@pytest.mark.needs("openmpi")
def test_ranks_apart_cannot_read_each_others_memory(user: User, left: Leftovers) -> None:
    """Why they share: with --share=off the kernel refuses what the transports rely on."""
    argv = contained(mpiprogs.OPENMPI, 2, 2, 8, options=("--share=off",))
    result = run(user, argv)
    assert len(set(result.namespaces.values())) == 2
    assert set(result.vm_readv.values()) == {"EPERM"}


def mixed(kind: Kind) -> list[str]:
    """Return the command line of two ranks, of which the second has a volume of its own."""
    one = mpiprogs.contained(kind, 1, 2)
    other = mpiprogs.contained(kind, 1, 2, options=("--volume=/tmp:/mnt/other",))
    return by_rank(kind, one, other)


def by_rank(kind: Kind, *lines: list[str]) -> list[str]:
    """Return the command line of as many ranks as `lines`, the n-th of which runs what the n-th
    line, of one rank, does. Not by colons between them: Open MPI 5.0.7, Debian 13's, crashes then.
    """
    bare = (shlex.join(line[len(kind.launcher) + 2 :]) for line in lines)
    cases = " ".join(f"{number}) exec {words};;" for number, words in enumerate(bare))
    script = f"case ${{OMPI_COMM_WORLD_RANK:-$PMI_RANK}} in {cases} esac"
    return [*kind.launcher, "-n", str(len(lines)), "sh", "-c", script]


@kinds
def test_ranks_of_two_requests_reach_each_others_memory(
    user: User, left: Leftovers, kind: Kind
) -> None:
    """Two containers in one MPI job, and messages of every size arrive."""
    result = run(user, mixed(kind))
    assert result.done and sorted(result.namespaces) == [0, 1]
    assert len({user for user, _ in result.namespaces.values()}) == 1
    assert len({mnt for _, mnt in result.namespaces.values()}) == 2
    assert set(result.vm_readv.values()) == {"ok"}
    assert ("pingpong", 4 << 20) in result.times


OUTSIDE = {
    "UCX_POSIX_USE_PROC_LINK": "n",
    "UCX_TLS": "^cma",
    "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
    "OMPI_MCA_smsc": "^cma",
}
"""The settings of docs/launchers.md for a bare rank beside one in a container."""


@kinds
def test_a_bare_rank_beside_one_in_a_container(user: User, left: Leftovers, kind: Kind) -> None:
    """With the settings that keep MPI from the other's memory, messages of every size arrive.

    Debian 12's MPICH then waits for ever in MPI_Finalize in 1 of 20 jobs, of bare ranks as well: it
    is ended where it does not end by itself.
    """
    page = (TREE / "docs/launchers.md").read_text()
    assert all(f"`{name}={value}`" in page for name, value in OUTSIDE.items())
    user.env |= OUTSIDE
    argv = by_rank(kind, mpiprogs.bare(kind, 1, 2), contained(kind, 1, 2))
    with user.popen(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        assert job.stdout is not None
        lines: list[str] = []
        while "arrived\n" not in lines[-1:] and (line := job.stdout.readline()):
            lines.append(line)
        try:
            job.communicate(timeout=20)
        except subprocess.TimeoutExpired:
            job.terminate()
            job.communicate()
    result = parse("".join(lines))
    assert result.arrived and len(set(result.namespaces.values())) == 2
    assert "EPERM" in result.vm_readv.values()


@kinds
def test_one_launcher_in_the_container_of_another_is_apart(
    user: User, left: Leftovers, kind: Kind
) -> None:
    """Two mpiexec at once on one node: two containers."""
    argv = contained(kind, 2, 2, 8)
    # Open MPI's mpiexec removes /tmp/ompi.HOST.UID as it ends, under another that is making its
    # own folder in it: bare, 3 of 200 fail ("A call to mkdir was unable to create").
    folders = [user.home / "one", user.home / "other"]
    user.run("mkdir", *folders, check=True)
    both = [
        user.popen(
            *argv, env={"TMPDIR": str(folder)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for folder in folders
    ]
    outputs = [one.communicate(timeout=120) for one in both]
    assert [one.returncode for one in both] == [0, 0], outputs
    results = [parse(out) for out, _ in outputs]
    assert [len(set(result.namespaces.values())) for result in results] == [1, 1]
    assert results[0].namespaces[0] != results[1].namespaces[0]


@kinds
def test_a_singleton_needs_no_launcher(user: User, left: Leftovers, kind: Kind) -> None:
    words = contained(kind, 1, 2, 8)
    result = run(user, words[words.index("udi-run") :])
    assert result.done and set(result.node.values()) == {1}


@kinds
def test_the_status_of_a_rank_comes_through(user: User, left: Leftovers, kind: Kind) -> None:
    image = mpiprogs.image(kind)
    done = user.run(*kind.launcher, "-n", "2", "udi-run", image, "sh", "-c", "exit 7")
    assert done.returncode == 7


@kinds
def test_a_killed_launcher_leaves_nothing(user: User, left: Leftovers, kind: Kind) -> None:
    words = ["udi-run", str(mpiprogs.image(kind)), "sh", "-c", "echo up; exec sleep 1000"]
    launcher = user.popen(
        *kind.launcher, "-n", "4", *words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert launcher.stdout
    for _ in range(4):
        assert launcher.stdout.readline() == "up\n"
    assert len(servers(left)) == 1
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=120)
    left.check_processes()
