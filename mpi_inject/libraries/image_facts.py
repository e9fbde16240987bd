"""Facts about an image's programs and libraries, noted by the pull: a launch reads no file of it.

The pull shows every file to `Inspector`. That looks at ELF files and at the configuration of
ld.so(8), and returns a JSON object, the "elf" part of the image's facts:

    machine, bits       "x86_64", 64: what most ELF files are
    libc                "glibc", "musl" or "" (none, or a static image)
    libc_versions       symbol versions that libc.so.6 defines, the newest of each series
    cache               whether there is a readable ld.so.cache
    search              folders that ld.so searches by default
    provides            name -> newest symbol versions, of every library in these folders
    libraries           MPI libraries, their stack and compilers' libraries, wherever they are:
                        path, names (of files and links), soname, family, role, version, release,
                        needed, rpath, runpath, needs, defines, symbols (undefined ones, of MPI),
                        and provided as below where that isn't empty; drivers: see cuda_compat
    consumers           family, or "other" -> symbols (undefined ones), libraries (needed), files,
                        count, rpath; provided: role -> those of the symbols that the image's
                        Fortran and C++ libraries of that role have; each: of every file the path
                        and the indices of its symbols and libraries ([] where there are too many)
    reach               program, or "python" for an interpreter's packages -> the files of
                        `consumers` that it loads: see image_programs
    plugins             "ucx", "pmix", ... -> folders of such plugins: see image_programs
    static              programs that have an MPI linked in
    mpi4py              whether mpi4py is there
    glibc               what is known of the C library's files: see image_glibc
    unread              ELF files that were damaged or too large

Paths begin with "/" and are real: no component of them is a symbolic link. Not for the launch path.
"""

import re
from typing import Any

from rootless_udi.mpi_inject.libraries import (
    abi,
    cuda_compat,
    elf,
    image_glibc,
    image_programs,
    ldcache,
)
from rootless_udi.mpi_inject.libraries.image_programs import is_program
from rootless_udi.mpi_inject.libraries.rooted import MAXSYMLINKS
from rootless_udi.mpi_inject.libraries.search import COMPILER, STACK, default_folders
from rootless_udi.mpi_inject.libraries.statement import has_mpi_inside, statement
from rootless_udi.mpi_inject.libraries.symbols import Symbols, newest

LARGEST = 1 << 30
"""Bytes of the largest ELF file that is read."""

_FILES = 8
_UNREAD = 1000
"""Most paths that are kept of files that could not be read."""
_CONF_SIZE = 1 << 20
_STEPS = 5_000_000
_SEEN = 1000
"""Bytes of memory that are counted for an ELF file, beside its names."""
_CONF = re.compile(r"/etc/(ld\.so\.(cache|conf)|ld\.so\.conf\.d/.*\.conf|ld-musl-[^/]*\.path)\Z")
_SO = re.compile(r"\.so(\.|\Z)")
_KEPT = (*STACK, *COMPILER, "libcudart.", "libcuda.", "libnccl.", "libnuma.")
_OLD = re.compile(r"lib(mpi|mpich)\.so\.\d+\Z")
OTHER = "other"
"""The family of programs for Open MPI 1 and 2 and MPICH before 3.1: no host MPI can serve them."""

_TOOLS = (
    *("mca_", "pmix_mca_", "ompi_", "ompi-", "oshmem_info", "orte", "prte"),
    *("mpichversion", "mpivars", "hydra_"),
)
"""Programs and plugins that are parts of an MPI: they don't make an image one that uses MPI."""

_OPENMPI_MARK = "ompi_mpi_comm_world"


class _Seen:
    """One ELF file of the image."""

    def __init__(self, path: str, found: elf.Elf) -> None:
        self.path = path
        self.elf = found
        self.symbols: set[str] = set()
        self.exports: set[str] = set()
        self.openmpi = False
        self.drivers: list[int] | None = None
        self.release = self.numbers = ""


