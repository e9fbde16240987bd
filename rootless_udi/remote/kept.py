"""The windows of a remote image that are there: a sparse file, and threads that fetch into it.

No window is fetched twice, but at an explicit wish: one that is under way or there is not asked for
again. Where the image's list of windows is known, only what it says is written into the file: that
may be a store's, and becomes an image of it (`store.filling`). What a start reads first
(`fuse.format.Superblock.hot`) is fetched in larger requests, behind all windows that somebody waits
for; `fill` fetches the rest.
"""

import os
import time
from _queue import SimpleQueue
from _thread import _local as Local  # what threading.local is, too
from _thread import allocate_lock, start_new_thread

from rootless_udi.base.errors import UdiError
from rootless_udi.base.windows import WINDOW, WRONG, WindowList, place, sha256
from rootless_udi.base.windows import count as windows_of
from rootless_udi.fuse.format import EXPECTED
from rootless_udi.remote.ranges import Ranges
from rootless_udi.store.journal import Journal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _thread import LockType
    from collections.abc import Callable, Iterable

    Told = Callable[[int, str, bytes], object]
    """Is called with a window's number, why it can't be had ("" if it can; WRONG if it is not what
    the list says), and its bytes where it could not be kept in the file (else b""); by any thread.
    """

_THREADS = 6
"""Connections at once: a link of 1 Gb/s and 20 ms holds 2.5 MB. One is left to who waits."""
_TOGETHER = 4
"""Most windows in one request for what a start reads first."""
_AT_FIRST = 2
"""Such requests at once in the beginning, and with each that is answered one more. With six of them
all windows would come late together: the tables, which the server opens the image with, too."""
_STEP = 0.01
"""Seconds between two looks whether another process has fetched a window."""


