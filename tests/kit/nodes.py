"""What the tests of shared containers have in common: images, ranks, and counting what remains.

While such a test runs, the test process is a subreaper: every process that is left behind is its
descendant, whoever forked it and however often, and none of another's is counted. Not afterwards:
the processes of tests that count nothing would stay as zombies.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path

from rootless_udi.plan import mountpoints
from tests.conftest import User
from tests.kit import images

PR_SET_CHILD_SUBREAPER = 36

SHOW = "readlink /proc/self/ns/user; readlink /proc/self/ns/mnt"
"""Shell words that print the two namespaces a process is in, a line each."""


def squashfs(target: Path, layers: Iterable[bytes | Path]) -> Path:
    """Write a squashfs of tar `layers`, one after the other, with every image's mount points.

    No layer may have a path that another has. Without the mount points, each run would need an
    overlay.
    """
    merged = target.with_suffix(f".{os.getpid()}.tar")
    partial = target.with_suffix(f".{os.getpid()}.part")
    first, *others = layers
    if isinstance(first, Path):
        shutil.copyfile(first, merged)
    else:
        merged.write_bytes(first)
    with tarfile.open(merged, "a") as archive:
        for layer in others:
            data = BytesIO(layer) if isinstance(layer, bytes) else None
            with tarfile.open(None if data else layer, fileobj=data) as source:
                for member in source:
                    content = source.extractfile(member) if member.isreg() else None
                    archive.addfile(member, content)
        have = {"/" + name.removeprefix("./").strip("/") for name in archive.getnames()}
        for name in (*mountpoints.DIRECTORIES, *mountpoints.FILES):
            if name not in have:
                info = tarfile.TarInfo(name.lstrip("/"))
                folder = name in mountpoints.DIRECTORIES
                info.type = tarfile.DIRTYPE if folder else tarfile.REGTYPE
                info.mode = 0o755 if folder else 0o644
                archive.addfile(info)
    words = ["-tar", "-comp", "zstd", "-Xcompression-level", "3", "-noappend", "-quiet"]
    words += ["-root-mode", "755"]
    with open(merged, "rb") as stream:
        subprocess.run(
            ["mksquashfs", "-", partial, *words, "-no-progress", "-mem", "512M"],
            stdin=stream,
            capture_output=True,
            check=True,
        )
    merged.unlink()
    partial.rename(target)
    return target


def busybox(folder: Path) -> Path:
    """Write a small image as a squashfs file in `folder`; no start reads its /var/word."""
    entries = [*images.busybox_entries(), ("var/word", b"word\n", {})]
    return squashfs(folder / "busybox.squashfs", [images.tar(entries)])


def state_files(folder: Path) -> list[str]:
    """Return all files below a runtime directory, without those for prefetching (`starts`)."""
    files = (path for path in folder.rglob("*") if not path.is_dir())
    return [str(path) for path in files if path.parent.name != "starts"]


class Leftovers:
    """What remains: processes, mounts and files that were not there when this was made."""

    def __init__(self, user: User) -> None:
        self.user = user
        self.state = Path(user.env["XDG_RUNTIME_DIR"])
        subreaper(True)
        self._before = set(descendants())
        self._mounts = self._own_mounts()

    def _own_mounts(self) -> set[str]:
        """Return the mounts that a start of this user can have made: of FUSE by the user, or on the
        user's folders. Other programs may mount meanwhile."""
        marks = (f"user_id={self.user.uid},", f" {self.user.home}/", f" {self.state}/")
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return {line for line in lines if any(mark in line for mark in marks)}

    def processes(self) -> dict[int, str]:
        """Return the living descendants that are new: pid -> command line."""
        return {p: w for p, w in descendants().items() if p not in self._before}

    def files(self) -> list[str]:
        """Return all below the state directory, as `state_files` does."""
        return state_files(self.state)

    def folders(self) -> list[str]:
        """Return the directories below the runtime directory, without `starts`."""
        found = [os.path.join(at, name) for at, names, _ in os.walk(self.state) for name in names]
        return [path for path in found if not path.endswith("/starts")]

    def check(self, seconds: float = 60) -> None:
        """Wait until every process has ended; then no mount, no file and one directory is left.

        A rank that the test did not end, since it failed, is killed first.
        """
        self.check_processes(seconds)
        assert self._own_mounts() == self._mounts
        assert self.files() == []
        assert len(self.folders()) <= 1, self.folders()

    def check_processes(self, seconds: float = 60) -> None:
        """Wait until every process has ended; see `check`."""
        for rank in list(_POPENS.values()):
            rank.kill()
        end = time.monotonic() + seconds
        while left := self.processes():
            pid = next(iter(left))
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            ended = poll.poll(max(0.0, end - time.monotonic()) * 1000)
            os.close(descriptor)
            if not ended:
                self.kill()
                raise AssertionError(f"these processes remain after {seconds} s: {left}")

    def kill(self) -> None:
        """End what remains, so that a failed test harms no other."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


def subreaper(is_one: bool) -> None:
    """Become the parent of every descendant whose own parent ends (prctl(2)), or no more."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(is_one), 0, 0, 0)


