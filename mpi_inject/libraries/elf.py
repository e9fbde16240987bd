"""Read of an ELF file what the dynamic linker ld.so(8) reads: elf(5), System V gABI.

Like ld.so this uses program headers alone: strip(1) may remove section headers. Why no library:
pyelftools takes 71 ms to import and 6.5 ms a file, this 0.1 ms (measured on a VM with 2 cores); the
tests compare the two on the machine's own libraries.

The input may be hostile, as an image may be anybody's: each offset is checked against the size,
each list has at most as many entries as fit in the file, and the only error is ElfError.
"""

import os
from _struct import Struct, error  # type: ignore[attr-defined]

from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

MAGIC = b"\x7fELF"
MACHINES = {
    3: "i386",
    8: "mips",
    20: "ppc",
    21: "ppc64",
    22: "s390x",
    40: "arm",
    62: "x86_64",
    183: "aarch64",
    243: "riscv64",
    258: "loongarch64",
}
"""The ELF header's e_machine -> the machine as uname(2) names it."""

_KINDS = {1: "relocatable", 2: "executable", 3: "shared", 4: "core"}
"""The ELF header's e_type: ET_REL, ET_EXEC, ET_DYN, ET_CORE."""
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
"""Types of program headers (elf(5))."""
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_STRSZ = 0, 1, 5, 10
_DT_SONAME, _DT_RPATH, _DT_RUNPATH = 14, 15, 29
_DT_VERDEF, _DT_VERNEED = 0x6FFFFFFC, 0x6FFFFFFE
"""Tags of the dynamic section (elf(5), LSB 10.7); behind each of the last two is its count's
tag."""
_LIMIT = 16384
_STRING = 4096
_STRINGS = 24 << 20
"""Most bytes of a string table (as layers.ledger.STRINGS); a library of 90 MB has 7 MB."""
_TEXT = 4 << 20
"""Most characters of all names taken from it: hostile entries may overlap, 16,384 of 4096 each."""
_BLOCK = 16384
_VERSIONS = (4096, 1 << 20)
"""Bytes that are read of a table of symbol versions: at first, and if that was too little."""

_FORMS: dict[str, Struct] = {}
_HEADER = {64: "16xHH12xQ14xHH", 32: "16xHH8xI10xHH"}
_PROGRAM_HEADER = {64: "I4xQQ8xQ16x", 32: "III4xI12x"}
_DYNAMIC = {64: "qQ", 32: "iI"}
"""Layouts for struct, by class (64 or 32 bits). Of the ELF header: type, machine, offset, size and
number of program headers; of a program header: type, offset, address, size in the file; of an entry
of the dynamic section: tag, value."""
_NEED, _NEED_VERSION = "2xHIII", "8xII"
"""Elfxx_Verneed: count, file's name, first version, next; Elfxx_Vernaux: name, next (LSB
10.7.3)."""


class ElfError(ValueError):
    """Not an ELF file, or a damaged one. The message is made to follow "PATH: "."""


class Elf(Record):
    """One ELF file as ld.so(8) sees it.

    `bits` is 32 or 64; `machine` as uname(2) says it ("x86_64"), or "machine N". `kind` is
    "executable", "shared" (also position-independent programs), "relocatable" or "core".
    `rpath` and `runpath` are split at the colons, `$ORIGIN` not replaced. `needs` maps a file name
    to the symbol versions that are needed of it, `defines` lists the symbol versions that the file
    defines, its own name left out. `dynamic` is false for a static program.
    """

    bits: int
    little: bool
    machine: str
    kind: str
    interp: str
    soname: str
    needed: tuple[str, ...]
    rpath: tuple[str, ...]
    runpath: tuple[str, ...]
    needs: "dict[str, tuple[str, ...]]"
    defines: tuple[str, ...]
    dynamic: bool


def form(layout: str) -> Struct:
    """Return the Struct of a layout, compiled once."""
    return _FORMS.get(layout) or _FORMS.setdefault(layout, Struct(layout))


