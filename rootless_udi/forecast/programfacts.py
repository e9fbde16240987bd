"""Of an image's ELF files: machines, the oldest kernel, levels of x86-64 that their notes name."""

from typing import Any

from rootless_udi.forecast import elfhead
from rootless_udi.forecast.needs import FileContent, ImageEntry

_SHOWN = 8
"""Paths that are kept for each fact."""


class ProgramFacts:
    """The gatherer "programs":

    machines   machine -> [number of files, paths of some]
    kernels    oldest kernel by the ABI tag -> paths of some
    levels     level (2 to 4) that "needed" properties name -> paths of some
    hwcaps     folders of glibc-hwcaps that have libraries for a level
    bytes      size of all regular files together
    entries    number of entries
    """

    NAME, VERSION = "programs", 1

    def __init__(self) -> None:
        self._machines: dict[str, tuple[int, list[str]]] = {}
        self._kernels: dict[str, list[str]] = {}
        self._levels: dict[str, list[str]] = {}
        self._hwcaps: set[str] = set()
        self._bytes = self._entries = 0

    def wants(self, entry: ImageEntry) -> bool:
        """Count an entry; programs and libraries are looked into."""
        self._entries += 1
        if entry.kind != "file":
            return False
        self._bytes += entry.size
        name = entry.path.rpartition("/")[2]
        library = name.endswith(".so") or ".so." in name
        if library and "/glibc-hwcaps/" in entry.path:
            self._hwcaps.add(entry.path.rpartition("/")[0])
        return entry.size >= 52 and (library or bool(entry.mode & 0o111))

    def file(self, entry: ImageEntry, content: FileContent) -> None:
        """Look at an ELF file's head."""
        found = elfhead.read(content)
        if found is None:
            return
        count, paths = self._machines.get(found.machine, (0, []))
        self._machines[found.machine] = count + 1, _more(paths, entry.path)
        if found.kernel:
            self._kernels[found.kernel] = _more(self._kernels.get(found.kernel, []), entry.path)
        level = found.needed.bit_length()
        # Libraries for a level in a folder that ld.so passes over on other processors.
        if 2 <= level <= 4 and "/glibc-hwcaps/" not in entry.path:
            self._levels[str(level)] = _more(self._levels.get(str(level), []), entry.path)

    def result(self) -> Any:
        """Return the facts."""
        return {
            "machines": {name: [count, paths] for name, (count, paths) in self._machines.items()},
            "kernels": dict(sorted(self._kernels.items())[:64]),
            "levels": self._levels,
            "hwcaps": sorted(self._hwcaps)[:64],
            "bytes": self._bytes,
            "entries": self._entries,
        }


def _more(paths: list[str], path: str) -> list[str]:
    return [*paths, path] if len(paths) < _SHOWN else paths
