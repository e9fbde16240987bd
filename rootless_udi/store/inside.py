"""Write an image's facts into its file (`udi export`), so that one file is all that is copied.

The facts follow the squashfs; behind them comes what `udi optimize` appends (`serve.prefetch`).
Starts read them (`store.resolve`); the format is in `base.superblock`.
"""

import os

from rootless_udi.base import fastjson
from rootless_udi.base.errors import UdiError
from rootless_udi.base.superblock import ASKS, INSIDE, SIZE, USED
from rootless_udi.store.resolve import INSIDE_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

BLOCK = 4096
"""The file's parts begin at multiples of this many bytes."""
_CHUNK = 1 << 20


def pack(facts: "Mapping[str, Any]") -> bytes:
    """Return facts as they stand behind a squashfs; b"" for none.

    Raises UdiError for more than INSIDE_MAX bytes.
    """
    if not facts:
        return b""
    data = fastjson.dumps(facts, separators=(",", ":")).encode("utf-8", "surrogateescape")
    data += bytes(-(len(data) + 16) % BLOCK)
    if len(data) + 16 > INSIDE_MAX:
        raise UdiError(f"its facts have {len(data)} bytes; at most {INSIDE_MAX} go into a file")
    return data + INSIDE + (len(data) + 16).to_bytes(8, "little")


def parts(fd: int) -> "tuple[int, tuple[int, int]]":
    """Return the size of the squashfs in the file at `fd`, and (position, length) of the end that
    `udi optimize` appended (length 0 for none); all in bytes. Raises OSError."""
    size = os.fstat(fd).st_size
    used = int.from_bytes(os.pread(fd, SIZE, 0)[USED], "little")
    last = os.pread(fd, 16, max(size - 16, 0))
    length = int.from_bytes(last[8:], "little")
    asks = last[:8] == ASKS and 16 <= length <= size - used
    return used, (size - length, length) if asks else (size, 0)


def copied(fd: int, facts: "Mapping[str, Any]") -> "Iterator[bytes]":
    """Yield the content of the file at `fd` in pieces, with `facts` in place of its own, if any.

    Raises OSError, and UdiError where the file ends too early.
    """
    used, (at, length) = parts(fd)
    yield from _range(fd, 0, used)
    yield bytes(-used % BLOCK)
    yield pack(facts)
    yield from _range(fd, at, length)


def _range(fd: int, at: int, length: int) -> "Iterator[bytes]":
    end = at + length
    while at < end:
        data = os.pread(fd, min(_CHUNK, end - at), at)
        if not data:
            raise UdiError(f"the file ends at {at}, before the image does", "copy it again")
        yield data
        at += len(data)
