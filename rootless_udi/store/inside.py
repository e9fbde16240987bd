"""Write an image's facts into its file (`udi export`), so that one file is all that is copied.

Behind the squashfs stands the list of its windows (`base.windows`), then the facts, then what `udi
optimize` appends (`serve.prefetch`). Starts read the facts (`store.resolve`); the format is in
`base.superblock`.
"""

import os

from rootless_udi.base import fastjson
from rootless_udi.base.errors import UdiError, amount
from rootless_udi.base.superblock import ASKS, INSIDE, SIZE, USED
from rootless_udi.base.windows import BLOCK, WindowList, count, packed
from rootless_udi.store import windows
from rootless_udi.store.resolve import INSIDE_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

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
        raise UdiError(
            f"its facts have {amount(len(data))}; at most {amount(INSIDE_MAX)} go into a file"
        )
    return data + INSIDE + (len(data) + 16).to_bytes(8, "little")


def parts(fd: int, begin: int = 0) -> "tuple[int, tuple[int, int]]":
    """Return the size of the squashfs at byte `begin` of the file at `fd`, and (position, length)
    of the end that `udi optimize` appended (length 0 for none); all in bytes. Raises OSError."""
    size = os.fstat(fd).st_size
    used = int.from_bytes(os.pread(fd, SIZE, begin)[USED], "little")
    if begin:
        # In a SIF file, behind which nothing of ours stands.
        return used, (size, 0)
    last = os.pread(fd, 16, max(size - 16, 0))
    length = int.from_bytes(last[8:], "little")
    asks = last[:8] == ASKS and 16 <= length <= size - used
    return used, (size - length, length) if asks else (size, 0)


def original(fd: int) -> "Iterator[bytes]":
    """Yield the content of the file at `fd` in pieces, without the list of its windows and its
    facts, which we add. Raises OSError, and UdiError where the file ends too early."""
    used, (at, length) = parts(fd)
    yield from _range(fd, 0, used)
    yield bytes(-used % BLOCK)
    yield from _range(fd, at, length)


def copy(
    fd: int,
    name: str,
    facts: "Mapping[str, Any]",
    write: "Callable[[bytes], object]",
    summed: "Callable[[bytes], object]" = lambda _: None,
    begin: int = 0,
) -> WindowList:
    """Write the content of the file at `fd`, with `facts` in place of its own, if any.

    `begin` is where in the file the squashfs begins: in a SIF file, only that is written.

    The list of its windows is made meanwhile, named in the facts and returned; if the file has one,
    they must be equal. `summed` is called with what `original` yields. Raises OSError, and UdiError
    where the file, called `name`, ends too early or is damaged.
    """
    used, (at, length) = parts(fd, begin)
    sums = windows.Summing(used)
    for data in _range(fd, begin, used):
        sums.feed(data)
        summed(data)
        write(data)
    known = sums.end()
    if not begin:
        _compare(fd, name, known)
    padding = bytes(-used % BLOCK)
    summed(padding)
    write(padding + packed(known))
    write(pack({**facts, "windows": [known.digest]}) if facts else b"")
    for data in _range(fd, at, length):
        summed(data)
        write(data)
    return known


def _compare(fd: int, name: str, known: WindowList) -> None:
    """Raise UdiError where the file at `fd` has another list than `known`, made of its windows."""
    hint = "copy it again, or pull it anew (udi pull --force)"
    try:
        own = windows.behind(fd, known.size)
    except ValueError as error:
        raise UdiError(f"copying {name} failed: {error}", hint) from None
    if own is not None and own != known:
        bad = [n for n in range(count(known.size)) if own.of(n) != known.of(n)]
        raise UdiError(f"copying {name} failed: {windows.said(bad, known.size)}", hint)


def _range(fd: int, at: int, length: int) -> "Iterator[bytes]":
    end = at + length
    while at < end:
        data = os.pread(fd, min(_CHUNK, end - at), at)
        if not data:
            raise UdiError(f"the file ends at {at}, before the image does", "copy it again")
        yield data
        at += len(data)
