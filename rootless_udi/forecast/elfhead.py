"""What the first block of an ELF file says: machine, kind, notes. Of image files, so hostile."""

from struct import Struct, error

from rootless_udi.base.records import Record
from rootless_udi.forecast.needs import FileContent
from rootless_udi.mpi_inject.libraries.elf import MACHINES, MAGIC

_PT_LOAD, _PT_INTERP, _PT_NOTE = 1, 3, 4
_MOST = 128
"""Most program headers that are looked at; a linker writes a dozen."""
_NOTES = 64 << 10
"""Most bytes of notes."""
_ABI_TAG, _PROPERTIES = 1, 5
_LINUX = 0
_ISA_NEEDED, _ISA_USED = 0xC0008002, 0xC0010002
"""GNU_PROPERTY_X86_ISA_1_NEEDED, _USED (x86-64 psABI, "Program Property")."""


class ElfHead(Record):
    """Of an ELF file: `machine` as uname(2) says it, `bits`, `little`-endian or not.

    `interp` is its dynamic linker, "" for none. `kernel` is the oldest Linux that it runs on by its
    ABI tag, "" for none. `needed` and `used` are the bits of the x86 levels that its properties
    name: bit 0 baseline, 1 v2, 2 v3, 3 v4.
    """

    machine: str
    bits: int
    little: bool
    interp: str = ""
    kernel: str = ""
    needed: int = 0
    used: int = 0


def read(content: FileContent) -> ElfHead | None:
    """Return what a file says; None for what is no ELF file or damaged. Raises Unreadable."""
    head = content.head
    if head[:4] != MAGIC or len(head) < 52 or head[4] not in (1, 2) or head[5] not in (1, 2):
        return None
    bits, little = 32 * head[4], head[5] == 1
    order = "<" if little else ">"
    try:
        if bits == 64:
            machine, at = Struct(order + "18xH12xQ").unpack_from(head)
            size, count = Struct(order + "54xHH").unpack_from(head)
            row = Struct(order + "I4xQ16xQ")
        else:
            machine, at = Struct(order + "18xH8xI").unpack_from(head)
            size, count = Struct(order + "42xHH").unpack_from(head)
            row = Struct(order + "II8xI")
        one = ElfHead(MACHINES.get(machine, f"machine {machine}"), bits, little)
        if not row.size <= size <= 1024:
            return one if not count else None
        table = content.read(at, size * min(count, _MOST))
        return _segments(
            one,
            content,
            [row.unpack_from(table, n) for n in range(0, len(table) - row.size + 1, size)],
            order,
        )
    except error:
        return None


def _segments(
    one: ElfHead, content: FileContent, rows: list[tuple[int, ...]], order: str
) -> ElfHead:
    left = _NOTES
    for kind, at, size in rows:
        if kind == _PT_INTERP and size <= 4096:
            text = content.read(at, size).partition(b"\0")[0]
            one = one.replace(interp=text.decode("utf-8", "replace"))
        elif kind == _PT_NOTE and size <= left:
            left -= size
            one = _notes(one, content.read(at, size), order)
    return one


def _notes(one: ElfHead, data: bytes, order: str) -> ElfHead:
    """Return `one` with what the notes in a segment say (System V gABI, "Note Section")."""
    head = Struct(order + "III")
    # Notes are aligned to 4 bytes; a segment of properties alone to 8, which comes to the same
    # where the name is "GNU" and the properties' size is a multiple of 8.
    at = 0
    while at + head.size <= len(data):
        named, size, kind = head.unpack_from(data, at)
        name = data[at + 12 : at + 12 + named]
        begin = at + 12 + (named + 3 & ~3)
        what = data[begin : begin + size]
        at = begin + (size + 3 & ~3)
        if name != b"GNU\0" or len(what) < size:
            continue
        if kind == _ABI_TAG and size >= 16:
            system, *numbers = Struct(order + "IIII").unpack_from(what)
            if system == _LINUX:
                one = one.replace(kernel=".".join(map(str, numbers)))
        elif kind == _PROPERTIES:
            one = _properties(one, what, order)
    return one


def _properties(one: ElfHead, data: bytes, order: str) -> ElfHead:
    align = one.bits // 8
    at = 0
    while at + 8 <= len(data):
        kind, size = Struct(order + "II").unpack_from(data, at)
        if size == 4 and at + 12 <= len(data) and one.machine in ("x86_64", "i386"):
            (value,) = Struct(order + "I").unpack_from(data, at + 8)
            if kind == _ISA_NEEDED:
                one = one.replace(needed=one.needed | value)
            elif kind == _ISA_USED:
                one = one.replace(used=one.used | value)
        at += 8 + (size + align - 1 & ~(align - 1))
    return one
