"""Keep a container for the next start: --keep=SECONDS, `node.kept`.

A process in the container, the pin, does nothing but be there: udi-keep. As a member of the
container's record it is joined through like any other, and while it lives the kernel keeps the
mounts. The helper, outside, ends it: so many seconds after the last other member has ended, when a
file on which the container depends has changed, when the batch job has ended, or when the image
server has. If either is killed the container is one that is not kept, and ends with its last
process.

A rank joins without asking anybody. If the pin ends meanwhile, the rank has opened the container's
namespaces before, and is in; or it can't open them, and makes a new container.
"""

import os
from _signal import SIGKILL, pause
from select import POLLIN, poll
from time import monotonic, time_ns

from rootless_udi.base.calls import close_others
from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import receive, tell
from rootless_udi.base.process import started
from rootless_udi.base.syscalls import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    IN_DELETE_SELF,
    IN_MODIFY,
    PR_SET_DUMPABLE,
    PR_SET_PDEATHSIG,
    inotify_add_watch,
    inotify_init,
    prctl,
    protect,
    setns,
)
from rootless_udi.node import places, publish
from rootless_udi.node.election import Election
from rootless_udi.node.record import TOLD, NodeRecord, alive, file_of, member, read_record
from rootless_udi.serve import outside
from rootless_udi.serve.outside import BUG, PIN

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from rootless_udi.serve.outside import Place

_LOOK = 5.0
"""Seconds between two looks whether a file has changed, while nobody is in the container."""
_BLIND = 1.0
"""The same where the kernel does not tell of members: it has no pidfd_open(2) (Linux 5.3), or the
user has no inotify instance left (inotify(7))."""
_CALM, _BUSY = 0.05, 1.0
"""Seconds for which newcomers are not looked at after one: while nobody is in, and while one is.
A workflow may start a hundred commands in a second."""
_LONG = 1 << 13
"""Bytes of members' lines, from which on the record is written anew without the dead ones."""


def hold(
    sock: "_socket.socket", message: str, fds: "list[int]", place: "Place", server: int
) -> None:
    """Do what udi-run asked: keep the container, and return when it is to end.

    `message` is of `helper.Helper.keep`, with descriptors of the container's user and mount
    namespace; `server` is the image server's process, 0 for none.
    """
    _, seconds, job, job_start = message.split("\0")
    pin = _pin(*fds)
    for fd in fds:
        os.close(fd)
    if not pin:
        tell(sock, "pin ")
        return
    tell(sock, f"pin {pin} {started(pin)}")
    # Until udi-run has written the record and become the command: both close its end.
    while receive(sock)[0]:
        pass
    try:
        _Keeper(place, float(seconds), pin, server, (int(job), int(job_start))).run()
    except (OSError, UdiError):
        # The state directory is gone, or full: nobody can join any more.
        pass
    finally:
        os.kill(pin, SIGKILL)
        os.waitpid(pin, 0)


def _pin(space: int, mounts: int) -> int:
    """Start the process that stays in the container; return its id, 0 where it can't be started."""
    keeper = os.getpid()
    try:
        child = os.fork()
    except OSError:
        # A limit of processes: the container ends with its last process, as others do.
        return 0
    if child:
        return child
    try:
        outside.title(PIN)
        setns(space, CLONE_NEWUSER)
        setns(mounts, CLONE_NEWNS)
        protect()
        # The kernel has taken both back as the process changed its namespaces: ranks look at its
        # /proc/PID/ns, and it ends with who decides about it.
        prctl(PR_SET_DUMPABLE, 1)
        prctl(PR_SET_PDEATHSIG, SIGKILL)
        close_others()
        while os.getppid() == keeper:
            pause()
    finally:
        os._exit(BUG)


