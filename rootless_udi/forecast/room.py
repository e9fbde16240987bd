"""A folder in memory, and processes beside it, of which nothing is left when this process ends.

However it ends: killed too. A process that waits, the keeper, holds a mount namespace with the
folder in it, and is ended with us by the kernel (PR_SET_PDEATHSIG). What is tried is started in
that namespace by `enter`, as part of a PID namespace: its first process is ended in the same way,
and with it the kernel ends all others of it.

The folder is mounted over one of the package's own, which is there on each machine and is needed by
no launch. From here it is reached by /proc/PID/root.
"""

import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rootless_udi.base.process import complain
from rootless_udi.base.records import Record
from rootless_udi.base.syscalls import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    CLONE_NEWUSER,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    PR_SET_PDEATHSIG,
    mount,
    prctl,
    setns,
    unshare,
)
from rootless_udi.idmap import userns

_PLACE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "sites")


class Room(Record):
    """`path` is the folder for this process, `inside` for those that are started in the room.

    `keeper` is 0 where the kernel gives an ordinary user no namespaces: then the folder is one of
    the temporary ones, which a killed process leaves behind, and nothing can be started.
    """

    keeper: int
    path: str
    inside: str


@contextmanager
def made() -> Iterator[Room]:
    """Make a room, and remove it at the end. Raises OSError where not even a folder can be made."""
    parent, (told, tell) = os.getpid(), os.pipe()
    keeper = os.fork()
    if keeper == 0:
        _keep(parent, tell)
    os.close(tell)
    try:
        with open(told, "rb", buffering=0) as file:
            there = file.read(1)
        if there:
            yield Room(keeper, f"/proc/{keeper}/root{_PLACE}", _PLACE)
        else:
            with tempfile.TemporaryDirectory(prefix="udi-check-") as folder:
                yield Room(0, folder, folder)
    finally:
        with suppress(ProcessLookupError):
            os.kill(keeper, signal.SIGKILL)
        # Where the caller was started with SIGCHLD ignored, the kernel has cleaned up.
        with suppress(ChildProcessError):
            os.waitpid(keeper, 0)


def _keep(parent: int, tell: int) -> None:
    """Be the keeper: never returns."""
    try:
        _die_with(parent)
        os.setsid()  # away from Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        uid, gid = os.geteuid(), os.getegid()
        userns.enter((uid, uid), (gid, gid))
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        mount("udi-check", _PLACE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755,size=50%")
        os.write(tell, b"k")
        os.close(tell)
        while True:
            signal.pause()
    finally:
        os._exit(1)


def _die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, who may have ended already."""
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def enter(keeper: int, parent: int, told: int) -> None:
    """Become the first process that is started in a room; return as that process.

    The caller, a child of the process `parent`, stays behind: it ends as the new process does, and
    after all that this has started. The new process's number, as `parent` knows it, is written to
    the descriptor `told`, as a line.
    """
    try:
        _enter(keeper, parent, told)
    except OSError as error:
        complain("udi check", f"a namespace for the command is refused: {error}")
        os._exit(1)


def _enter(keeper: int, parent: int, told: int) -> None:
    _die_with(parent)
    folder = os.getcwd()
    for kind, flag in (("user", CLONE_NEWUSER), ("mnt", CLONE_NEWNS)):
        theirs = f"/proc/{keeper}/ns/{kind}"
        if os.readlink(theirs) != os.readlink(f"/proc/self/ns/{kind}"):
            space = os.open(theirs, os.O_RDONLY | os.O_CLOEXEC)
            setns(space, flag)
            os.close(space)
    unshare(CLONE_NEWNS | CLONE_NEWPID)
    # setns(2) has left the current folder.
    os.chdir(folder)
    alive, here = os.pipe()
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    first = os.fork()
    if first == 0:
        _be_first(alive, here)
    second = os.fork()
    if second:
        _wait(second, first)
    signal.signal(signal.SIGCHLD, before)
    os.close(alive)
    os.close(here)
    os.write(told, os.readlink("/proc/self").encode() + b"\n")
    # A new /proc is refused where parts of the old one are hidden (in some containers). Numbers of
    # processes are then those outside; /proc/self is right in both.
    with suppress(OSError):
        mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)


def _be_first(alive: int, here: int) -> None:
    """Be process 1 of the namespace, which inherits those whose parents end: never returns."""
    try:
        os.close(here)
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        # getppid(2) is 0 in any case: a parent who has ended before has closed his end.
        os.read(alive, 1)
    finally:
        os._exit(1)


def _wait(second: int, first: int) -> None:
    """Wait for the process that was started, then end what it has left: never returns."""
    status = 1
    try:
        status = os.waitstatus_to_exitcode(os.waitpid(second, 0)[1])
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    finally:
        os._exit(status if status >= 0 else 128 - status)
