"""The windows of a remote image that are there: a sparse file, and threads that fetch into it.

No window is fetched twice, but at an explicit wish: one that is under way or there is not asked for
again. What a start reads first (`fuse.format.Superblock.hot`) is fetched in larger requests, behind
all windows that somebody waits for.
"""

import contextlib
import os
import threading
from collections.abc import Callable
from itertools import count
from queue import PriorityQueue

from rootless_udi.base.errors import UdiError
from rootless_udi.base.windows import WINDOW
from rootless_udi.base.windows import count as windows_of
from rootless_udi.fuse.imagefile import EXPECTED
from rootless_udi.remote.ranges import Ranges

_THREADS = 6
"""Connections at once: a link of 1 Gb/s and 20 ms holds 2.5 MB."""
_TOGETHER = 4
"""Most windows in one request for what a start reads first."""
_WANTED, _AHEAD = 0, 1
_ROW, _ROWS = 4, 8
"""Bytes of a row of the journal; rows of it for a window at most, since several nodes write it."""

Told = Callable[[int, str], object]
"""Is called with a window's number and why it can't be had ("" if it is there), by any thread."""


class Kept:
    """The windows of a squashfs of `size` bytes that `source` has, in the file at `fd`."""

    def __init__(self, source: Ranges, fd: int, size: int, told: Told, journal: int = -1) -> None:
        """`journal` is a file with the numbers of the windows that are there, which grows: 4 bytes
        each, little-endian. It may be wrong, after a crash or where several nodes write it: whoever
        reads a window compares it with the list, and asks for it anew."""
        self._source, self._fd, self._size, self._told = source, fd, size, told
        self._lock = threading.Lock()
        self._journal = journal
        self._there = _read(journal, windows_of(size)) if journal >= 0 else set()
        self._under_way: set[int] = set()
        self._jobs: PriorityQueue[tuple[int, int, int, int, bool]] = PriorityQueue()
        self._turn = count()

    def start(self) -> None:
        """Start the threads. Raises RuntimeError where not even one can be started."""
        for number in range(_THREADS):
            try:
                threading.Thread(target=self._work, daemon=True).start()
            except RuntimeError:
                if not number:
                    raise
                return

    def put(self, at: int, data: "bytes | bytearray") -> None:
        """Write bytes of the file, of a window or behind the windows. Raises UdiError."""
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(self._fd, data[done:], at + done)
        except OSError as error:
            raise UdiError(
                f"keeping windows of {self._source.shown} failed: {error.strerror}",
                "they are kept in a file without a name in TMPDIR, else /tmp",
            ) from None

    def known(self, number: int) -> None:
        """Note that a window was put."""
        with self._lock:
            self._there.add(number)

    def want(self, number: int, fresh: bool = False) -> bool:
        """Tell whether a window is there; if not, have it fetched before others.

        `fresh`: fetch it anew, since what is there is wrong.
        """
        if not 0 <= number < windows_of(self._size):
            self._told(number, "the image has no such window")
            return False
        with self._lock:
            if fresh:
                self._there.discard(number)
            if number in self._there:
                return True
            if number not in self._under_way:
                self._under_way.add(number)
                self._jobs.put((_WANTED, next(self._turn), number, 1, fresh))
        return False

    def expect(self, ranges: tuple[tuple[int, int], ...]) -> None:
        """Fetch the windows of `ranges`, each (position, length), in this order, when nobody waits
        for others."""
        found: dict[int, None] = {}
        for at, length in ranges:
            last = min(at + length, self._size) - 1
            # A damaged or hostile marker names terabytes.
            most = at // WINDOW + EXPECTED - len(found)
            found.update(dict.fromkeys(range(at // WINDOW, min(last // WINDOW + 1, most))))
        order = list(found)
        while order:
            run = [order.pop(0)]
            while order and len(run) < _TOGETHER and order[0] == run[-1] + 1:
                run.append(order.pop(0))
            self._jobs.put((_AHEAD, next(self._turn), run[0], len(run), False))

    def _work(self) -> None:
        while True:
            kind, _, first, number, fresh = self._jobs.get()
            numbers = list(range(first, first + number))
            if kind == _AHEAD:
                with self._lock:
                    # Those that somebody has asked for meanwhile are under way or there.
                    taken = self._there | self._under_way
                    numbers = [n for n in numbers if n not in taken]
                    self._under_way.update(numbers)
            for run in _runs(numbers):
                self._fetch(run, fresh)

    def _fetch(self, numbers: list[int], fresh: bool) -> None:
        """Fetch windows that follow one another, with one request; tell of each as it comes."""
        at = numbers[0] * WINDOW
        stop = min((numbers[-1] + 1) * WINDOW, self._size)
        left = list(numbers)

        def sink(position: int, piece: bytes) -> None:
            self.put(position, piece)
            done = position + len(piece)
            while left and done >= min((left[0] + 1) * WINDOW, self._size):
                self._settle(left.pop(0), "")

        why = ""
        try:
            self._source.read(at, stop - at, sink, fresh)
        except UdiError as error:
            why = error.message
        except Exception as error:
            why = f"reading {self._source.shown} failed: {type(error).__name__}: {error}"
        for number in left:
            self._settle(number, why)

    def _settle(self, number: int, why: str) -> None:
        with self._lock:
            self._under_way.discard(number)
            if not why:
                self._there.add(number)
        if not why and self._journal >= 0:
            with contextlib.suppress(OSError):
                # Without it the window is fetched again by the next start.
                os.write(self._journal, number.to_bytes(_ROW, "little"))
        self._told(number, why)


def _read(journal: int, count: int) -> set[int]:
    """Return the windows that a journal names, of an image that has `count`."""
    data = os.pread(journal, _ROW * _ROWS * count, 0)
    rows = (data[at : at + _ROW] for at in range(0, len(data), _ROW))
    return {number for row in rows if (number := int.from_bytes(row, "little")) < count}


def _runs(numbers: list[int]) -> list[list[int]]:
    """Return numbers as lists of those that follow one another."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] + 1 == number:
            found[-1].append(number)
        else:
            found.append([number])
    return found
