"""Write a tar: ustar headers, with pax records for what does not fit; the owner is always 0:0.

Source: POSIX.1-2017, pax, "ustar Interchange Format" and "pax Extended Header".
"""

from collections.abc import Callable, Iterable

from rootless_udi.layers.tarfields import BLOCK, FIELDS
from rootless_udi.layers.tarreader import DIRECTORY, FIFO, FILE, LINK, SYMLINK

Write = Callable[[bytes | bytearray | memoryview], object]
"""Takes the next part of the stream; it has used all of it when it returns."""

_TYPES = {FILE: b"0", LINK: b"1", SYMLINK: b"2", DIRECTORY: b"5", FIFO: b"6"}
_GATHER = 1 << 18
"""Bytes that are gathered before they are written."""
_LARGEST = 0o77777777777
"""The largest size in a ustar header: 11 octal digits."""
_TEXT = 100
"""Bytes of a path or link target in a ustar header."""
_LATEST = (1 << 32) - 1
"""squashfs keeps times in 32 bits without a sign; earlier and later ones become the nearest."""


class TarWriter:
    """Writes members through `write`."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._buffer = bytearray()

    def member(
        self,
        kind: str,
        path: bytes,
        mode: int,
        mtime: int,
        target: bytes = b"",
        xattrs: dict[bytes, bytes] | None = None,
    ) -> None:
        """Write a member that has no content."""
        self._header(kind, path, 0, mode, mtime, target, xattrs or {})

    def file(
        self,
        path: bytes,
        size: int,
        mode: int,
        mtime: int,
        body: Iterable[memoryview],
        xattrs: dict[bytes, bytes] | None = None,
    ) -> None:
        """Write a regular file of `size` bytes, which `body` must yield."""
        self._header(FILE, path, size, mode, mtime, b"", xattrs or {})
        for view in body:
            self._data(view)
        self._buffer += bytes(-size % BLOCK)

    def close(self) -> None:
        """Write the two blocks of zeros that end a tar, and what is still in the buffer."""
        self._buffer += bytes(2 * BLOCK)
        self._flush()

    def _data(self, view: memoryview) -> None:
        # Copying small pieces together costs less than a system call for each.
        if len(view) < _GATHER // 4:
            self._buffer += view
            if len(self._buffer) >= _GATHER:
                self._flush()
        else:
            self._flush()
            self._write(view)

    def _flush(self) -> None:
        if self._buffer:
            self._write(self._buffer)
            self._buffer = bytearray()

    def _header(
        self,
        kind: str,
        path: bytes,
        size: int,
        mode: int,
        mtime: int,
        target: bytes,
        xattrs: dict[bytes, bytes],
    ) -> None:
        records = {b"SCHILY.xattr." + name: xattrs[name] for name in sorted(xattrs)}
        if len(path) > _TEXT:
            records[b"path"] = path
        if len(target) > _TEXT:
            records[b"linkpath"] = target
        if size > _LARGEST:
            records[b"size"] = b"%d" % size
        if records:
            data = b"".join(_record(key, value) for key, value in records.items())
            self._buffer += _ustar(b"x", b"pax", len(data), 0o644, 0, b"")
            self._buffer += data + bytes(-len(data) % BLOCK)
        mtime = max(0, min(mtime, _LATEST))
        self._buffer += _ustar(_TYPES[kind], path, min(size, _LARGEST), mode, mtime, target)
        if len(self._buffer) >= _GATHER:
            self._flush()


def _ustar(kind: bytes, path: bytes, size: int, mode: int, mtime: int, target: bytes) -> bytes:
    numbers = b"%07o\0%07o\0%07o\0%011o\0%011o\0" % (mode, 0, 0, size, mtime)
    before = path[:_TEXT].ljust(_TEXT, b"\0") + numbers
    magic = b"ustar\0" + b"00"
    after = kind + target[:_TEXT].ljust(_TEXT, b"\0") + magic
    after += bytes(BLOCK - FIELDS["checksum"].stop - len(after))
    # The checksum is taken of the header with eight spaces in the checksum's place.
    total = sum(before) + sum(after) + 8 * ord(" ")
    return before + b"%06o\0 " % total + after


def _record(key: bytes, value: bytes) -> bytes:
    """Return `LENGTH KEY=VALUE\\n`, where the length counts its own digits too."""
    rest = len(key) + len(value) + 3
    size = rest + len(str(rest))
    if rest + len(str(size)) != size:
        size = rest + len(str(size))
    return b"%d %b=%b\n" % (size, key, value)
