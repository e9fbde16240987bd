"""The list of an image's windows: a SHA-256 for each MiB of its squashfs. Bytes in, values out.

A squashfs file has no checksums, and disks, caches and mirrors change bytes. The list stands behind
the squashfs in the same file, at the first multiple of BLOCK, where no reader of squashfs looks: so
that one rename(2) brings both, and a copy of the file has both. All numbers are little-endian:

    MARK, WINDOW, the squashfs's size: 8 bytes each
    the SHA-256 of each window, in order; the last window ends with the squashfs
    the SHA-256 of all that, which is the list's digest; zeros up to a multiple of BLOCK

What stands behind the squashfs (this list, facts, questions) is in no window. The list's digest is
in the image's facts too (`windows`).
"""

from _struct import Struct
from sys import modules

from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

MARK = b"udi-list"
WINDOW = 1 << 20
"""Bytes of a window."""
BLOCK = 4096
"""What stands behind a squashfs begins at multiples of this many bytes."""
_HEAD = Struct("<8s2Q")
SUM = 32
"""Bytes of a SHA-256."""
_SMALL = 512 << 10
"""Bytes that Python's own code sums in less than the 3 ms that OpenSSL takes to load."""
WRONG, CHECKED = "wrong", "checked"
"""What who fetches windows answers (`remote.process`) for one that is not what the list says, also
when it came once more; and for one that it has compared with the list and written into the file."""


class WindowList(Record):
    """`size`: of the squashfs, in bytes. `sums`: one SHA-256 after the other. `digest`: sha256:HEX
    of the list."""

    size: int
    sums: bytes
    digest: str

    def of(self, number: int) -> bytes:
        """Return the SHA-256 of window `number`."""
        return self.sums[number * SUM : (number + 1) * SUM]


def place(size: int) -> int:
    """Return where the list of a squashfs of `size` bytes is in its file."""
    return size + -size % BLOCK


def count(size: int) -> int:
    """Return the number of windows of a squashfs of `size` bytes."""
    return -(-size // WINDOW)


def room(size: int) -> int:
    """Return the bytes that a list takes in a file."""
    return place(_HEAD.size + (count(size) + 1) * SUM)


def made(size: int, sums: bytes) -> WindowList:
    """Return the list with these sums."""
    return WindowList(size, sums, f"sha256:{sha256(_document(size, sums)).hex()}")


def packed(known: WindowList) -> bytes:
    """Return a list as it stands in the file."""
    data = _document(known.size, known.sums)
    data += sha256(data)
    return data + bytes(-len(data) % BLOCK)


def behind(read: "Callable[[int, int], bytes]", size: int) -> "WindowList | None":
    """Return the list behind a squashfs of `size` bytes, None where there is none.

    `read(position, size)` returns bytes of the file, fewer at its end. Raises ValueError for a
    damaged list, and what `read` raises.
    """
    data = read(place(size), room(size))
    if data[: len(MARK)] != MARK:
        return None
    end = _HEAD.size + count(size) * SUM
    document, digest = data[:end], data[end : end + SUM]
    if document[: _HEAD.size] != _HEAD.pack(MARK, WINDOW, size):
        raise ValueError("its list of windows is for another size, or of a later version")
    if sha256(document) != digest:
        raise ValueError("its list of windows is damaged")
    return WindowList(size, document[_HEAD.size :], f"sha256:{digest.hex()}")


def _document(size: int, sums: bytes) -> bytes:
    return _HEAD.pack(MARK, WINDOW, size) + sums


def load() -> None:
    """Load what sums windows, which takes 3 ms."""
    _summed(WINDOW)


def sha256(data: "bytes | memoryview") -> bytes:
    """Return the SHA-256 of `data`."""
    found: bytes = _summed(len(data))(data).digest()
    return found


def _summed(size: int) -> "Callable[[bytes | memoryview], Any]":
    if size <= _SMALL and "_hashlib" not in modules:
        for name in ("_sha2", "_sha256"):  # the first from Python 3.12 on
            try:
                return __import__(name).sha256  # type: ignore[no-any-return]
            except ImportError:
                continue
    try:
        # OpenSSL's, without the 2 ms that hashlib takes to look which others there are.
        from _hashlib import openssl_sha256 as summed
    except ImportError:
        from hashlib import sha256 as summed
    return summed
