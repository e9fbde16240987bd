"""Read ranges of the image's file; where each read is slow, with few and large reads."""

from _thread import allocate_lock
from os import POSIX_FADV_WILLNEED, posix_fadvise, pread
from time import monotonic_ns

from rootless_udi.fuse.bounded_cache import Cache
from rootless_udi.fuse.format import EXPECTED, Corrupt
from rootless_udi.fuse.workers import Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable

    from rootless_udi.fuse.format import Superblock

    Opener = Callable[[int, Superblock, str], "ImageFile"]
    """Returns what reads the image that is open at a descriptor, of its superblock and its name for
    errors. Raises UdiError, Corrupt, OSError."""
else:
    Opener = None

WINDOW = 1 << 20
"""Bytes that are read at once where reads are slow, or are checked (`checkedfile`)."""
_AHEAD = 6
"""Windows read ahead of the one that a program's start needs."""
_SLOW = 300_000
"""Nanoseconds. A local disk or the page cache answers in 10 to 100 microseconds, the server of a
parallel file system in 1 to 20 milliseconds."""
_SLOW_READS, _FAST_READS = 3, 8
"""A file counts as slow after three more slow reads than fast ones; at most eight fast ones are
held against them."""


class ImageFile:
    """Reads of the image open at `fd`.

    Where reads turn out to be slow, whole windows of WINDOW bytes are read and cached. Things that
    belong together lie next to each other in an image, so that they then cost one slow read. On a
    fast file system that would only copy bytes that nobody needs. A class that needs all its bytes
    in whole windows sets `slow` and has a `fetch` of its own.
    """

    __slots__ = (
        "_balance",
        "_loading",
        "_next",
        "_windows",
        "_workers",
        "base",
        "fd",
        "size",
        "slow",
    )

    def __init__(self, fd: int, size: int, windows: int = 16 * WINDOW, base: int = 0) -> None:
        """`size` is the image's in bytes, `base` where in the file it begins; `windows` is how many
        bytes of windows are cached."""
        self.fd = fd
        self.base = base
        self.size = size
        self.slow = False
        self._balance = 0  # slow reads add 1, fast ones subtract 1
        self._windows: Cache[bytes] = Cache(windows, len)
        self._workers: Workers | None = None
        self._loading: dict[int, LockType] = {}  # windows that a thread is fetching
        self._next: dict[int, int] = {}  # window -> the one that a start reads after it

    def expect(self, ranges: "tuple[tuple[int, int], ...]", workers: Workers | None) -> None:
        """Prefetch `ranges`, each (position, length), which a program's start reads in this order.

        The kernel is told to read them ahead, which is all that a local disk or Lustre needs. Where
        reads are slow all the same, `workers` read _AHEAD windows beyond the one in use.
        """
        self._workers = workers
        order: list[int] = []
        for at, length in ranges:
            length = min(length, (EXPECTED - len(order)) * WINDOW)
            order += range(at // WINDOW, (at + length - 1) // WINDOW + 1)
            try:
                posix_fadvise(self.fd, self.base + at, length, POSIX_FADV_WILLNEED)
            except OSError:
                continue  # a file system that can't read ahead; then the workers do
        if order:
            from itertools import pairwise  # 0.3 ms that only an optimised image needs

            self._next = dict(pairwise(order))

    def read(self, at: int, size: int) -> bytes:
        """Return `size` bytes from position `at`. Raises Corrupt beyond the end; OSError."""
        if at + size > self.size:
            raise Corrupt(f"it points at {at}+{size}, beyond its end at {self.size}")
        if self.slow:
            return self._windowed(at, size)
        before = monotonic_ns()
        data = pread(self.fd, size, self.base + at)
        if monotonic_ns() - before > _SLOW:
            self._balance += 1
            self.slow = self._balance >= _SLOW_READS
        elif self._balance > -_FAST_READS:
            self._balance -= 1
        if len(data) != size:
            return self._rest(at, size, data)
        return data

    def some(self, at: int, size: int) -> bytes:
        """Return `size` bytes from `at`, fewer where the image ends before. Raises OSError."""
        return self.read(at, min(size, self.size - at)) if at < self.size else b""

    def _rest(self, at: int, size: int, data: bytes) -> bytes:
        """Read on after a short read, as a network file system may give. Raises Corrupt."""
        while len(data) < size:
            more = pread(self.fd, size - len(data), self.base + at + len(data))
            if not more:
                raise Corrupt(f"the file ends at {at + len(data)}, before the image does")
            data += more
        return data

    def _windowed(self, at: int, size: int) -> bytes:
        first, last = at // WINDOW, (at + size - 1) // WINDOW
        parts = []
        for number in range(first, last + 1):
            window = self.window(number)
            start = number * WINDOW
            parts.append(window[max(at - start, 0) : at + size - start])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def window(self, number: int) -> bytes:
        """Return the window that starts at `number` * WINDOW, from the cache where it is there."""
        workers = self._workers
        if workers is not None:
            ahead = number
            for _ in range(_AHEAD):
                ahead = self._next.get(ahead, -1)
                if ahead < 0:
                    break
                if ahead not in self._windows:
                    workers.ask(self.load, ahead)
            workers.wait(number)
        data = self._windows.get(number)
        return self.load(number) if data is None else data

    def load(self, number: int) -> bytes:
        """Fetch the window `number` and cache it. Any thread may call this; one of them fetches."""
        mine = allocate_lock()
        mine.acquire()
        other = self._loading.setdefault(number, mine)
        if other is not mine:
            with other:
                pass
            data = self._windows.get(number)
            if data is not None:
                return data
            # The other thread has met an error, which this one shall meet too.
            return self.fetch(number)
        try:
            # Another thread may have ended with it just now.
            data = self._windows.get(number)
            if data is None:
                data = self.fetch(number)
                self._windows.put(number, data)
            return data
        finally:
            del self._loading[number]
            mine.release()

    def fetch(self, number: int) -> bytes:
        """Return the window `number`, read anew. Raises Corrupt, OSError."""
        at = number * WINDOW
        size = min(WINDOW, self.size - at)
        data = pread(self.fd, size, self.base + at)
        if len(data) != size:
            data = self._rest(at, size, data)
        return data


def plain(fd: int, head: "Superblock", name: str) -> ImageFile:
    """The usual `Opener`."""
    return ImageFile(fd, head.bytes_used, base=head.base)
