"""Facts about an image's C library, noted by the pull: a launch can mount the host's over it.

`note` returns a JSON object, the "glibc" of the image's ELF facts:

    files       [name, real path, symbol versions] of every file of glibc that ld.so(8) may load:
                in the folders that it searches and in their glibc-hwcaps; without GLIBC_PRIVATE
    others      [program, its loader]: those whose PT_INTERP is not the machine's usual one
    broken      [path, what is wrong]: names of glibc's files that lead to no library
    static      static programs that use NSS or iconv: they load modules of glibc at run time
    stack       libraries that ask for an executable stack, by PT_GNU_STACK or for want of one
    gconv       the folder of iconv's modules, "" without any
    ldd         where ldd(1) is, a script of glibc's, "" without one

Not for the launch path.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rootless_udi.mpi_inject.libraries import elf
from rootless_udi.mpi_inject.libraries.glibc_names import LDD, LOADERS, MOST, names

_SHOWN = 8
_OWN = ("/ldconfig", "/sln")
"""Static programs of glibc itself: NSS and iconv are in them, and they never call those."""
_LEGACY = frozenset(
    ("avx512_1", "haswell", "i586", "i686", "nosegneg", "tls", "x86_64", "xeon_phi")
)
"""Folders for single kinds of processors, perhaps within each other, that came before glibc-hwcaps;
glibc 2.36 still looks there."""
_SIZES = {64: "IIQQ8xQ16x", 32: "III4xI4xI4x"}
"""A row of the program headers (elf(5), Elf64_Phdr, Elf32_Phdr), by bits."""
_FLAGS_AT = {64: 1, 32: 4}
"""Which field of it p_flags is."""
_STACK, _EXECUTE = 0x6474E551, 1
"""PT_GNU_STACK and PF_X."""
_BY_DEFAULT = ("x86_64", "i386")
"""Machines on which a file without PT_GNU_STACK gets an executable stack (DEFAULT_STACK_PERMS)."""


class Marks:
    """The facts for which a file's whole content is needed; kept as a few paths."""

    def __init__(self) -> None:
        self._static: list[str] = []
        self._stack: list[str] = []

    def look(self, path: str, found: elf.Elf, data: bytes) -> None:
        """Take an ELF file and its whole content."""
        alone = not found.interp and not found.needed and not found.soname
        if alone and len(self._static) < MOST and not path.endswith(_OWN):
            nss = data.find(b"nsswitch.conf") >= 0 and data.find(b"libnss_") >= 0
            if nss or data.find(b"\0iconv_open\0") >= 0:
                self._static.append(path)
        shared = found.kind == "shared" and not found.interp and len(self._stack) < MOST
        if shared and executable_stack(data, found):
            self._stack.append(path)

    def result(self) -> dict[str, list[str]]:
        """Return `static` and `stack` of the facts."""
        return {"static": sorted(self._static)[:_SHOWN], "stack": sorted(self._stack)[:_SHOWN]}


def executable_stack(data: bytes, found: elf.Elf) -> bool:
    """Tell whether ld.so must make the stack executable for a library."""
    order = "<" if found.little else ">"
    try:
        head = elf.form(order + ("32xQ14xHH" if found.bits == 64 else "28xI10xHH"))
        offset, size, count = head.unpack_from(data)
        row = elf.form(order + _SIZES[found.bits])
        for at in range(offset, offset + size * count, size or 1):
            fields = row.unpack_from(data, at)
            if fields[0] == _STACK:
                return bool(fields[_FLAGS_AT[found.bits]] & _EXECUTE)
    except struct.error:
        return False
    return found.machine in _BY_DEFAULT


def note(
    files: "Mapping[str, elf.Elf]",
    links: "Iterable[str]",
    unread: "Iterable[str]",
    scripts: "Iterable[str]",
    real: "Callable[[str], str]",
    search: "Iterable[str]",
    kind: tuple[str, int],
) -> dict[str, Any]:
    """Return the facts that the module's docstring lists, but for those of `Marks`.

    `files` are the image's ELF files by path, `links` its symbolic links, `unread` the paths of
    damaged ELF files, `scripts` those of scripts in folders of programs. `real` resolves a path (""
    for a loop). `search` are ld.so's folders, `kind` the machine and bits of most files.
    """
    usual = LOADERS.get(kind[0], "")
    family, folders, damaged = names(kind[0]), set(search), set(unread)
    rows: dict[str, list[Any]] = {}
    broken: list[list[str]] = []
    for path in sorted({*files, *links, *damaged, *([usual] if usual else ())}):
        folder, _, name = path.rpartition("/")
        if name not in family or (path != usual and not _searched(real(folder), folders)):
            continue
        target = real(path)
        found = files.get(target)
        if found is None or not target:
            broken.append([path, _why(target, damaged)])
        elif (found.machine, found.bits) == kind and len(rows) <= MOST:
            versions = [v for v in found.defines if v != "GLIBC_PRIVATE"]
            rows[target] = [name, target, versions]
    if len(rows) > MOST:
        broken.append([next(iter(rows)), f"is one of more than {MOST} copies of glibc's files"])
    loader = real(usual)
    others = [
        [path, found.interp]
        for path, found in sorted(files.items())
        if found.interp and (found.machine, found.bits) == kind and real(found.interp) != loader
    ]
    libc = next((path for path, row in rows.items() if row[0] == "libc.so.6"), "")
    # If /lib is no link to /usr/lib, libc is in /lib and the modules are in /usr/lib.
    places = (f"{usr}{libc.rpartition('/')[0]}/gconv/" for usr in ("", "/usr"))
    gconv = next((f for f in places if any(path.startswith(f) for path in files)), "")
    return {
        "files": [rows[path] for path in sorted(rows)][:MOST],
        "others": others[: MOST + 1],
        "broken": broken[:_SHOWN],
        "gconv": gconv.rstrip("/"),
        "ldd": next((path for path in map(real, LDD) if path in scripts), ""),
    }


def _searched(folder: str, search: "set[str]") -> bool:
    """Tell whether ld.so searches a folder by default, at least on some processor."""
    above, _, last = folder.rpartition("/")
    while last in _LEGACY:
        folder = above
        above, _, last = folder.rpartition("/")
    hwcaps = above.removesuffix("/glibc-hwcaps")
    return folder in search or (bool(last) and hwcaps != above and hwcaps in search)


def _why(target: str, damaged: "set[str]") -> str:
    if not target:
        return "is a link in a circle"
    if target in damaged:
        return "is damaged"
    return f"leads to {target}, which is no library"
