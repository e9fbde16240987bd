"""What happens to a node's ranks when something dies, lies or is full: real processes, real kills.

Every test counts what remains when it has ended: no process, no mount, no file.
"""

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from rootless_udi.node.election import Election, is_named
from rootless_udi.node.record import NodeRecord
from tests.conftest import User
from tests.kit.cage import reachable
from tests.kit.nodes import Leftovers, Rank, busybox, counted, servers
from tests.kit.places import TREE
from tests.launch.test_run import wait_for

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")

OUTER = ("unshare", "-Urm", "--map-current-user", "--keep-caps", "--propagation=private")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found


def join(user: User, image: Path, *command: str) -> "subprocess.CompletedProcess[str]":
    return user.run("udi-run", "--share=job", image, *(command or ("true",)))


def rank(user: User, image: Path) -> Rank:
    return Rank(user, "udi-run", "--share=job", image)


def record(left: Leftovers) -> Path:
    """Return the one record of the state directory (beside it lie its lock and its pair)."""
    (path,) = (Path(p) for p in left.files() if not p.endswith((".lock", ".new", ".pair")))
    return path


# The builder dies


HOLD = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o600)
fcntl.flock(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("stopped", [True, False])
def test_of_those_who_wait_for_a_builder_one_says_so(
    user: User, image: Path, left: Leftovers, tmp_path: Path, stopped: bool
) -> None:
    first = rank(user, image).ready()
    lock = record(left).with_suffix(".lock")
    assert first.end()[0] == 0
    # Who ends it sweeps last, and takes a lock that nobody holds yet for an orphan.
    left.check()
    said = tmp_path / "said"
    words = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(words, stdin=-1, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None and holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        if stopped:
            os.kill(holder.pid, signal.SIGSTOP)
        with said.open("w") as file:
            argv = ("udi-run", "--share=job", image, "true")
            three = [user.popen(*argv, stderr=file) for _ in range(3)]
            wait_for(lambda: "hint" in said.read_text(), 60)
        os.kill(holder.pid, signal.SIGCONT)
        holder.stdin.close()
        assert [one.wait(60) for one in three] == [0, 0, 0]
    text = said.read_text()
    # Later they may wait for the one of them that builds.
    assert text.count(f"waiting for process {holder.pid}, which builds this node's container") == 1
    assert ("and is stopped" in text, f"kill -CONT {holder.pid}" in text) == (stopped, stopped)


def calls(user: User, image: Path, log: Path) -> list[tuple[str, int, str]]:
    """Return a builder's system calls from the election on: (name, how many-th of it, line)."""
    done = user.run("strace", "-o", log, "udi-run", "--share=job", image, "true")
    assert done.returncode == 0, done.stderr
    counts: dict[str, int] = {}
    found = []
    for line in log.read_text().splitlines():
        name = line.partition("(")[0]
        counts[name] = counts.get(name, 0) + 1
        found.append((name, counts[name], line))
    first = next(i for i, call in enumerate(found) if call[0] == "flock")
    last = max(i for i, call in enumerate(found) if call[0] == "execve" and call[2].endswith(" 0"))
    return found[first : last + 1]


CHANGING = """
    chdir clone clone3 close execve flock fork ftruncate inotify_add_watch inotify_init1 ioctl mkdir
    mount mount_setattr openat openat2 pivot_root prctl pwrite64 recvfrom recvmsg renameat
    sendmsg setns socketpair umount2 unlink unshare vfork wait4 write
"""
"""Calls that change more than the caller's memory."""


def points(found: list[tuple[str, int, str]], when: str) -> list[tuple[str, int]]:
    """Return the calls to die at: all of a record's publication, else the last of each sort."""
    # The lock was renamed as well, before.
    publish = max(i for i, call in enumerate(found) if call[0].startswith("rename"))
    begin = max(i for i, call in enumerate(found[:publish]) if ".new" in call[2])
    if when == "during":
        return [call[:2] for call in found[begin : publish + 1]]
    part = found[:begin] if when == "before" else found[publish + 1 :]
    return [*{name: (name, count) for name, count, _ in part if name in CHANGING.split()}.values()]


def test_a_lock_is_held_when_it_gets_its_name(tmp_path: Path) -> None:
    """udi-run in C opens it without the directory's lock: who got it first would build as well."""
    directory = os.open(tmp_path, os.O_RDONLY)
    got, stop = [], threading.Event()

    def rush() -> None:
        while not stop.is_set():
            with suppress(FileNotFoundError, BlockingIOError), open(tmp_path / "one.lock") as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if is_named(file.fileno(), "one.lock", directory):
                    got.append(file.fileno())

    other = threading.Thread(target=rush)
    other.start()
    for _ in range(300):
        one = Election(str(tmp_path), directory, "one")
        one.make()
        one.give_up()
    stop.set()
    other.join()
    assert not got and not os.listdir(tmp_path)
    os.close(directory)


@pytest.mark.needs("strace")
@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_the_builder_is_killed(
    user: User, image: Path, left: Leftovers, tmp_path: Path, when: str
) -> None:
    """SIGKILL at one system call after the other; peers that come then and later just run."""
    chosen = points(calls(user, image, tmp_path / "log"), when)
    assert chosen
    for name, count in chosen:
        strace = ["strace", "-o", "/dev/null", "-e", f"inject={name}:signal=KILL:when={count}"]
        argv = ("udi-run", "--share=job", image, "true")
        builder = user.popen(*strace, *argv, stderr=subprocess.DEVNULL)
        peers = [user.popen(*argv, stderr=subprocess.PIPE) for _ in range(2)]
        ended = [(peer.communicate(timeout=120)[1], peer.returncode) for peer in peers]
        builder.wait(60)
        assert ended == [("", 0), ("", 0)], (name, count)
        done = join(user, image)
        assert (done.stderr, done.returncode) == ("", 0), (name, count)
        left.check()


@pytest.mark.needs("strace")
def test_the_helper_is_killed_before_it_serves(user: User, image: Path, left: Leftovers) -> None:
    """Only the process that stays outside makes this call; the launcher must not wait for it."""
    strace = ["strace", "-f", "-o", "/dev/null", "-e", "inject=setsid:signal=KILL"]
    done = user.run(*strace, "udi-run", "--share=job", image, "true")
    assert done.returncode == 125
    assert done.stderr.startswith("udi-run: ") and "Traceback" not in done.stderr
    assert join(user, image).returncode == 0


@pytest.mark.needs("strace")
def test_the_server_is_killed_before_it_serves_a_known_start(
    user: User, image: Path, left: Leftovers
) -> None:
    """The helper waits for a message of the launcher then, who waits for what the helper says."""
    many = ("sh", "-c", "for n in $(seq 150); do test -e /absent$n; done; true")
    assert user.run("udi-run", "--share=off", image, *many).returncode == 0
    known = Path(user.env["XDG_RUNTIME_DIR"]) / "rootless_udi/starts"
    wait_for(lambda: known.exists() and list(known.iterdir()))
    strace = ["strace", "-f", "-o", "/dev/null", "-e", "inject=writev:signal=KILL"]
    done = user.run(*strace, "udi-run", "--share=off", image, *many)
    assert done.returncode == 125
    assert "the image server" in done.stderr or "it " in done.stderr


def test_a_builder_that_fails_leaves_the_way_free(
    user: User, image: Path, left: Leftovers, tmp_path: Path
) -> None:
    """A missing image: every rank says so itself, none waits for another."""
    argv = ("udi-run", "--share=job", tmp_path / "missing.squashfs", "true")
    four = [user.popen(*argv, stderr=subprocess.PIPE) for _ in range(4)]
    for one in four:
        assert "missing.squashfs" in one.communicate(timeout=120)[1]
        assert one.returncode == 125


# Ranks come and go


def test_the_first_rank_is_killed_while_others_run_and_new_ones_arrive(
    user: User, image: Path, left: Leftovers
) -> None:
    first = rank(user, image).ready()
    second = rank(user, image).ready()
    first.kill()
    third = rank(user, image).ready()
    assert first.namespaces == second.namespaces == third.namespaces
    assert second.end()[0] == third.end()[0] == 0


def test_all_are_killed_at_once_and_new_ones_arrive(
    user: User, image: Path, left: Leftovers
) -> None:
    for _ in range(3):
        old = [one.ready() for one in [rank(user, image) for _ in range(8)]]
        for one in old:
            one.process.kill()
        new = [one.ready() for one in [rank(user, image) for _ in range(8)]]
        assert len({one.namespaces for one in new}) == 1
        for one in old:
            one.kill()
        assert [one.end()[0] for one in new] == [0] * 8


# The image server dies


def test_the_image_server_is_killed(user: User, image: Path, left: Leftovers) -> None:
    """Ranks get an error, do not hang; a new run builds anew and says why."""
    old = rank(user, image).ready()
    (server,) = servers(left)
    os.kill(server, signal.SIGKILL)
    status, _, err = old.end("read word < /var/word; exit 3")
    # The shell itself may have been paged in from the image: then the page is gone (SIGBUS).
    assert status == -signal.SIGBUS or (
        status == 3
        and any(why in err for why in ("not connected", "connection abort", "Input/output error"))
    )
    left.check()

    old = rank(user, image).ready()
    (server,) = servers(left)
    os.kill(server, signal.SIGKILL)
    # A process outside says so on the command's own standard error.
    assert old.process.stderr
    told = old.process.stderr.readline()
    assert told.startswith("udi-run: the image can't be read any more") and "signal 9" in told
    done = until_dead(left, user, image)
    assert done.returncode == 0
    assert done.stdout.strip() != old.namespaces[1]
    assert "lost its image server" in done.stderr and "starting a new one" in done.stderr
    old.end()


def until_dead(left: Leftovers, user: User, image: Path) -> "subprocess.CompletedProcess[str]":
    """Join when the record says that the server is dead (the helper writes it a moment later)."""
    while "dead=" not in record(left).read_text():
        os.sched_yield()
    return join(user, image, "readlink", "/proc/self/ns/mnt")


def test_the_helper_is_killed(user: User, image: Path, left: Leftovers) -> None:
    """Then nobody takes the record away; ranks still join, and the next container replaces it."""
    old = rank(user, image).ready()
    helpers = set(left.processes()) - {old.pid} - set(servers(left))
    for pid in helpers:
        os.kill(pid, signal.SIGKILL)
    new = rank(user, image).ready()
    assert new.namespaces == old.namespaces or not helpers
    assert old.end()[0] == new.end()[0] == 0
    done = join(user, image)
    assert (done.stderr, done.returncode) == ("", 0)


# The record lies


def stale(user: User, image: Path, left: Leftovers) -> tuple[Path, bytes]:
    """Return where a record lay and what it said, when its container has gone."""
    one = rank(user, image).ready()
    path = record(left)
    data = path.read_bytes()
    one.end()
    left.check()
    return path, data


def start_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


@pytest.mark.parametrize(
    "case", ["gone", "another process", "another process of that start", "init"]
)
def test_a_stale_record_with_a_recycled_pid(
    user: User, image: Path, left: Leftovers, case: str
) -> None:
    path, data = stale(user, image, left)
    at = NodeRecord(data).tail_at
    pid, start = data[at:].decode().split()[:2]
    me = os.getpid()
    member = {
        "gone": f"{pid} {start}",
        "another process": f"{me} {start}",
        "another process of that start": f"{me} {start_of(me)}",
        "init": f"1 {start_of(1)}",
    }[case]
    path.write_bytes(data[:at] + f"{member}\n".encode())
    two = [one.ready() for one in [rank(user, image), rank(user, image)]]
    (found,) = {one.namespaces for one in two}
    assert found[1] != os.readlink("/proc/self/ns/mnt")
    assert [one.end()[0] for one in two] == [0, 0]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "udi 2",
        "udi 2 0\n",
        "udi 99\nrequest=x\n\n4194303 1\n",
        "\0" * 100,
        "udi 2 99999999\n",
        "udi 2 17\n6:user=1\n5:mnt=1\nx y\n",
        "udi 2 17\n6:user=1\n5:mnt=1\n7\n",
    ],
    ids=["empty", "no line", "no key", "dead", "zeros", "cut", "no numbers", "half a member"],
)
def test_a_damaged_record_is_no_record(user: User, image: Path, left: Leftovers, text: str) -> None:
    path, _ = stale(user, image, left)
    path.write_text(text)
    done = join(user, image)
    assert (done.stderr, done.returncode) == ("", 0)


