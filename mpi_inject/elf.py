"""Read what a dynamic linker reads in an ELF file, from the program headers alone: elf(5), gABI.

Section headers are never used, since strip(1) may drop them. Why our own code: pyelftools takes
71 ms to import and 6.5 ms a file, this 0.1 ms (both measured on a 2-core VM); the tests compare the
two on the machine's own libraries.

The input is hostile (images come from anywhere): every offset is checked against the size, every
chain is bounded by what a file of that size can hold, and the one error is ElfError.
"""

import os
from struct import Struct, iter_unpack

from rootless_udi.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
_GNU_HASH = 0x6FFFFEF5
_STRING = 4096
_BLOCK = 16384
_FORMS: dict[str, Struct] = {}


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


class _Input:
    """Bytes at an offset, of memory or of an open file, read by blocks that are kept."""

    def __init__(self, source: "bytes | int") -> None:
        self.file = source if isinstance(source, int) else -1
        self.size = os.fstat(source).st_size if isinstance(source, int) else len(source)
        self.data = b"" if isinstance(source, int) else source
        self.blocks: dict[int, bytes] = {}

    def place(self, offset: int, size: int) -> tuple[bytes, int]:
        """Return bytes and the index in them where `size` bytes at `offset` begin."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise ElfError(f"truncated: {size} bytes at {offset} of {self.size}")
        if self.file < 0:
            return self.data, offset
        number = offset // _BLOCK
        begin = offset - number * _BLOCK
        if begin + size > _BLOCK:
            block, begin = os.pread(self.file, size, offset), 0
        else:
            block = self.blocks.get(number, b"")
            if not block:
                block = self.blocks[number] = os.pread(self.file, _BLOCK, number * _BLOCK)
        if len(block) < begin + size:
            raise ElfError(f"truncated: it became shorter than {offset + size} while being read")
        return block, begin

    def at(self, offset: int, size: int) -> bytes:
        """Return exactly `size` bytes at `offset`."""
        block, begin = self.place(offset, size)
        return block[begin : begin + size]


class _Hashes(Record):
    """DT_GNU_HASH: its buckets, the first symbol that it knows, the offset of its chains."""

    buckets: tuple[int, ...]
    first: int
    chain: int


class Reader:
    """An ELF file being read: `elf()` for its description, then its symbols.

    `source` is the file's bytes or an open descriptor, which stays the caller's. Every method
    raises ElfError.
    """

    def __init__(self, source: "bytes | int") -> None:
        self._in = _Input(source)
        head = self._in.at(0, min(64, self._in.size))
        if head[:4] != MAGIC:
            raise ElfError(_what_else(head))
        if len(head) < 20 or head[4] not in (1, 2) or head[5] not in (1, 2):
            raise ElfError("truncated or damaged ELF header")
        self.bits, self.little = 32 * head[4], head[5] == 1
        self._e = "<" if self.little else ">"
        kind, machine = self._unpack("HH", 16)
        self.kind = _KINDS.get(kind, f"kind {kind}")
        self.machine = MACHINES.get(machine, f"machine {machine}")
        self._loads: list[tuple[int, int, int]] = []
        self._tags: dict[int, int] = {}
        self._needed: list[int] = []
        self.interp = ""
        self.dynamic = False
        self._program_headers()
        self._hashes: _Hashes | None = None
        self._strings = b""
        if 5 in self._tags:
            self._strings = self._segment(5, self._tags.get(10, 0))

    def _unpack(self, layout: str, offset: int) -> "tuple[int, ...]":
        layout = self._e + layout
        form = _FORMS.get(layout) or _FORMS.setdefault(layout, Struct(layout))
        return form.unpack_from(*self._in.place(offset, form.size))

    def _program_headers(self) -> None:
        if self.bits == 64:
            (offset,) = self._unpack("Q", 32)
            entry, count = self._unpack("HH", 54)
            layout, order = "IIQQQQQQ", (0, 2, 3, 5)
        else:
            (offset,) = self._unpack("I", 28)
            entry, count = self._unpack("HH", 42)
            layout, order = "IIIIIIII", (0, 1, 2, 4)
        form = Struct(self._e + layout)
        if count and entry < form.size:
            raise ElfError(f"damaged: program headers of {entry} bytes")
        table = self._in.at(offset, entry * count)
        found: tuple[int, int] | None = None
        for index in range(count):
            row = form.unpack_from(table, index * entry)
            kind, at, address, size = (row[i] for i in order)
            if kind == 1:
                self._loads.append((address, at, size))
            elif kind == 2:
                found = (at, size)
            elif kind == 3:
                self.interp = _text(self._in.at(at, min(size, _STRING)))
        if found:
            self.dynamic = True
            self._dynamic(*found)

    def _dynamic(self, offset: int, size: int) -> None:
        layout = self._e + ("qQ" if self.bits == 64 else "iI")
        form = Struct(layout)
        data = self._in.at(offset, size - size % form.size)
        for tag, value in iter_unpack(layout, data):
            if tag == 0:
                break
            if tag == 1:
                self._needed.append(value)
                if len(self._needed) > _LIMIT:
                    raise ElfError(f"damaged: needs more than {_LIMIT} libraries")
            else:
                self._tags[tag] = value

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
        if offset >= len(self._strings):
            raise ElfError(f"damaged: string {offset} of {len(self._strings)}")
        return _text(self._strings[offset : offset + _STRING])

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
            self._string(tags[14]) if 14 in tags else "",
            tuple(self._string(name) for name in self._needed),
            rpath,
            runpath,
            dict(self._version_needs()),
            tuple(self._version_definitions()),
            self.dynamic,
        )

    def _version_needs(self) -> "Iterator[tuple[str, tuple[str, ...]]]":
        """Yield Elfxx_Verneed (DT_VERNEED, LSB 10.7.3): the same layout in both classes."""
        if 0x6FFFFFFE not in self._tags:
            return
        at, left = self._offset(0x6FFFFFFE), _LIMIT
        for _ in range(min(self._tags.get(0x6FFFFFFF, 0), _LIMIT)):
            _version, count, name, aux, step = self._unpack("HHIII", at)
            versions, where = [], at + aux
            for _ in range(count):
                _hash, _flags, _other, text, next_aux = self._unpack("IHHII", where)
                versions.append(self._string(text))
                left -= 1
                if not left:
                    raise ElfError(f"damaged: needs more than {_LIMIT} symbol versions")
                where += next_aux
                if not next_aux:
                    break
            yield self._string(name), tuple(versions)
            at += step
            if not step:
                return

    def _version_definitions(self) -> "Iterator[str]":
        """Yield the names of Elfxx_Verdef (DT_VERDEF) without the base, the file's own name."""
        if 0x6FFFFFFC not in self._tags:
            return
        at = self._offset(0x6FFFFFFC)
        for _ in range(min(self._tags.get(0x6FFFFFFD, 0), _LIMIT)):
            _version, flags, _index, _count, _hash, aux, step = self._unpack("HHHHIII", at)
            if not flags & 1:
                yield self._string(self._unpack("I", at + aux)[0])
            at += step
            if not step:
                return

    def _symbol_count(self) -> int:
        """Return the length of the dynamic symbol table, which only the hash tables know."""
        limit = self._in.size // 16
        if 4 in self._tags:
            return min(self._unpack("II", self._offset(4))[1], limit)
        if _GNU_HASH not in self._tags:
            return 0
        hashes = self._gnu_hash()
        last = max(hashes.buckets, default=0)
        if last < hashes.first:
            return min(hashes.first, limit)
        while last <= limit:
            last += 1
            if self._number(hashes.chain + 4 * (last - 1 - hashes.first)) & 1:
                return last
        raise ElfError("damaged: endless hash chain")

    def _number(self, offset: int) -> int:
        return int.from_bytes(self._in.at(offset, 4), "little" if self.little else "big")

    def _gnu_hash(self) -> "_Hashes":
        at = self._offset(_GNU_HASH)
        count, first, words, _shift = self._unpack("IIII", at)
        start = at + 16 + self.bits // 8 * words
        if start + 4 * count > self._in.size:
            raise ElfError(f"damaged: hash table of {count} buckets")
        return _Hashes(self._unpack(f"{count}I", start), first, start + 4 * count)

    def _rows(self, start: int, count: int) -> "Iterator[tuple[int, int, int, int]]":
        """Yield (name, info, section index, address) of `count` dynamic symbols from `start`."""
        if 6 not in self._tags or not count:
            return
        at = self._offset(6)
        if self.bits == 64:
            data = self._in.at(at + 24 * start, 24 * count)
            for name, info, _o, section, value, _s in iter_unpack(self._e + "IBBHQQ", data):
                yield name, info, section, value
        else:
            data = self._in.at(at + 16 * start, 16 * count)
            for name, value, _s, info, _o, section in iter_unpack(self._e + "IIIBBH", data):
                yield name, info, section, value

    def undefined(self, prefixes: "tuple[str, ...]" = ("",)) -> "set[str]":
        """Return the names with one of `prefixes` that other files must define (weak ones not)."""
        starts = tuple(p.encode() for p in prefixes)
        strings, found = self._strings, set()
        for name, info, section, _value in self._rows(0, self._symbol_count()):
            if section == 0 and name and info >> 4 != 2 and strings.startswith(starts, name):
                found.add(self._string(name))
        return found

    def exported(self, prefixes: "tuple[str, ...]" = ("",)) -> "set[str]":
        """Return the names with one of `prefixes` that the file defines for others."""
        starts = tuple(p.encode() for p in prefixes)
        strings, found = self._strings, set()
        for name, info, section, _value in self._rows(0, self._symbol_count()):
            if section and name and info >> 4 != 0 and strings.startswith(starts, name):
                found.add(self._string(name))
        return found

    def missing(self, names: "Iterable[str]") -> "list[str]":
        """Return those of `names` that the file does not export.

        A few are looked up as ld.so(8) does, 6 us each; reading all 3,000 symbols of an MPI library
        takes 1 ms, which is less for many.
        """
        wanted = list(names)
        if len(wanted) > 150:
            strings = self._strings
            have = {
                strings[name : strings.find(b"\0", name)]
                for name, info, section, _value in self._rows(0, self._symbol_count())
                if section and info >> 4
            }
            return [n for n in wanted if n.encode("utf-8", "surrogateescape") not in have]
        return [name for name in wanted if self._find(name) is None]

    def _find(self, name: str) -> "int | None":
        """Return the address of an exported symbol (dl-lookup.c without the Bloom filter)."""
        text = name.encode("utf-8", "surrogateescape") + b"\0"
        if _GNU_HASH not in self._tags:
            for at, _info, section, value in self._rows(0, self._symbol_count()):
                if section and self._strings.startswith(text, at):
                    return value
            return None
        wanted = _hash(text[:-1])
        hashes = self._hashes = self._hashes or self._gnu_hash()
        buckets, first, chain = hashes.buckets, hashes.first, hashes.chain
        index = buckets[wanted % len(buckets)] if buckets else 0
        if index < first:
            return None
        while index <= self._in.size // 16:
            number = self._number(chain + 4 * (index - first))
            if number | 1 == wanted | 1:
                at, _info, section, value = next(self._rows(index, 1), (0, 0, 0, 0))
                if section and self._strings.startswith(text, at):
                    return value
            if number & 1:
                return None
            index += 1
        raise ElfError("damaged: endless hash chain")

    def constant(self, name: str) -> str:
        """Return the text of an exported `const char name[]`, empty where there is none."""
        address = self._find(name)
        if address is None:
            return ""
        for start, offset, size in self._loads:
            if start <= address < start + size:
                return _text(
                    self._in.at(address - start + offset, min(256, start + size - address))
                )
        return ""


def _hash(name: bytes) -> int:
    value = 5381
    for byte in name:
        value = value * 33 + byte
    return value & 0xFFFFFFFF


def _text(data: bytes) -> str:
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
    return Reader(data).elf()


def read(path: str) -> Elf:
    """Return the description of the ELF file at `path`; raises ElfError, OSError."""
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return Reader(file).elf()
    finally:
        os.close(file)
