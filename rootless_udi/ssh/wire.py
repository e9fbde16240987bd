"""The parts of SFTP's packets: numbers, texts and attributes. Pure."""

from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class _Status(Protocol):
        """What os.stat returns."""

        @property
        def st_size(self) -> int: ...
        @property
        def st_uid(self) -> int: ...
        @property
        def st_gid(self) -> int: ...
        @property
        def st_mode(self) -> int: ...
        @property
        def st_atime(self) -> float: ...
        @property
        def st_mtime(self) -> float: ...


_SIZE, _OWNER, _MODE, _TIMES, _MORE = 1, 2, 4, 8, 0x80000000


class Short(ValueError):
    """A packet ends before what it should hold."""


class Attributes(Record):
    """What a client wants a file to have; None for what it does not say. Times are (access,
    change) in seconds, owner is (user, group)."""

    size: int | None = None
    owner: tuple[int, int] | None = None
    mode: int | None = None
    times: tuple[int, int] | None = None


class Packet:
    """The rest of a packet, read from front to back. Every call raises Short at its end."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def _take(self, count: int) -> bytes:
        if self.at + count > len(self.data):
            raise Short("a packet is cut off")
        self.at += count
        return self.data[self.at - count : self.at]

    def u32(self) -> int:
        """Return a number of 4 bytes."""
        return int.from_bytes(self._take(4), "big")

    def u64(self) -> int:
        """Return a number of 8 bytes."""
        return int.from_bytes(self._take(8), "big")

    def text(self) -> bytes:
        """Return a text with its length before it."""
        return self._take(self.u32())

    def path(self) -> bytes:
        """Return a path; the empty one is the current folder. Raises ValueError for a NUL in it."""
        path = self.text() or b"."
        if b"\0" in path:
            raise ValueError("a path with a NUL")
        return path

    def attributes(self) -> Attributes:
        """Return a file's attributes; what an extension adds is passed over."""
        flags = self.u32()
        size = self.u64() if flags & _SIZE else None
        owner = (self.u32(), self.u32()) if flags & _OWNER else None
        mode = self.u32() if flags & _MODE else None
        times = (self.u32(), self.u32()) if flags & _TIMES else None
        if size is not None and size >= 1 << 63:
            raise ValueError("no file's size")
        if flags & _MORE:
            for _ in range(2 * min(self.u32(), len(self.data))):
                self.text()
        return Attributes(size, owner, mode, times)


def u32(number: int) -> bytes:
    """Return a number as 4 bytes, or what is left of it."""
    return (number & 0xFFFFFFFF).to_bytes(4, "big")


def u64(number: int) -> bytes:
    """Return a number as 8 bytes, or what is left of it."""
    return (number & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "big")


def text(data: bytes) -> bytes:
    """Return a text with its length before it."""
    return u32(len(data)) + data


def attributes(status: "_Status") -> bytes:
    """Return a file's attributes, without names of the owners."""
    return b"".join(
        (
            u32(_SIZE | _OWNER | _MODE | _TIMES),
            u64(status.st_size),
            *map(u32, (status.st_uid, status.st_gid, status.st_mode)),
            *map(u32, (int(status.st_atime), int(status.st_mtime))),
        )
    )
