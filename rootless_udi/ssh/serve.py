"""The process that serves ssh into one container, udi-sshd: outside of it, and a child of nobody.

It has the port, starts an sshd for each connection (`sshd -i`), and keeps the container alive by
one process in it, the holder, a shell that waits for the end of its input. It ends when the command
has ended, whatever killed it, or the container: then every process that came by ssh is killed, the
holder's input closed, and the files of this node removed. A second process of that name, its
parent, does the same should it be killed itself.
"""

import os
import select
import signal
import socket
from contextlib import suppress

from rootless_udi.base.process import started
from rootless_udi.base.syscalls import PR_SET_PDEATHSIG, prctl
from rootless_udi.node.record import alive
from rootless_udi.serve import outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

NAME = "udi-sshd"
_SUBREAPER = 36  # prctl(2), PR_SET_CHILD_SUBREAPER
_MANY = 512
"""Connections at once; further ones are closed."""
_BLIND = 1.0
"""Seconds between looks where the kernel has no pidfd_open(2)."""
SCRIPT = (
    "command -v ssh >/dev/null 2>&1 && echo ready ssh || echo ready; exec >/dev/null 2>&1; read x"
)
"""What the holder runs. It says whether the image has a client."""


class Work:
    """What the process is told: the listening socket, sshd's argv for a connection, and the
    holder's argv and environment. `errors` is where sshd complains, `clean` removes the files."""

    def __init__(
        self,
        sock: socket.socket,
        sshd: "Sequence[str]",
        holder: "Sequence[str]",
        environ: "dict[str, str]",
        errors: int,
        clean: "Callable[[], None]",
    ) -> None:
        self.sock, self.sshd, self.holder = sock, list(sshd), list(holder)
        self.environ, self.errors, self.clean = environ, errors, clean


def start(work: Work) -> tuple[int, int]:
    """Start the process. Return a pipe that says "ready [ssh]" or "failed STATUS", and ends with
    the process; and one that ends with it too, for a reader to wait on.

    The caller's end, whatever it has become by then, is the end of it all. Raises OSError.
    """
    news, say = os.pipe2(os.O_CLOEXEC)
    wait, hold = os.pipe2(os.O_CLOEXEC)
    me = os.getpid(), started(os.getpid())
    mask, folder = os.umask(0o077), os.getcwd()
    os.umask(mask)
    outside.arguments()
    child = os.fork()
    if child == 0:
        status = outside.BUG
        try:
            if os.fork():
                os._exit(0)
            outer = os.dup(2)
            kept = work.sock.fileno(), say, hold, outer
            outside.leave(NAME, *kept, *([work.errors] if work.errors >= 0 else []))
            go, tell = os.pipe2(os.O_CLOEXEC)
            inner = os.fork()
            if inner:
                for fd in (work.sock.fileno(), say, outer, tell):
                    os.close(fd)
                _watch(work, inner, go)
            else:
                os.close(go)
                _Guard(work, me, (say, tell), (mask, folder, outer)).run()
            status = 0
        finally:
            os._exit(status)
    os.waitpid(child, 0)
    work.sock.close()
    for fd in (say, hold):
        os.close(fd)
    return news, wait


def _watch(work: Work, guard: int, go: int) -> None:
    """Wait for the end of who serves; clean up in its place where it was killed."""
    if os.read(go, 1):
        # Whom it leaves behind becomes a child of this process. Not before: the container's own
        # helpers are nobody's.
        prctl(_SUBREAPER, 1)
    _, status = os.waitpid(guard, 0)
    if status:
        end(set())
        work.clean()


