"""The dynamic symbols of an ELF file, and the comparison of symbol versions.

As in elf.py, section headers are never used, and the only error is ElfError.
"""

import sys
from _operator import mul
from _struct import Struct

from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries.elf import ElfError, ElfReader, form, text

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

_NATIVE = "<" if sys.byteorder == "little" else ">"
_HASH, _SYMTAB, _GNU_HASH = 4, 6, 0x6FFFFEF5
"""Tags of the dynamic section: DT_HASH, DT_SYMTAB, DT_GNU_HASH."""


_ROW = {64: "IBxHQ8x", 32: "II4xBxH"}
"""Layouts for struct of Elf64_Sym (name, info, section index, address) and Elf32_Sym, which has the
address second."""

_LONGEST = 64
_POWERS = [pow(33, n, 1 << 32) for n in range(_LONGEST, -1, -1)]


class _Hashes(Record):
    """DT_GNU_HASH: buckets, index of the first symbol in it, offset of its chains."""

    buckets: "Sequence[int]"
    first: int
    chain: int


class Symbols(ElfReader):
    """An ELF file of which symbols are read; `source` is as for ElfReader.

    Every method raises ElfError.
    """

    def __init__(self, source: "bytes | int") -> None:
        super().__init__(source)
        self._hashes: _Hashes | None = None
        self._table: tuple[bytes, int] | None = None

    def _symbols(self) -> tuple[bytes, int]:
        """Return the dynamic symbol table and its number of symbols, by the hash tables."""
        if self._table is None:
            count = self._count() if _SYMTAB in self._tags else 0
            size = form(self._e + _ROW[self.bits]).size
            data = self._in.at(self._offset(_SYMTAB), size * count) if count else b""
            self._table = data, count
        return self._table

    def _count(self) -> int:
        limit = self._in.size // 16
        if _HASH in self._tags:
            return min(self._unpack("II", self._offset(_HASH))[1], limit)
        if _GNU_HASH not in self._tags:
            return 0
        hashes = self._gnu_hash()
        last = max(hashes.buckets, default=0)
        if last < hashes.first:
            return min(hashes.first, limit)
        while last <= limit:
            last += 1
            if self._numbers(hashes.chain + 4 * (last - 1 - hashes.first), 1)[0] & 1:
                return last
        raise ElfError("damaged: endless hash chain")

    def _numbers(self, offset: int, count: int) -> "Sequence[int]":
        """Return `count` 32-bit numbers at `offset`."""
        data = self._in.at(offset, 4 * count)
        if self._e == _NATIVE:
            return memoryview(data).cast("I")
        return Struct(f"{self._e}{count}I").unpack(data)

    def _gnu_hash(self) -> "_Hashes":
        if self._hashes is None:
            at = self._offset(_GNU_HASH)
            count, first, words, _shift = self._unpack("IIII", at)
            start = at + 16 + self.bits // 8 * words
            if start + 4 * count > self._in.size:
                raise ElfError(f"damaged: hash table of {count} buckets")
            self._hashes = _Hashes(self._numbers(start, count), first, start + 4 * count)
        return self._hashes

    def _rows(self) -> "Iterator[tuple[int, int, int, int]]":
        """Yield (name, info, section index, address) of all dynamic symbols."""
        rows = form(self._e + _ROW[self.bits]).iter_unpack(self._symbols()[0])
        if self.bits == 64:
            yield from rows
        else:
            for name, value, info, section in rows:
                yield name, info, section, value

    def undefined(self, prefixes: "tuple[str, ...]" = ("",)) -> "set[str]":
        """Return the names with one of `prefixes` that other files must define; no weak symbols."""
        starts = tuple(p.encode() for p in prefixes)
        strings, found = self._strings, set()
        for name, info, section, _value in self._rows():
            if section == 0 and name and info >> 4 != 2 and strings.startswith(starts, name):
                found.add(self._string(name))
        return found

    def exported(self, prefixes: "tuple[str, ...]" = ("",)) -> "set[str]":
        """Return the names with one of `prefixes` that the file defines for others."""
        starts = tuple(p.encode() for p in prefixes)
        strings, found = self._strings, set()
        for name, info, section, _value in self._rows():
            if section and name and info >> 4 != 0 and strings.startswith(starts, name):
                found.add(self._string(name))
        return found

    def missing(self, names: "Iterable[str]") -> "list[str]":
        """Return those of `names` that the file does not export."""
        wanted = list(names)
        found = self._find([name.encode("utf-8", "surrogateescape") for name in wanted])
        return [name for name, address in zip(wanted, found, strict=True) if address is None]

    def _find(self, names: list[bytes]) -> "list[int | None]":
        """Return the address of each exported symbol, None for what is none.

        Looks names up in the hash table, like ld.so (glibc, dl-lookup.c), but without the Bloom
        filter: 2 us a name; to read all 3,000 symbols of an MPI library takes more than 1 ms.
        """
        if _GNU_HASH not in self._tags:
            known = {}
            for at, info, section, value in self._rows():
                if section and info >> 4:
                    known[self._strings[at : self._strings.find(b"\0", at)]] = value
            return [known.get(name) for name in names]
        hashes = self._gnu_hash()
        data, count = self._symbols()
        if not hashes.buckets or hashes.first > count:
            return [None] * len(names)
        buckets, first, size = hashes.buckets, hashes.first, len(hashes.buckets)
        chain = self._numbers(hashes.chain, count - first)
        row, starts = form(self._e + _ROW[self.bits]), self._strings.startswith
        place, section = (3, 2) if self.bits == 64 else (1, 3)
        out: list[int | None] = []
        for name in names:
            out.append(None)
            wanted, number = _hash(name), 0
            index = buckets[wanted % size]
            while first <= index and not number & 1:
                if index >= count:
                    raise ElfError("damaged: endless hash chain")
                number = chain[index - first]
                if number | 1 == wanted | 1:
                    found = row.unpack_from(data, index * row.size)
                    if found[section] and starts(name + b"\0", found[0]):
                        out[-1] = found[place]
                        break
                index += 1
        return out

    def constant(self, name: str) -> str:
        """Return the text of an exported `const char name[]`, empty where there is none."""
        (address,) = self._find([name.encode()])
        if address is None:
            return ""
        for start, offset, size in self._loads:
            if start <= address < start + size:
                return text(self._in.at(address - start + offset, min(256, start + size - address)))
        return ""


