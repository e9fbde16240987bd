"""Make and check the list of an image's windows (`base.windows`), by several threads.

hashlib releases Python's lock (the GIL), so that each thread fills a CPU.
"""

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import count

from rootless_udi.base import windows
from rootless_udi.base.errors import UdiError, counted
from rootless_udi.base.records import Record
from rootless_udi.base.superblock import MAGIC, SIZE, USED
from rootless_udi.base.windows import SUM, WINDOW, WindowList

_THREADS = 8
"""Most threads: so many keep the disks of a parallel file system busy."""


_NAMED = 5
"""Most damaged windows that a message names."""


class Summing:
    """Sums the windows of a squashfs of `size` bytes that is fed in pieces, from its first byte."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._left = size
        self._sums: list[bytes] = []
        self._open = hashlib.sha256()
        self._room = WINDOW

    def feed(self, data: bytes) -> None:
        """Take the next piece; what is behind the squashfs is left out."""
        rest = memoryview(data)[: self._left]
        self._left -= len(rest)
        while rest:
            piece = rest[: self._room]
            self._open.update(piece)
            self._room -= len(piece)
            rest = rest[len(piece) :]
            if not self._room:
                self._close()

    def _close(self) -> None:
        self._sums.append(self._open.digest())
        self._open, self._room = hashlib.sha256(), WINDOW

    def end(self) -> WindowList:
        """Return the list, once all bytes were fed."""
        if self._room < WINDOW:
            self._close()
        return windows.made(self._size, b"".join(self._sums))


class Checked(Record):
    """A file to check: its descriptor and its list."""

    fd: int
    known: WindowList


def behind(fd: int, size: int) -> "WindowList | None":
    """Return the list in the file at `fd`, behind its squashfs of `size` bytes; None for none.

    Raises ValueError where it is damaged; OSError.
    """
    return windows.behind(lambda at, most: os.pread(fd, most, at), size)


def said(bad: Sequence[int], size: int) -> str:
    """Return what to say of damaged windows of a squashfs of `size` bytes: "2 of 9 windows ..."."""
    first = ", ".join(str(number * WINDOW) for number in bad[:_NAMED])
    more = ", ..." if len(bad) > _NAMED else ""
    return (
        f"{len(bad)} of {counted(windows.count(size), 'window')} of 1 MiB "
        f"{'is' if len(bad) == 1 else 'are'} damaged, from byte {first}{more}"
    )


def used(fd: int) -> int:
    """Return the size of the squashfs in the file at `fd`, as its superblock says; 0 for none."""
    head = os.pread(fd, SIZE, 0)
    if len(head) < SIZE or int.from_bytes(head[:4], "little") != MAGIC:
        return 0
    return int.from_bytes(head[USED], "little")


def append(fd: int) -> WindowList:
    """Write the list behind the squashfs in the file at `fd`, in place of all that is there.

    The file was written just now: it is read from the page cache. Raises OSError.
    """
    size = used(fd)
    known = windows.made(size, summed(fd, size))
    put(fd, known)
    return known


def put(fd: int, known: WindowList) -> None:
    """Write `known` behind the squashfs in the file at `fd`; the file ends there then."""
    at, data = windows.place(known.size), windows.packed(known)
    os.ftruncate(fd, at)
    while data:
        written = os.pwrite(fd, data, at)
        at, data = at + written, data[written:]


def summed(fd: int, size: int) -> bytes:
    """Return the SHA-256 of each window of a squashfs of `size` bytes; OSError."""
    found = bytearray(SUM * windows.count(size))

    def each(_: int, number: int, digest: bytes) -> None:
        found[number * SUM : (number + 1) * SUM] = digest

    _hash([(fd, size)], each)
    return bytes(found)


def damaged(files: Sequence[Checked]) -> list[list[int]]:
    """Return, for each file, the numbers of the windows that are not what its list says.

    A window that the file system can't read is one of them.
    """
    found: list[list[int]] = [[] for _ in files]

    def each(which: int, number: int, digest: bytes) -> None:
        if files[which].known.of(number) != digest:
            found[which].append(number)

    _hash([(one.fd, one.known.size) for one in files], each, lenient=True)
    return [sorted(one) for one in found]


def refuse_damage(fd: int, what: str) -> None:
    """Raise UdiError, which begins with `what`, where the list in the file at `fd` finds damage.

    For who writes the image anew: the new one gets a new list, which would call damage right.
    """
    size = used(fd)
    try:
        known = behind(fd, size)
        bad = damaged([Checked(fd, known)])[0] if known is not None else []
        why = said(bad, size) if bad else ""
    except ValueError as error:
        why = str(error)
    if why:
        raise UdiError(f"{what}: {why}", "copy it again, or pull it anew (udi pull --force)")


def _hash(
    files: Sequence[tuple[int, int]],
    each: Callable[[int, int, bytes], None],
    lenient: bool = False,
) -> None:
    """Call `each(file, window, SHA-256)` for all windows of `files`, each (descriptor, size).

    Raises OSError where a window can't be read; with `lenient` its sum is b"".
    """
    jobs = _jobs(files)
    turn = threading.Lock()
    errors: list[OSError] = []

    def work() -> None:
        buffer = memoryview(bytearray(WINDOW))
        while not errors:
            with turn:
                which, number = next(jobs, (-1, 0))
            if which < 0:
                return
            fd, size = files[which]
            try:
                data = _window(fd, size, number, buffer)
            except OSError as error:
                if not lenient:
                    errors.append(error)
                    return
                each(which, number, b"")
                continue
            each(which, number, hashlib.sha256(data).digest())

    for fd, _ in files:
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    total = sum(windows.count(size) for _, size in files)
    threads = min(len(os.sched_getaffinity(0)), _THREADS, total)
    others = [threading.Thread(target=work) for _ in range(threads - 1)]
    for one in others:
        one.start()
    work()
    for one in others:
        one.join()
    if errors:
        raise errors[0]


def _jobs(files: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Yield (file, window), of all files in turn, so that each is read in its order."""
    left = [windows.count(size) for _, size in files]
    for number in count():
        wanted = [which for which, most in enumerate(left) if number < most]
        if not wanted:
            return
        for which in wanted:
            yield which, number


def _window(fd: int, size: int, number: int, buffer: memoryview) -> memoryview:
    """Read a window into `buffer` and return that much of it, less where the file is cut off."""
    at = number * WINDOW
    room = buffer[: min(WINDOW, size - at)]
    done = 0
    while done < len(room):
        got = os.preadv(fd, [room[done:]], at + done)
        if not got:
            break
        done += got
    return room[:done]
