"""Where the windows of an image that comes from elsewhere are in a store, and which are there.

Apart from `store.filling`, which says what they will be, since each start of a remote image loads
this.
"""

import errno
import fcntl
import os
from _struct import pack

WINDOWS, JOURNAL = ".windows", ".journal"
FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
"""How the files are opened, and made where they are missing."""
_ROW, _ROWS = 4, 8
"""Bytes of a row of the journal; rows of it for a window at most, since several nodes write it."""


class Journal:
    """The numbers of windows that are there, of `windows` in all; -1 as `fd` keeps none.

    With `alone` the file system is this node's alone: then its processes also tell one another by
    locks of bytes of the journal which windows they are fetching. Of thousands of nodes each lock
    would cost more than a window that two of them fetch.
    """

    def __init__(self, fd: int, windows: int, alone: bool = False) -> None:
        self._fd = fd
        self._windows = windows
        self._alone = alone
        self._read = 0

    def hold(self, first: int, number: int) -> bool:
        """Tell other processes that windows are being fetched; return False where one fetches any
        of them. Several threads may hold different windows."""
        try:
            self._lock(fcntl.F_WRLCK, first, number)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True

    def release(self, first: int, number: int) -> None:
        """End what `hold` began."""
        try:
            self._lock(fcntl.F_UNLCK, first, number)
        except OSError:
            return  # a file system without locks

    def _lock(self, kind: int, first: int, number: int) -> None:
        if self._fd >= 0 and self._alone:
            # An open file description lock, as in `store.locks`.
            span = pack("@hhqqi4x", kind, os.SEEK_SET, first, number, 0)
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, span)

    def news(self) -> set[int]:
        """Return the windows that were noted since the last call, by anybody."""
        if self._fd < 0:
            return set()
        try:
            data = os.pread(self._fd, max(_ROW * _ROWS * self._windows - self._read, 0), self._read)
        except OSError:
            return set()
        whole = len(data) - len(data) % _ROW
        self._read += whole
        rows = (data[at : at + _ROW] for at in range(0, whole, _ROW))
        return {n for row in rows if (n := int.from_bytes(row, "little")) < self._windows}

    def note(self, number: int) -> None:
        """Note that a window is there. Without that the next start fetches it again."""
        if self._fd >= 0:
            try:
                os.write(self._fd, number.to_bytes(_ROW, "little"))
            except OSError:
                return  # a full disk


def name_of(digest: str, listed: str) -> str:
    """Return the beginning of the names of an image's files in `blobs`."""
    return f"{digest.replace(':', '-', 1)}.{listed.partition(':')[2][:16]}"


def kept(root: str, size: int) -> bool:
    """Tell whether the store at `root` keeps windows of any file of `size` bytes."""
    try:
        with os.scandir(f"{root}/blobs") as entries:
            return any(e.name.endswith(WINDOWS) and e.stat().st_size == size for e in entries)
    except OSError:
        return False  # there is no store yet, or another process has just moved one away


def opened(root: str, name: str) -> tuple[int, int]:
    """Return the file of the windows and of the journal that `name_of` names, made if missing.

    Raises OSError where the store can't be written.
    """
    base = f"{root}/blobs/{name}"
    fd = os.open(base + WINDOWS, FLAGS, 0o600)
    try:
        # For `Store.sweep`, which removes what has not been used for long.
        os.utime(fd)
        journal = os.open(base + JOURNAL, FLAGS | os.O_APPEND, 0o600)
        os.utime(journal)
    except OSError:
        os.close(fd)
        raise
    return fd, journal