class Kept:
    """The windows of a squashfs of `size` bytes that `source` has, in the file at `fd`."""

    def __init__(
        self,
        source: Ranges,
        fd: int,
        size: int,
        told: "Told",
        journal: Journal | None = None,
        known: WindowList | None = None,
    ) -> None:
        """`journal` names the windows that are there already; it may be wrong. `known` is the
        image's list; without it nothing is compared here."""
        self._source, self._fd, self._size, self._told = source, fd, size, told
        self._known = known
        self._lock = allocate_lock()
        self._journal = journal or Journal(-1, 0)
        self._there = self._journal.news()
        self._under_way: set[int] = set()
        self._waited: set[int] = set()
        self._quiet: list[LockType] = []  # of who waits until nobody waits for a window
        self._wanted: list[tuple[int, bool]] = []
        self._ahead: list[list[int]] = []
        self._reading, self._most = 0, _AT_FIRST  # of `_ahead`: how many threads do, and may
        self._jobs: SimpleQueue[None] = SimpleQueue()  # wakes a thread
        self._rooms = Local()
        self.checked: set[int] = set()
        """Windows that are in the file, and were what the list says when they were written there
        by this process."""
        self.full: OSError | None = None
        """The error with which a window could not be written last, a full disk or a quota."""

    def start(self) -> None:
        """Start the threads. Raises RuntimeError where not even one can be started."""
        for number in range(_THREADS):
            try:
                start_new_thread(self._work, ())
            except RuntimeError:
                if not number:
                    raise
                return

    def put(self, at: int, data: "bytes | memoryview") -> None:
        """Write bytes of the file, of a window or behind the windows. Raises OSError."""
        left = memoryview(data)
        while left:
            done = os.pwrite(self._fd, left, at)
            at, left = at + done, left[done:]

    def begin(self, head: memoryview, tail: memoryview, last: memoryview) -> None:
        """Put the first window, what is behind the squashfs in its file, and the `last` windows, if
        they are right.

        Raises UdiError where the window is not what the list says; OSError.
        """
        window = head[: self._length(0)]
        if self._known is not None and sha256(window) != self._known.of(0):
            raise UdiError(
                f"mounting failed on {self._source.shown}: its first MiB is not what its list of "
                "windows says",
                "copy it there again",
            )
        self.put(0, window)
        if tail:
            self.put(place(self._size), tail)
        right = [0]
        for begin in range(0, len(last), WINDOW):
            number, window = (self._size - len(last) + begin) // WINDOW, last[begin:][:WINDOW]
            if self._known is None or sha256(window) == self._known.of(number):
                self.put(number * WINDOW, window)
                right.append(number)
        with self._lock:
            self._there.update(right)
        for number in right:
            self._sure(number)
            self._journal.note(number)

    def want(self, number: int, fresh: bool = False) -> bool:
        """Tell whether a window is there; if not, have it fetched before others.

        `fresh`: fetch it anew, since what is there is wrong.
        """
        if not 0 <= number < windows_of(self._size):
            self._told(number, "the image has no such window", b"")
            return False
        with self._lock:
            self._there |= self._journal.news()
            if fresh:
                self._there.discard(number)
                self.checked.discard(number)
            if number in self._there:
                return True
            self._waited.add(number)
            if number not in self._under_way:
                self._under_way.add(number)
                self._wanted.append((number, fresh))
                self._jobs.put(None)
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
        for run in _runs(list(found), _TOGETHER):
            self._ahead.append(run)
            self._jobs.put(None)

    def missing(self) -> list[int]:
        """Return the windows that are neither there nor under way, in order."""
        with self._lock:
            self._there |= self._journal.news()
            taken = self._there | self._under_way
        return [number for number in range(windows_of(self._size)) if number not in taken]

    def lost(self, numbers: list[int]) -> None:
        """Note that windows are not there after all."""
        with self._lock:
            self._there.difference_update(numbers)
        self.checked.difference_update(numbers)

    def fill(self, numbers: list[int]) -> str:
        """Fetch those of `numbers`, which follow one another, that are missing, once nobody waits
        for others and what a start reads is there; return why one can't be had, "" if all could.
        For a thread of its own."""
        with self._lock:
            busy = self._busy()
            if busy:
                turn = allocate_lock()
                turn.acquire()
                self._quiet.append(turn)
        if busy:
            turn.acquire()
        return self._all(numbers)

    def _busy(self) -> bool:
        return bool(self._waited or self._ahead or self._reading)

    def _rest(self) -> "list[LockType]":
        """Return what `fill` waits for, if it may go on. With the lock."""
        if self._busy():
            return []
        quiet, self._quiet = self._quiet, []
        return quiet

    def _work(self) -> None:
        while True:
            self._jobs.get()
            with self._lock:
                wanted = self._wanted.pop(0) if self._wanted else None
                ahead: list[int] = []
                if wanted is None and self._ahead and self._reading < self._most:
                    ahead = self._ahead.pop(0)
                    self._reading += 1
            if wanted is not None:
                self._fetch([wanted[0]], wanted[1])
            elif ahead:
                self._all(ahead)
                with self._lock:
                    self._reading -= 1
                    self._most = min(self._most + 1, _THREADS - 1)
                    free = min(self._most - self._reading, len(self._ahead))
                    quiet = self._rest()
                for _ in range(free):
                    self._jobs.put(None)
                _wake(quiet)

    def _all(self, numbers: list[int]) -> str:
        """Fetch what is missing of `numbers`; return why one can't be had."""
        with self._lock:
            # Those that somebody has asked for meanwhile are under way or there.
            taken = self._there | self._under_way
            numbers = [n for n in numbers if n not in taken]
            self._under_way.update(numbers)
        return _any(self._fetch(run, False) for run in _runs(numbers))

    def _fetch(self, numbers: list[int], fresh: bool) -> str:
        """Fetch windows that follow one another, and that no other process of this node fetches.

        Those are waited for. Return why one can't be had, "" if all could.
        """
        if not self._journal.hold(numbers[0], len(numbers)):
            if len(numbers) > 1:
                return _any(self._fetch([number], fresh) for number in numbers)
            end = time.monotonic() + self._source.timeout
            while not self._journal.hold(numbers[0], 1):
                if time.monotonic() > end:
                    break  # it has been stopped
                time.sleep(_STEP)
        try:
            left = numbers
            if not fresh:
                with self._lock:
                    self._there |= self._journal.news()
                    come = [number for number in numbers if number in self._there]
                self._settle(come)
                left = [number for number in numbers if number not in come]
            return _any(self._get(run, fresh) for run in _runs(left))
        finally:
            self._journal.release(numbers[0], len(numbers))

    def _get(self, numbers: list[int], fresh: bool) -> str:
        """Fetch windows that follow one another, with one request; tell of each as it comes.

        Return why one can't be had, "" if all could.
        """
        at = numbers[0] * WINDOW
        stop = min((numbers[-1] + 1) * WINDOW, self._size)
        left, wrong, room = list(numbers), [], self._room()

        def come(there: int) -> None:
            number = left[0]
            size = self._length(number)
            if at + there == number * WINDOW + size:
                del left[0]
                if not self._take(number, room[:size]):
                    wrong.append(number)

        why = ""
        try:
            # One window after the other into the same memory, which the processor's cache holds.
            self._source.read(at, stop - at, lambda there: room[there % WINDOW :], come, fresh)
        except UdiError as error:
            why = error.message
        except Exception as error:
            why = f"reading {self._source.shown} failed: {type(error).__name__}: {error}"
        if left:
            self._settle(left, why)
        if wrong and not fresh:
            # A cache on the way may have lied: one fresh try.
            return _any(self._get([number], True) for number in wrong) or why
        if wrong:
            why = WRONG
            self._settle(wrong, why)
        return why

    def _room(self) -> memoryview:
        """Return memory of this thread for a window: its own, since what is new costs a fault of
        each page."""
        room: memoryview | None = getattr(self._rooms, "room", None)
        if room is None:
            room = self._rooms.room = memoryview(bytearray(WINDOW))
        return room

    def _length(self, number: int) -> int:
        return min(WINDOW, self._size - number * WINDOW)

    def _take(self, number: int, window: memoryview) -> bool:
        """Write a window that has come, and tell of it; return False where it is wrong."""
        if self._known is not None and sha256(window) != self._known.of(number):
            return False
        try:
            self.put(number * WINDOW, window)
        except OSError as error:
            self.full = error
            # The disk is full: whoever waits gets it all the same, and the next one fetches it
            # again.
            self._settle([number], "", bytes(window))
            return True
        self._sure(number)
        self._journal.note(number)
        self._settle([number])
        return True

    def _sure(self, number: int) -> None:
        if self._known is not None:
            self.checked.add(number)

    def _settle(self, numbers: list[int], why: str = "", window: bytes = b"") -> None:
        with self._lock:
            self._under_way.difference_update(numbers)
            self._waited.difference_update(numbers)
            if not why and not window:
                self._there.update(numbers)
            quiet = self._rest()
        _wake(quiet)
        for number in numbers:
            self._told(number, why, window)


def _wake(turns: "list[LockType]") -> None:
    for turn in turns:
        turn.release()


def _any(reasons: "Iterable[str]") -> str:
    """Return the first reason that is not "", once all are known."""
    return "".join([why for why in reasons if why][:1])


def _runs(numbers: list[int], most: int = 1 << 30) -> list[list[int]]:
    """Return numbers as lists, of at most `most`, of those that follow one another."""
    found: list[list[int]] = []
    for number in numbers:
        if found and found[-1][-1] + 1 == number and len(found[-1]) < most:
            found[-1].append(number)
        else:
            found.append([number])
    return found