class Inspector:
    """Is shown each file of an image once, in any order (layers.observer); returns the facts."""

    def __init__(self, room: int = 40 << 20) -> None:
        self._seen: dict[str, _Seen] = {}
        self._links: dict[str, str] = {}
        self._hard: dict[str, str] = {}
        self._conf: dict[str, bytes] = {}
        self._scripts: dict[str, str] = {}
        self._static: list[str] = []
        self._unread: list[str] = []
        self._room = room
        self._steps = _STEPS
        self._marks = image_glibc.Marks()

    def _keeps(self, path: str, *texts: str) -> bool:
        """Count the memory for what is kept of a file; tell whether there is room for it."""
        size = 200 + 2 * len(path) + sum(60 + len(text) for text in texts)
        if size > self._room:
            self._skip(path)
            return False
        self._room -= size
        return True

    def _skip(self, path: str) -> None:
        if len(self._unread) < _UNREAD:
            self._unread.append(path)

    def wants(self, path: str, size: int, head: bytes) -> bool:
        """Tell whether `file` needs the content of a regular file; `head` is its first 4 bytes."""
        path = _absolute(path)
        if head[:4] == elf.MAGIC:
            if size <= LARGEST:
                return True
            self._skip(path)
        return (bool(_CONF.match(path)) and size <= _CONF_SIZE) or image_programs.is_script(
            path, size, head
        )

    def file(self, path: str, data: bytes) -> None:
        """Take a regular file's content; if a path comes twice, the last one counts."""
        path = _absolute(path)
        if _CONF.match(path):
            if self._keeps(path, str(data, "latin-1")):
                self._conf[path] = data
            return
        if data[:2] == b"#!":
            if self._keeps(path):
                self._scripts[path] = image_programs.interpreter(data[:512])
            return
        try:
            self._look(path, data)
        except elf.ElfError:
            self._skip(path)

    def link(self, path: str, target: str) -> None:
        """Note a symbolic link."""
        self._links[_absolute(path)] = target

    def same(self, path: str, other: str) -> None:
        """Note a hard link: `path` is another name of the file `other`."""
        self._hard[_absolute(path)] = _absolute(other)

    def _look(self, path: str, data: bytes) -> None:
        reader = Symbols(data)
        seen = _Seen(path, reader.elf())
        names = (seen.elf.soname, path.rpartition("/")[2])
        if names[1].startswith("libcuda.so."):
            seen.drivers = cuda_compat.branches(data)
        library = any(abi.identify(n)[0] for n in names)
        if library:
            seen.symbols = reader.undefined(abi.SYMBOLS)
            if any(abi.identify(n)[1] in abi.INTERFACES for n in names):
                seen.exports = reader.exported(abi.SYMBOLS)
            seen.openmpi = not reader.missing([_OPENMPI_MARK])
            seen.numbers, seen.release = statement(reader, data)
        elif any(abi.identify(n)[0] for n in seen.elf.needed):
            seen.symbols = reader.undefined(abi.PUBLIC)
        elif not seen.symbols and is_program(seen.elf, path) and has_mpi_inside(data):
            self._static.append(path)
        one = seen.elf
        texts = (one.interp, one.soname, *one.needed, *one.rpath, *one.runpath, *one.defines)
        versions = (name for group in one.needs.values() for name in group)
        if self._keeps(path, *texts, *one.needs, *versions, *seen.symbols, *seen.exports):
            self._room -= _SEEN
            self._seen[path] = seen
            self._marks.look(path, one, data)

    def result(self) -> dict[str, Any]:
        """Return the facts, JSON's types throughout, lists sorted."""
        for path, other in self._hard.items():
            if other in self._seen and path not in self._seen:
                seen = self._seen[path] = _Seen(path, self._seen[other].elf)
                seen.__dict__ |= {**self._seen[other].__dict__, "path": path}
        names = self._names()
        machine, bits = self._machine()
        search = self._search(machine)
        provides = self._provides(search, names)
        kind, versions = self._libc(provides)
        consumers = self._consumers()
        files = {path: seen.elf for path, seen in self._seen.items() if seen.elf.dynamic}
        links = image_programs.ProgramLinks(files, names, search, self._links, self.real)
        reached = [row[0] for one in consumers.values() for row in one["each"]]
        every = {path: seen.elf for path, seen in self._seen.items()}
        glibc = image_glibc.note(
            every,
            self._links,
            self._unread,
            self._scripts,
            self.real,
            search,
            (machine, bits),
        )
        return {
            "machine": machine,
            "bits": bits,
            "libc": kind,
            "libc_versions": versions,
            "cache": bool(self._cache_entries()),
            "search": search,
            "provides": provides,
            "libraries": self._libraries(names),
            "consumers": consumers,
            "plugins": image_programs.plugins(self._seen),
            "reach": image_programs.reach(links, reached, self._scripts),
            "static": sorted(self._static)[:_FILES],
            "mpi4py": any("/mpi4py/" in path for path in self._seen),
            "glibc": {**glibc, **self._marks.result()} if kind == "glibc" else {},
            "unread": sorted(self._unread)[:_FILES],
        }

    def real(self, path: str) -> str:
        """Return `path` with the image's symbolic links resolved; "" for a loop."""
        done, rest, links = "", [p for p in path.split("/") if p], 0
        while rest:
            part = rest.pop(0)
            if part == "..":
                done = done.rpartition("/")[0]
            elif part != ".":
                target = self._links.get(f"{done}/{part}")
                if target is None:
                    done += "/" + part
                    continue
                links += 1
                # Hostile: targets of 2000 parts, 40 within each other, for 100,000 libraries.
                self._steps -= 1 + target.count("/")
                if links > MAXSYMLINKS or self._steps < 0:
                    return ""
                if target.startswith("/"):
                    done = ""
                rest[:0] = [p for p in target.split("/") if p]
        return done

    def _names(self) -> dict[str, list[str]]:
        """Return real path -> all paths with ".so" in the name that lead to it."""
        names: dict[str, list[str]] = {}
        for path in (*self._seen, *self._links):
            if _SO.search(path.rpartition("/")[2]):
                target = self.real(path)
                if target in self._seen:
                    names.setdefault(target, []).append(path)
        return names

    def _machine(self) -> tuple[str, int]:
        count: dict[tuple[str, int], int] = {}
        for seen in self._seen.values():
            if seen.elf.dynamic:
                key = (seen.elf.machine, seen.elf.bits)
                count[key] = count.get(key, 0) + 1
        return max(count, key=lambda key: (count[key], key), default=("", 0))

    def _cache_entries(self) -> list[ldcache.Entry]:
        try:
            return ldcache.parse(self._conf.get(ldcache.PATH, b""))
        except ldcache.LdCacheError:
            return []

    def _search(self, machine: str) -> list[str]:
        """Return ld.so's folders: of ld.so.conf, the cache, its own; musl's of its path file."""
        for path, data in self._conf.items():
            if path.startswith("/etc/ld-musl-"):
                return [f for f in re.split(r"[:\n]", data.decode(errors="replace")) if f]
        found = self._read_conf("/etc/ld.so.conf", 0)
        found += [e.path.rpartition("/")[0] for e in self._cache_entries() if not e.hwcaps]
        if any(p.rpartition("/")[2].startswith("ld-musl-") for p in (*self._seen, *self._links)):
            found += ["/lib", "/usr/local/lib", "/usr/lib"]
        else:
            found += default_folders(machine)
        return list(dict.fromkeys(filter(None, map(self.real, found))))

    def _read_conf(self, path: str, depth: int) -> list[str]:
        """Read ldconfig(8)'s file: folders, comments, `include` with a pattern."""
        found: list[str] = []
        for line in self._conf.get(path, b"").decode(errors="surrogateescape").splitlines():
            words = line.partition("#")[0].replace(",", " ").split()
            if words[:1] == ["include"] and depth < 4:
                for pattern in words[1:]:
                    folder = pattern if pattern.startswith("/") else "/etc/" + pattern
                    like = re.compile(re.escape(folder).replace(r"\*", "[^/]*") + r"\Z")
                    for name in sorted(filter(like.match, self._conf)):
                        found += self._read_conf(name, depth + 1)
            elif words[:1] != ["hwcap"]:
                found += [word for word in words if word.startswith("/")]
        return found

    def _provides(self, search: list[str], names: dict[str, list[str]]) -> dict[str, list[str]]:
        folders = set(search)
        out: dict[str, list[str]] = {}
        for real, paths in names.items():
            defines = newest(self._seen[real].elf.defines)
            for path in paths:
                folder, _, name = path.rpartition("/")
                if self.real(folder) in folders:
                    out[name] = defines
                    out.setdefault(self._seen[real].elf.soname or name, defines)
        return dict(sorted(out.items()))

    def _libc(self, provides: dict[str, list[str]]) -> tuple[str, list[str]]:
        versions = provides.get("libc.so.6", [])
        if not versions:
            found = [s.elf for s in self._seen.values() if s.elf.soname == "libc.so.6"]
            versions = newest(found[0].defines) if found else []
        if any(v.startswith("GLIBC_") for v in versions):
            return "glibc", versions
        paths = (*self._seen, *self._links)
        if any(p.rpartition("/")[2].startswith("ld-musl-") for p in paths):
            return "musl", []
        return "", []

    def _interfaces(self) -> dict[tuple[str, str], set[str]]:
        """Return (family, role) -> what the image's Fortran and C++ libraries export."""
        out: dict[tuple[str, str], set[str]] = {}
        for path, seen in self._seen.items():
            if seen.exports:
                for name in (seen.elf.soname, path.rpartition("/")[2]):
                    out.setdefault(abi.identify(name, seen.openmpi), set()).update(seen.exports)
        out.pop(("", ""), None)
        return out

    def _libraries(self, names: dict[str, list[str]]) -> list[dict[str, Any]]:
        out = []
        given = self._interfaces()
        for path, seen in sorted(self._seen.items()):
            name = seen.elf.soname or path.rpartition("/")[2]
            known = names.get(path, [])
            bases = [p.rpartition("/")[2] for p in (path, *known)]
            family, role = "", ""
            for one in (seen.elf.soname, *sorted(bases)):
                family, role = (family, role) if family else abi.identify(one, seen.openmpi)
            if not _SO.search(name) or not (family or name.startswith(_KEPT)):
                continue
            symbols = seen.symbols if role in abi.INTERFACES else set()
            # Open MPI's mpi_f08 library calls that of mpif.h, be it the host's or the image's.
            provided = image_programs.provided(symbols, family, given)
            out.append(
                {
                    "path": path,
                    "names": sorted({name, *bases}),
                    "soname": seen.elf.soname,
                    "machine": seen.elf.machine,
                    "family": family,
                    "role": role,
                    "version": list(abi.version(family, path, name, seen.numbers, seen.release)),
                    "release": seen.release,
                    "needed": list(seen.elf.needed),
                    "rpath": list(seen.elf.rpath),
                    "runpath": list(seen.elf.runpath),
                    "needs": newest(v for vs in seen.elf.needs.values() for v in vs),
                    "defines": newest(seen.elf.defines),
                    "symbols": sorted(symbols),
                    **({"provided": provided} if provided else {}),
                    **({} if seen.drivers is None else {"drivers": seen.drivers}),
                }
            )
        return out

    def _consumers(self) -> dict[str, dict[str, Any]]:
        out: dict[str, dict[str, Any]] = {}
        for path, seen in sorted(self._seen.items()):
            needed = [n for n in seen.elf.needed if abi.identify(n)[0] or _OLD.match(n)]
            own = abi.identify(seen.elf.soname or path.rpartition("/")[2])[0]
            if not needed or own or path.rpartition("/")[2].startswith(_TOOLS):
                continue
            families = [abi.identify(n)[0] for n in needed]
            family = next(filter(None, families), OTHER)
            if family == abi.MPICH and any(s.startswith("ompi_") for s in seen.symbols):
                family = OTHER
            empty = {"symbols": set(), "libraries": set(), "files": [], "count": 0, "rpath": 0}
            one = out.setdefault(family, {**empty, "each": []})
            one["each"].append((path, seen.symbols, needed))
            one["symbols"] |= seen.symbols
            one["libraries"] |= set(needed)
            one["count"] += 1
            one["rpath"] += bool(seen.elf.rpath)
            if len(one["files"]) < _FILES:
                one["files"].append(path)
        given = self._interfaces()
        for family, one in out.items():
            one["provided"] = image_programs.provided(one["symbols"], family, given)
            for key in ("symbols", "libraries"):
                one[key] = sorted(one[key])
            one["each"] = image_programs.each(one["each"], one["symbols"], one["libraries"])
        return out


def _absolute(path: str) -> str:
    return "/" + path.removeprefix("./").strip("/")
