"""Sparse files of GNU tar: its old header type S, and formats 0.0, 0.1 and 1.0 in pax headers.

A map lists the parts that are stored, as (offset, length) in bytes; between them are holes. All
formats are in GNU tar's manual, "Storing Sparse Files".
"""

from collections.abc import Iterator

from rootless_udi.base.errors import amount
from rootless_udi.layers.bounds import FRAGMENTS, SPARSE
from rootless_udi.layers.tarfields import BLOCK, FIELDS, Stream, decimal, field, number, shown

Map = list[tuple[int, int]]
_ZEROS = bytes(1 << 16)
_PART = 24
"""Bytes of one part in the old format: offset and length, number fields of 12 bytes each."""
_PARTS_OF_HEADER, _PARTS_OF_BLOCK = 4, 21
"""How many of them a header has, and each block of the map that follows it."""


def zeros(size: int) -> Iterator[memoryview]:
    """Yield a hole of `size` bytes."""
    while size > 0:
        take = min(size, len(_ZEROS))
        yield memoryview(_ZEROS)[:take]
        size -= take


def old(stream: Stream, header: bytes, path: bytes, stored: int) -> tuple[Map, int]:
    """Return map and real size of type S: some parts in the header, then blocks with more."""
    numbers: list[int] = []

    def entries(block: bytes, start: int, count: int) -> None:
        for at in range(start, start + count * _PART, _PART):
            if block[at]:
                numbers.append(number(stream, block, at, at + _PART // 2, "sparse offset"))
                numbers.append(number(stream, block, at + _PART // 2, at + _PART, "sparse length"))

    entries(header, FIELDS["sparse"].start, _PARTS_OF_HEADER)
    real = field(stream, header, "realsize")
    more = header[FIELDS["isextended"]] != b"\0"
    blocks = 0
    while more:
        block = stream.read(BLOCK)
        blocks += 1
        if len(block) < BLOCK or blocks * _PARTS_OF_BLOCK > FRAGMENTS:
            stream.refuse(f"the sparse map of {shown(path)} has no end")
        entries(block, 0, _PARTS_OF_BLOCK)
        more = block[_PARTS_OF_BLOCK * _PART] != 0  # as isextended in the header
    return _checked(stream, path, numbers, real, stored), real


def in_header(stream: Stream, pax: dict[bytes, bytes], path: bytes, stored: int) -> tuple[Map, int]:
    """Return map and real size of formats 0.1 and 0.0, whose records have been joined to a map."""
    text = pax[b"GNU.sparse.map"]
    if text.count(b",") > 2 * FRAGMENTS:
        stream.refuse(f"the sparse map of {shown(path)} has more than {FRAGMENTS} parts")
    numbers = [decimal(stream, n, "a sparse map") for n in text.split(b",")]
    real = decimal(stream, pax.get(b"GNU.sparse.size", b""), "a sparse file's size")
    return _checked(stream, path, numbers, real, stored), real


def before_data(
    stream: Stream, pax: dict[bytes, bytes], path: bytes, stored: int
) -> tuple[Map, int, int]:
    """Return map, real size and the map's length in bytes, of format 1.0.

    The map stands before the data: decimal numbers, one a line, padded to a block.
    """
    version = pax[b"GNU.sparse.major"], pax.get(b"GNU.sparse.minor")
    if version != (b"1", b"0"):
        stream.refuse(f"{shown(path)} is sparse in a format that is not known")
    text = b""
    lines: list[bytes] = []
    wanted = 1
    length = 0
    while len(lines) < wanted:
        block = stream.read(BLOCK)
        length += BLOCK
        if len(block) < BLOCK or length > stored or wanted > 2 * FRAGMENTS:
            stream.refuse(f"the sparse map of {shown(path)} has no end")
        first = not lines
        *whole, text = (text + block).split(b"\n")
        if len(text) > BLOCK:
            stream.refuse(f"the sparse map of {shown(path)} is no map")
        if first and whole:
            wanted = 1 + 2 * decimal(stream, whole[0], "a sparse map's length")
        lines += whole
    numbers = [decimal(stream, line, "a sparse map") for line in lines[1:wanted]]
    real = decimal(stream, pax.get(b"GNU.sparse.realsize", b""), "a sparse file's size")
    return _checked(stream, path, numbers, real, stored - length), real, length


def _checked(stream: Stream, path: bytes, numbers: list[int], real: int, stored: int) -> Map:
    """Check a map: in order, no overlap, within the file, and as long as what is stored."""
    pairs = list(zip(numbers[::2], numbers[1::2], strict=False))
    at = total = 0
    for offset, length in pairs:
        if offset < at or length < 0:
            stream.refuse(f"the sparse map of {shown(path)} goes backwards")
        at = offset + length
        total += length
    if len(numbers) % 2 or at > real or total != stored:
        stream.refuse(f"the sparse map of {shown(path)} does not fit its size")
    if real > SPARSE:
        stream.refuse(
            f"{shown(path)} is a sparse file of {amount(real)} (at most {amount(SPARSE)})",
            "shrink it in the image (often /var/log/lastlog, from a very large user id)",
        )
    return pairs
