"""Ranks of one launcher that ask for different things: two containers, one user namespace.

So they reach each other's memory, as bare ones do. Afterwards nothing may remain.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base import process
from rootless_udi.node import pair as pairs
from rootless_udi.node import publish
from rootless_udi.node.sweep import sweep
from tests.conftest import User
from tests.kit.nodes import Leftovers, Rank, busybox, counted, servers

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found


def words(image: Path, request: int | str) -> tuple[object, ...]:
    """Return udi-run's words for one of several requests of one launcher."""
    return ("udi-run", "--share=job", f"--volume=/tmp:/mnt/{request}", image)


def rank(user: User, image: Path, request: int | str) -> Rank:
    return Rank(user, *words(image, request))


def together(*ranks: Rank, containers: int) -> None:
    """Check that all are in one user namespace, and in so many mount namespaces."""
    assert len({one.namespaces[0] for one in ranks}) == 1
    assert len({one.namespaces[1] for one in ranks}) == containers
    assert ranks[0].namespaces[0] != os.readlink("/proc/self/ns/user")


def end(*ranks: Rank) -> None:
    for one in ranks:
        assert one.end()[0] == 0


def pair(left: Leftovers) -> Path:
    (path,) = (Path(p) for p in left.files() if p.endswith(".pair"))
    return path


def start_of(pid: int) -> int:
    return process.start_and_parent(pid)[0]


def test_ranks_of_two_requests_may_look_into_each_other(
    user: User, image: Path, left: Leftovers
) -> None:
    one, other = rank(user, image, 1).ready(), rank(user, image, 2).ready()
    together(one, other, containers=2)
    assert len(servers(left)) == 2
    # Each has its own mounts, and what process_vm_readv(2) asks for is granted (ptrace(2)).
    look = f"test -d /mnt/2 && test ! -d /mnt/1 && readlink /proc/{one.pid}/cwd"
    assert other.end(look)[0] == 0
    end(one)


@pytest.mark.parametrize("option", ["--writable", "--fuse=squashfuse_ll", "--layer=underlay"])
def test_every_way_to_mount_works_in_a_namespace_that_is_there(
    user: User, image: Path, left: Leftovers, option: str
) -> None:
    one = rank(user, image, 1).ready()
    other = Rank(user, "udi-run", "--share=job", option, image).ready()
    together(one, other, containers=2)
    show = "id -u; id -g; cat /proc/self/uid_map /proc/self/gid_map; grep ^Cap /proc/self/status"
    assert one.end(show)[1] == other.end(show)[1]


def test_32_ranks_of_4_requests_at_once(user: User, image: Path, left: Leftovers) -> None:
    many = [one.ready() for one in [rank(user, image, i % 4) for i in range(32)]]
    together(*many, containers=4)
    assert len(servers(left)) == 4
    end(*many)


def test_the_builder_has_ended_and_others_come(user: User, image: Path, left: Leftovers) -> None:
    """The pair goes from hand to hand: to a rank that joined, to another request, and back."""
    first, joined = rank(user, image, 1).ready(), rank(user, image, 1).ready()
    end(first)
    second = rank(user, image, 2).ready()
    together(first, joined, second, containers=2)
    end(joined)
    again = rank(user, image, 1).ready()
    together(again, second, containers=2)
    assert again.namespaces[0] == first.namespaces[0]
    end(second, again)


def test_all_have_ended(user: User, image: Path, left: Leftovers) -> None:
    """Nothing remains of them, and the next ranks have a pair of their own."""
    end(rank(user, image, 1).ready(), rank(user, image, 2).ready())
    left.check()
    two = [one.ready() for one in [rank(user, image, 1), rank(user, image, 2)]]
    together(*two, containers=2)
    end(*two)


def test_one_launcher_does_not_share_with_another(user: User, image: Path, left: Leftovers) -> None:
    one = rank(user, image, 1).ready()
    other = Rank(user, "udi-run", "--share=other", image).ready()
    alone = Rank(user, "udi-run", "--share=off", image).ready()
    assert len({r.namespaces[0] for r in (one, other, alone)}) == 3
    end(one, other, alone)


