"""A captured host as a tree of small files, so that the planner of --mpi can be asked about it.

The planner reads ld.so.cache, libraries and folders below a root directory. This makes such a root
of the sections "mpi" and "libc" of a capture. A capture may be anybody's: every path of it is made
normal, folders and files come before any symbolic link, and a link's target is relative, so that
nothing is written or read outside of the root.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from struct import pack
from typing import Any

from rootless_udi.base.records import Record
from rootless_udi.forecast import room, symbolgroups
from rootless_udi.forecast.elfwriter import WrittenLibrary, possible, write
from rootless_udi.forecast.site import Capture
from rootless_udi.mpi_inject.libraries.glibc_names import LOADERS
from rootless_udi.mpi_inject.libraries.ldcache import PATH as LD_CACHE

_MOST = 4000
"""Most files of a tree."""
_LARGEST = 64 << 20
"""Bytes of libraries; those of two MPIs have two million."""
FOLDER = "udi-host"
"""The name of the root's folder."""
_FLAGS = {"x86_64": 0x0303, "aarch64": 0x0A03, "ppc64": 0x0503, "riscv64": 0x1003}
"""Of an entry of ld.so.cache, by the machine (ldconfig.h)."""
_SETTINGS = {
    "openmpi-etc": ("openmpi-mca-params.conf",),
    "openmpi-share": ("help-mpi-runtime.txt",),
    "ucx-etc": ("ucx.conf",),
}
"""Kinds of trees that are no plugins -> the file by which the planner knows them."""


class HostTree(Record):
    """The root, and the environment by which the host's MPI is found."""

    root: str
    environ: dict[str, str]


@contextmanager
def made(site: Capture) -> Iterator[HostTree | None]:
    """Make the tree, and remove it at the end; None where the site's machine can't be written."""
    if not possible(site.machine):
        yield None
        return
    with room.made() as place:
        root = f"{place.path}/{FOLDER}"
        os.mkdir(root)
        tree = _Maker(root, site.machine)
        tree.libc(site.table("libc"))
        mpi = site.table("mpi")
        tree.mpi(mpi)
        tree.finish()
        found = mpi.get("environ")
        rows = found.items() if isinstance(found, dict) else ()
        environ = {str(k): v for k, v in rows if isinstance(v, str)}
        yield HostTree(root, environ)


def normal(path: Any) -> str:
    """Return an absolute path without "." and ".."; "" for what is none."""
    if not isinstance(path, str) or not path.startswith("/") or "\0" in path or len(path) > 1000:
        return ""
    found = os.path.normpath(path)
    long = any(len(part.encode("utf-8", "replace")) > 255 for part in found.split("/"))
    return "" if found in ("/", "//") or long else "/" + found.lstrip("/")


def _words(value: Any) -> tuple[str, ...]:
    return tuple(w for w in value if isinstance(w, str)) if isinstance(value, list) else ()


