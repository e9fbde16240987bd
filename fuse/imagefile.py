"""The image file: exact reads at positions, few of them where each one is slow."""

from os import POSIX_FADV_WILLNEED, posix_fadvise, pread
from time import monotonic_ns

from rootless_udi.fuse.bounded_cache import Cache
from rootless_udi.fuse.format import Corrupt
from rootless_udi.fuse.workers import Workers

WINDOW = 1 << 20
AHEAD = 6
"""Windows read ahead of a start-up."""
EXPECTED = 4096
"""Windows that a start-up's order may name: 4 GiB; a sparse image can name a terabyte."""
SLOW = 300_000
"""ns. A local disk or the page cache answers in 10 to 100 us, a parallel file system's server in 1
to 20 ms."""


class ImageFile:
    """Reads of the image open at `fd`.

    Where reads turn out to be slow, whole windows of WINDOW bytes are read and remembered, so that
    neighbours (which the writer of an image put next to each other because they belong together)
    cost one round trip. On a fast file system that would only copy bytes that nobody asked for.
    """

    __slots__ = ("_fast", "_next", "_windows", "_workers", "fd", "size", "slow")

    def __init__(self, fd: int, size: int, windows: int = 16 * WINDOW) -> None:
        """`size` is where the image ends; `windows` bounds the bytes remembered."""
        self.fd = fd
        self.size = size
        self.slow = False
        self._fast = 0  # a balance: slow reads count up, fast ones down
        self._windows: Cache[bytes] = Cache(windows, len)
        self._workers: Workers | None = None
        self._next: dict[int, int] = {}  # window -> the one that a start-up wants after it

    def expect(self, ranges: "tuple[tuple[int, int], ...]", workers: Workers | None) -> None:
        """Know that a start-up reads `ranges`, (position, length) in order, and have them at hand.

        The kernel is told to fetch them, which costs nothing where it can (a local disk, Lustre).
        Where reads are slow all the same, `workers` read AHEAD windows beyond the one in use.
        """
        self._workers = workers
        order: list[int] = []
        for at, length in ranges:
            length = min(length, (EXPECTED - len(order)) * WINDOW)
            order += range(at // WINDOW, (at + length - 1) // WINDOW + 1)
            try:
                posix_fadvise(self.fd, at, length, POSIX_FADV_WILLNEED)
            except OSError:
                continue  # a file system without readahead: the windows are there for that
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
        data = pread(self.fd, size, at)
        if monotonic_ns() - before > SLOW:
            self._fast += 1
            self.slow = self._fast >= 3
        elif self._fast > -8:
            self._fast -= 1
        if len(data) != size:
            return self._rest(at, size, data)
        return data

    def some(self, at: int, size: int) -> bytes:
        """Return up to `size` bytes from `at`, fewer only where the image ends."""
        return self.read(at, min(size, self.size - at)) if at < self.size else b""

    def _rest(self, at: int, size: int, data: bytes) -> bytes:
        """Go on after a short read, which a network file system may give."""
        while len(data) < size:
            more = pread(self.fd, size - len(data), at + len(data))
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
        """Return the window that starts at `number` * WINDOW, from memory where it is there."""
        workers = self._workers
        if workers is not None:
            ahead = number
            for _ in range(AHEAD):
                ahead = self._next.get(ahead, -1)
                if ahead < 0:
                    break
                if ahead not in self._windows:
                    workers.ask(self.load, ahead)
            workers.wait(number)
        data = self._windows.get(number)
        return self.load(number) if data is None else data

    def load(self, number: int) -> bytes:
        """Read the window `number` and remember it. Any thread."""
        at = number * WINDOW
        size = min(WINDOW, self.size - at)
        data = pread(self.fd, size, at)
        if len(data) != size:
            data = self._rest(at, size, data)
        self._windows.put(number, data)
        return data