def test_a_long_launcher_keeps_a_short_record(user: User, image: Path, left: Leftovers) -> None:
    """Of builders that have ended no line stays."""
    one = rank(user, image, "held").ready()
    for request in range(18):
        assert user.run(*words(image, request), "true").returncode == 0
        assert len(pair(left).read_text().splitlines()) <= 18
    end(one)


# Something is killed


def test_helpers_and_servers_are_killed(user: User, image: Path, left: Leftovers) -> None:
    """No process of ours holds the pair: it is found through the ranks."""
    first, joined = rank(user, image, 1).ready(), rank(user, image, 1).ready()
    for pid in set(left.processes()) - {first.pid, joined.pid}:
        os.kill(pid, signal.SIGKILL)
    first.kill()
    second = rank(user, image, 2).ready()
    together(joined, second, containers=2)
    joined.kill()
    end(second)
    # What killed helpers have left goes with the next start.
    assert user.run("udi-run", "--share=other", image, "true").returncode == 0


def test_whoever_has_the_pair_is_killed(user: User, image: Path, left: Leftovers) -> None:
    """The file is there, nobody it names: a new pair is made."""
    old = rank(user, image, 1).ready()
    text, path = pair(left).read_text(), pair(left)
    old.kill()
    left.check()
    path.write_text(text)
    two = [rank(user, image, 1).ready(), rank(user, image, 2).ready()]
    together(*two, containers=2)
    end(*two)


CHANGING = ("openat", "flock", "pwrite64", "ftruncate", "clone", "recvmsg", "ioctl", "wait4")


def points(user: User, image: Path, log: Path) -> list[tuple[str, int]]:
    """Return a builder's system calls while it has the pair's file: (name, how many-th)."""
    done = user.run("strace", "-o", log, *words(image, 1), "true")
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = {}
    found, inside = [], False
    for line in log.read_text().splitlines():
        name = line.partition("(")[0]
        counts[name] = counts.get(name, 0) + 1
        inside = inside or ('.pair"' in line and name == "openat")
        if inside and name in CHANGING:
            found.append((name, counts[name]))
        if name == "ftruncate":
            break
    return found


@pytest.mark.needs("strace")
def test_the_builder_is_killed_while_it_makes_the_pair(
    user: User, image: Path, left: Leftovers, tmp_path: Path
) -> None:
    """SIGKILL at one call after the other; ranks of two requests then share all the same."""
    chosen = points(user, image, tmp_path / "log")
    assert {"openat", "flock", "pwrite64", "recvmsg"} <= {name for name, _ in chosen}
    for name, count in chosen:
        strace = ["strace", "-o", "/dev/null", "-e", f"inject={name}:signal=KILL:when={count}"]
        builder = user.popen(*strace, *words(image, 1), "true", stderr=subprocess.DEVNULL)
        others = [rank(user, image, request) for request in (1, 2)]
        together(*[one.ready() for one in others], containers=2)
        end(*others)
        builder.wait(60)
        left.check()


@pytest.mark.needs("strace")
@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("signal=KILL", "udi-run: the process that makes user namespaces was killed\n"),
        ("error=EUSERS", "udi-run: unshare failed: Too many users\n"),
    ],
)
def test_the_process_that_makes_the_pair_fails(
    user: User, image: Path, left: Leftovers, fault: str, said: str
) -> None:
    """It is killed, or the kernel refuses user namespaces: the error is the one of any start."""
    # Of the whole tree the first call of unshare(2) is its own.
    strace = ["strace", "-f", "-o", "/dev/null", "-e", f"inject=unshare:{fault}:when=1"]
    done = user.run(*strace, *words(image, 1), "true")
    assert (done.returncode, done.stderr.startswith(said)) == (125, True), done.stderr


# The record lies


