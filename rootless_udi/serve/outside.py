"""What our processes outside the container have in common.

The command's file system depends on them, so nothing that is meant for the command may reach them:
they leave the caller's session, working directory, terminal, descriptors, signals, command line,
CPU mask and umask.
"""

import _signal
import os

from rootless_udi.base.calls import close_others
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
    """Of a container's record: the state directory's path, the record's name, the container's token
    (`node.record`). The path is empty where there is no record."""

HELPER, SERVER, AHEAD = "udi-helper", "udi-image", "udi-ahead"
"""What ps(1) shows; at most 15 bytes."""
BUG = 70
"""Exit status of one of these processes after an error of ours (EX_SOFTWARE, sysexits.h)."""

_HARD = {
    *(_signal.SIGKILL, _signal.SIGSTOP, _signal.SIGCHLD, _signal.SIGABRT, _signal.SIGSEGV),
    *(_signal.SIGBUS, _signal.SIGFPE, _signal.SIGILL, _signal.SIGTRAP, _signal.SIGSYS),
}
"""Signals that are not ignored: two can't be, SIGCHLD is needed, the others mean a bug of ours."""

_CPUS = b"\xff" * 512
"""A mask of 4,096 CPUs, more than any machine has (CPU_SET(3))."""
_FOUND: "list[tuple[int, int]]" = []
"""What `arguments` returned first."""


def leave(name: str, *keep: int) -> None:
    """Become a process `name` that has nothing of the caller's but the descriptors `keep`."""
    deafen()
    os.setsid()
    os.chdir("/")
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    close_others(*keep)
    # Whatever the caller's umask is, its owner must be able to read what we make.
    os.umask(0o077)
    spread()
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    title(name)


def deafen() -> None:
    """Ignore the signals that batch systems and users send to jobs.

    They send them to a process group, a cgroup, all processes of a user or all of a name. A job
    that is told to checkpoint still needs its file system. Our processes end when the mount does,
    or by SIGKILL.
    """
    for number in range(1, _signal.NSIG):
        if number in _HARD:
            continue
        try:
            _signal.signal(number, _signal.SIG_IGN)
        except (OSError, ValueError):
            # The C library keeps some for itself (signal(7)).
            pass


def spread() -> None:
    """Take all CPUs of the job's cpuset, and no less time than others get.

    The rank that starts us may be bound to one CPU and have a low priority, but the image server
    works for all ranks of the node. The kernel limits the mask to the job's cpuset
    (sched_setaffinity(2)), and refuses what an ordinary user may not do.
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
    """Show `name`, of at most 15 bytes, as name and as whole command line (proc(5), comm, cmdline).

    The command line that we were forked with is the caller's, and names the command: `pkill -f app`
    must mean the command alone.
    """
    text = name.encode()
    prctl(PR_SET_NAME, text)
    start, room = arguments()
    if not start:
        try:
            # It asks the interpreter where the command line lies (Py_GetArgcArgv), and not /proc.
            from prctl import set_proctitle
        except ImportError:
            return
        set_proctitle(name)
    elif room > len(text) + 1:
        # Where the last byte is not zero the kernel shows what is before the first zero, as it does
        # for setproctitle(3).
        poke(start, text + bytes(room - len(text) - 1) + b"\1")


def arguments() -> tuple[int, int]:
    """Return where this process's command line lies and its bytes; (0, 0) where /proc hides it.

    It lies there in the children too, so who forks some asks before: of /proc it is asked once.
    """
    if not _FOUND:
        _FOUND.append(_arguments())
    return _FOUND[0]


def _arguments() -> tuple[int, int]:
    try:
        fd = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0, 0
    fields = os.read(fd, 4096).rpartition(b")")[2].split()
    os.close(fd)
    start, end = (int(field) for field in fields[45:47])
    return start, end - start