class _Maker:
    def __init__(self, root: str, machine: str) -> None:
        self.root, self.machine = root, machine
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}
        self.cache: list[tuple[str, str]] = []
        self.left = _LARGEST

    def library(self, row: dict[str, Any]) -> None:
        """Add a row of "libraries": the file under its real path, a link for how it was found."""
        path = normal(row.get("path"))
        real = normal(row.get("real")) or path
        if not path or self.left < 0:
            return
        table = row.get("needs")
        needs = {str(k): _words(v) for k, v in table.items()} if isinstance(table, dict) else {}
        groups = row.get("exports")
        texts = {}
        if isinstance(row.get("numbers"), str):
            texts["MPII_Version_ABI"] = row["numbers"]
        if isinstance(row.get("release"), str):
            intel = row["release"].startswith("Intel MPI")
            openmpi = "libmpi.so.40" in (row.get("soname"), path.rpartition("/")[2])
            name = "ompi_version_string" if openmpi else "MPII_Version_string"
            texts[name] = row["release"].removeprefix("Intel MPI, ")
            texts |= {"I_MPI_Check_image_status": ""} if intel else {}
        soname = row.get("soname")
        one = WrittenLibrary(
            self.machine,
            soname if isinstance(soname, str) else "",
            _words(row.get("needed")),
            _words(row.get("rpath")),
            _words(row.get("runpath")),
            {file: versions for file, versions in needs.items() if versions},
            _words(row.get("defines")),
            tuple(symbolgroups.unpack(groups)) if isinstance(groups, dict) else (),
            texts,
        )
        self.files[real] = write(one)
        self.left -= len(self.files[real])
        if real != path:
            self.links[path] = real
        self.cache += [(name, path) for name in _words(row.get("cached"))]

    def libc(self, table: dict[str, Any]) -> None:
        """Add the files of glibc."""
        files = table.get("files")
        for name, row in files.items() if isinstance(files, dict) else ():
            if isinstance(row, list) and len(row) == 2 and (real := normal(row[0])):
                one = WrittenLibrary(self.machine, str(name), defines=_words(row[1]))
                self.files[real] = write(one)
                self.cache.append((str(name), real))
                self.cache = self.cache[: 2 * _MOST]
                # The planner looks for the loader by the one path that programs name.
                loader = LOADERS.get(self.machine, "")
                if loader.rpartition("/")[2] == name and loader != real:
                    self.links[loader] = real

    def mpi(self, table: dict[str, Any]) -> None:
        """Add the libraries, tools and plugins of "mpi"."""
        rows = table.get("libraries")
        for row in rows[:_MOST] if isinstance(rows, list) else ():
            if isinstance(row, dict):
                self.library(row)
        for row in _lists(table.get("links"), 2):
            path, target = normal(row[0]), normal(row[1])
            if path and target:
                self.files.setdefault(target, b"")
                if path != target:
                    self.links.setdefault(path, target)
        needed = table.get("plugins")
        plugins = needed if isinstance(needed, dict) else {}
        for row in _lists(table.get("trees"), 3):
            for name in _words(row[2]) or _SETTINGS.get(str(row[0]), ()):
                path = normal(f"{row[1]}/{name}") if isinstance(row[1], str) else ""
                if path and len(self.files) < _MOST:
                    one = WrittenLibrary(self.machine, needed=_words(plugins.get(path)))
                    self.files.setdefault(path, write(one))
        if table.get("fabric") is True:
            self.files["/sys/class/infiniband/captured/node_type"] = b""

    def finish(self) -> None:
        """Write all: folders and files, then the links, of which none is on the way to a file."""
        self.files[LD_CACHE] = _ld_cache(self.cache, _FLAGS.get(self.machine, 0))
        for path, data in list(self.files.items())[: 2 * _MOST]:
            self._put(path, data)
        for path, target in list(self.links.items())[:_MOST]:
            where = self.root + path
            try:
                os.makedirs(os.path.dirname(where), exist_ok=True)
                os.symlink(os.path.relpath(target, os.path.dirname(path)), where)
            except OSError:
                continue  # Two of the capture's paths exclude one another.

    def _put(self, path: str, data: bytes) -> None:
        where = self.root + path
        try:
            os.makedirs(os.path.dirname(where), exist_ok=True)
            with open(where, "xb") as file:
                file.write(data)
        except (FileExistsError, NotADirectoryError, IsADirectoryError):
            return  # Two of the capture's paths exclude one another.


def _lists(value: Any, size: int) -> list[list[Any]]:
    rows = value[:_MOST] if isinstance(value, list) else []
    return [row for row in rows if isinstance(row, list) and len(row) == size]


def _ld_cache(rows: list[tuple[str, str]], flags: int) -> bytes:
    """Return an ld.so.cache of (name, path): struct cache_file_new and file_entry_new of glibc."""
    strings, entries = bytearray(), bytearray()
    start = 48 + 24 * len(rows)
    for name, path in rows:
        places = []
        for text in (name, path):
            places.append(start + len(strings))
            strings += text.encode("utf-8", "surrogateescape") + b"\0"
        entries += pack("<iIIIQ", flags, *places, 0, 0)
    head = b"glibc-ld.so.cache1.1" + pack("<II", len(rows), len(strings)) + bytes([2, 0, 0, 0])
    return head + bytes(16) + bytes(entries) + bytes(strings)
