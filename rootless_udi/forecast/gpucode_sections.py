"""Find the sections of an ELF file that hold code for GPUs, and ELF files that are such code.

Section headers are needed: CUDA and HIP programs find their code by a symbol, and no program header
says where it is. A file whose section headers are stripped has code that is not seen here.

The input may be hostile: every table has a bound, and what is beyond the file is not there.
"""

from struct import Struct, error

from rootless_udi.base.records import Record
from rootless_udi.forecast.needs import FileContent

CUDA, AMDGPU = 190, 224
"""e_machine of NVIDIA's cubins and AMD's code objects (registry of System V's gABI)."""
_MOST_SECTIONS = 65536
_NAMES = 1 << 20
_ELF64 = b"\x7fELF\x02\x01"
"""64 bits, little endian: no GPU is used from any other kind of program today."""
_HEADER, _SECTION = Struct("<16xHHI8x8xQI6xHHH"), Struct("<II16xQQ24x")
"""Of the ELF header: type, machine, version, offset of section headers, flags; size and number of
section headers, number of that with their names. Of a section header: name, type, offset, size."""
_NOBITS = 8
DYNAMIC, STRINGS = b".dynamic", b".dynstr"
_NEEDED, _ROW = 1, Struct("<qQ")
_MOST_NEEDED, _LONGEST = 512, 256
"""Most libraries that a file needs, and most bytes of such a name (NAME_MAX is 255)."""

Section = tuple[bytes, int, int]
"""Name, offset, size in bytes."""


class Damaged(Exception):
    """Code for GPUs that does not hold together; the text follows "PATH: "."""


class Elf64(Record):
    """The start of an ELF file: e_machine, e_flags, EI_ABIVERSION, and where the sections are."""

    machine: int
    flags: int
    abi: int
    table: int
    entry: int
    count: int
    names: int


def read(head: bytes) -> Elf64 | None:
    """Return what the first bytes of a file say; None for what is not of this kind."""
    if head[:6] != _ELF64 or len(head) < _HEADER.size:
        return None
    _type, machine, _version, table, flags, entry, count, names = _HEADER.unpack_from(head)
    return Elf64(machine, flags, head[8], table, entry, count, names)


def find(elf: Elf64, content: FileContent, wanted: frozenset[bytes]) -> list[Section]:
    """Return (name, offset, size) of the sections that are `wanted`, in the file's order.

    Raises needs.Unreadable, and struct.error for a damaged table.
    """
    if not elf.table or elf.entry < _SECTION.size:
        return []
    count, names = elf.count, elf.names
    if count == 0 or names == 0xFFFF:  # more than 65,279: the first header has the numbers
        first = content.read(elf.table, elf.entry)
        count = count or _SECTION.unpack_from(first)[3]
        names = int.from_bytes(first[40:44], "little") if names == 0xFFFF else names
    count = min(count, _MOST_SECTIONS)
    table = content.read(elf.table, count * elf.entry)
    if len(table) < count * elf.entry or names >= count:
        raise error("section headers are beyond the end of the file")
    _name, _type, at, size = _SECTION.unpack_from(table, names * elf.entry)
    texts = content.read(at, min(size, _NAMES))
    found = []
    for index in range(count):
        name, kind, at, size = _SECTION.unpack_from(table, index * elf.entry)
        end = texts.find(b"\0", name, name + 64)
        if end > name and kind != _NOBITS and texts[name:end] in wanted:
            found.append((texts[name:end], at, size))
    return found


def needed(sections: list[Section], content: FileContent) -> list[str]:
    """Return the libraries that a file needs (DT_NEEDED), by its sections DYNAMIC and STRINGS.

    Raises needs.Unreadable.
    """
    places = {name: (at, size) for name, at, size in sections}
    if DYNAMIC not in places or STRINGS not in places:
        return []
    at, size = places[DYNAMIC]
    table = content.read(at, min(size, 4096 * _ROW.size))
    rows = _ROW.iter_unpack(table[: len(table) - len(table) % _ROW.size])
    offsets = [value for tag, value in rows if tag == _NEEDED][:_MOST_NEEDED]
    at, size = places[STRINGS]
    texts = [content.read(at + offset, _LONGEST) for offset in offsets if offset < size]
    return [text.partition(b"\0")[0].decode("utf-8", "replace") for text in texts]