@pytest.mark.parametrize(
    "text",
    [
        "",
        "udi-pair 1",
        "udi-pair 1 99999999999999999999999\n",
        "udi-pair 1 4026531837\n1 1\n",
        "udi-pair 1 4026531837\nME\n",
        "udi-pair 9 1\n4194303 1\n",
        "udi-pair 1 1\n" + "x" * (2 << 20),
        "udi-pair 1 1\n99999999999 1\n-1 -1\n1 2 3\nMEx\n",
    ],
    ids=[
        *("empty", "cut", "large", "init's", "the caller's own", "dead format", "long"),
        "no members",
    ],
)
def test_a_damaged_pair_is_no_pair(user: User, image: Path, left: Leftovers, text: str) -> None:
    one = rank(user, image, 1).ready()
    path = pair(left)
    end(one)
    left.check()
    path.write_text(text.replace("ME", f"{os.getpid()} {start_of(os.getpid())}"))
    two = [rank(user, image, 1).ready(), rank(user, image, 2).ready()]
    assert two[0].namespaces[0] != os.readlink("/proc/self/ns/user")
    # One who is in that namespace himself is told that he can't leave it, and runs as without.
    assert len({one.namespaces[0] for one in two}) == (2 if "ME\n" in text else 1)
    end(*two)
    left.check_processes()
    assert user.run("udi", "ps").returncode == 0
    path.unlink(missing_ok=True)


def test_a_living_pair_of_another_version_stays(user: User, image: Path, left: Leftovers) -> None:
    one = rank(user, image, 1).ready()
    path = pair(left)
    end(one)
    left.check()
    text = f"udi-pair 2 anything\n{os.getpid()} {start_of(os.getpid())}\n"
    path.write_text(text)
    done = user.run(*words(image, 1), "true")
    assert done.returncode == 125
    assert "user namespaces is of a format that this version does not know" in done.stderr
    left.check_processes()
    assert user.run("udi", "ps").returncode == 0 and path.read_text() == text
    path.unlink()


@pytest.mark.parametrize("kind", ["link", "folder", "fifo", "open to all"])
def test_something_else_in_its_place(user: User, image: Path, left: Leftovers, kind: str) -> None:
    one = rank(user, image, 1).ready()
    path = pair(left)
    end(one)
    left.check()
    match kind:
        case "link":
            path.symlink_to("/etc/passwd")
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case _:
            path.touch()
            path.chmod(0o666)
    done = user.run(*words(image, 1), "true")
    assert done.returncode == 125 and done.stderr.startswith("udi-run: "), done.stderr
    assert (
        "Traceback" not in done.stderr and path.name in done.stderr
    ) or "state dir" in done.stderr
    left.check_processes()
    path.rmdir() if kind == "folder" else path.unlink(missing_ok=True)


def test_what_is_swept(tmp_path: Path) -> None:
    """A pair in which nobody is, or only who is about to end; not one that lives."""
    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    me = (os.getpid(), start_of(os.getpid()))
    mine = f"{me[0]} {me[1]}\n"
    head = "udi-pair 1 77\n"
    record = publish.content((("user", "77"), ("mnt", "1")), mine.encode())
    for text, ended, stays in (
        ("", (0, 0), None),
        (head + "4194303 1\n", (0, 0), None),
        (head + mine, me, None),
        (head + mine, (0, 0), head + mine),
        (head + "4194303 1\n" + mine, (4194303, 1), head + mine),
        ("udi-pair 9\n" + mine, (4194303, 1), "udi-pair 9\n" + mine),
        ("udi-pair 9\n4194303 1\n", (0, 0), None),
    ):
        path = tmp_path / "x.pair"
        path.write_text(text)
        assert sweep(directory, ended) == []
        assert (path.read_text() if path.exists() else None) == stays, text
    # Its builder has ended, and one that joined the builder's container has not.
    (tmp_path / "a.2").write_bytes(record)
    path.write_text(head + "4194303 1\n")
    assert sweep(directory, (4194303, 1)) == [] and path.exists()
    (tmp_path / "a.2").unlink()
    assert sweep(directory) == [] and not path.exists()
    os.close(directory)


