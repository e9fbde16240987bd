"""Write an ELF library without code that says what ld.so(8) and our readers want to know of one.

The planner of --mpi reads files. For a machine that is elsewhere it gets these, made of a capture:
the same name, needed libraries, search paths, symbol versions and exported symbols.
"""

from collections.abc import Iterable, Mapping
from struct import pack

from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries.elf import MACHINES

_NUMBERS = {name: number for number, name in MACHINES.items()}
_HEADERS = 64 + 2 * 56
"""Bytes of the ELF header and two program headers."""


class WrittenLibrary(Record):
    """What the file says. `needs` maps a file to symbol versions, `texts` a name to the string
    that an exported `const char name[]` holds."""

    machine: str
    soname: str = ""
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    needs: Mapping[str, Iterable[str]] = {}
    defines: tuple[str, ...] = ()
    exports: tuple[str, ...] = ()
    texts: Mapping[str, str] = {}


class _Strings:
    def __init__(self) -> None:
        self.data = bytearray(b"\0")
        self._known: dict[str, int] = {}

    def at(self, text: str) -> int:
        if text not in self._known:
            self._known[text] = len(self.data)
            self.data += text.encode("utf-8", "surrogateescape") + b"\0"
        return self._known[text]


def possible(machine: str) -> bool:
    """Tell whether `write` can make a file for this machine: of 64 bits and little-endian."""
    return machine in _NUMBERS and machine not in ("i386", "arm", "mips", "ppc", "s390x")


def write(one: WrittenLibrary) -> bytes:
    """Return the file. Addresses are offsets in it: one segment holds all."""
    strings = _Strings()
    tags: list[tuple[int, int]] = [(1, strings.at(name)) for name in one.needed]
    tags += [(14, strings.at(one.soname))] if one.soname else []
    tags += [(15, strings.at(":".join(one.rpath)))] if one.rpath else []
    tags += [(29, strings.at(":".join(one.runpath)))] if one.runpath else []
    needs, defines = _needs(one.needs, strings), _defines(one, strings)
    names = [(name, strings.at(name)) for name in one.exports]
    texts = [(strings.at(name), text.encode() + b"\0") for name, text in one.texts.items()]
    parts: dict[int, bytes] = {5: bytes(strings.data)}
    body, places = bytearray(), {}

    def put(data: bytes) -> int:
        body.extend(bytes(-len(body) % 8))
        at = _HEADERS + len(body)
        body.extend(data)
        return at

    symbols = bytearray(24)
    for _name, at in names:
        symbols += pack("<IBBHQQ", at, 0x12, 0, 1, _HEADERS, 1)
    for at, data in texts:
        symbols += pack("<IBBHQQ", at, 0x11, 0, 1, put(data), len(data))
    count = len(symbols) // 24
    parts[6] = bytes(symbols)
    # DT_HASH with one bucket: a chain through all symbols.
    chain = [*range(2, count), 0] if count > 1 else []
    parts[4] = pack(f"<II{1 + count}I", 1, count, 1 if count > 1 else 0, 0, *chain)
    if needs:
        parts[0x6FFFFFFE] = needs
    if defines:
        parts[0x6FFFFFFC] = defines
    for tag, data in parts.items():
        places[tag] = put(data)
    tags += [*places.items(), (10, len(strings.data)), (11, 24)]
    tags += [(0x6FFFFFFF, len(one.needs))] if needs else []
    tags += [(0x6FFFFFFD, len(one.defines) + 1)] if defines else []
    dynamic = b"".join(pack("<qQ", *row) for row in (*tags, (0, 0)))
    at = put(dynamic)
    size = _HEADERS + len(body)
    head = b"\x7fELF\x02\x01\x01" + bytes(9)
    head += pack("<HHIQQQIHHHHHH", 3, _NUMBERS[one.machine], 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    load = pack("<IIQQQQQQ", 1, 4, 0, 0, 0, size, size, 4096)
    return head + load + pack("<IIQQQQQQ", 2, 4, at, at, at, len(dynamic), len(dynamic), 8) + body


def _needs(wanted: Mapping[str, Iterable[str]], strings: _Strings) -> bytes:
    """Return Elf64_Verneed and Elf64_Vernaux (LSB 10.7.3)."""
    out, rows = bytearray(), list(wanted.items())
    for number, (file, versions) in enumerate(rows):
        names = list(versions)
        last = number == len(rows) - 1
        size = 16 + 16 * len(names)
        out += pack("<HHIII", 1, len(names), strings.at(file), 16, 0 if last else size)
        for at, name in enumerate(names):
            follows = 0 if at == len(names) - 1 else 16
            out += pack("<IHHII", 0, 0, 2 + at, strings.at(name), follows)
    return bytes(out)


def _defines(one: WrittenLibrary, strings: _Strings) -> bytes:
    """Return Elf64_Verdef with the base definition first, which is the file's own name."""
    if not one.defines:
        return b""
    rows = [(1, one.soname or "lib"), *((0, name) for name in one.defines)]
    out = bytearray()
    for number, (flags, name) in enumerate(rows):
        follows = 0 if number == len(rows) - 1 else 28
        out += pack("<HHHHIII", 1, flags, number + 1, 1, 0, 20, follows)
        out += pack("<II", strings.at(name), 0)
    return bytes(out)
