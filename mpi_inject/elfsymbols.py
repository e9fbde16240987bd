"""The dynamic symbols of an ELF file: what it exports, what it needs, the text of a constant.

As in elf.py, section headers are never used, and the one error is ElfError.
"""

from struct import iter_unpack

from rootless_udi.mpi_inject.elf import ElfError, Reader, text
from rootless_udi.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GNU_HASH = 0x6FFFFEF5


class _Hashes(Record):
    """DT_GNU_HASH: its buckets, the first symbol that it knows, the offset of its chains."""

    buckets: tuple[int, ...]
    first: int
    chain: int


class Symbols(Reader):
    """An ELF file whose symbols are asked for; `source` is as for Reader.

    Every method raises ElfError.
    """

    def __init__(self, source: "bytes | int") -> None:
        super().__init__(source)
        self._hashes: _Hashes | None = None

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
        wanted_text = name.encode("utf-8", "surrogateescape") + b"\0"
        if _GNU_HASH not in self._tags:
            for at, _info, section, value in self._rows(0, self._symbol_count()):
                if section and self._strings.startswith(wanted_text, at):
                    return value
            return None
        wanted = _hash(wanted_text[:-1])
        hashes = self._hashes = self._hashes or self._gnu_hash()
        buckets, first, chain = hashes.buckets, hashes.first, hashes.chain
        index = buckets[wanted % len(buckets)] if buckets else 0
        if index < first:
            return None
        while index <= self._in.size // 16:
            number = self._number(chain + 4 * (index - first))
            if number | 1 == wanted | 1:
                at, _info, section, value = next(self._rows(index, 1), (0, 0, 0, 0))
                if section and self._strings.startswith(wanted_text, at):
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
                return text(self._in.at(address - start + offset, min(256, start + size - address)))
        return ""


def _hash(name: bytes) -> int:
    value = 5381
    for byte in name:
        value = value * 33 + byte
    return value & 0xFFFFFFFF