def descendants() -> dict[int, str]:
    """Return the living descendants of this process: pid -> command line; reap orphans' ends."""
    parents: dict[int, int] = {}
    zombies = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            text = Path(f"/proc/{name}/stat").read_text()
        except OSError:  # it has just ended
            continue
        state, parent = text.rpartition(")")[2].split()[:2]
        parents[int(name)] = int(parent)
        if state in "ZX":
            zombies.add(int(name))
    found: dict[int, str] = {}
    me = os.getpid()
    for pid in parents:
        above = pid
        while above in parents and parents[above] != me:
            above = parents[above]
        if above not in parents:
            continue
        if pid in zombies:
            _reap(pid)
            continue
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            continue
        found[pid] = words.replace(b"\0", b" ").decode(errors="replace").strip()
    return found


_POPENS: dict[int, "Rank"] = {}
"""Ranks that no test has ended yet, by process id."""


def _reap(pid: int) -> None:
    """Reap an adopted orphan; a child that subprocess started is subprocess's own to reap."""
    if pid not in _POPENS:
        with suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


class Rank:
    """A command in a container that has said its namespaces and waits until it is told to end."""

    def __init__(self, user: User, *argv: object, env: dict[str, str] | None = None) -> None:
        self.process = user.popen(
            *argv,
            "sh",
            "-c",
            f'{SHOW}; echo "ready $$"; read line; eval "$line"',
            env=env or {},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        _POPENS[self.process.pid] = self
        self.pid = self.process.pid
        self.namespaces: tuple[str, str] = ("", "")

    def ready(self) -> "Rank":
        """Wait until the command runs; afterwards `namespaces` are its (user, mnt)."""
        assert self.process.stdout
        lines = [self.process.stdout.readline().strip() for _ in range(3)]
        if not lines[2].startswith("ready "):
            raise AssertionError(f"the rank did not start: {lines} {self.process.communicate()}")
        self.namespaces = (lines[0], lines[1])
        return self

    def end(self, line: str = "exit 0", timeout: float = 60) -> "tuple[int, str, str]":
        """Let it run `line` and end; return its exit status and the rest of what it wrote."""
        out, err = self.process.communicate(line + "\n", timeout)
        _POPENS.pop(self.pid, None)
        return self.process.returncode, out, err

    def kill(self) -> None:
        """End it with SIGKILL."""
        self.process.kill()
        self.process.communicate()
        _POPENS.pop(self.pid, None)


def together(user: User, number: int, *argv: object) -> None:
    """Start so many ranks of an image at once, which read its /noise and then wait for one another:
    the last one finds the container of the first. All must succeed."""
    held, end = os.pipe()
    words = "sh", "-c", "cat /noise >/dev/null && echo up && read x"
    pipes = {"stdin": held, "stdout": subprocess.PIPE}
    ranks = [user.popen(*argv, *words, **pipes) for _ in range(number)]
    os.close(held)
    said = [one.stdout.readline() for one in ranks if one.stdout is not None]
    os.close(end)
    # The end of its input is what `read` waits for, and not a success.
    assert (said, {one.wait(120) for one in ranks}) == (["up\n"] * number, {1})


@contextmanager
def counted(user: User) -> Iterator[Leftovers]:
    """Run a test's body; afterwards nothing may remain. For use in a fixture."""
    left = Leftovers(user)
    try:
        yield left
        left.check()
    finally:
        left.kill()
        subreaper(False)


def servers(left: Leftovers) -> dict[int, str]:
    """Return the new processes that hold a FUSE connection: pid -> command line."""
    fuse = os.stat("/dev/fuse").st_rdev
    found = {}
    for pid, words in left.processes().items():
        folder = f"/proc/{pid}/fd"
        with suppress(OSError):  # it has just ended, or is none of ours to look into
            if any(os.stat(f"{folder}/{fd}").st_rdev == fuse for fd in os.listdir(folder)):
                found[pid] = words
    return found