def test_a_living_record_of_another_version_stays(user: User, image: Path, left: Leftovers) -> None:
    """It is not joined, not swept and not overwritten, as long as one of its members lives."""
    path, _ = stale(user, image, left)
    text = f"udi 3\nanything\n{os.getpid()} {start_of(os.getpid())}\n"
    path.write_text(text)
    path.with_suffix(".lock").touch()
    done = join(user, image)
    assert done.returncode == 125 and "is of a format that this version does not" in done.stderr
    assert user.run("udi-run", "--share=other", image, "true").stderr == ""
    left.check_processes()
    assert user.run("udi", "ps").returncode == 0 and path.read_text() == text
    for file in (path, path.with_suffix(".lock")):
        file.unlink()


def test_records_of_two_versions_lie_side_by_side(user: User, image: Path, left: Leftovers) -> None:
    """Format 1 had NAME and NAME.lock, which an old helper would take away with its own."""
    path, _ = stale(user, image, left)
    old = path.parent / ("0" * 32)
    text = f"udi 1\nrequest=x\nuser=1\nmnt=1\n\n{os.getpid()} {start_of(os.getpid())}\n"
    old.write_text(text)
    assert join(user, image).stderr == ""
    left.check_processes()
    assert old.read_text() == text
    old.unlink()


