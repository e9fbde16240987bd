"""Read an image's file and check each window of it before any byte of that is used.

For images with a list of their windows (`base.windows`). A window that is not what the list says is
an error for whoever reads it, and one line in the log. A window that is right is read as any file
is, out of the kernel's cache, for a while; then it is compared anew, since the kernel may have
dropped it, and the disk may give something else.
"""

from os import pread, preadv
from time import monotonic

from rootless_udi.base.errors import UdiError
from rootless_udi.base.windows import WindowList, behind, sha256
from rootless_udi.fuse.format import Superblock, WrongWindow
from rootless_udi.fuse.imagefile import WINDOW, ImageFile
from rootless_udi.fuse.precheck import GOOD, Beforehand

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rootless_udi.fuse.imagefile import Opener

    Early = Callable[[int, int], Beforehand | None]

_CACHED = 32 * WINDOW
"""Bytes of windows that are kept, of those that are in no file (`remotefile`)."""
_HINT = "`udi verify IMAGE` checks all of it; copy it again, or pull it anew (udi pull --force)"


class CheckedFile(ImageFile):
    """Reads of the image open at `fd`, each window compared with the list `known`, if there is one.

    `place` says where the bytes come from, for messages; `ahead` which windows were compared
    before.
    """

    __slots__ = ("_ahead", "_good", "_rooms", "known", "place")

    def __init__(
        self,
        fd: int,
        known: "WindowList | None",
        place: str,
        size: int,
        base: int = 0,
        ahead: Beforehand | None = None,
    ) -> None:
        super().__init__(fd, size, _CACHED, base)
        self.known = known
        self.place = place
        self._ahead = ahead
        self._good: dict[int, float] = {}  # window -> until when it is taken to be right
        self._rooms: list[bytearray] = []  # what threads read windows into

    def read(self, at: int, size: int) -> bytes:
        """Return `size` bytes from position `at`. Raises WrongWindow, Corrupt, OSError."""
        if at + size > self.size:
            return super().read(at, size)
        parts, stop, now = [], at + size, monotonic()
        while at < stop:
            number, begin = divmod(at, WINDOW)
            end = min(begin + stop - at, WINDOW)
            window = b"" if self._good.get(number, 0.0) > now else self.sure(number)
            if window:
                parts.append(window[begin:end])
            else:
                data = pread(self.fd, end - begin, self.base + at)
                parts.append(self._rest(at, end - begin, data))
            at += end - begin
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def sure(self, number: int) -> bytes:
        """Make sure that the window `number` is in the file, and right; return it where it is not
        in the file, else b"". Any thread may call this. Raises WrongWindow, Corrupt, OSError."""
        if self._ahead is not None and self._ahead.right(number):
            self._good[number] = self._ahead.until
        else:
            self.compare(number)
            self._good[number] = monotonic() + GOOD
        return b""

    def compare(self, number: int) -> None:
        """Read the window `number`, and compare it. Raises WrongWindow, Corrupt, OSError."""
        if self.known is None:
            return
        # Memory that was never used would cost a fault of each page.
        room = self._rooms.pop() if self._rooms else bytearray(WINDOW)
        at = number * WINDOW
        size = min(WINDOW, self.size - at)
        view = memoryview(room)[:size]
        if preadv(self.fd, [view], self.base + at) < size:
            self.checked(number, self.fetch(number))
        else:
            self.checked(number, view)
        self._rooms.append(room)

    def checked(self, number: int, data: "bytes | memoryview") -> None:
        """Raise WrongWindow where `data` is not the window `number`."""
        if self.known is not None and sha256(data) != self.known.of(number):
            raise self.wrong(number)

    def wrong(self, number: int) -> WrongWindow:
        """Return the error for a window that is not what the list says."""
        return WrongWindow(number, f"from byte {number * WINDOW} of {self.place}")


def opener(listed: bool, early: "Early | None" = None) -> "Opener":
    """Return what opens an image's file for a `reader.Reader`, to be checked if it has a list.

    `listed` says that it must have one. `early(fd, base)` returns what is compared before it is
    read. Raises UdiError where it has no list, or a damaged one.
    """

    def opened(fd: int, head: Superblock, name: str) -> ImageFile:
        used = head.bytes_used
        why = "its list of windows is gone"
        try:
            known = behind(lambda at, size: pread(fd, size, head.base + at), used)
        except ValueError as error:
            known, why, must = None, str(error), True
        else:
            must = listed
        if known is None:
            if must:
                raise UdiError(f"mounting failed on {name}: {why}", _HINT)
            return ImageFile(fd, used, base=head.base)
        ahead = early(fd, head.base) if early is not None else None
        if ahead is not None and not ahead.of(fd, head):
            ahead = None
        found = CheckedFile(fd, known, name, used, head.base, ahead)
        # The superblock was read before anything could be checked.
        if found.some(0, len(head.head)) != head.head[:used]:
            raise UdiError(f"mounting failed on {name}: its first bytes have changed", _HINT)
        return found

    return opened
