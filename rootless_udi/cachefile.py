"""Make a perNodeCache in a file: a sparse ext4 without a name, served by fuse2fs.

To be called as root of the outer user namespace, where the host's tree is still at "/". fuse2fs
can't be given a mounted connection (its libfuse 2 mounts by itself) and must not live in the
container's mount namespace, which it would keep alive for ever. So it mounts in a namespace of its
own, of which only a detached copy of the mount leaves (open_tree(2), Linux 5.2): when the container
is gone, so is the last mount, and the kernel ends the server, and with it the file.
"""

import _socket
import os
from errno import EINVAL, EISDIR, ENOENT, EOPNOTSUPP
from select import POLLERR, POLLIN, POLLPRI, poll
from sys import byteorder

from rootless_udi.cache import FileCache, filled
from rootless_udi.errors import UdiError
from rootless_udi.syscalls import (
    CLONE_NEWNS,
    MNT_DETACH,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    mount,
    move_mount,
    open_tree,
    umount,
    unshare,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

_BASE = "/tmp"
_PLACE = _BASE + "/cache"
_SECONDS = 60
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


def make(step: FileCache) -> int:
    """Return a descriptor of the cache's mount, attached nowhere yet; see `attach`.

    Raises UdiError where the file can't be made or one of the programs fails, with its words.
    """
    file = _file(step)
    try:
        _mke2fs(step, file)
        return _served(step, file)
    finally:
        os.close(file)


def attach(made: int, target: int) -> None:
    """Mount what `make` returned on the open directory `target`; closes `made`.

    Raises OSError.
    """
    try:
        move_mount(made, target)
    finally:
        os.close(made)


def _file(step: FileCache) -> int:
    """Open a sparse file of the size that has no name, or loses it at once."""
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        try:
            fd = os.open(step.directory, flags | os.O_TMPFILE, 0o600)
        except OSError as error:
            # Not every network file system has O_TMPFILE, and each says so in its own way.
            if error.errno not in (EOPNOTSUPP, EISDIR, ENOENT, EINVAL):
                raise
            path = f"{step.directory}/.udi-cache-{os.uname().nodename}-{os.getpid()}"
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o600)
            os.unlink(path)
        os.ftruncate(fd, step.size)
    except OSError as error:
        raise UdiError(
            f"perNodeCache {step.target}: making its file in {step.directory} failed: "
            f"{error.strerror}",
            "name another directory, or keep it in memory: method=tmpfs",
        ) from None
    return fd


def _mke2fs(step: FileCache, file: int) -> None:
    argv = filled(step.mke2fs, f"/dev/fd/{file}")
    said = os.memfd_create("said")
    os.set_inheritable(file, True)
    status = os.waitpid(_spawn(argv, said), 0)[1]
    if status:
        raise _failed(step, argv[0], said)
    os.close(said)


def _spawn(argv: list[str], said: int) -> int:
    """Start a program with nothing to read, and what it says in a file of memory.

    Not a pipe: the server outlives its readers, and a write to a broken one would end it.
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    actions = [
        (os.POSIX_SPAWN_DUP2, null, 0),
        (os.POSIX_SPAWN_DUP2, said, 1),
        (os.POSIX_SPAWN_DUP2, said, 2),
    ]
    try:
        return os.posix_spawn(argv[0], argv, _ENVIRONMENT, file_actions=actions)
    finally:
        os.close(null)


def _failed(step: FileCache, program: str, said: int) -> UdiError:
    text = os.pread(said, 4000, 0).decode("utf-8", "replace").strip()
    words = text.splitlines()[-1] if text else "it said nothing"
    return UdiError(
        f"perNodeCache {step.target}: {program} failed: {words}",
        "keep it in memory: method=tmpfs; `udi doctor` checks fuse2fs",
    )


def _served(step: FileCache, file: int) -> int:
    mine, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
    said = os.memfd_create("said")
    child = os.fork()
    if child == 0:
        _helper(step, file, theirs, said)
    theirs.close()
    message, ancillary, _, _ = mine.recvmsg(4096, 64)
    mine.close()
    os.waitpid(child, 0)
    if message != b"+":
        if message.startswith(b"!"):
            os.write(said, b"\n" + message[1:])
        raise _failed(step, step.fuse2fs[0], said)
    os.close(said)
    return int.from_bytes(ancillary[0][2][:4], byteorder)


def _helper(step: FileCache, file: int, sock: "_socket.socket", said: int) -> "NoReturn":
    """In the child: mount in a namespace of its own, send the mount, leave the server behind."""
    try:
        os.setsid()
        os.chdir("/")
        keep = sorted((file, sock.fileno(), said))
        for low, high in zip([3, *(fd + 1 for fd in keep)], [*keep, 1 << 20], strict=True):
            os.closerange(low, high)
        unshare(CLONE_NEWNS)
        mount(None, "/", None, MS_REC | MS_PRIVATE)
        mount("tmpfs", _BASE, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
        os.mkdir(_PLACE, 0o755)
        server = _spawn(filled(step.fuse2fs, f"/dev/fd/{file}", _PLACE), said)
        if not _mounted(server):
            sock.send(b"?")
            os._exit(1)
        # The first access waits until the server answers; the cache is empty at its start.
        os.rmdir(f"{_PLACE}/lost+found")
        tree = open_tree(_PLACE)
        umount(_PLACE, MNT_DETACH)
        rights = tree.to_bytes(4, byteorder)
        sock.sendmsg([b"+"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)])
        os._exit(0)
    except OSError as error:
        sock.send(f"!{getattr(error, 'call', '')} {error.strerror}".encode())
    finally:
        os._exit(1)


def _mounted(server: int) -> bool:
    """Wait until the server has mounted; false where it ended or took too long.

    The kernel reports each change of mountinfo as POLLPRI (proc(5)).
    """
    table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    waiter = poll()
    waiter.register(table, POLLPRI | POLLERR)
    waiter.register(os.pidfd_open(server), POLLIN)
    mark = f" {_PLACE} ".encode()
    while mark not in _all(table):
        ready = waiter.poll(_SECONDS * 1000)
        if not ready or any(fd != table for fd, _ in ready):
            return False
    os.close(table)
    return True


def _all(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    text = b""
    while chunk := os.read(fd, 1 << 16):
        text += chunk
    return text
