"""Run a FUSE server that mounts by itself, in its own mount namespace, and return its mount."""

import os
from _signal import SIGKILL
from select import POLLERR, POLLIN, POLLPRI, poll

from rootless_udi.base.calls import close_others, spawn
from rootless_udi.base.errors import NOT_FOUND
from rootless_udi.base.messages import pair, receive, send
from rootless_udi.base.syscalls import (
    CLONE_NEWNS,
    MNT_DETACH,
    MS_NODEV,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    mount,
    open_tree,
    umount,
    unshare,
)
from rootless_udi.serve.outside import deafen, spread

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Sequence


TARGET = "{target}"
"""Stands for the mount point in a server's argv."""
SERVED = "served"
"""The name of the folder that the server mounts on."""
_BASES = ("/mnt", "/media", "/srv", "/tmp")
"""Folders of the host that private memory may cover in the server's namespace."""
_SECONDS = 60
"""Seconds after which a server that has not mounted is killed."""
_STEP = 50
"""Milliseconds between two looks whether a server lives, where the kernel has no pidfd_open(2)."""
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}


class Refused(Exception):
    """The server did not mount. The message is the last line that it printed, or another reason."""


def run(argv: "Sequence[str]", keep: "Sequence[int]", gone: str, shared: str = "") -> int:
    """Start the server `argv` and return a descriptor of its mount; arguments as `detached.serve`.

    `shared` is a folder in which the server's namespace and this one see each other's mounts
    (`propagated`). Then the mount is at SERVED in it, and -1 is returned. Raises Refused, OSError.
    """
    mine, theirs = pair()
    said = os.memfd_create("said")
    child = os.fork()
    if child == 0:
        _helper(argv, keep, gone, theirs, said, shared)
    theirs.close()
    message, fds = receive(mine)
    server = 0
    if message.startswith("pid "):
        server = int(message[4:])
        message, fds = receive(mine)
    mine.close()
    os.waitpid(child, 0)
    if server and not message:
        # The child was killed. The server and its mount would keep each other alive.
        try:
            os.kill(server, SIGKILL)
        except ProcessLookupError:
            pass
    if message != "+":
        if message.startswith("!"):
            os.write(said, f"\n{message[1:]}".encode("utf-8", "surrogateescape"))
        raise Refused(words(said))
    os.close(said)
    return fds[0] if fds else -1


def words(said: int) -> str:
    """Return the last line that a program printed to the file `said`; close that."""
    text = os.pread(said, 4000, 0).decode("utf-8", "replace").strip()
    os.close(said)
    return text.splitlines()[-1] if text else "it said nothing"


def start(argv: list[str], said: int) -> int:
    """Start a program with empty standard input, which prints to the file `said`; return its pid.

    Not to a pipe: a server lives longer than the reader, and writing to a broken pipe would end it.
    """
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    try:
        return spawn(argv[0], argv, _ENVIRONMENT, [(null, 0), (said, 1), (said, 2)])
    finally:
        os.close(null)


def _serve(argv: list[str], said: int, sock: "_socket.socket") -> int:
    """Start the server; return its pid, which the child also sends before it mounts anything."""
    server = os.fork()
    if server:
        return server
    try:
        send(sock, (f"pid {os.getpid()}",), [])
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        for fd, number in ((null, 0), (said, 1), (said, 2)):
            os.dup2(fd, number)
        os.execve(argv[0], argv, _ENVIRONMENT)
    except OSError as error:
        os.write(said, f"{argv[0]}: {error.strerror}".encode())
    finally:
        os._exit(NOT_FOUND)


def _helper(
    argv: "Sequence[str]",
    keep: "Sequence[int]",
    gone: str,
    sock: "_socket.socket",
    said: int,
    shared: str,
) -> None:
    """In the child: start the server in a new mount namespace, send a copy of its mount, and end.

    It sends "pid N" of the server, then "+" with the mount, or "?" or "!WHY" for a failure. The
    server goes on. This does not return.
    """
    server = 0
    try:
        deafen()
        os.setsid()
        os.chdir("/")
        close_others(*keep, sock.fileno(), said)
        spread()
        unshare(CLONE_NEWNS)
        if not shared:
            mount(None, "/", None, MS_REC | MS_PRIVATE)
        place = f"{shared or cover(argv)}/{SERVED}"
        os.mkdir(place, 0o755)
        server = _serve([word.replace(TARGET, place) for word in argv], said, sock)
        if not _mounted(server, place):
            sock.send(b"?")
            return
        # This first access waits until the server answers.
        os.stat(f"{place}/.")
        if gone:
            os.rmdir(f"{place}/{gone}")
        trees = [] if shared else [open_tree(place)]
        if shared:
            # The mount is in the other namespace too now. Without this, umount(2) would remove it
            # there as well.
            mount(None, shared, None, MS_REC | MS_PRIVATE)
        umount(place, MNT_DETACH)
        send(sock, ("+",), trees)
        server = 0
        os._exit(0)
    except OSError as error:
        sock.send(f"!{getattr(error, 'call', '')} {error.strerror}".encode())
    finally:
        if server:
            _stop(server)
        os._exit(1)


def _stop(server: int) -> None:
    """Kill a server that did not mount; nothing else would end it."""
    try:
        if os.waitpid(server, os.WNOHANG)[0] == 0:
            os.kill(server, SIGKILL)
    except ChildProcessError:
        pass


def cover(argv: "Sequence[str]") -> str:
    """Mount private memory on one of _BASES in which no word of `argv` lies; return the folder.

    Raises OSError.
    """
    for base in _BASES:
        if os.path.isdir(base) and not any(f"{base}/" in word for word in argv):
            mount("tmpfs", base, "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
            return base
    raise OSError(0, f"no folder to mount on: tried {', '.join(_BASES)}")


def _mounted(server: int, place: str) -> bool:
    """Wait until the server has mounted on `place`; return False where it ended or took too long.

    poll(2) on mountinfo returns POLLPRI whenever a mount changes (proc(5)).
    """
    table = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    waiter = poll()
    waiter.register(table, POLLPRI | POLLERR)
    step, steps = _SECONDS * 1000, 1
    try:
        waiter.register(os.pidfd_open(server), POLLIN)
    except (OSError, AttributeError):
        # Linux before 5.3, or a Python built there: look every _STEP whether the server has ended.
        step, steps = _STEP, _SECONDS * 1000 // _STEP
    mark = f" {place} ".encode()
    while mark not in _all(table):
        ready = waiter.poll(step)
        steps -= not ready
        ended = steps and not ready and os.waitpid(server, os.WNOHANG)[0]
        if not steps or ended or any(fd != table for fd, _ in ready):
            return False
    os.close(table)
    return True


def _all(fd: int) -> bytes:
    os.lseek(fd, 0, os.SEEK_SET)
    text = b""
    while chunk := os.read(fd, 1 << 16):
        text += chunk
    return text
