"""Which of the newer system calls are refused here: each is made, in a process of its own."""

import os
from errno import EBADF
from signal import SIGCHLD
from sys import byteorder

from rootless_udi.base import syscalls
from rootless_udi.base.newcalls import TABLE, NewCall
from rootless_udi.base.syscalls import AT_FDCWD, numbered
from rootless_udi.idmap import maps, userns

_MOUNTS = {"open_tree", "move_mount", "mount_setattr"}
"""To be asked by who may mount; else the kernel's EPERM looks like a filter's."""


def refused() -> list[tuple[NewCall, str]]:
    """Return the calls that are refused, each with the reason. Raises OSError."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            _try_all(writer)
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, encoding="ascii") as file:
        answers = dict(line.split() for line in file)
    os.waitpid(pid, 0)
    return [(row, os.strerror(int(answers[row.name]))) for row in TABLE if row.name in answers]


def _try_all(writer: int) -> None:
    for row in TABLE:
        if row.name not in _MOUNTS:
            _try(row, writer)
    userns.enter((maps.OUTER, os.getuid()), (maps.OUTER, os.getgid()))
    syscalls.mount(None, "/", None, syscalls.MS_REC | syscalls.MS_SLAVE)
    syscalls.mount("tmpfs", "/tmp", "tmpfs", 0)
    for row in TABLE:
        if row.name in _MOUNTS:
            _try(row, writer)


def _try(row: NewCall, writer: int) -> None:
    arguments = _arguments(row.name)
    try:
        found = numbered(row.name, row.number, *arguments)
    except OSError as error:
        # A mount that is none: the only error that the call itself gives to these.
        if row.name != "move_mount" or error.errno != EBADF:
            os.write(writer, f"{row.name} {error.errno}\n".encode())
        return
    if row.name == "clone3":
        if found == 0:
            os._exit(0)
        os.waitpid(found, 0)


def _arguments(name: str) -> "tuple[int | bytes | None, ...]":
    """Return arguments that do no harm and succeed; move_mount's come to EBADF."""
    if name == "open_tree":
        return AT_FDCWD, b"/tmp", os.O_CLOEXEC
    if name == "move_mount":
        return -1, b"", -1, b"", 0x4 | 0x40
    if name == "pidfd_open":
        return os.getpid(), 0
    if name == "clone3":
        return _words(0, 0, 0, 0, SIGCHLD, 0, 0, 0), 64
    if name == "close_range":
        return 0x7FFFFFFE, 0x7FFFFFFF, 0
    if name == "openat2":
        return AT_FDCWD, b"/", _words(os.O_PATH | os.O_CLOEXEC, 0, 0), 24
    assert name == "mount_setattr"
    return AT_FDCWD, b"/tmp", 0, _words(syscalls.MS_NOSUID, 0, 0, 0), 32


def _words(*numbers: int) -> bytes:
    return b"".join(n.to_bytes(8, byteorder) for n in numbers)
