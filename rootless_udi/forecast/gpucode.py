"""Gather which GPUs an image has code for: of each program and library, by headers alone.

What is found of a file is a table "sm_80 sm_90a compute_90@9.0" -> number: in so many of the file's
parts (a container of NVIDIA's, a bundle of AMD's: what one source file became) there is code for
these architectures. Files that are nothing but code for a GPU (.cubin, .hsaco, .co) are counted per
folder, since libraries such as rocBLAS keep thousands of them.
"""

from collections.abc import Sequence
from struct import error
from typing import Any

from rootless_udi.forecast import gpucode_amd, gpucode_nvidia, gpucode_sections
from rootless_udi.forecast.needs import FileContent, ImageEntry

NVIDIA, AMD = "nvidia", "amd"
_SECTIONS = {
    b".nv_fatbin": NVIDIA,
    b"__nv_relfatbin": NVIDIA,
    b".hip_fatbin": AMD,
}
_WANTED = frozenset((*_SECTIONS, gpucode_sections.DYNAMIC, gpucode_sections.STRINGS))
_LOOSE = (".cubin", ".fatbin", ".hsaco", ".hipfb", ".co")
_SMALLEST = 128
"""Bytes: no header of an ELF file, of a container or a bundle with code is shorter."""
_ROOM = 60_000
"""Most characters of what is kept; PyTorch with all of CUDA's libraries takes 8,000."""
_DAMAGED = 20

_Parts = dict[str, dict[str, int]]
"""Vendor -> architectures of a part -> number of such parts."""


class GpuCode:
    """A `needs.Gatherer`."""

    NAME, VERSION = "gpucode", 1

    def __init__(self) -> None:
        self._files: list[dict[str, Any]] = []
        self._folders: dict[str, dict[str, Any]] = {}
        self._damaged: list[list[str]] = []
        self._room = _ROOM
        self._more = 0

    def wants(self, entry: ImageEntry) -> bool:
        """Want programs, libraries, and what by its name is code for a GPU."""
        if entry.kind != "file" or entry.size < _SMALLEST:
            return False
        name = entry.path.rpartition("/")[2]
        return bool(entry.mode & 0o111) or ".so" in name or name.endswith(_LOOSE)

    def file(self, entry: ImageEntry, content: FileContent) -> None:
        """Read a file's headers. Raises needs.Unreadable."""
        head, parts = content.head, _Counted()
        try:
            elf = gpucode_sections.read(head)
            if elf is None:
                self._loose(entry, content, head, parts)
            elif elf.machine == gpucode_sections.CUDA:
                parts.add(NVIDIA, (gpucode_nvidia.of_cubin(elf.flags, elf.abi),))
                self._keep_loose(entry, parts)
            elif elf.machine == gpucode_sections.AMDGPU:
                parts.add(AMD, (gpucode_amd.of_object(elf.flags, elf.abi),))
                self._keep_loose(entry, parts)
            else:
                needed = _sections(elf, content, parts)
                self._keep(entry, parts, needed)
        except (gpucode_sections.Damaged, error) as why:
            # What was read before is true all the same; that there is more is said.
            self._keep(entry, parts)
            self._skip(entry.path, str(why))

    def _loose(
        self, entry: ImageEntry, content: FileContent, head: bytes, parts: "_Counted"
    ) -> None:
        if head.startswith(gpucode_nvidia.MAGIC):
            for codes in gpucode_nvidia.Walk(content, 0, entry.size).containers():
                parts.add(NVIDIA, codes)
        elif head.startswith((gpucode_amd.BUNDLE, gpucode_amd.COMPRESSED)):
            for codes in gpucode_amd.bundles(content, 0, entry.size):
                parts.add(AMD, codes)
        self._keep_loose(entry, parts)

    def _takes(self, path: str, parts: "_Counted", needed: Sequence[str] = ()) -> bool:
        """Count the memory for a file's facts; tell whether there is room for them."""
        texts = [codes for one in parts.found.values() for codes in one]
        size = 40 + len(path) + sum(10 + len(text) for text in (*texts, *needed))
        if size > self._room:
            self._more += 1
            return False
        self._room -= size
        return True

    def _keep(self, entry: ImageEntry, parts: "_Counted", needed: Sequence[str] = ()) -> None:
        if parts.found and self._takes(entry.path, parts, needed):
            self._files.append({"path": entry.path, **parts.found, "needs": list(needed)})

    def _keep_loose(self, entry: ImageEntry, parts: "_Counted") -> None:
        if not parts.found:
            return
        path = entry.path.rpartition("/")[0] + "/"
        new = _Counted()
        folder = self._folders.get(path, {})
        for vendor, found in parts.found.items():
            for codes in found:
                if codes not in folder.get(vendor, {}):
                    new.add(vendor, (codes,))
        if (new.found or not folder) and not self._takes(path, new):
            return
        folder = self._folders.setdefault(path, {"path": path, "files": 0})
        folder["files"] += 1
        for vendor, found in parts.found.items():
            table = folder.setdefault(vendor, {})
            for codes, count in found.items():
                table[codes] = table.get(codes, 0) + count

    def _skip(self, path: str, why: str) -> None:
        if len(self._damaged) < _DAMAGED and len(path) < 1000:
            self._damaged.append([path, why])
        else:
            self._more += 1

    def result(self) -> dict[str, Any]:
        """Return {"files", "folders": of loose code, "damaged": [path, why], "more": left out}.

        Of a file's "needs" only those names are kept that are names of such files.
        """
        names = {one["path"].rpartition("/")[2] for one in self._files}
        files = [
            {**f, "needs": [name for name in f["needs"] if name in names]} for f in self._files
        ]
        return {
            "files": files,
            "folders": [self._folders[path] for path in sorted(self._folders)],
            "damaged": self._damaged,
            "more": self._more,
        }


class _Counted:
    """The parts of one file."""

    def __init__(self) -> None:
        self.found: _Parts = {}

    def add(self, vendor: str, codes: tuple[str, ...]) -> None:
        """Count a part with code for these architectures; one without any is none."""
        if codes:
            table = self.found.setdefault(vendor, {})
            key = " ".join(codes)
            table[key] = table.get(key, 0) + 1


def _sections(elf: gpucode_sections.Elf64, content: FileContent, parts: _Counted) -> list[str]:
    """Count the parts of a program or library; return the libraries that it needs."""
    entries = gpucode_nvidia.ENTRIES
    sections = gpucode_sections.find(elf, content, _WANTED)
    for name, at, size in sections:
        vendor = _SECTIONS.get(name)
        if vendor == NVIDIA:
            walk = gpucode_nvidia.Walk(content, at, size, entries)
            for codes in walk.containers():
                parts.add(NVIDIA, codes)
            entries = walk.entries
        elif vendor == AMD:
            for codes in gpucode_amd.bundles(content, at, size):
                parts.add(AMD, codes)
    return gpucode_sections.needed(sections, content) if parts.found else []
