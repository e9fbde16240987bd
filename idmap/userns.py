"""Enter new user and mount namespaces as an ordinary user (user_namespaces(7))."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.syscalls import CLONE_NEWNS, CLONE_NEWUSER, CallError, setns, unshare
from rootless_udi.idmap.maps import OUTER, entry

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


class Maker:
    """Makes an outer and an inner user namespace in a process that is about to end.

    Who has entered the inner one can't go back to the outer one (setns(2)). `work` is called in
    that process, a fork of the caller's, and `made` in the caller.
    """

    def __init__(self) -> None:
        # Imported here: a run without a launcher makes none.
        from rootless_udi.base.messages import pair

        self._mine, self._theirs = pair()
        self._uid, self._gid = os.getuid(), os.getgid()

    def work(self) -> None:
        """Make both, and send descriptors of them."""
        from rootless_udi.base.messages import send

        try:
            enter((OUTER, self._uid), (OUTER, self._gid), 0)
            outer = _own()
            enter((self._uid, OUTER), (self._gid, OUTER), 0)
            send(self._theirs, ("made",), [outer, _own()])
        except CallError as error:
            send(self._theirs, (str(error.errno), error.call, error.filename or ""), [])

    def made(self) -> tuple[int, int]:
        """Return the descriptors, once they are there. Raises CallError for what was refused,
        UdiError where that process was killed."""
        from rootless_udi.base.messages import receive

        self._theirs.close()
        said, fds = receive(self._mine)
        self.close()
        if len(fds) == 2:
            return fds[0], fds[1]
        if said:
            number, call, path = said.split("\0")
            raise CallError(int(number), os.strerror(int(number)), call, path or None)
        raise UdiError("the process that makes user namespaces was killed", _LIMITS)

    def close(self) -> None:
        """Forget what was made: nobody is in it."""
        self._mine.close()
        self._theirs.close()


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
