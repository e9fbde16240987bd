"""Read an image that is elsewhere: a process fetches its windows into a file, and this asks it to.

The process, and what is said over the socket to it, are in `remote.process`; nothing here knows
where the bytes come from. A window is asked for once; where it is not what the image's list says,
once more. What that process has compared with the list just now is read as a local file's bytes
are; what an earlier start left is compared here.
"""

import _socket
from _thread import allocate_lock, start_new_thread
from errno import EIO
from os import close, pread
from time import monotonic

from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import take
from rootless_udi.base.windows import CHECKED, WRONG, WindowList, behind
from rootless_udi.fuse.checkedfile import CheckedFile
from rootless_udi.fuse.format import Corrupt, Superblock
from rootless_udi.fuse.imagefile import WINDOW, ImageFile
from rootless_udi.fuse.precheck import GOOD

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType

    from rootless_udi.fuse.imagefile import Opener
    from rootless_udi.fuse.workers import Workers

_GET, _AGAIN = b"g", b"a"
_EVER = float("inf")
_MARGIN = 5.0
"""Seconds beyond its own time after which the process is taken for dead."""


class RemoteFile(CheckedFile):
    """Reads of the image whose windows come into the file at `fd`.

    `sock` is connected to the process that fetches them, which answers within `timeout` seconds.
    Without a list (`known`) nothing is checked; with `always` each window is at each read.
    """

    __slots__ = ("_always", "_answers", "_sock", "_there", "_timeout", "_waiting")

    def __init__(
        self,
        fd: int,
        size: int,
        known: "WindowList | None",
        place: str,
        sock: int,
        timeout: float,
        always: bool = False,
        there: "tuple[int, ...]" = (),
    ) -> None:
        """The windows `there` are in the file, and are what the list says."""
        super().__init__(fd, known, place, size)
        self._always = always
        self._sock = _socket.socket(fileno=sock)
        self._timeout = timeout
        self._there: set[int] = {0, *there}
        if known is not None and not always:
            self._good.update(dict.fromkeys(there, _EVER))
        self._waiting: dict[int, LockType] = {}
        self._answers: dict[int, tuple[str, int]] = {}
        start_new_thread(self._listen, ())

    def expect(self, ranges: "tuple[tuple[int, int], ...]", workers: "Workers | None") -> None:
        """Do nothing: the process that fetches reads these ranges ahead."""

    def sure(self, number: int) -> bytes:
        """Do what `CheckedFile.sure` does; one of the threads that want a window asks for it."""
        mine = allocate_lock()
        mine.acquire()
        other = self._loading.setdefault(number, mine)
        if other is not mine:
            with other:
                pass
            if number in self._good:
                return b""
            # It is in no file, or the other thread has met an error, which this one shall meet too.
            return self._windows.get(number) or self.sure(number)
        try:
            return self._windows.get(number) or self._come(number)
        finally:
            del self._loading[number]
            mine.release()

    def _come(self, number: int) -> bytes:
        aside = -1
        if number not in self._there:
            aside = self._ask(_GET, number)
        if aside < 0 and self._good.get(number) != _EVER:
            try:
                self.compare(number)
            except Corrupt:
                # A disk, or another node that writes the file, may have lied: one fresh try.
                aside = self._ask(_AGAIN, number)
                if aside < 0:
                    self.compare(number)
        if aside >= 0:
            # Its disk is full.
            data = self._aside(number, aside)
            self._windows.put(number, data)
            return data
        self._good[number] = monotonic() + GOOD if self._always else _EVER
        return b""

    def _aside(self, number: int, fd: int) -> bytes:
        """Return a window that is in the file at `fd`, since the disk is full."""
        try:
            data = pread(fd, WINDOW, 0)
        finally:
            close(fd)
        self.checked(number, data)
        return data

    def _ask(self, what: bytes, number: int) -> int:
        """Ask for a window and wait until it is in the file; or return a descriptor that it is in,
        else -1. Raises WrongWindow, OSError."""
        done = allocate_lock()
        done.acquire()
        # `sure` lets only one thread fetch a window.
        self._waiting[number] = done
        try:
            self._sock.send(what + number.to_bytes(8, "little"))
        except OSError:
            raise OSError(EIO, self._gone()) from None
        if not done.acquire(True, self._timeout + _MARGIN):
            raise OSError(EIO, f"reading {self.place} failed: no answer in time")
        why, aside = self._answers.pop(number, (self._gone(), -1))
        if why == WRONG:
            raise self.wrong(number)
        if why and why != CHECKED:
            raise OSError(EIO, why)
        if aside < 0:
            self._there.add(number)
            if why == CHECKED and not self._always:
                self._good[number] = _EVER
        return aside

    def _gone(self) -> str:
        return f"reading {self.place} failed: the process that fetches it has ended"

    def _listen(self) -> None:
        """Take the answers, each in the name of the thread that waits for it."""
        while True:
            try:
                message, fds = take(self._sock, 2048)
            except OSError:
                message, fds = b"", []
            if not message:
                break
            number = int.from_bytes(message[:8], "little")
            words = message[8:].decode("utf-8", "replace")
            done = self._waiting.pop(number, None)
            if done is not None:
                self._answers[number] = words, fds.pop() if fds else -1
                done.release()
            for fd in fds:
                close(fd)
        self._sock.close()
        for number in list(self._waiting):
            self._waiting.pop(number).release()


def opener(
    sock: int,
    url: str,
    timeout: float,
    check: bool,
    digest: str,
    always: bool = False,
    there: "tuple[int, ...]" = (),
) -> "Opener":
    """Return what opens a remote image's file, to be checked with the list of its windows.

    Its beginning and what is behind its squashfs are there, and right are the windows `there`.
    `digest` is the list's, "" if that is not known; with `always` each window is checked at each
    read. Raises UdiError where the list is missing, damaged or another.
    """

    def opened(fd: int, head: Superblock, name: str) -> ImageFile:
        used, known = head.bytes_used, None
        if check:
            why, hint = "it has no list of its windows", "`udi export` writes one into the file"
            try:
                known = behind(lambda at, size: pread(fd, size, at), used)
            except ValueError as error:
                why, hint = str(error), "copy it there again"
            if known is None:
                raise UdiError(f"mounting failed on {url}: {why}", hint)
            if digest and known.digest != digest:
                why = f"its list of windows is {known.digest}, wanted is {digest}"
                raise UdiError(f"mounting failed on {url}: {why}", "the file there is another one")
        found = RemoteFile(fd, used, known, url, sock, timeout, always, there)
        # The superblock was read before anything could be checked.
        if found.some(0, len(head.head)) != head.head[:used]:
            raise UdiError(f"mounting failed on {url}: its first bytes have changed")
        return found

    return opened
