"""Read AMD's offload bundles by their headers: which processors HIP code was made for.

The section `.hip_fatbin` is a sequence of bundles, each at a multiple of 4096 bytes:

    "__CLANG_OFFLOAD_BUNDLE__" (24), number of entries (8), then of each entry:
    offset in the bundle (8), size (8), length of its id (8), id "hipv4-amdgcn-amd-amdhsa--gfx90a"

or compressed, a header and then a bundle of that form:

    "CCOB", version (2), method (2): 0 zlib, 1 zstd
    version 1: size of the bundle (4), hash (8); how long the whole is, is said nowhere
    version 2: size of the whole (4), of the bundle (4), hash (8); version 3: both in 8 bytes

(clang's ClangOffloadBundler page; OffloadBundler.cpp.) An id ends with the processor, or the
processor and features: "gfx90a:sramecc+:xnack-".
"""

import zlib
from collections.abc import Iterator
from struct import Struct, error

from rootless_udi.forecast.gpucode_sections import Damaged
from rootless_udi.forecast.needs import FileContent
from rootless_udi.fuse import decompress
from rootless_udi.fuse.format import Corrupt

BUNDLE, COMPRESSED = b"__CLANG_OFFLOAD_BUNDLE__", b"CCOB"
_PAGE = 4096
_STEPS = 1 << 16
"""Most pages that are searched for the next bundle in one section."""
_ENTRIES, _ID = 4096, 256
_HEAD = 64 << 10
"""Bytes of a bundle that are read for its entries: 20 processors take 2 KiB."""
_COUNT, _ENTRY = Struct("<Q"), Struct("<QQQ")
_FORMS = {1: Struct("<HH4x8x"), 2: Struct("<HHI4x8x"), 3: Struct("<HHQ8x8x")}
"""By version: version, method, and (not in 1) the size of the whole."""
_ZLIB, _ZSTD = 0, 1
_MACHS = (
    (0x20, "600 601 700 701 702 703 704"),
    (
        0x28,
        "801 802 803 810 900 902 904 906 908 909 90c 1010 1011 1012 1030 1031 1032 1033 602 705",
    ),
    (0x3C, "805 1035 1034 90a 940 1100 1013 1150 1103 1036 1101 1102 1200"),
    (0x4A, "1151 941 942"),
    (0x4E, "1201 950"),
    (0x51, "9-generic 10-1-generic 10-3-generic 11-generic 1152"),
    (0x58, "1153 12-generic"),
    (0x5F, "9-4-generic"),
)
"""EF_AMDGPU_MACH, the low byte of a code object's e_flags: the numbers from the first on (LLVM's
User Guide for AMDGPU Backend, "ELF Code Object")."""
_MACH = {first + i: "gfx" + name for first, names in _MACHS for i, name in enumerate(names.split())}
_FEATURES = (("sramecc", 10), ("xnack", 8))
"""Where e_flags say it, two bits each, from version 4 of code objects on: 2 off, 3 on."""


def bundles(content: FileContent, at: int, size: int) -> Iterator[tuple[str, ...]]:
    """Yield the processors of each bundle of a section, or of a file that is a bundle.

    Raises Damaged, and needs.Unreadable.
    """
    place, end, steps = at, at + size, _STEPS
    while place < end and steps:
        head = content.read(place, min(_PAGE, end - place))
        if head.startswith(BUNDLE):
            found, length = _plain(head, content, place, end)
        elif head.startswith(COMPRESSED):
            found, length = _compressed(content, place, end)
        else:
            found, length = None, 0
        if found is not None:
            yield found
        steps -= 1
        place = at + -(-(place + max(length, 1) - at) // _PAGE) * _PAGE
    if place < end:
        raise Damaged("its bundles of GPU code have too many pages")


def _plain(head: bytes, content: FileContent, at: int, end: int) -> tuple[tuple[str, ...], int]:
    try:
        return _entries(head)
    except error:
        return _entries_of(content.read(at, min(_HEAD, end - at)))


def _entries_of(head: bytes) -> tuple[tuple[str, ...], int]:
    try:
        return _entries(head)
    except error:
        raise Damaged("a bundle of GPU code is cut off") from None


def _entries(head: bytes) -> tuple[tuple[str, ...], int]:
    """Return the processors of a bundle, and its length. Raises struct.error if `head` is short."""
    place = len(BUNDLE) + _COUNT.size
    count = _COUNT.unpack_from(head, len(BUNDLE))[0]
    if count > _ENTRIES:
        raise Damaged(f"a bundle of GPU code has {count} entries")
    found, length = set(), 0
    for _ in range(count):
        offset, size, letters = _ENTRY.unpack_from(head, place)
        if letters > _ID:
            raise Damaged("a bundle of GPU code has a name without end")
        place += _ENTRY.size + letters
        if place > len(head):
            raise error("short")
        name = head[place - letters : place].decode("ascii", "replace")
        length = max(length, offset + size)
        if size and (code := _processor(name)):
            found.add(code)
    return tuple(sorted(found)), max(length, place)


def _processor(name: str) -> str:
    """Return the processor of an entry's id, with features; "" for code of the host."""
    kind, _, rest = name.partition("-")
    if kind == "host":
        return ""
    if rest.startswith("amdgcn-amd-amdhsa-"):
        # Old compilers left out the environment, and wrote one dash.
        return rest[len("amdgcn-amd-amdhsa-") :].lstrip("-") or "unknown"
    return "spirv" if rest.startswith("spirv") else "unknown"


def _compressed(content: FileContent, at: int, end: int) -> tuple[tuple[str, ...], int]:
    """As `_entries` of the bundle that is compressed; the length is 0 where nothing says it."""
    begin = content.read(at, 32)
    try:
        version = int.from_bytes(begin[4:6], "little")
        form = _FORMS.get(version)
        if form is None:
            raise Damaged(f"a compressed bundle of GPU code has the unknown version {version}")
        _version, method, *sizes = form.unpack_from(begin, len(COMPRESSED))
    except error:
        raise Damaged("a compressed bundle of GPU code is cut off") from None
    length = sizes[0] if sizes else 0
    begins = at + len(COMPRESSED) + form.size
    data = content.read(begins, min(_HEAD, end - begins))
    return _entries_of(_start(method, data))[0], length


def _start(method: int, data: bytes) -> bytes:
    """Return the first bytes of what was compressed to the file's bytes that begin with `data`."""
    try:
        if method == _ZLIB:
            return zlib.decompressobj().decompress(data, _HEAD)
        if method == _ZSTD:
            if (start := decompress.zstd_start(data, _HEAD)) is not None:
                return start
            raise Damaged("this machine has no zstd, which a bundle of GPU code is compressed with")
    except (zlib.error, Corrupt):
        raise Damaged("a compressed bundle of GPU code is damaged") from None
    raise Damaged(f"a compressed bundle of GPU code has the unknown compression {method}")


def of_object(flags: int, abi: int) -> str:
    """Return the processor of a code object, by its e_flags and EI_ABIVERSION."""
    name = _MACH.get(flags & 0xFF, "unknown")
    if abi < 2 or name == "unknown":  # older than version 4 of code objects
        return name
    for feature, shift in _FEATURES:
        state = flags >> shift & 3
        name += f":{feature}{'-+'[state - 2]}" if state >= 2 else ""
    return name