class _Guard:
    def __init__(
        self,
        work: Work,
        owner: tuple[int, int],
        say: tuple[int, int],
        place: tuple[int, str, int],
    ) -> None:
        self.work, self.owner = work, owner
        self.say, self.tell = say
        self.mask, self.folder, self.errors = place
        self.sessions: set[int] = set()
        self.poll = select.poll()
        self.blind = False
        wake, bell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.wake = wake
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
        self.poll.register(wake, select.POLLIN)
        try:
            self.poll.register(os.pidfd_open(owner[0]), select.POLLIN)
        except (OSError, AttributeError):
            self.blind = True

    def run(self) -> None:
        try:
            stdin, self.input = os.pipe2(os.O_CLOEXEC)
            said, stdout = os.pipe2(os.O_CLOEXEC)
            files = ((stdin, 0), (stdout, 1), (self.errors, 2))
            self.holder = self._start(self.work.holder, self.work.environ, files)
            for fd in (stdin, stdout, self.errors):
                os.close(fd)
            if not self._ready(said):
                return
            os.close(said)
            # As in `_watch`.
            prctl(_SUBREAPER, 1)
            os.write(self.tell, b"1")
            self.poll.register(self.work.sock, select.POLLIN)
            while self._lives():
                ready = self.poll.poll(_BLIND * 1000 if self.blind else None)
                with suppress(BlockingIOError):
                    os.read(self.wake, 4096)
                if self.work.sock.fileno() in [fd for fd, _ in ready]:
                    self._accept()
        finally:
            self._end()

    def _ready(self, said: int) -> bool:
        """Wait until the holder is in the container; tell the caller, return whether it is."""
        line = b""
        while not line.endswith(b"\n") and (data := os.read(said, 256)):
            line += data
        if not line.endswith(b"\n"):
            _, status = os.waitpid(self.holder, 0)
            self.holder = 0
            line = b"failed %d\n" % max(1, os.waitstatus_to_exitcode(status))
        try:
            os.write(self.say, line)
        except BrokenPipeError:
            return False
        return line.startswith(b"ready")

    def _lives(self) -> bool:
        """Tell whether command and container live; reap what has ended."""
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if not pid:
                break
            self.sessions.discard(pid)
            if pid == self.holder:
                self.holder = 0
        return bool(self.holder) and alive(*self.owner)

    def _accept(self) -> None:
        try:
            sock, _ = self.work.sock.accept()
        except OSError:
            # It has gone again, or this process has no descriptor left.
            return
        with sock:
            if len(self.sessions) >= _MANY:
                return
            sock.setblocking(True)
            errors = self.work.errors if self.work.errors >= 0 else 2
            files = ((sock.fileno(), 0), (sock.fileno(), 1), (errors, 2))
            with suppress(OSError):
                env = {"PATH": "/usr/bin:/bin"}
                self.sessions.add(self._start(self.work.sshd, env, files))

    def _start(
        self, argv: "Sequence[str]", env: "dict[str, str]", files: "Iterable[tuple[int, int]]"
    ) -> int:
        """Start a program as the caller of `udi sshd` would, that dies with this process."""
        guard = os.getpid()
        child = os.fork()
        if child:
            return child
        try:
            signal.set_wakeup_fd(-1)
            for number in range(1, signal.NSIG):
                with suppress(OSError, ValueError):
                    signal.signal(number, signal.SIG_DFL)
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != guard:
                os._exit(outside.BUG)
            os.umask(self.mask)
            with suppress(OSError):
                os.chdir(self.folder)
            for fd, number in files:
                os.dup2(fd, number)
            os.execve(argv[0], list(argv), env)
        finally:
            os._exit(127)

    def _end(self) -> None:
        """End what came by ssh, then the container, then take away the files."""
        self.work.sock.close()
        kept = {self.holder} if getattr(self, "holder", 0) else set[int]()
        end(kept)
        with suppress(OSError, AttributeError):
            os.close(self.input)
        if kept:
            with suppress(ChildProcessError):
                os.waitpid(self.holder, 0)
        self.work.clean()


def end(kept: set[int]) -> None:
    """Kill this process's children but `kept`, and what becomes one by that."""
    while others := children() - kept:
        for pid in others:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in others:
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def children() -> set[int]:
    """Return this process's children: all that a session has left behind become that."""
    me, found = os.getpid(), set()
    for name in filter(str.isdecimal, os.listdir("/proc")):
        with suppress(OSError, ValueError, IndexError):
            with open(f"/proc/{name}/stat", "rb") as file:
                fields = file.read().rpartition(b")")[2].split()
            if int(fields[1]) == me:
                found.add(int(name))
    return found
