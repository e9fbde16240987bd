"""Enter new user and mount namespaces as an ordinary user (user_namespaces(7))."""

import os

from rootless_udi.base.syscalls import CLONE_NEWNS, CLONE_NEWUSER, CallError, unshare
from rootless_udi.idmap.maps import entry


def enter(uid: tuple[int, int], gid: tuple[int, int]) -> None:
    """Move this process into a new user and a new mount namespace, with one uid and one gid mapped.

    `uid` and `gid` are pairs: the id inside, the id outside. setgroups(2) must be denied before
    gid_map can be written, since Linux 3.19. The process keeps its supplementary groups and what
    they give access to. Raises CallError, whose `call` says which step was refused.
    """
    unshare(CLONE_NEWUSER | CLONE_NEWNS)
    _write("setgroups", "deny")
    _write("uid_map", entry(*uid))
    _write("gid_map", entry(*gid))


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
