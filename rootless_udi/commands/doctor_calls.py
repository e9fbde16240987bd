"""Which of the newer system calls are refused here: a process of its own makes each of them."""

import os
from collections.abc import Callable
from errno import EBADF
from signal import SIGCHLD
from sys import byteorder

from rootless_udi.base import syscalls
from rootless_udi.base.newcalls import TABLE, NewCall
from rootless_udi.base.syscalls import AT_FDCWD, numbered
from rootless_udi.idmap import maps, userns

_MOUNTS = {"open_tree", "move_mount", "mount_setattr"}
"""These are tried as root of a user namespace: without the right to mount, the kernel itself would
answer EPERM, as a seccomp filter does."""
_EMPTY_PATHS = 0x4 | 0x40
"""MOVE_MOUNT_F_EMPTY_PATH and MOVE_MOUNT_T_EMPTY_PATH of linux/mount.h."""
_CLONE_ARGS, _OPEN_HOW, _MOUNT_ATTR = 64, 24, 32
"""Bytes of the first versions of struct clone_args, open_how and mount_attr (clone3(2), openat2(2),
mount_setattr(2))."""
_INT_MAX = 0x7FFFFFFF
"""No process has so many descriptors: close_range(2) closes none."""


def refused() -> list[tuple[NewCall, str]]:
    """Return the calls that are refused, each with the reason. Raises OSError."""
    said, _ = said_by_child(_try_all)
    answers = dict(line.split() for line in said.splitlines())
    return [(row, os.strerror(int(answers[row.name]))) for row in TABLE if row.name in answers]


def said_by_child(body: Callable[[int], None]) -> tuple[str, int]:
    """Call `body` in a forked process, with a descriptor to write to.

    Return what it has written, and its exit status, which is negative after a signal. Raises
    OSError.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            body(writer)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="utf-8", errors="replace") as file:
        said = file.read()
    return said, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def enter_outer() -> None:
    """Begin as a launch does: root of new user and mount namespaces, with a tmpfs on /tmp.

    For a process that ends after it. Raises OSError.
    """
    userns.enter((maps.OUTER, os.getuid()), (maps.OUTER, os.getgid()))
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    syscalls.mount("tmpfs", "/tmp", "tmpfs", 0)


def _try_all(writer: int) -> None:
    for row in TABLE:
        if row.name not in _MOUNTS:
            _try(row, writer)
    enter_outer()
    for row in TABLE:
        if row.name in _MOUNTS:
            _try(row, writer)


def _try(row: NewCall, writer: int) -> None:
    arguments = _arguments(row.name)
    try:
        found = numbered(row.name, row.number, *arguments)
    except OSError as error:
        # The arguments for move_mount have bad descriptors: EBADF shows that the call is not
        # refused.
        if row.name != "move_mount" or error.errno != EBADF:
            os.write(writer, f"{row.name} {error.errno}\n".encode())
        return
    if row.name == "clone3":
        if found == 0:
            os._exit(0)
        os.waitpid(found, 0)


def _arguments(name: str) -> "tuple[int | bytes | None, ...]":
    """Return arguments that change nothing: a call succeeds, move_mount fails with EBADF."""
    if name == "open_tree":
        return AT_FDCWD, b"/tmp", os.O_CLOEXEC
    if name == "move_mount":
        return -1, b"", -1, b"", _EMPTY_PATHS
    if name == "pidfd_open":
        return os.getpid(), 0
    if name == "clone3":
        return _words(0, 0, 0, 0, SIGCHLD, 0, 0, 0), _CLONE_ARGS
    if name == "close_range":
        return _INT_MAX - 1, _INT_MAX, 0
    if name == "openat2":
        return AT_FDCWD, b"/", _words(os.O_PATH | os.O_CLOEXEC, 0, 0), _OPEN_HOW
    assert name == "mount_setattr"
    return AT_FDCWD, b"/tmp", 0, _words(syscalls.MS_NOSUID, 0, 0, 0), _MOUNT_ATTR


def _words(*numbers: int) -> bytes:
    return b"".join(n.to_bytes(8, byteorder) for n in numbers)
