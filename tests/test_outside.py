"""The processes outside a container are the container's, and have nothing of the first rank's."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.cage import reachable
from tests.kit.nodes import Leftovers, Rank, busybox, counted, servers
from tests.launch.test_run import wait_for

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found


def outside(left: Leftovers, rank: Rank) -> dict[str, int]:
    """Return the helper and the server of a container by their command lines."""
    return {words: pid for pid, words in left.processes().items() if pid != rank.pid}


def holds(pid: int) -> dict[str, int]:
    """Return how many descriptors of each sort a process has."""
    found: dict[str, int] = {}
    for fd in os.listdir(f"/proc/{pid}/fd"):
        try:
            to = os.readlink(f"/proc/{pid}/fd/{fd}").partition(":[")[0]
        except FileNotFoundError:  # closed meanwhile
            continue
        # Its path is of the mount namespace that opened it.
        to = "fuse" if to.endswith("/fuse") else to
        found[to] = found.get(to, 0) + 1
    return found


def test_what_they_hold_is_what_the_table_says(user: User, image: Path, left: Leftovers) -> None:
    one = Rank(user, "udi-run", image).ready()
    both = outside(left, one)
    # The socket tells it, where the server dies, whether udi-run has become the command by then.
    helper = {"/dev/null": 3, "anon_inode:inotify": 1, "socket": 1}
    server = {"/dev/null": 3, "socket": 1, str(image): 1, "fuse": 1}
    for name, wanted in (("udi-helper", helper), ("udi-image", server)):
        wait_for(lambda name=name, wanted=wanted: holds(both[name]) == wanted)
    assert not set(holds(one.pid)) & {"fuse", "anon_inode:inotify", "socket"}
    assert one.end()[0] == 0


def test_they_show_their_own_words_and_ignore_what_is_meant_for_jobs(
    user: User, image: Path, left: Leftovers
) -> None:
    one = Rank(user, "udi-run", image).ready()
    both = outside(left, one)
    assert set(both) == {"udi-helper", "udi-image"}
    left_alone = {signal.SIGKILL, signal.SIGSTOP, signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS}
    left_alone |= {signal.SIGFPE, signal.SIGILL, signal.SIGTRAP, signal.SIGSYS}
    for number in signal.valid_signals() - left_alone:
        for pid in both.values():
            os.kill(pid, number)
    status, out, _ = one.end("cat /var/word; exit 3")
    assert (status, out) == (3, "word\n")
    left.check()


def test_they_take_the_cpus_of_the_job(user: User, image: Path, left: Leftovers) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    one = Rank(user, "taskset", "-c", cpus[0], "udi-run", image).ready()
    for pid in outside(left, one).values():
        assert set(os.sched_getaffinity(pid)) >= set(cpus)
    assert os.sched_getaffinity(one.pid) == {cpus[0]}
    assert one.end()[0] == 0


def test_a_long_first_word_is_the_commands_own_fault(
    user: User, image: Path, left: Leftovers
) -> None:
    done = user.run("udi-run", image, "x" * 100_000)
    assert (done.returncode, "image" in done.stderr.splitlines()[0]) == (126, False)
    done = user.run("udi-run", "--entrypoint=true", image, "x" * 100_000)
    assert (done.stderr, done.returncode) == ("", 0)


RANKS = """
    mkfifo fifo
    udi-run --share=job {image} sh -c 'readlink /proc/self/ns/mnt; read x' <fifo >one &
    exec 9>fifo
    until test -s one; do :; done
    udi-run --share=job {image} readlink /proc/self/ns/mnt >two
    cat one two
    udi ps
    echo >&9
    wait
"""


@pytest.mark.root
@pytest.mark.parametrize("option", ["hidepid=1", "hidepid=2", "hidepid=4", "subset=pid"])
def test_ranks_share_where_processes_are_hidden(
    user: User, image: Path, left: Leftovers, option: str
) -> None:
    reachable(image.parent)
    script = f'mount -t proc -o {option} proc /proc && exec "$@"'
    words = user.argv("sh", "-ec", RANKS.format(image=image))
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", script, "sh", *words],
        env=user.env,
        cwd=user.home,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (done.stderr, done.returncode) == ("", 0)
    first, second, head, row, *rest = done.stdout.splitlines()
    assert first == second and not rest
    assert head.startswith("NAME") and "dead" not in row and " 1 " in row
    if servers(left):
        left.check()
