"""Compare the windows that a start reads first, in a process of its own, before they are read.

Where each window of a local image is compared (`checkedfile`), a start would wait for that: for
OpenSSL, which takes 3 ms to load, and half a millisecond for each window. So another process does
it while the image server loads and opens the image, and says through a pipe which windows are
right. Of the others, and of those that it has not come to, it says nothing: who reads them compares
them, and gets the error.
"""

import os
from time import monotonic

from rootless_udi.base.windows import WINDOW, behind, sha256
from rootless_udi.fuse.format import Superblock, superblock

GOOD = 10.0
"""Seconds for which a window that was right is taken to be so."""
MOST = 64
"""Most windows that are compared before the start that will read them does."""
_SOON = 16
"""A window that many places or fewer ahead of the process is waited for: to compare it here would
load OpenSSL here too. One that lies farther ahead might take long, on a slow disk."""


def order(head: Superblock) -> "list[int]":
    """Return the windows to compare, in the order in which a start reads them. Pure.

    The first, which has the superblock, and the last, which has the tables; then those that `udi
    optimize` has marked, of which the second range is of metadata.
    """
    last = (head.bytes_used - 1) // WINDOW
    found = dict.fromkeys((0, last, head.inode_table // WINDOW))
    for at, size in head.hot()[::-1]:
        end = min((at + size - 1) // WINDOW, at // WINDOW + MOST)
        found.update(dict.fromkeys(range(at // WINDOW, end + 1)))
    return list(found)[:MOST]


class Beforehand:
    """What a process finds of the image open at the first of `fds`; the second is its pipe.

    Both stay open, since any thread may read the pipe at any time; and there is no lock, which a
    thread of low priority would hold while others wait for another window.
    """

    def __init__(self, fd: int, pipe: int) -> None:
        self.fds = fd, pipe
        self.until = monotonic() + GOOD
        self._places: dict[int, int] = {}
        self._right: set[int] = set()
        self._ended = False

    def of(self, fd: int, head: Superblock) -> bool:
        """Tell whether the file open at `fd` is that image; `head` is its superblock."""
        if not os.path.sameopenfile(self.fds[0], fd):
            return False
        self._places = {window: place for place, window in enumerate(order(head))}
        return True

    def right(self, window: int) -> bool:
        """Tell whether the window was compared and is right; wait where it soon will have been."""
        place = self._places.get(window)
        if place is None or monotonic() > self.until:
            return False
        while place not in self._right and not self._ended:
            try:
                said = os.read(self.fds[1], MOST)
            except BlockingIOError:
                if place > max(self._right, default=0) + _SOON:
                    return False
                self._wait()
                continue
            self._right.update(said)
            if not said:
                self._ended = True
        return place in self._right

    def _wait(self) -> None:
        """Wait until the process has written, or has ended."""
        from select import POLLIN, poll

        ready = poll()
        ready.register(self.fds[1], POLLIN)
        ready.poll()


def begin(fd: int, base: int = 0, sockets: tuple[int, ...] = ()) -> Beforehand | None:
    """Start the process for the image at byte `base` of the file at `fd`; None where none can be
    started. It closes its copies of `sockets`, whose end others wait for.

    Who calls this reaps it, and has no other thread.
    """
    mine, theirs = os.pipe()
    os.set_blocking(mine, False)
    try:
        child = os.fork()
    except OSError:
        # At a limit of processes: who reads a window compares it.
        for one in (fd, mine, theirs):
            os.close(one)
        return None
    if child == 0:
        try:
            for one in sockets:
                os.close(one)
            _compare(fd, base, theirs)
        finally:
            os._exit(0)
    os.close(theirs)
    return Beforehand(fd, mine)


def _compare(fd: int, base: int, pipe: int) -> None:
    """Compare one window after the other; write its place in the order to `pipe` if it is right."""
    head = superblock(fd, "", base)
    known = behind(lambda at, size: os.pread(fd, size, base + at), head.bytes_used)
    if known is None:
        return
    room = bytearray(WINDOW)
    for place, window in enumerate(order(head)):
        at = window * WINDOW
        view = memoryview(room)[: min(WINDOW, head.bytes_used - at)]
        if os.preadv(fd, [view], base + at) == len(view) and sha256(view) == known.of(window):
            os.write(pipe, bytes([place]))
