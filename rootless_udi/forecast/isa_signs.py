"""Gather files that by their names are for certain CPUs: libmkl_avx512.so.2 and the like.

They are signs, no more: most are chosen at run time, after a look at the CPU.
"""

import re
from typing import Any

from rootless_udi.forecast.needs import FileContent, ImageEntry

_SIGN = re.compile(
    r"avx2|avx512|avx10|amx|sse4|x86[-_]64[-_]v[234]|haswell|skylake|icelake|sapphire|zn?ver?[1-5]\b",
    re.I,
)
_MOST = 50


class IsaSigns:
    """A `needs.Gatherer`."""

    NAME, VERSION = "isa", 1

    def __init__(self) -> None:
        self._names: list[str] = []

    def wants(self, entry: ImageEntry) -> bool:
        """Note the names of libraries and programs."""
        name = entry.path.rpartition("/")[2]
        if (
            entry.kind == "file"
            and (".so" in name or entry.mode & 0o111)
            and len(self._names) < _MOST
            and len(entry.path) < 500
            and _SIGN.search(name)
        ):
            self._names.append(entry.path)
        return False

    def file(self, entry: ImageEntry, content: FileContent) -> None:
        """Nothing is read."""

    def result(self) -> dict[str, Any]:
        """Return {"names": paths}."""
        return {"names": self._names}
