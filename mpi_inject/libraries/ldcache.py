"""Read ld.so.cache, the table that ldconfig(8) writes: glibc's sysdeps/generic/dl-cache.h.

Reads the old format ("ld.so-1.7.0", perhaps followed by the new one) and the new one
("glibc-ld.so.cache1.1") in both byte orders, with the extension for glibc-hwcaps. `ldconfig -p` is
not used: this also reads the cache of an image for another architecture.
"""

import sys
from _struct import Struct, iter_unpack

from rootless_udi.base.records import Record

PATH = "/etc/ld.so.cache"

_NATIVE = "<" if sys.byteorder == "little" else ">"
_OLD = b"ld.so-1.7.0"
_NEW = b"glibc-ld.so.cache1.1"
_OLD_HEAD, _OLD_ROW = 16, 12
_HEAD, _ROW = 48, 24
"""Bytes of a header and of an entry: struct cache_file and file_entry of the old format, struct
cache_file_new and file_entry_new of the new one."""
_COUNT, _FLAGS, _EXTENSION_OFFSET = 20, 28, 32
"""Where nlibs, flags and extension_offset are in the new header."""
_ORDERS = {2: "<", 3: ">"}
"""The last two bits of flags (cache_file_new_flags_endian); 0 where ldconfig is older."""
_EXTENSION = 0xEAA42174
"""The magic number of the extensions."""
_HWCAPS = 1
"""The tag of the extension for glibc-hwcaps."""
_IS_EXTENSION = 1 << 62
"""In an entry's hwcap: its lower half is an index into that extension
(DL_CACHE_HWCAP_EXTENSION)."""
_MACHINES = {
    0x0000: "i386",
    0x0300: "x86_64",
    0x0400: "s390x",
    0x0500: "ppc64",
    0x0800: "x32",
    0x0900: "arm",
    0x0A00: "aarch64",
    0x0B00: "arm",
    0x0F00: "riscv64",
    0x1000: "riscv64",
    0x1200: "loongarch64",
}
"""An entry's flags but for the lowest byte -> the machine (FLAG_X8664_LIB64 and others,
ldconfig.h)."""
_LIBC6 = 3
"""The lowest byte of flags: a library for glibc 2 (FLAG_ELF_LIBC6)."""
_LONGEST = 4096
"""Most bytes of a name or path."""


TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


class LdCacheError(ValueError):
    """Not an ld.so.cache, or a damaged one. The message is made to follow "PATH: "."""


class Entry(Record):
    """One line of `ldconfig -p`.

    `machine` as in elf.MACHINES, "" for libraries older than glibc 2 or of an unknown kind;
    `hwcaps` names the glibc-hwcaps subdirectory ("x86-64-v3") or is "legacy" for an older one
    ("tls", "haswell"), "" for the baseline that every processor can use.
    """

    name: str
    path: str
    machine: str = ""
    hwcaps: str = ""


