"""Read NVIDIA's fat binaries by their headers alone: which architectures they have code for.

A section `.nv_fatbin` (`__nv_relfatbin` for code that is linked on the device) is a sequence of
containers, each of a module. A container is

    magic 0xBA55ED50 (4), version 1 (2), size of this header 16 (2), size of the rest (8)

and behind it entries, each the code of that module for one architecture. An entry's header is

    0  kind (2)              1 PTX, 2 cubin (ELF), 8 intermediate code for link time (LTO)
    4  size of the header (4)
    8  size of the data behind it (8)
    24 minor, 26 major (2, 2) version of the PTX language, for PTX
    28 architecture (4)      80 is sm_80, or compute_80 for PTX
    40 flags (8)             0x2000 LZ4, 0x8000 zstd; 0x100000 for this architecture alone (sm_90a),
                             0x200000 for its family (sm_100f)

NVIDIA publishes the names and the outer structure (fatbinary_section.h of the toolkit); the entries
are as in public readers (cuda-fatbin-decompression, GPU Ocelot). All was compared with what the
compiler of CUDA 13.0 was asked for, for 75, 80, 87, 88, 90a, 100, 100a, 100f, 103a, 110, 120f and
121, both compressions, and with libraries that CUDA 11.8 to 12.9 made. PTX of version X.Y says so
in its text too (`.version`), and a cubin its architecture in its ELF header.
"""

from collections.abc import Iterator
from struct import Struct, error

from rootless_udi.forecast.gpucode_sections import Damaged
from rootless_udi.forecast.needs import FileContent

MAGIC = b"\x50\xed\x55\xba"
_CONTAINER, _ENTRY = Struct("<4xHHQ"), Struct("<HHIQ8xHHI8xQ")
_PTX, _CUBIN, _LTO = 1, 2, 8
_SPECIFIC, _FAMILY = 0x100000, 0x200000
ENTRIES = 1 << 20
"""Most entries of a file; libcublasLt of CUDA 12.9 has 5,700."""
_GAP = 4096
"""Most bytes of padding between two containers."""
_WINDOW = 512
"""Bytes that are read at once where headers are expected."""


class Walk:
    """One section, read container by container. `entries` counts down over all of a file."""

    def __init__(self, content: FileContent, at: int, size: int, entries: int = ENTRIES) -> None:
        self._content = content
        self._at, self._end = at, at + size
        self.entries = entries
        self._held, self._from = b"", 0

    def _bytes(self, at: int, size: int) -> bytes:
        begin = at - self._from
        if begin < 0 or begin + size > len(self._held):
            self._held, self._from, begin = self._content.read(at, _WINDOW), at, 0
        return self._held[begin : begin + size]

    def containers(self) -> Iterator[tuple[str, ...]]:
        """Yield the codes of each container: "sm_80", "sm_90a", "compute_90@9.0", "lto_80".

        Raises Damaged, and needs.Unreadable.
        """
        at = self._at
        while (at := self._next(at)) < self._end:
            try:
                _version, header, size = _CONTAINER.unpack(self._bytes(at, _CONTAINER.size))
            except error:
                raise Damaged("its fat binary is cut off") from None
            if header < _CONTAINER.size or at + header + size > self._end:
                raise Damaged("a container of its fat binary is larger than the section")
            yield self._codes(at + header, at + header + size)
            at += header + size

    def _next(self, at: int) -> int:
        """Return where the next container begins, at or after `at`; the section's end for none."""
        at, most = -(-at // 8) * 8, at + _GAP
        while at + _CONTAINER.size <= self._end:
            word = self._bytes(at, 8)
            if word[:4] == MAGIC:
                return at
            if at > most or word.strip(b"\0"):
                raise Damaged("its fat binary has something unknown between the containers")
            at += 8
        return self._end

    def _codes(self, at: int, end: int) -> tuple[str, ...]:
        found = set()
        while at + _ENTRY.size <= end:
            self.entries -= 1
            if self.entries < 0:
                raise Damaged("its fat binary has too many entries")
            try:
                kind, _, header, size, minor, major, number, flags = _ENTRY.unpack(
                    self._bytes(at, _ENTRY.size)
                )
            except error:
                raise Damaged("its fat binary is cut off") from None
            if header < _ENTRY.size or at + header + size > end:
                raise Damaged("an entry of its fat binary is larger than the container")
            found.add(_code(kind, number, flags, f"{major}.{minor}"))
            at += header + size
        return tuple(sorted(found))


def _code(kind: int, number: int, flags: int, version: str) -> str:
    """Return the compiler's name for an entry's architecture; of PTX with the language's version.

    "kind N" for what is neither cubin nor PTX nor LTO.
    """
    if number > 9999:
        return "unknown"
    suffix = "a" if flags & _SPECIFIC else "f" if flags & _FAMILY else ""
    if kind == _CUBIN:
        return f"sm_{number}{suffix}"
    if kind == _PTX:
        return f"compute_{number}{suffix}@{version}"
    return f"lto_{number}{suffix}" if kind == _LTO else "unknown"


def of_cubin(flags: int, abi: int) -> str:
    """Return the architecture of a cubin by its e_flags and EI_ABIVERSION: "cubin_90".

    It has 8 bits, which lie higher from version 8 of the ABI on (CUDA 13). Whether it is sm_90 or
    sm_90a is not said there.
    """
    return f"cubin_{flags >> 8 & 0xFF}" if abi >= 8 else f"cubin_{flags & 0xFF}"