def test_a_member_that_died_while_it_entered(user: User, image: Path, left: Leftovers) -> None:
    """Members add themselves before they enter; those that never arrived are passed over."""
    one = rank(user, image).ready()
    with record(left).open("a") as out:
        out.write(f"{os.getpid()} {start_of(os.getpid())}\n4194303 1\n{one.pid} 1\n")
    two = rank(user, image).ready()
    assert one.namespaces == two.namespaces
    assert one.end()[0] == two.end()[0] == 0


# The state directory


@pytest.mark.parametrize("full", ["bytes", "inodes"])
def test_the_state_directory_is_full(user: User, image: Path, left: Leftovers, full: str) -> None:
    """Refused with what to do, by every rank alike; alone there is no need for a record."""
    options = {"bytes": "mode=700,size=16k", "inodes": "mode=700,size=64k,nr_inodes=4"}[full]
    script = f"""
        mount -t tmpfs -o {options} none {left.state}
        mkdir -m 700 {left.state}/rootless_udi
        cat /dev/zero > {left.state}/fill 2>/dev/null || true
        touch {left.state}/a {left.state}/b {left.state}/c 2>/dev/null || true
        udi-run --share=job {image} true || echo $?
        udi-run --share=off {image} echo alone
        find {left.state}/rootless_udi -type f -not -empty
    """
    done = user.run(*OUTER, "sh", "-ec", script)
    assert done.stdout == "125\nalone\n", done.stderr
    where = f"state directory {left.state}/rootless_udi failed: No space left on device\n"
    assert where in done.stderr
    assert "udi-run: hint: make room there, or" in done.stderr