class _Input:
    """The bytes of an ELF file: in memory, or of an open file, which is read in blocks.

    Blocks are kept. `first` is all of the memory, or a file's first block, which is enough for most
    libraries.
    """

    def __init__(self, source: "bytes | int") -> None:
        if isinstance(source, int):
            self.file, self.first = source, os.pread(source, _BLOCK, 0)
            # Not the length of what was read: a network file system may return less than asked.
            self.size = os.fstat(source).st_size
        else:
            self.file, self.first, self.size = -1, source, len(source)
        self.blocks: dict[int, bytes] = {}

    def place(self, offset: int, size: int) -> tuple[bytes, int]:
        """Return some bytes of the file, and the index in them of `size` bytes at `offset`."""
        if offset >= 0 and 0 <= size <= len(self.first) - offset:
            return self.first, offset
        begin = offset % _BLOCK
        block = self.blocks.get(offset - begin)
        if block is None or begin + size > len(block):
            if offset < 0 or size < 0 or offset + size > self.size:
                raise ElfError(f"truncated: {size} bytes at {offset} of {self.size}")
            if begin + size > _BLOCK:
                block, begin = os.pread(self.file, size, offset), 0
            else:
                block = self.blocks[offset - begin] = os.pread(self.file, _BLOCK, offset - begin)
            if len(block) < begin + size:
                raise ElfError(f"truncated: it became shorter than {offset + size} as it was read")
        return block, begin

    def at(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes at `offset`."""
        block, begin = self.place(offset, size)
        return block[begin : begin + size]

    def upto(self, offset: int, size: int) -> bytes:
        """Return `size` bytes at `offset`, fewer at the end of the file."""
        return self.at(offset, min(size, max(0, self.size - offset)))


class ElfReader:
    """An ELF file that is being read: `elf()` describes it; symbols.Symbols also has its symbols.

    `source` is the file's bytes or an open descriptor, which stays the caller's. Every method
    raises ElfError.
    """

    def __init__(self, source: "bytes | int") -> None:
        self._in = _Input(source)
        head = self._in.first[:64]
        if head[:4] != MAGIC:
            raise ElfError(_what_else(head))
        if len(head) < 20 or head[4] not in (1, 2) or head[5] not in (1, 2):
            raise ElfError("truncated or damaged ELF header")
        self.bits, self.little = 32 * head[4], head[5] == 1
        self._e = "<" if self.little else ">"
        row = form(self._e + _HEADER[self.bits])
        if len(head) < row.size:
            raise ElfError(f"truncated: {row.size} bytes at 0 of {self._in.size}")
        kind, machine, *where = row.unpack_from(head)
        self.kind = _KINDS.get(kind, f"kind {kind}")
        self.machine = MACHINES.get(machine, f"machine {machine}")
        self._loads: list[tuple[int, int, int]] = []
        self._tags: dict[int, int] = {}
        self._needed: list[int] = []
        self.interp = ""
        self.dynamic = False
        self._program_headers(*where)
        self._strings = b""
        self._left = _TEXT
        if self._tags.get(_DT_STRSZ, 0) > _STRINGS:
            raise ElfError(f"damaged: {self._tags[_DT_STRSZ]} bytes of strings")
        if _DT_STRTAB in self._tags:
            self._strings = self._segment(_DT_STRTAB, self._tags.get(_DT_STRSZ, 0))
            # A program of 100 MB may have more names than _TEXT, each once.
            self._left += 8 * len(self._strings)
        self._ascii = self._strings.decode("ascii") if self._strings.isascii() else ""

    def _unpack(self, layout: str, offset: int) -> "tuple[int, ...]":
        one = form(self._e + layout)
        return one.unpack_from(*self._in.place(offset, one.size))

    def _program_headers(self, offset: int, entry: int, count: int) -> None:
        row = form(self._e + _PROGRAM_HEADER[self.bits])
        if count and entry < row.size:
            raise ElfError(f"damaged: program headers of {entry} bytes")
        table = self._in.at(offset, entry * count)
        found: tuple[int, int] | None = None
        rows = (
            row.iter_unpack(table)
            if entry == row.size
            else (row.unpack_from(table, begin) for begin in range(0, len(table), entry or 1))
        )
        for kind, at, address, size in rows:
            if kind == _PT_LOAD:
                self._loads.append((address, at, size))
            elif kind == _PT_DYNAMIC:
                found = (at, size)
            elif kind == _PT_INTERP:
                self.interp = text(self._in.at(at, min(size, _STRING)))
        if found:
            self.dynamic = True
            self._dynamic(*found)

    def _dynamic(self, offset: int, size: int) -> None:
        row = form(self._e + _DYNAMIC[self.bits])
        data = self._in.at(offset, size - size % row.size)
        tags = self._tags
        for tag, value in row.iter_unpack(data):
            if tag == _DT_NEEDED:
                self._needed.append(value)
                if len(self._needed) > _LIMIT:
                    raise ElfError(f"damaged: needs more than {_LIMIT} libraries")
            elif tag == _DT_NULL:
                break
            else:
                tags[tag] = value

    def _offset(self, tag: int) -> int:
        """Return the offset in the file of what the dynamic section's `tag` points to."""
        address = self._tags[tag]
        for start, offset, size in self._loads:
            if start <= address < start + size:
                return address - start + offset
        raise ElfError(f"damaged: no segment holds the address {address:#x}")

    def _segment(self, tag: int, size: int) -> bytes:
        return self._in.at(self._offset(tag), size) if size else b""

    def _string(self, offset: int) -> str:
        strings = self._strings
        if offset >= len(strings):
            raise ElfError(f"damaged: string {offset} of {len(strings)}")
        end = strings.find(b"\0", offset, offset + _STRING)
        end = end if end >= 0 else offset + _STRING
        self._left -= end - offset
        if self._left < 0:
            raise ElfError("damaged: its names have no end")
        if self._ascii:
            return self._ascii[offset:end]
        return strings[offset:end].decode("utf-8", "surrogateescape")

    def needed(self) -> tuple[str, ...]:
        """Return DT_NEEDED, in order."""
        return tuple(map(self._string, self._needed))

    def soname(self) -> str:
        """Return DT_SONAME, "" where the file has none."""
        return self._string(self._tags[_DT_SONAME]) if _DT_SONAME in self._tags else ""

    def needs(self) -> "dict[str, tuple[str, ...]]":
        """Return the symbol versions that are needed of other files, by their names."""
        return self._versions(_DT_VERNEED, self._version_needs, {})

    def elf(self) -> Elf:
        """Return the file's description."""
        tags = self._tags
        both = (_DT_RPATH, _DT_RUNPATH)
        paths = [self._string(tags[tag]) if tag in tags else "" for tag in both]
        rpath, runpath = (tuple(p for p in text.split(":") if p) for text in paths)
        return Elf(
            self.bits,
            self.little,
            self.machine,
            self.kind,
            self.interp,
            self.soname(),
            self.needed(),
            rpath,
            runpath,
            self.needs(),
            self._versions(_DT_VERDEF, self._version_definitions, ()),
            self.dynamic,
        )

    def _versions(self, tag: int, read: "Callable[[bytes, int], T]", none: "T") -> "T":
        """Return what `read` makes of the table at `tag`, and of its count (the next tag).

        A table's length is said nowhere, but by the links between its entries: little is read
        first, and if that is not enough, as much as is allowed.
        """
        if tag not in self._tags:
            return none
        at, count = self._offset(tag), min(self._tags.get(tag + 1, 0), _LIMIT)
        for size in _VERSIONS:
            data = self._in.upto(at, size)
            try:
                return read(data, count)
            except error:
                if len(data) < size:
                    break
        raise ElfError("truncated or damaged: symbol versions")

    def _version_needs(self, data: bytes, count: int) -> "dict[str, tuple[str, ...]]":
        """Read Elfxx_Verneed (DT_VERNEED): the same layout in both classes."""
        row, inner = form(self._e + _NEED).unpack_from, form(self._e + _NEED_VERSION).unpack_from
        plain, find, string = self._ascii, self._ascii.find, self._string
        found, at, left = {}, 0, _LIMIT
        for _ in range(count):
            number, name, aux, step = row(data, at)
            versions, where = [], at + aux
            for _ in range(number):
                text, next_aux = inner(data, where)
                # A library has a dozen of these: a short name is taken without a call.
                end = find("\0", text, text + _STRING)
                # A long one is taken by string(), which counts it.
                versions.append(plain[text:end] if 0 <= end < text + 200 else string(text))
                left -= 1
                if not left:
                    raise ElfError(f"damaged: needs more than {_LIMIT} symbol versions")
                where += next_aux
                if not next_aux:
                    break
            found[string(name)] = tuple(versions)
            at += step
            if not step:
                break
        return found

    def _version_definitions(self, data: bytes, count: int) -> "tuple[str, ...]":
        """Read the names of Elfxx_Verdef (DT_VERDEF) without the base, the file's own name."""
        row, name = form(self._e + "2xH8xII").unpack_from, form(self._e + "I").unpack_from
        found, at = [], 0
        for _ in range(count):
            flags, aux, step = row(data, at)
            if not flags & 1:
                found.append(self._string(name(data, at + aux)[0]))
            at += step
            if not step:
                break
        return tuple(found)


def text(data: bytes) -> str:
    """Return the text up to the first zero byte."""
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _what_else(head: bytes) -> str:
    """Say what a file that is no ELF file seems to be."""
    if not head:
        return "empty file"
    if MAGIC.startswith(head[:4]):
        return "truncated ELF file"
    text = head.lstrip()
    if text.startswith((b"/*", b"GROUP", b"INPUT", b"OUTPUT_FORMAT", b"SEARCH_DIR")):
        return "a linker script, not a library"
    if head.startswith(b"!<arch>\n"):
        return "a static library (ar archive)"
    return "not an ELF file"


def parse(data: bytes) -> Elf:
    """Return the description of the ELF file in `data`; raises ElfError."""
    return ElfReader(data).elf()


def look(path: str, what: "Callable[[ElfReader], T]", flags: int = 0) -> "T":
    """Return what `what` makes of the ELF file at `path`; raises ElfError, OSError.

    `flags` are open(2)'s, besides those of reading.
    """
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | flags)
    try:
        return what(ElfReader(file))
    finally:
        os.close(file)


def read(path: str) -> Elf:
    """Return the description of the ELF file at `path`; raises ElfError, OSError."""
    return look(path, ElfReader.elf)
