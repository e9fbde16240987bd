"""An image's file as it is pushed: the squashfs, the list of its windows, what starts ask."""

import contextlib
import hashlib
import os
import threading
from collections.abc import Iterator

from rootless_udi.base import windows as lists
from rootless_udi.base.errors import UdiError
from rootless_udi.store import inside, windows

_PIECE = 8 << 20


class ImageContent:
    """The content of the image's file at `fd`, called `name` in errors; an `upload.Content`.

    A thread reads and sums it while it is sent, makes the list of its windows, and compares that
    with the list that is there: a damaged image is pushed nowhere. Facts in the file are left out,
    since they are a blob of their own. `mark` tells it from others. `end` must be called.
    """

    def __init__(self, fd: int, name: str) -> None:
        """Raises UdiError for what is no whole squashfs file; OSError."""
        self._fd, self._name = fd, name
        self._used, (at, asks) = inside.parts(fd)
        if not windows.used(fd) or os.fstat(fd).st_size < self._used:
            raise UdiError(f"pushing {name} failed: it is no whole squashfs file")
        self.size = lists.place(self._used) + lists.room(self._used) + asks
        self.mark = self._marked(at, asks)
        self._tail = bytearray()
        self._digest = self._listed = ""
        self._error: Exception | None = None
        self._ended = False
        self._thread = threading.Thread(target=self._sum, daemon=True)
        self._thread.start()

    def _marked(self, at: int, asks: int) -> str:
        """Return what tells this content from others, at once: its list and what is behind it; of
        a file without a list its times."""
        known = None
        with contextlib.suppress(ValueError):  # the thread says what is wrong with it
            known = windows.behind(self._fd, self._used)
        if known is not None:
            return f"{known.digest} {lists.sha256(os.pread(self._fd, asks, at)).hex()}"
        status = os.fstat(self._fd)
        return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}"

    def _sum(self) -> None:
        summed, done = hashlib.sha256(), 0

        def write(data: bytes) -> None:
            nonlocal done
            if self._ended:
                raise UdiError(f"pushing {self._name} failed: it was given up")
            summed.update(data)
            self._tail += data[max(self._used - done, 0) :]
            done += len(data)

        try:
            self._listed = inside.copy(self._fd, self._name, {}, write).digest
            self._digest = f"sha256:{summed.hexdigest()}"
        except Exception as error:
            self._error = error

    def end(self) -> None:
        """Have the thread end, so that the file may be closed."""
        self._ended = True
        self._thread.join()

    def digest(self, wait: bool) -> str:
        """Return the digest, "" where it is not made yet and `wait` is false."""
        if wait:
            self._thread.join()
        if self._thread.is_alive():
            return ""
        if isinstance(self._error, OSError):
            raise UdiError(f"reading {self._name} failed: {self._error.strerror}")
        if self._error is not None:
            raise self._error
        return self._digest

    def listed(self) -> tuple[str, bytes]:
        """Return the digest of the list of windows, and the list as it stands in the file."""
        self.digest(True)
        begin = -self._used % lists.BLOCK
        return self._listed, bytes(self._tail[begin : begin + lists.room(self._used)])

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to `stop`. Raises UdiError."""
        while start < min(stop, self._used):
            try:
                data = os.pread(self._fd, min(_PIECE, min(stop, self._used) - start), start)
            except OSError as error:
                raise UdiError(f"reading {self._name} failed: {error.strerror}") from None
            if not data:
                raise UdiError(f"reading {self._name} failed: it has become shorter")
            yield data
            start += len(data)
        if start < stop:
            self.digest(True)
            yield bytes(self._tail[start - self._used : stop - self._used])