@pytest.mark.parametrize("full", ["bytes", "inodes"])
def test_a_full_tmp_is_another_users_doing(
    user: User, image: Path, left: Leftovers, full: str
) -> None:
    """Where anybody can fill a place the next one is taken, by every rank; a join needs no room."""
    options = {"bytes": "mode=1777,size=64k", "inodes": "mode=1777,size=64k,nr_inodes=4"}[full]
    script = f"""
        mount --rbind {TREE} /mnt; PATH=/mnt/bin:$PATH
        exec 5< {image}
        mount -t tmpfs -o mode=1777,size=8M none /dev/shm; cat <&5 > /dev/shm/image.squashfs; cd /
        mount -t tmpfs -o {options} none /tmp
        fill() {{ cat /dev/zero > $1/fill 2>/dev/null || true; }}
        mkdir -m 700 /tmp/udi-{user.uid}; fill /tmp
        touch /tmp/a /tmp/b /tmp/c /tmp/d 2>/dev/null || true
        rank() {{ udi-run --share=job /dev/shm/image.squashfs "$@"; }}
        rank sh -c 'readlink /proc/self/ns/mnt; touch /dev/shm/ready; while [ -e /dev/shm/ready ]; \
            do usleep 20000; done' &
        until [ -e /dev/shm/ready ]; do sleep 0.02; done
        rank readlink /proc/self/ns/mnt; fill /dev/shm; rank readlink /proc/self/ns/mnt
        ls -d /dev/shm/udi-*; rm /dev/shm/ready /dev/shm/fill; wait
    """
    env = {"XDG_RUNTIME_DIR": "/nonexistent", "HOME": "/nonexistent"}
    done = user.run(*OUTER, "sh", "-ec", script, env=env)
    *spaces, place = done.stdout.splitlines()
    assert len(spaces) == 3 and len(set(spaces)) == 1, done
    assert (place, done.stderr) == (f"/dev/shm/udi-{user.uid}", "")