def _hash(name: bytes) -> int:
    """Return dl_new_hash, `h = h * 33 + byte` from 5381, as a sum of products."""
    if len(name) > _LONGEST:
        value = 5381
        for byte in name:
            value = value * 33 + byte & 0xFFFFFFFF
        return value
    begin = _LONGEST - len(name)
    total: int = 5381 * _POWERS[begin] + sum(map(mul, name, _POWERS[begin + 1 :]))
    return total & 0xFFFFFFFF


_NUMBERS: dict[str, tuple[str, tuple[int, ...]]] = {}
"""Kept results of `numbers`: fifty libraries need the same ten versions."""

_DEFINED: dict[tuple[str, ...], dict[str, tuple[int, ...]]] = {}
"""Kept: what a library defines, as series -> highest numbers; fifty others are compared with it."""


def numbers(version: str) -> tuple[str, tuple[int, ...]]:
    """Split a symbol version: "GLIBC_2.34" is ("GLIBC", (2, 34)); no numbers: (version, ())."""
    if version not in _NUMBERS:
        _NUMBERS[version] = _split(version)
    return _NUMBERS[version]


def _split(version: str) -> tuple[str, tuple[int, ...]]:
    head, _, tail = version.rpartition("_")
    words = tail.split(".")
    if head and all(w.isascii() and w.isdigit() for w in words):
        return head, tuple(map(int, words))
    return version, ()


def newest(versions: "Iterable[str]") -> list[str]:
    """Return the highest version of each series, sorted: GLIBC_2.34 of that and GLIBC_2.2.5."""
    best: dict[str, tuple[tuple[int, ...], str]] = {}
    for version in versions:
        series, value = numbers(version)
        if series not in best or value > best[series][0]:
            best[series] = (value, version)
    return sorted(text for _value, text in best.values())


def lacking(needed: "Iterable[str]", defined: "Iterable[str]") -> list[str]:
    """Return the symbol versions of `needed` that `defined` (or a later one of its series) lacks.

    A library that defines no symbol versions lacks none, as for ld.so.
    """
    key = tuple(defined)
    have = _DEFINED.get(key)
    if have is None:
        have = _DEFINED[key] = dict(map(numbers, newest(key)))
    if not have:
        return []
    out = []
    for version in needed:
        series, value = numbers(version)
        if series not in have or have[series] < value:
            out.append(version)
    return out
