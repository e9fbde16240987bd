"""The processes that serve a container's squashfs volumes, until their mounts are gone.

One process serves all of them with our own server, a thread each: udi-volume. Its parent,
udi-volumes, starts it, or another program for each volume, and waits: if one of them dies the
command's user is told. As with the image's server, they are outside the container, and the kernel
ends them: a mount that is gone everywhere ends its connection. Only starts with such volumes import
this; `Volumes` is udi-run's side.
"""

import os
from select import POLLIN, poll

from rootless_udi.base.calls import spawn
from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import pair, receive, send
from rootless_udi.base.syscalls import MS_NODEV, MS_NOSUID, MS_RDONLY, mount
from rootless_udi.serve import outside, volumeserver
from rootless_udi.serve.outside import BUG, VOLUMES
from rootless_udi.serve.programs import command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable, Sequence

    from rootless_udi.plan.steps import Squashfs

    Answers = Callable[[str, str, str, Callable[[], str]], bool]
    """Of a mount: place, what is served, the file, and what says why its server has ended."""

_PLACE = "/volumes"
"""The folder in private memory in which the volumes are mounted, until they are moved."""
_SECONDS = 10
"""How long a server that has ended may take to say why."""


class Volumes:
    """udi-run's side: starts the processes, and makes the mounts."""

    def __init__(self, steps: "Sequence[Squashfs]") -> None:
        """Start the processes, which open the files while udi-run goes on. Raises UdiError."""
        self._steps = steps
        self._mine, theirs = pair()
        self._why, said = os.pipe2(os.O_CLOEXEC)
        outside.arguments()
        launcher = os.getpid()
        try:
            child = os.fork()
        except OSError as error:
            hint = "a limit of processes may be reached (ulimit -u, the job's)"
            raise UdiError(f"starting a process failed: {error.strerror}", hint) from None
        if child == 0:
            status = BUG
            try:
                if os.fork():
                    os._exit(0)
                outside.leave(VOLUMES, theirs.fileno(), said)
                _Parent(steps, theirs, said, launcher).run()
                status = 0
            finally:
                os._exit(status)
        self._between = child
        theirs.close()
        os.close(said)

    def mount(self, answers: "Answers") -> "dict[str, int]":
        """Mount the volumes in private memory; return target -> descriptor of the mount.

        `answers` waits until a server answers. Call this as root of the outer user namespace, when
        the host's tree is at /host. Raises UdiError, OSError.
        """
        os.mkdir(_PLACE, 0o755)
        flags = MS_RDONLY | MS_NOSUID | MS_NODEV
        for number, step in enumerate(self._steps):
            place = f"{_PLACE}/{number}"
            os.mkdir(place, 0o755)
            fuse = os.open("/host/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
            data = f"fd={fuse},rootmode=40000,user_id=0,group_id=0,allow_other,default_permissions"
            mount(step.root.path, place, f"fuse.{step.root.server}", flags, data)
            try:
                send(self._mine, (str(number),), [fuse])
            except OSError:
                # It has ended: whoever reads the mount finds that out.
                pass
            os.close(fuse)
        # From now on a server that ends is the last to have its connection.
        self._mine.close()
        return {step.target: self._mounted(n, step, answers) for n, step in enumerate(self._steps)}

    def _mounted(self, number: int, step: "Squashfs", answers: "Answers") -> int:
        """Return the mount's descriptor once its server answers. Raises UdiError."""
        place, path = f"{_PLACE}/{number}", step.root.path
        answers(place, f"volume {path} on {step.target}", path, lambda: self._failure(number))
        return os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)

    def _failure(self, number: int) -> str:
        """Return why the server of a volume has ended, as far as it has said so."""
        waiter = poll()
        waiter.register(self._why, POLLIN)
        said = b""
        while waiter.poll(_SECONDS * 1000):
            data = os.read(self._why, 1 << 16)
            said += data
            for line in said.decode("utf-8", "replace").split("\n")[:-1]:
                which, _, why = line.partition(" ")
                if int(which) in (number, -1):
                    return why
            if not data:
                break
        return "its server has ended"

    def close(self) -> None:
        """Close the sockets and reap the child, before the command is executed."""
        self._mine.close()
        os.close(self._why)
        os.waitpid(self._between, 0)


class _Parent:
    """The process that starts the servers and waits for them.

    `said` is the pipe to udi-run: a line is a volume's number (-1: all) and why it is not served.
    `launcher` is udi-run's process, which becomes the command.
    """

    def __init__(
        self, steps: "Sequence[Squashfs]", sock: "_socket.socket", said: int, launcher: int
    ) -> None:
        self.steps, self.sock, self.said, self.launcher = steps, sock, said, launcher
        self.serves: dict[int, list[int]] = {}
        """Process -> the numbers of the volumes that it serves."""
        self.errors: dict[int, int] = {}
        """Process of another program -> the file to which that prints."""

    def run(self) -> None:
        ours = [n for n, step in enumerate(self.steps) if step.root.server == "udi"]
        mine, theirs = pair()
        if ours:
            child = os.fork()
            if child == 0:
                self.sock.close()
                mine.close()
                volumeserver.run(self.steps, ours, theirs, self.said)
            self.serves[child] = ours
        theirs.close()
        while True:
            text, fds = receive(self.sock)
            if not text:
                break
            number = int(text)
            if number in ours:
                try:
                    send(mine, (text,), fds)
                except OSError:
                    pass
            else:
                self._program(number, fds[0])
            os.close(fds[0])
        mine.close()
        while self.serves:
            pid, status = os.wait()
            numbers = self.serves.pop(pid, [])
            code = os.waitstatus_to_exitcode(status)
            if code and numbers:
                self._lost(pid, numbers, code)

    def _program(self, number: int, fuse: int) -> None:
        """Start another program as the server of a volume, on the connection `fuse`."""
        step = self.steps[number]
        program, argv = command(step.root, f"/dev/fd/{fuse}")
        os.set_inheritable(fuse, True)
        said = os.memfd_create("stderr")
        known = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        try:
            pid = spawn(program, argv, {"PATH": "/usr/bin:/bin", **known}, [(said, 2)])
        except OSError as error:
            self._say(number, f"starting {program} failed: {error.strerror}")
            return
        self.serves[pid] = [number]
        self.errors[pid] = said

    def _say(self, number: int, why: str) -> bool:
        """Tell udi-run; return False where it has become the command, or has ended."""
        try:
            os.write(self.said, volumeserver.line(number, why))
        except OSError:
            return False
        return True

    def _lost(self, pid: int, numbers: "list[int]", code: int) -> None:
        """Tell udi-run, or the command's user, that a server has ended."""
        words = outside.printed(self.errors[pid]) if pid in self.errors else ""
        why = outside.ending(code) + (f": {words}" if words else "")
        if self._say(numbers[0] if len(numbers) == 1 else -1, f"its server ended ({why})"):
            return
        from rootless_udi.serve import lastwords

        places = ", ".join(self.steps[number].target for number in numbers[:3])
        places += ", ..." if len(numbers) > 3 else ""
        text = f"volume {places} can't be read any more, since its server has ended: {why}"
        lastwords.say(self.launcher, text, "start the command again")