def test_a_rank_that_comes_to_another_place_joins(
    user: User, tmp_path: Path, left: Leftovers, image: Path
) -> None:
    """One has built in the first place; a second place is made there before the other looks."""
    first, second = (tmp_path / name for name in ("a", "b"))
    for folder in (first, second):
        folder.mkdir()
        folder.chmod(0o1777)
    script = f"""
        mount --rbind {TREE} /mnt; PATH=/mnt/bin:$PATH
        exec 5< {image}; exec 6< {first}
        mount --bind {second} /dev/shm; cat <&5 > /dev/shm/image.squashfs
        mount --bind /proc/self/fd/6 /tmp
        rank() {{ udi-run --share=job /dev/shm/image.squashfs "$@"; }}
        cd /; rank sh -c 'readlink /proc/self/ns/mnt; touch /dev/shm/ready; \
            while [ -e /dev/shm/ready ]; do usleep 20000; done' &
        until [ -e /dev/shm/ready ]; do sleep 0.02; done
        mkdir -m 700 /dev/shm/udi-{user.uid}
        rank readlink /proc/self/ns/mnt
        rm /dev/shm/ready; wait
    """
    env = {"XDG_RUNTIME_DIR": "/nonexistent", "HOME": "/nonexistent"}
    done = user.run(*OUTER, "sh", "-ec", script, env=env)
    spaces = done.stdout.splitlines()
    assert len(spaces) == 2 and len(set(spaces)) == 1, done


def planted(left: Leftovers, how: str) -> str:
    """Put something wrong where the state directory should be; return how it is refused."""
    path = left.state / "rootless_udi"
    if how == "link":
        (left.state / "elsewhere").mkdir(0o700)
        path.symlink_to(left.state / "elsewhere")
        return "a symbolic link"
    if how == "file":
        path.touch()
        return "no directory"
    path.mkdir()
    path.chmod(0o755)
    return "open to others"


@pytest.mark.parametrize("how", ["link", "file", "open"])
def test_a_wrong_state_directory_is_passed_over(
    user: User, image: Path, left: Leftovers, how: str
) -> None:
    why = planted(left, how)
    done = join(user, image)
    path = left.state / "rootless_udi"
    assert done.returncode == 0
    assert f"state directory {path} is passed over: it is {why}\n" in done.stderr
    assert "udi-run: hint: " in done.stderr
    done = user.run("udi-run", "--share=off", image, "true")
    assert (done.stderr, done.returncode) == ("", 0)
    left.check_processes()
    path.rmdir() if how == "open" else path.unlink()


@pytest.mark.root
@pytest.mark.parametrize("how", ["link", "open", "closed"])
def test_what_another_user_planted_is_passed_over(user: User, image: Path, how: str) -> None:
    """Where /tmp is the state directory's place, anybody can be there first."""
    reachable(image.parent)
    state = reachable(Path(user.env["XDG_RUNTIME_DIR"]).parent) / "run"
    path, elsewhere = state / "rootless_udi", state / "elsewhere"
    if how == "link":
        elsewhere.mkdir(0o777)
        path.symlink_to(elsewhere)
    else:
        path.mkdir(0o700 if how == "closed" else 0o777)
        path.chmod(0o700 if how == "closed" else 0o777)
    done = join(user, image)
    why = "a symbolic link" if how == "link" else "somebody else's"
    assert done.returncode == 0
    assert f"state directory {path} is passed over: it is {why}\n" in done.stderr
    assert not elsewhere.exists() or not list(elsewhere.iterdir())


def test_nothing_is_usable(user: User, image: Path, left: Leftovers) -> None:
    """No place for a record at all: a shared run says what to do, a run alone does without."""
    script = f"""
        mount --rbind {TREE} /mnt; PATH=/mnt/bin:$PATH
        exec 5< {image}; mount -t tmpfs none /tmp; cat <&5 > /tmp/image.squashfs; cd /
        mount -o remount,ro /tmp; mount -t tmpfs -o ro none /dev/shm
        udi-run --share=job /tmp/image.squashfs true || echo $?
        udi-run --share=off /tmp/image.squashfs echo alone
    """
    done = user.run(
        *OUTER, "sh", "-ec", script, env={"XDG_RUNTIME_DIR": "/nonexistent", "HOME": "/nonexistent"}
    )
    assert done.stdout == "125\nalone\n", done.stderr
    assert "no state directory for the node's shared container: tried /nonexistent/" in done.stderr
    assert f"/tmp/udi-{user.uid}, /dev/shm/udi-{user.uid}, /nonexistent/" in done.stderr
    assert "udi-run: hint: set XDG_RUNTIME_DIR" in done.stderr