# Ranks outside


BUILDER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
here, there = os.pipe()
maker = os.fork()
if maker == 0:
    os.close(there)
    assert libc.unshare(0x10000000) == 0
    os.write(1, b"made\\n")
    os.read(here, 1)
    os._exit(0)
sys.stdin.buffer.raw.read(1)
space = os.open(f"/proc/{maker}/ns/user", os.O_RDONLY)
print(os.fstat(space).st_ino, flush=True)
sys.stdin.buffer.raw.read(1)
assert libc.setns(space, 0x10000000) == 0
os.close(space)
print("inside", flush=True)
sys.stdin.buffer.raw.read(1)
"""


def test_a_builder_enters_while_it_is_looked_at(user: User) -> None:
    """Between the look at its namespace and the one at its descriptors."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with user.popen(sys.executable, "-c", BUILDER, **pipes) as one:
        assert one.stdin is not None and one.stdout is not None
        assert one.stdout.readline() == "made\n"
        print(end="1", file=one.stdin, flush=True)
        number = int(one.stdout.readline())
        paths = pairs._names(one.pid, number)
        assert os.stat(next(paths)).st_ino != number
        print(end="2", file=one.stdin, flush=True)
        assert one.stdout.readline() == "inside\n"
        assert number in [os.stat(path).st_ino for path in paths]
        one.communicate("34", timeout=60)


def test_a_bare_rank_beside_one_in_a_container_is_told(
    user: User, image: Path, left: Leftovers
) -> None:
    """Their launcher is the process that started them: the test."""
    inside = Rank(user, "udi-run", image, env={"PMI_RANK": "0"}).ready()
    # Behind a wrapper script, which is no rank apart.
    script = 'exec 3<&0; udi-run "$0" "$@" <&3 & wait $!'
    wrapped = Rank(user, "sh", "-c", script, image, env={"PMI_RANK": "1"}).ready()
    done = user.run("udi", "ps")
    assert (done.returncode, done.stderr) == (0, "")
    bare = Rank(user, "env", env={"PMI_RANK": "2"}).ready()
    apart = Rank(user, "udi-run", "--share=off", image, env={"PMI_RANK": "3"}).ready()
    for option in ("--json", "--names", ""):
        done = user.run("udi", "ps", *filter(None, [option]))
        assert done.returncode == 0 and done.stdout
        for number, one in ((2, bare), (3, apart)):
            said = f"(process {one.pid}, sh) is in none of its containers: MPI can't reach"
            assert f"udi: rank {number} of mpi {os.getpid()}." in done.stderr
            assert said in done.stderr
        assert done.stderr.count("hint") == 2 and "start it by udi-run too" in done.stderr
    end(inside, wrapped, bare, apart)


# From inside


def test_a_udi_run_in_the_same_user_namespace_is_in_no_other_container(
    user: User, image: Path, left: Leftovers
) -> None:
    """setns(2) refuses the user namespace that a process is in, whatever container it is in."""
    one, other = rank(user, image, 1).ready(), rank(user, image, 2).ready()
    inside = ("nsenter", "--user", "--preserve-credentials", f"--target={one.pid}")
    for request in (1, 2):
        done = user.run(*inside, *words(image, request), "true")
        assert done.returncode == 125 and "setns failed: Operation not permitted" in done.stderr
        assert "is this udi-run in a container" in done.stderr
    # Nor can it go where containers are built: it makes namespaces of its own.
    third = user.run(*inside, *words(image, 3), "readlink", "/proc/self/ns/user")
    assert third.returncode == 0 and third.stdout != f"{one.namespaces[0]}\n", third.stderr
    fourth = rank(user, image, 4).ready()
    together(one, other, fourth, containers=3)
    end(one, other, fourth)
