"""Enter new user and mount namespaces as an ordinary user (user_namespaces(7))."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.syscalls import CLONE_NEWNS, CLONE_NEWUSER, CallError, setns, unshare
from rootless_udi.idmap.maps import OUTER, entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

_LIMITS = "a limit may be reached: of processes (ulimit -u, the job's), or of memory (ulimit -v)"


def enter(uid: tuple[int, int], gid: tuple[int, int], flags: int = CLONE_NEWNS) -> None:
    """Move this process into a new user and a new mount namespace, with one uid and one gid mapped.

    `uid` and `gid` are pairs: the id inside, the id outside. setgroups(2) must be denied before
    gid_map can be written, since Linux 3.19. The process keeps its supplementary groups and what
    they give access to. With `flags` 0 it stays in its mount namespace. Raises CallError, whose
    `call` says which step was refused.
    """
    unshare(CLONE_NEWUSER | flags)
    _write("setgroups", "deny")
    _write("uid_map", entry(*uid))
    _write("gid_map", entry(*gid))


def join(space: int) -> None:
    """Enter the user namespace of descriptor `space`, which is closed, and a new mount namespace
    that belongs to it. Raises CallError."""
    setns(space, CLONE_NEWUSER)
    unshare(CLONE_NEWNS)
    os.close(space)


def make(uid: int, gid: int) -> tuple[int, int]:
    """Make an outer and an inner user namespace for the caller; return descriptors of both.

    A process of its own makes them, and ends: who has entered the inner one can't go back to the
    outer one (setns(2)). Raises UdiError where no such process can run; CallError.
    """
    # Imported here: a run without a launcher makes none.
    from rootless_udi.base.messages import pair, receive

    mine, theirs = pair()
    try:
        child = os.fork()
    except OSError as error:
        raise UdiError(f"starting a process failed: {error.strerror}", _LIMITS) from None
    if child == 0:
        try:
            mine.close()
            _make(theirs, uid, gid)
        finally:
            os._exit(0)
    theirs.close()
    said, fds = receive(mine)
    mine.close()
    os.waitpid(child, 0)
    if len(fds) == 2:
        return fds[0], fds[1]
    if said:
        number, call, path = said.split("\0")
        raise CallError(int(number), os.strerror(int(number)), call, path or None)
    raise UdiError("the process that makes user namespaces was killed", _LIMITS)


def _make(sock: "_socket.socket", uid: int, gid: int) -> None:
    from rootless_udi.base.messages import send

    try:
        enter((OUTER, uid), (OUTER, gid), 0)
        outer = _own()
        enter((uid, OUTER), (gid, OUTER), 0)
        send(sock, ("made",), [outer, _own()])
    except CallError as error:
        send(sock, (str(error.errno), error.call, error.filename or ""), [])


def _own() -> int:
    path = "/proc/self/ns/user"
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise CallError(error.errno or 0, error.strerror or "", "open", path) from None


def _write(name: str, text: str) -> None:
    path = f"/proc/self/{name}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, text.encode())
        finally:
            os.close(fd)
    except OSError as error:
        raise CallError(error.errno or 0, error.strerror or "", name, path) from None
