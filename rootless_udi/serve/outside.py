"""How our processes outside the container separate from the caller's command.

The command's file system depends on these processes. So nothing that is meant for the command, like
a signal or a limit, may reach them. They give up the caller's session, working directory, terminal,
descriptors, signals, command line, CPU mask and umask.
"""

import _signal
import os
from sys import meta_path

from rootless_udi.base.calls import close_others
from rootless_udi.base.process import own_fields
from rootless_udi.base.syscalls import (
    PR_SET_NAME,
    PR_SET_NO_NEW_PRIVS,
    poke,
    prctl,
    set_affinity,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    Place = tuple[str, str, str]
    """Where a container's record is: (path of the state directory, the record's name, the
    container's token, see `node.record`). The path is "" where there is no record."""

HELPER, SERVER, AHEAD, PIN = "udi-helper", "udi-image", "udi-ahead", "udi-keep"
VOLUMES, VOLUME = "udi-volumes", "udi-volume"
"""The processes' names in ps(1); at most 15 bytes."""
LISTED, CHECKED = "listed", "checked"
"""How our server checks an image's windows: it must have a list of them, or where it has one."""
BUG = 70
"""Exit status of such a process after a bug (EX_SOFTWARE of sysexits.h)."""

_HARD = {
    *(_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD, _signal.SIGABRT, _signal.SIGSEGV),
    *(_signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGTRAP, _signal.SIGSYS),
}
"""Signals that are not ignored: two can't be, SIGCHLD is needed, the others show a bug of ours."""

_CPUS = b"\xff" * 512
"""A mask of 4,096 CPUs, more than any machine has (CPU_SET(3))."""
_FOUND: "list[tuple[int, int]]" = []
"""What `arguments` has found out, once it has."""


def leave(name: str, *keep: int) -> None:
    """Make this process one called `name` that keeps nothing of the caller's but descriptors
    `keep`.

    Raises OSError.
    """
    for finder in meta_path:
        if hasattr(finder, "settle"):
            # `base.boot`: what is imported later must be of the modules' version that is there now.
            finder.settle()
    deafen()
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    close_others(*keep)
    # The caller's umask may take the owner's own rights; files that we make must be readable.
    os.umask(0o077)
    spread()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    title(name)


def deafen() -> None:
    """Ignore the signals that batch systems and users send to jobs.

    Such signals go to a process group, a cgroup, all processes of a user or all with a name. A job
    that gets one, for example to write a checkpoint, still needs its file system. Our processes end
    when the mount does, or by SIGKILL.
    """
    for number in range(1, _signal.NSIG):
        if number in _HARD:
            continue
        try:
            _signal.signal(number, _signal.SIG_IGN)
        except (OSError, ValueError):
            # The C library uses some of the signals itself (signal(7)).
            pass


def spread() -> None:
    """Run on all CPUs of the job's cpuset, with usual priority.

    The rank that starts this process may be bound to one CPU or have a low priority, but the image
    server works for all ranks of the node. The kernel limits the mask to the cpuset
    (sched_setaffinity(2)). Where it refuses to raise the priority, nothing is changed.
    """
    try:
        set_affinity(_CPUS)
        if os.sched_getscheduler(0) != os.SCHED_OTHER:
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        if os.getpriority(os.PRIO_PROCESS, 0):
            os.setpriority(os.PRIO_PROCESS, 0, 0)
    except OSError:
        pass


def title(name: str) -> None:
    """Change this process's name and command line to `name`, of at most 15 bytes (proc(5)).

    A forked process has the caller's command line, which names the command. With that,
    `pkill -f app` would kill this process as well.
    """
    text = name.encode()
    prctl(PR_SET_NAME, text)
    start, room = arguments()
    if not start:
        try:
            # python-prctl finds the command line without /proc (Py_GetArgcArgv).
            from prctl import set_proctitle
        except ImportError:
            return
        set_proctitle(name)
    elif room > len(text) + 1:
        # If the last byte is not zero, the kernel takes this for a setproctitle(3), and shows what
        # is before the first zero.
        poke(start, text + bytes(room - len(text) - 1) + b"\1")


def hold(tree: str) -> None:
    """Keep a directory that is an image open until this process ends.

    `udi prune` sees so that it is in use (`store.unpacked`).
    """
    try:
        os.open(tree, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        # It is gone: who reads it will say so.
        pass


def printed(said: int) -> str:
    """Return what a program printed to the file `said`, up to 2 KiB, as one line."""
    return os.pread(said, 2048, 0).decode("utf-8", "replace").strip().replace("\n", "; ")


def ending(code: int) -> str:
    """Say how a program ended; `code` is of os.waitstatus_to_exitcode."""
    return f"killed by signal {-code}" if code < 0 else f"exit status {code}"


def arguments() -> tuple[int, int]:
    """Return address and size in bytes of this process's command line; (0, 0) if /proc hides it.

    /proc is read only once. The address is the same in forked processes: to spare them the reading,
    call this before the fork.
    """
    if not _FOUND:
        _FOUND.append(_arguments())
    return _FOUND[0]


def _arguments() -> tuple[int, int]:
    """Do what `arguments` does: arg_start and arg_end, fields 48 and 49 of the file (proc(5))."""
    try:
        start, end = (int(field) for field in own_fields()[45:47])
    except OSError:
        return 0, 0
    return start, end - start
