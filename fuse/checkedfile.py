"""Read an image's file and check each window of it before any byte of that is used.

For images with a list of their windows (`base.windows`). A window that is not what the list says is
an error for whoever reads it, and one line in the log.
"""

from os import pread

from rootless_udi.base.errors import UdiError
from rootless_udi.base.windows import WindowList, behind, sha256
from rootless_udi.fuse.format import Superblock, WrongWindow
from rootless_udi.fuse.imagefile import WINDOW, ImageFile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.fuse.imagefile import Opener

_CACHED = 32 * WINDOW
"""Bytes of windows that are kept. One that was dropped is read and summed anew."""
_HINT = "`udi verify IMAGE` checks all of it; copy it again, or pull it anew (udi pull --force)"


class CheckedFile(ImageFile):
    """Reads of the image open at `fd`, each window compared with the list `known`, if there is one.

    `place` says where the bytes come from, for messages.
    """

    __slots__ = ("known", "place")

    def __init__(
        self, fd: int, known: "WindowList | None", place: str, size: int, base: int = 0
    ) -> None:
        super().__init__(fd, size, _CACHED, base)
        self.slow = True
        self.known = known
        self.place = place

    def fetch(self, number: int) -> bytes:
        """Return the window `number`, read anew. Raises WrongWindow, Corrupt, OSError."""
        return self.checked(number, super().fetch(number))

    def checked(self, number: int, data: bytes) -> bytes:
        """Return `data` if it is the window `number`. Raises WrongWindow."""
        if self.known is not None and sha256(data) != self.known.of(number):
            raise self.wrong(number)
        return data

    def wrong(self, number: int) -> WrongWindow:
        """Return the error for a window that is not what the list says."""
        return WrongWindow(number, f"from byte {number * WINDOW} of {self.place}")


def opener(listed: bool) -> "Opener":
    """Return what opens an image's file for a `reader.Reader`, to be checked if it has a list.

    `listed` says that it must have one. Raises UdiError where it has not, or the list is damaged.
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
        found = CheckedFile(fd, known, name, used, head.base)
        # The superblock was read before anything could be checked.
        if found.some(0, len(head.head)) != head.head[:used]:
            raise UdiError(f"mounting failed on {name}: its first bytes have changed", _HINT)
        return found

    return opened
