"""The bytes of a tar: a stream that counts its offset, and the fields of a header."""

from collections.abc import Iterable, Iterator
from os import fsdecode
from typing import NoReturn

from rootless_udi.base.errors import UdiError, amount
from rootless_udi.layers.bounds import NAME, PATH

BLOCK = 512
FIELDS = {
    "name": slice(0, 100),
    "mode": slice(100, 108),
    "size": slice(124, 136),
    "mtime": slice(136, 148),
    "checksum": slice(148, 156),
    "typeflag": slice(156, 157),
    "linkname": slice(157, 257),
    "magic": slice(257, 263),
    "prefix": slice(345, 500),
    "sparse": slice(386, 482),
    "isextended": slice(482, 483),
    "realsize": slice(483, 495),
}
"""Where the fields of a header are (POSIX ustar; the last three GNU's old sparse format)."""


def shown(path: bytes) -> str:
    """Return a member's name fit for a message: no control characters, at most 200 characters."""
    text = fsdecode(path[:400])
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return text if len(text) <= 200 else text[:200] + "..."


class Stream:
    """An uncompressed tar as it arrives in `chunks` (bytes of any length); counts its offset.

    `label` names the layer in messages.
    """

    def __init__(self, chunks: Iterable[bytes], label: str, most: int = 1 << 62) -> None:
        """More than `most` bytes are refused."""
        self._chunks = iter(chunks)
        self._view = memoryview(b"")
        self._at = 0
        self._before = 0
        self._most = most
        self.label = label

    @property
    def offset(self) -> int:
        """Bytes consumed so far."""
        return self._before + self._at

    def refuse(self, why: str, hint: str = "") -> NoReturn:
        """Raise UdiError naming the layer, the offset and the reason."""
        raise UdiError(
            f"reading layer {self.label} failed at byte {self.offset} of its tar: {why}",
            hint or "the image is damaged or made by a faulty tool; pull it again, or rebuild it",
        )

    def _more(self) -> bool:
        self._before += len(self._view)
        self._at = 0
        for chunk in self._chunks:
            if chunk:
                if self._before + len(chunk) > self._most:
                    self.refuse(
                        f"it goes on for more than {amount(self._most)}",
                        "this is far more than a layer of its compressed size has; a file of "
                        "zeros there can be made by what starts from the image",
                    )
                self._view = memoryview(chunk)
                return True
        self._view = memoryview(b"")
        return False

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield the next `size` bytes as views, fewer where the stream ends before."""
        while size:
            have = len(self._view) - self._at
            if not have:
                if not self._more():
                    return
                continue
            take = have if have < size else size
            start = self._at
            self._at += take
            size -= take
            yield self._view[start : start + take]

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer where the stream ends before."""
        at = self._at
        if at + size <= len(self._view):
            self._at = at + size
            return bytes(self._view[at : at + size])
        return b"".join(self.pieces(size))

    def skip(self, size: int) -> int:
        """Pass over `size` bytes; return how many were missing at the end of the stream."""
        if self._at + size <= len(self._view):
            self._at += size
            return 0
        return size - sum(map(len, self.pieces(size)))

    def drain(self) -> None:
        """Read to the end, so that all of the layer is hashed."""
        while self._more():
            pass


def checksum(stream: Stream, header: bytes) -> None:
    """Refuse a header whose bytes do not sum to what it says."""
    where = FIELDS["checksum"]
    told = field(stream, header, "checksum")
    summed = header[where]
    found = sum(header) - sum(summed) + 8 * 32
    if told == found:
        return
    # Some old programs summed the bytes as signed numbers.
    high = sum(1 for c in header if c > 127) - sum(1 for c in summed if c > 127)
    if told != found - 256 * high:
        stream.refuse(f"a header's checksum is {told} where its bytes sum to {found}; not a tar?")


def field(stream: Stream, header: bytes, name: str) -> int:
    """Return the number in a header's field of that name."""
    where = FIELDS[name]
    return number(stream, header, where.start, where.stop, name)


def number(stream: Stream, header: bytes, start: int, end: int, what: str) -> int:
    """Return a number field: octal text, or GNU's base 256 where the first bit is set."""
    first = header[start]
    if first & 0x80:
        value = int.from_bytes(header[start:end], "big", signed=True)
        if first != 0xFF:
            value = int.from_bytes(header[start:end], "big") & ~(0x80 << 8 * (end - start - 1))
        return value
    text = header[start:end].split(b"\0", 1)[0].strip(b" ")
    if not text:
        return 0
    # int() alone would also take signs, underscores and "0o".
    if not text.isdigit() or b"8" in text or b"9" in text:
        stream.refuse(f"a header's {what} field has '{shown(text)}' in place of an octal number")
    return int(text, 8)


def decimal(stream: Stream, text: bytes, what: str) -> int:
    """Return a number of a pax record or sparse map; `what` names it in the refusal."""
    if not text.isdigit() or len(text) > 20:
        stream.refuse(f"{what} is '{shown(text)}' in place of a number")
    return int(text)


def relative(stream: Stream, name: bytes, what: str) -> bytes:
    """Return a member's path below the root; refuse one that points out of it.

    Slashes at both ends and `.` are taken off: an absolute name is below the image's root, as GNU
    tar, containerd, moby and umoci have it (Nix's and Bazel's images have such). `..` takes away
    the name before it, whatever that is, as in all of these; with none before it, it is refused.
    `what` opens the message.
    """
    if not name:
        stream.refuse(f"{what} an empty path")
    if b"\0" in name:
        stream.refuse(f"{what} a path with a NUL byte in it: {shown(name)}")
    if len(name) > PATH:
        stream.refuse(f"{what} a path of {len(name)} bytes (PATH_MAX is 4096)")
    path = name.strip(b"/")
    if path[:1] in (b".", b"") or b"/." in path or b"//" in path:
        parts: list[bytes] = []
        for part in path.split(b"/"):
            if part == b"..":
                if not parts:
                    stream.refuse(f"{what} a path that leads out of the image: {shown(name)}")
                parts.pop()
            elif part not in (b"", b"."):
                parts.append(part)
        path = b"/".join(parts)
    if len(path) > NAME and max(map(len, path.split(b"/"))) > NAME:
        stream.refuse(f"{what} a path with a name longer than 255 bytes in it: {shown(path)}")
    return path
