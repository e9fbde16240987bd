"""Newer system calls. Where a kernel or a filter refuses one, the same is done in an older way.

`newcalls` lists them, `older` has the older ways.
"""

import os
from errno import EAGAIN
from sys import byteorder, modules

from rootless_udi.base.syscalls import (
    AT_FDCWD,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    REFUSED,
    RESOLVE_IN_ROOT,
    RESOLVE_NO_MAGICLINKS,
    CallError,
    numbered,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

# Numbers of unistd.h, the same on every architecture.
_SYS_CLOSE_RANGE = 436
_SYS_OPENAT2 = 437
_SYS_MOUNT_SETATTR = 442

_AT_RECURSIVE = 0x8000
"""mount_setattr(2): change the mounts below as well."""
_LAST = 0x7FFFFFFF
"""The largest descriptor that an int can name."""
_ATTEMPTS = 64
"""Most calls of openat2(2) while others rename folders on the way."""


def late(name: str) -> "ModuleType":
    """Import and return a module that few starts need, while `launch.execute` makes a container.

    The host's tree is at /host then. So /host is made the root directory (chroot(2)) during the
    import: a path of ours below "/" may mean a folder of the image, which must not be imported.
    """
    if name not in modules:
        here = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        os.chroot("/host")
        try:
            __import__(name)
        finally:
            os.fchdir(here)
            os.chroot(".")
            os.close(here)
    return modules[name]


def restrict(path: str, flags: int, below: bool = True) -> None:
    """Add MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC to the mount at `path`, and to those below.

    mount_setattr(2), Linux 5.12, keeps the flags that the mounts have already, which a user
    namespace may not clear. Where it is refused, `older.restrict` remounts them one by one. Raises
    OSError, UdiError.
    """
    attributes = flags & (MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    attr = b"".join(n.to_bytes(8, byteorder) for n in (attributes, 0, 0, 0))
    where, deep = os.fsencode(path), _AT_RECURSIVE * below
    try:
        numbered("mount_setattr", _SYS_MOUNT_SETATTR, AT_FDCWD, where, deep, attr, 32, path=path)
    except CallError as error:
        if error.errno not in REFUSED:
            raise
        late("rootless_udi.base.older").restrict(path, attributes, below)


def openat2(dirfd: int, path: str, flags: int, resolve: int) -> int:
    """openat2(2), Linux 5.6: open `path` below `dirfd` by the rules `resolve` (RESOLVE_ flags).

    Tries again after EAGAIN, which the kernel answers if somebody renames a folder during a "..".
    Where the call is refused, `older.inside` opens the path part by part, if `flags` has O_PATH and
    `resolve` is RESOLVE_IN_ROOT and RESOLVE_NO_MAGICLINKS. Raises OSError.
    """
    how = b"".join(n.to_bytes(8, byteorder) for n in (flags, 0, resolve))
    for attempt in range(_ATTEMPTS):
        try:
            return numbered("openat2", _SYS_OPENAT2, dirfd, os.fsencode(path), how, 24, path=path)
        except CallError as error:
            inside = resolve == RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS and flags & os.O_PATH
            if error.errno in REFUSED and inside:
                return int(late("rootless_udi.base.older").inside(dirfd, path, flags))
            if error.errno != EAGAIN or attempt == _ATTEMPTS - 1:
                raise
    raise AssertionError("unreachable")


def close_others(*keep: int) -> None:
    """Close all descriptors but the standard ones and `keep`.

    close_range(2), Linux 5.9. Not os.closerange: where the call is refused, that one tries to close
    a million numbers one by one.
    """
    start = 3
    try:
        for fd in (*sorted(keep), _LAST):
            if fd > start:
                numbered("close_range", _SYS_CLOSE_RANGE, start, fd - 1, 0)
            start = max(start, fd + 1)
    except CallError:
        from rootless_udi.base import older

        older.close_others(keep)


def spawn(
    program: str,
    argv: "list[str]",
    env: "dict[str, str]",
    files: "Sequence[tuple[int, int]]",
    setsid: bool = False,
) -> int:
    """Start `program` by posix_spawn(3) and return its process id.

    `files` are pairs of a descriptor and its number in the child; `setsid` makes a new session. The
    C library uses clone3(2), Linux 5.3, and an older call after ENOSYS only; where a filter answers
    something else, `older.spawn` forks. Raises OSError.
    """
    actions = [(os.POSIX_SPAWN_DUP2, fd, number) for fd, number in files]
    try:
        return os.posix_spawn(program, argv, env, file_actions=actions, setsid=setsid)
    except OSError as error:
        if error.errno not in REFUSED:
            raise
        from rootless_udi.base import older

        return older.spawn(program, argv, env, files, setsid)
