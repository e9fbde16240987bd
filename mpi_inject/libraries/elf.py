"""Read what a dynamic linker reads in an ELF file, from the program headers alone: elf(5), gABI.

Section headers are never used, since strip(1) may drop them. Why our own code: pyelftools takes
71 ms to import and 6.5 ms a file, this 0.1 ms (both measured on a 2-core VM); the tests compare the
two on the machine's own libraries.

The input is hostile (images come from anywhere): every offset is checked against the size, every
chain is bounded by what a file of that size can hold, and the one error is ElfError.
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
"""e_machine in uname(2)'s words."""

_KINDS = {1: "relocatable", 2: "executable", 3: "shared", 4: "core"}
_LIMIT = 16384
_STRING = 4096
_STRINGS = 24 << 20
"""Bytes of the table of strings: ledger.STRINGS; a library of 90 MB has 7 MB."""
_TEXT = 4 << 20
"""Characters of all that is cut out of it: entries may overlap, 16,384 of them 4096 long."""
_BLOCK = 16384
_VERSIONS = (4096, 1 << 20)
"""Bytes that are read for symbol versions at first, and where those do: at most."""

_FORMS: dict[str, Struct] = {}
_HEADER = {64: "16xHH12xQ14xHH", 32: "16xHH8xI10xHH"}
_PROGRAM_HEADER = {64: "I4xQQ8xQ16x", 32: "III4xI12x"}
_DYNAMIC = {64: "qQ", 32: "iI"}
"""Of the ELF header: type, machine, where the program headers are, their size and number; of a
program header: type, offset, address, size in the file; of the dynamic section: tag, value."""
_NEED, _NEED_VERSION = "2xHIII", "8xII"
"""Elfxx_Verneed, Elfxx_Vernaux (LSB 10.7.3): count, name, first version, next; name, next."""


class ElfError(ValueError):
    """Not an ELF file, or a damaged one; the text reads after "PATH: "."""


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
    """Bytes at an offset, of memory or of an open file, read by blocks that are kept.

    `first` is all of what is in memory, or a file's first block: in most libraries no more is read.
    """

    def __init__(self, source: "bytes | int") -> None:
        if isinstance(source, int):
            self.file, self.first = source, os.pread(source, _BLOCK, 0)
            # Not its length: a network file system may give less than there is.
            self.size = os.fstat(source).st_size
        else:
            self.file, self.first, self.size = -1, source, len(source)
        self.blocks: dict[int, bytes] = {}

    def place(self, offset: int, size: int) -> tuple[bytes, int]:
        """Return bytes and the index in them where `size` bytes at `offset` begin."""
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
    """An ELF file being read: `elf()` for its description; elfsymbols.Symbols adds its symbols.

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
        if self._tags.get(10, 0) > _STRINGS:
            raise ElfError(f"damaged: {self._tags[10]} bytes of strings")
        if 5 in self._tags:
            self._strings = self._segment(5, self._tags.get(10, 0))
            # A program of 100 MB has more names than that, each of them once.
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
            if kind == 1:
                self._loads.append((address, at, size))
            elif kind == 2:
                found = (at, size)
            elif kind == 3:
                self.interp = text(self._in.at(at, min(size, _STRING)))
        if found:
            self.dynamic = True
            self._dynamic(*found)

    def _dynamic(self, offset: int, size: int) -> None:
        row = form(self._e + _DYNAMIC[self.bits])
        data = self._in.at(offset, size - size % row.size)
        tags = self._tags
        for tag, value in row.iter_unpack(data):
            if tag == 1:
                self._needed.append(value)
                if len(self._needed) > _LIMIT:
                    raise ElfError(f"damaged: needs more than {_LIMIT} libraries")
            elif tag == 0:
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
        return self._string(self._tags[14]) if 14 in self._tags else ""

    def needs(self) -> "dict[str, tuple[str, ...]]":
        """Return the symbol versions that are needed of other files, by their names."""
        return self._versions(0x6FFFFFFE, self._version_needs, {})

    def elf(self) -> Elf:
        """Return the file's description."""
        tags = self._tags
        paths = [self._string(tags[tag]) if tag in tags else "" for tag in (15, 29)]
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
            self._versions(0x6FFFFFFC, self._version_definitions, ()),
            self.dynamic,
        )

    def _versions(self, tag: int, read: "Callable[[bytes, int], T]", none: "T") -> "T":
        """Return what `read` makes of the bytes at `tag` and their count, which the next tag has.

        How long a chain is only its links say: little is read first, then as much as may be.
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
                # A library has a dozen: the usual one is cut out without a call.
                end = find("\0", text, text + _STRING)
                # Long ones are counted there.
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
    """Say what a file is that is no ELF file."""
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
