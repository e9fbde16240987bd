"""The note in NVIDIA's CUDA compatibility libraries that says which host drivers they suit.

A newer libcuda.so has an ELF note, ".note.cuda.fwd_compatibility": its owner is "NVIDIA
Corporation", its type 0, its description JSON and zero bytes:

    {"format":1,"CUDA version":"12.9","driver":[535,550,560,565,570,575],"device":[1,2,7,8,9]}

"driver" lists branches of the host's driver. What the numbers of "device" mean is documented
nowhere; like NVIDIA's own reader, this one ignores them. Libraries for Jetson have no "driver".
Source: nvidia-container-toolkit, cmd/nvidia-cdi-hook/cudacompat, with its testdata. That reader
uses section headers; here segments are read first, since strip(1) keeps them.

Used by the pull, which writes the branches into the image's facts. The input may be hostile.
"""

import json
from struct import Struct, error

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_OWNER = b"NVIDIA Corporation"
_LARGEST = 4096
_MOST = 128
"""Most bytes of notes, headers of a table, and branches that are read: the file may be hostile."""
_HEADER = "32xQQ6xHHHH"
_SEGMENT, _SECTION = "I4xQ16xQ8xQ", "4xI16xQQ8xQ8x"
"""Of a 64-bit ELF header: where program and section headers are, size and number of each; of both
such headers: type, offset, size, alignment."""
_PT_NOTE, _SHT_NOTE = 4, 7


def branches(data: bytes) -> list[int] | None:
    """Return the driver branches that the note in the ELF file `data` names, in order.

    None where there is no note that can be read, [] for one that names none.
    """
    if data[4:5] != b"\2" or data[5:6] not in (b"\1", b"\2"):
        return None
    order = "<" if data[5] == 1 else ">"
    try:
        for offset, size, align in _places(data, order):
            content = data[offset : offset + min(size, _LARGEST)]
            for owner, text in _notes(content, order, align):
                if owner.rstrip(b"\0") == _OWNER:
                    return _read(text)
    except error:
        pass
    return None


def _places(data: bytes, order: str) -> "Iterator[tuple[int, int, int]]":
    """Yield (offset, size, alignment) of the segments that have notes, then of such sections."""
    at, sections, size, count, wide, many = Struct(order + _HEADER).unpack_from(data)
    tables = ((at, size, count, _SEGMENT, _PT_NOTE), (sections, wide, many, _SECTION, _SHT_NOTE))
    for table, entry, number, layout, wanted in tables:
        row = Struct(order + layout)
        for begin in range(table, table + min(number, _MOST) * entry, entry or 1):
            kind, offset, length, align = row.unpack_from(data, begin)
            if kind == wanted:
                yield offset, length, align


def _notes(content: bytes, order: str, align: int) -> "Iterator[tuple[bytes, bytes]]":
    """Yield (owner, description) of each note in `content`: elf(5), "Notes (Nhdr)"."""
    row, unit, at = Struct(order + "III"), 8 if align == 8 else 4, 0
    while at + row.size <= len(content):
        owner, size, _kind = row.unpack_from(content, at)
        name = at + row.size
        begin = -(-(name + owner) // unit) * unit
        yield content[name : name + owner], content[begin : begin + size]
        at = -(-(begin + size) // unit) * unit


def _read(text: bytes) -> list[int] | None:
    try:
        found = json.loads(text.strip(b"\0"))
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict):
        return None
    drivers = found.get("driver", [])
    if not isinstance(drivers, list) or not all(type(d) is int for d in drivers):
        return None
    return [d for d in drivers if 0 < d < 10_000][:_MOST]