class _Keeper:
    """What the helper knows of a kept container."""

    def __init__(
        self, place: "Place", seconds: float, pin: int, server: int, job: tuple[int, int]
    ) -> None:
        self.path, self.name, self.token = place
        self.seconds = seconds
        self.pin = pin, started(pin)
        self.others = [one for one in ((server, started(server)), job) if one[0]]
        self.record: NodeRecord | None = None
        self.files: list[tuple[int, int]] = []
        """(descriptor, bytes that were read): the record's file, and the one before that: who
        opened it before it was replaced adds himself to that one."""
        self.living: set[tuple[int, int]] = set()
        self.came, self.long = True, _LONG
        self.poll, self.blind, self.ending = poll(), False, set[int]()
        for pid, _ in (self.pin, *self.others):
            self.ending.add(self._watched(pid))
        try:
            self.news = inotify_init()
        except OSError:
            self.news, self.blind = -1, True

    def _watched(self, pid: int) -> int:
        """Return a descriptor that becomes readable when a process ends; -1 where there is none."""
        try:
            fd = os.pidfd_open(pid)
        except ProcessLookupError:
            return -1
        except (OSError, AttributeError):
            self.blind = True
            return -1
        self.poll.register(fd, POLLIN)
        return fd

    def run(self) -> None:
        """Return when the container is to end."""
        idle = 0.0
        while self._current():
            self._gather()
            now = monotonic()
            if self.living:
                idle = 0.0
            elif self.came or not idle:
                idle = now
                # For `udi ps`: since when it waits.
                os.utime(self.files[0][0], ns=(time_ns(), time_ns()))
            self.came = False
            left = idle + self.seconds - now if idle else _LOOK
            if left <= 0:
                if self._end():
                    return
                continue
            if self._compact() or self._wait(left):
                continue
            return

    def _current(self) -> bool:
        """Tell whether the record is this container's, and who comes may still join it."""
        if not all(alive(*one) for one in (self.pin, *self.others)):
            return False
        _, directory = places.state([self.path], make=False)
        if directory < 0:
            return False
        try:
            if not self._is_open(directory) and not self._open(directory):
                return False
        finally:
            os.close(directory)
        return self.record is not None and not self.record.changed()

    def _is_open(self, directory: int) -> bool:
        try:
            named = os.stat(file_of(self.name), dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return bool(self.files) and os.path.samestat(named, os.fstat(self.files[0][0]))

    def _open(self, directory: int) -> bool:
        record, fd = read_record(directory, self.name)
        if record is None:
            return False
        if record.get("token") != self.token or record.lost():
            os.close(fd)
            return False
        self.record = record
        for old, _ in self.files[1:]:
            os.close(old)
        self.files = [(fd, record.tail_at), *self.files[:1]]
        if self.news >= 0:
            path = f"{self.path}/{file_of(self.name)}"
            inotify_add_watch(self.news, path, IN_MODIFY | IN_DELETE_SELF)
            self._listen(True)
        return True

    def _listen(self, on: bool) -> None:
        if self.news >= 0:
            self.poll.register(self.news, POLLIN if on else 0)

    def _gather(self) -> None:
        """Read who has come; forget who has ended."""
        found: list[tuple[int, int]] = []
        for number, (fd, at) in enumerate(self.files):
            data = b""
            while chunk := os.pread(fd, 1 << 16, at + len(data)):
                data += chunk
            whole = data.rfind(b"\n") + 1
            self.files[number] = fd, at + whole
            pairs = [pair for line in data[:whole].split(b"\n") if (pair := member(line))]
            if number and pairs:
                # They came as the record was replaced.
                os.write(self.files[0][0], b"".join(b"%d %d\n" % pair for pair in pairs))
            found += [pair for pair in pairs if pair != self.pin]
        self.came = self.came or bool(found)
        self.living = {pair for pair in (*self.living, *found) if alive(*pair)}

    def _wait(self, seconds: float) -> bool:
        """Wait for news, at most so long; return False where a process has ended on whose end
        the container ends."""
        # While one member lives nothing else matters: one of them is enough.
        one, _ = min(self.living, default=(0, 0))
        fd = self._watched(one) if one else -1
        if one and fd < 0 and not self.blind:
            return True
        step = _BLIND if self.blind else seconds if not one else -1.0
        ready = self._ready(min(step, _LOOK) if step >= 0 else -1.0)
        if self.news in ready:
            self._listen(False)
            ready = self._ready(_BUSY if one else _CALM)
            self._listen(True)
            os.read(self.news, 1 << 12)
        if fd >= 0:
            self.poll.unregister(fd)
            os.close(fd)
        return not self.ending & ready

    def _ready(self, seconds: float) -> set[int]:
        return {fd for fd, _ in self.poll.poll(seconds * 1000 if seconds >= 0 else None)}

    def _compact(self) -> bool:
        """Write the record anew without the dead, where it has many; return whether it was done."""
        assert self.record is not None
        fd, at = self.files[0]
        if at - self.record.tail_at < self.long or len(self.living) > self.long // 40:
            return False
        head = [(key, value) for key, values in self.record.lists.items() for value in values]
        tail = os.pread(fd, at - self.record.tail_at, self.record.tail_at)
        said = TOLD + b"\n" if b"\n" + TOLD in tail else b""
        tail = b"".join(b"%d %d\n" % pair for pair in (self.pin, *sorted(self.living))) + said
        election = self._election()
        if election is None:
            return False
        try:
            if self._is_open(election.directory):
                data = publish.content(head, tail)
                publish.replace(election.directory, self.path, self.name, data)
        except UdiError:
            # There is no room for it now.
            self.long *= 2
            return False
        finally:
            election.release()
            os.close(election.directory)
        return True

    def _end(self) -> bool:
        """End the container under the record's lock, unless somebody has come; tell which."""
        election = self._election()
        if election is None:
            return True
        try:
            if not self._is_open(election.directory):
                return True
            self._gather()
            if self.came or self.living:
                return False
            os.kill(self.pin[0], SIGKILL)
            return True
        finally:
            election.release()
            os.close(election.directory)

    def _election(self) -> Election | None:
        _, directory = places.state([self.path], make=False)
        return Election(self.path, directory, self.name) if directory >= 0 else None