def parse(data: bytes, prefixes: tuple[str, ...] = ("",)) -> list[Entry]:
    """Return the entries whose name starts with one of `prefixes`, in the file's order.

    Raises LdCacheError for anything that is no ld.so.cache.
    """
    starts = tuple(p.encode() for p in prefixes)
    if data.startswith(_NEW):
        return _new(data, 0, starts)
    if not data.startswith(_OLD):
        raise LdCacheError("not an ld.so.cache" if data else "empty file")
    for order in "<>":
        header = Struct(order + "I")
        if len(data) < _OLD_HEAD:
            break
        (count,) = header.unpack_from(data, 12)
        end = _OLD_HEAD + _OLD_ROW * count
        if end > len(data):
            continue
        for align in (8, 4):
            begin = -(-end // align) * align
            if data.startswith(_NEW, begin):
                return _new(data, begin, starts)
        return _old(data, order, count, starts)
    raise LdCacheError("truncated")


class Names:
    """A cache in which single names are looked up: `find` returns what `parse` has of a name.

    A launch looks up some forty names of thousands, and only their entries are read: that takes
    0.5 ms for a thousand entries, where `parse` takes 4 ms.
    """

    def __init__(self, data: bytes) -> None:
        """Raise LdCacheError for what is no ld.so.cache."""
        self._data = data
        self._rows: dict[bytes, int] = {}
        self._more: dict[bytes, list[int]] = {}
        self._hwcaps: list[str] = []
        self._parsed: list[Entry] | None = None
        if not data.startswith(_NEW) or len(data) < _HEAD or _ORDERS.get(data[_FLAGS] & 3) == ">":
            self._parsed = parse(data)
            return
        (count,) = Struct("<I").unpack_from(data, _COUNT)
        end = _HEAD + _ROW * count
        if end > len(data):
            raise LdCacheError("truncated")
        (extension,) = Struct("<I").unpack_from(data, _EXTENSION_OFFSET)
        self._hwcaps = _hwcaps(data, 0, extension, "<")
        find, table = data.find, data[_HEAD:end]
        names = [data[key : find(b"\0", key, key + _LONGEST)] for key in _keys(table, "<")]
        self._rows = dict(zip(names, range(0, len(table), _ROW), strict=True))
        if len(self._rows) < count:
            for at, name in enumerate(names):
                if self._rows[name] != _ROW * at:
                    self._more.setdefault(name, []).append(_ROW * at)

    def find(self, name: str) -> list[Entry]:
        """Return the entries of one name, in the file's order; raises LdCacheError."""
        if self._parsed is not None:
            return [e for e in self._parsed if e.name == name]
        key = name.encode("utf-8", "surrogateescape")
        if key not in self._rows:
            return []
        places = (*self._more.get(key, ()), self._rows[key])
        rows = b"".join(self._data[_HEAD + at : _HEAD + _ROW + at] for at in places)
        return _entries(self._data, 0, "<", rows, (b"",), self._hwcaps)

    def names(self, start: str) -> list[str]:
        """Return the names that begin with `start`, sorted, each once."""
        if self._parsed is not None:
            return sorted({e.name for e in self._parsed if e.name.startswith(start)})
        begin = start.encode("utf-8", "surrogateescape")
        return sorted(
            n.decode("utf-8", "surrogateescape") for n in self._rows if n.startswith(begin)
        )


def _old(data: bytes, order: str, count: int, starts: tuple[bytes, ...]) -> list[Entry]:
    strings = _OLD_HEAD + _OLD_ROW * count
    found = []
    for flags, key, value in iter_unpack(order + "iII", data[_OLD_HEAD:strings]):
        if data.startswith(starts, strings + key):
            name, path = _string(data, strings + key), _string(data, strings + value)
            found.append(Entry(name, path, _machine(flags)))
    return found


def _new(data: bytes, base: int, starts: tuple[bytes, ...]) -> list[Entry]:
    """Read the format of glibc 2.2 and later, in which offsets count from its magic."""
    if len(data) < base + _HEAD:
        raise LdCacheError("truncated")
    said = data[base + _FLAGS] & 3
    for order in _ORDERS.get(said, "<>"):
        count, _length = Struct(order + "II").unpack_from(data, base + _COUNT)
        end = base + _HEAD + _ROW * count
        if end <= len(data):
            break
    else:
        raise LdCacheError("truncated")
    (extension,) = Struct(order + "I").unpack_from(data, base + _EXTENSION_OFFSET)
    names = _hwcaps(data, base, extension, order)
    rows = data[base + _HEAD : end]
    if 0 < len(starts) < 9 and all(starts):
        rows = _rows_of(data, base, order, rows, starts)
    return _entries(data, base, order, rows, starts, names)


def _rows_of(data: bytes, base: int, order: str, rows: bytes, starts: tuple[bytes, ...]) -> bytes:
    """Return those of `rows` whose names begin with one of `starts`.

    It searches the table of strings for the texts, and then for rows that point there. For
    thousands of rows that takes a third of the time of reading each row.
    """
    places = set()
    for start in starts:
        place = data.find(start, base)
        while place >= 0:
            places.add(place - base)
            place = data.find(start, place + 1)
    found = [n for n, key in enumerate(_keys(rows, order)) if key in places]
    return b"".join(rows[_ROW * n : _ROW * n + _ROW] for n in found)


def _keys(rows: bytes, order: str) -> "Sequence[int]":
    """Return the offsets of the rows' names."""
    if order == _NATIVE:
        return memoryview(rows).cast("I")[1::6]
    return [key for (key,) in iter_unpack(order + "4xI16x", rows)]


def _entries(
    data: bytes, base: int, order: str, rows: bytes, starts: tuple[bytes, ...], names: list[str]
) -> list[Entry]:
    """Read rows; `names` are the glibc-hwcaps subdirectories."""
    found = []
    for flags, key, value, _os, hwcap in iter_unpack(order + "iIIIQ", rows):
        if not data.startswith(starts, base + key):
            continue
        kind = ""
        if hwcap & _IS_EXTENSION:
            index = hwcap & 0xFFFFFFFF
            if index >= len(names):
                raise LdCacheError(f"damaged: glibc-hwcaps {index} of {len(names)}")
            kind = names[index]
        elif hwcap:
            kind = "legacy"
        name, path = _string(data, base + key), _string(data, base + value)
        found.append(Entry(name, path, _machine(flags), kind))
    return found


def _hwcaps(data: bytes, base: int, at: int, order: str) -> list[str]:
    """Return the names of the glibc-hwcaps subdirectories (cache_extension_tag_glibc_hwcaps)."""
    word, section = Struct(order + "II"), Struct(order + "IIII")
    at += base
    if at == base or at + word.size > len(data):
        return []
    magic, count = word.unpack_from(data, at)
    if magic != _EXTENSION:
        return []
    for index in range(min(count, 64)):
        where = at + word.size + index * section.size
        if where + section.size > len(data):
            raise LdCacheError("truncated")
        tag, _flags, offset, size = section.unpack_from(data, where)
        if tag == _HWCAPS:
            begin = base + offset
            if size % 4 or begin + size > len(data):
                raise LdCacheError("damaged: glibc-hwcaps outside of the file")
            offsets = iter_unpack(order + "I", data[begin : begin + size])
            return [_string(data, base + o) for (o,) in offsets]
    return []


def _machine(flags: int) -> str:
    return _MACHINES.get(flags & 0xFF00, "") if flags & 0xFF == _LIBC6 else ""


def _string(data: bytes, offset: int) -> str:
    end = data.find(b"\0", offset, offset + _LONGEST)
    if end < 0:
        raise LdCacheError(f"damaged: no string at {offset}")
    return data[offset:end].decode("utf-8", "surrogateescape")
