"""Which MPI files each program of an image loads, noted by the pull for a launch.

`each` says what every file needs of its MPI. `reach` says which of these files are loaded by a
program, or by the packages of an interpreter, through DT_NEEDED, as ld.so(8) would. Not for the
launch path.
"""

import re
from collections.abc import Callable, Iterable, Mapping

from rootless_udi.mpi_inject.libraries import elf
from rootless_udi.mpi_inject.libraries.search import is_glibc

MOST = 500
"""Most files and names that are noted. An image with more is judged as a whole."""

_SCRIPT = re.compile(rb"#![ \t]*(\S+)(?:[ \t]+(\S+))?")
_FOLDER = re.compile(r"/(s?bin|libexec|scripts)/[^/]+\Z")
_SO = re.compile(r"\.so(\.|\Z)")
_PACKAGES = (
    ("python", re.compile(r"/(?:site|dist)-packages/|/lib-dynload/")),
    ("R", re.compile(r"/(?:site-)?library/[^/]+/libs/")),
    ("perl", re.compile(r"/perl5?/.*/auto/")),
    ("julia", re.compile(r"/\.?julia/")),
)
"""Language -> paths of the extension modules of its interpreter."""

_PLUGINS = (
    ("ucx", re.compile(r"/ucx/libuc[a-z]_[^/]*\.so(?:\.|\Z)")),
    ("ucc", re.compile(r"/ucc/libucc_[^/]*\.so\Z")),
    ("libfabric", re.compile(r"/(?:libfabric|prov)/[^/]*-fi\.so\Z")),
    ("pmix", re.compile(r"/pmix\d*/pmix_mca_[^/]*\.so\Z")),
    ("hwloc", re.compile(r"/hwloc/hwloc_[^/]*\.so\Z")),
    ("libibverbs", re.compile(r"/libibverbs/[^/]*-rdmav\d+\.so\Z")),
    ("openmpi", re.compile(r"/openmpi\d*/mca_[^/]*\.so\Z")),
)
"""Kind (gather.PluginTree) -> paths of plugins in a folder that has nothing else. A folder with
other files (`lib` of Intel MPI's wheel) can't be covered by mounting another one over it."""

_LARGEST_SCRIPT = 1 << 20


def is_script(path: str, size: int, head: bytes) -> bool:
    """Tell whether `path` is a script in a folder of programs."""
    return head[:2] == b"#!" and size <= _LARGEST_SCRIPT and bool(_FOLDER.search(path))


def interpreter(data: bytes) -> str:
    """Return the interpreter that a script's first line names, also through `env`; "" for none."""
    found = _SCRIPT.match(data)
    if not found:
        return ""
    words = [(word or b"").decode(errors="replace").rpartition("/")[2] for word in found.groups()]
    return words[1] if words[0] == "env" else words[0]


def is_program(found: elf.Elf, path: str) -> bool:
    """Tell whether an ELF file is a program by its content or its name."""
    name = path.rpartition("/")[2]
    return bool(found.interp) or found.kind == "executable" or not _SO.search(name)


def each(
    files: "list[tuple[str, set[str], list[str]]]", symbols: list[str], libraries: list[str]
) -> "list[list[str | list[int]]]":
    """Return [path, indices of its symbols, of the libraries that it needs] of every file.

    The indices are of the lists `symbols` and `libraries`. [] for more than MOST files.
    """
    if len(files) > MOST:
        return []
    at = {name: number for number, name in enumerate(symbols)}
    by = {name: number for number, name in enumerate(libraries)}
    return [
        [path, sorted(map(at.__getitem__, wanted)), sorted({by[name] for name in needed})]
        for path, wanted, needed in files
    ]


def plugins(paths: "Iterable[str]") -> "dict[str, list[str]]":
    """Return kind -> the folders of plugins of libraries that the host's may replace."""
    out: dict[str, set[str]] = {}
    for path in paths:
        folder = path.rpartition("/")[0]
        for kind, pattern in _PLUGINS:
            if pattern.search(path):
                out.setdefault(kind, set()).add(folder)
    return {kind: sorted(out[kind]) for kind in sorted(out)}


def provided(
    symbols: set[str], family: str, given: dict[tuple[str, str], set[str]]
) -> dict[str, list[str]]:
    """Return role -> those of `symbols` that the image's libraries of the role export."""
    return {
        role: sorted(symbols & exports)
        for (of, role), exports in sorted(given.items())
        if of == family and symbols & exports
    }


class ProgramLinks:
    """An image's files and links; `real` resolves a path."""

    def __init__(
        self,
        files: "Mapping[str, elf.Elf]",
        names: "Mapping[str, list[str]]",
        search: "Iterable[str]",
        links: "Iterable[str]",
        real: "Callable[[str], str]",
    ) -> None:
        self.files, self.links, self.real = files, tuple(links), real
        self.search = tuple(search)
        self._places: dict[str, dict[str, str]] = {}
        for target, paths in names.items():
            for path in paths:
                folder, _, base = path.rpartition("/")
                self._places.setdefault(base, {})[real(folder)] = target

    def find(self, name: str, by: str) -> list[str]:
        """Return the files that ld.so may find as `name` when `by` needs it.

        If it is in no RPATH and in no folder of ld.so, LD_LIBRARY_PATH decides: all files of that
        name are returned.
        """
        places = self._places.get(name, {})
        if len(places) > 1:
            origin = by.rpartition("/")[0]
            found = self.files[by]
            for folder in (*found.rpath, *found.runpath):
                text = folder.replace("${ORIGIN}", origin).replace("$ORIGIN", origin)
                if (where := self.real(text)) in places:
                    return [places[where]]
            for folder in self.search:
                if folder in places:
                    return [places[folder]]
        return list(places.values())

    def users(self) -> dict[str, set[str]]:
        """Return file -> the files that need it."""
        out: dict[str, set[str]] = {}
        for path, found in self.files.items():
            for name in found.needed:
                if not is_glibc(name):
                    for target in self.find(name, path):
                        out.setdefault(target, set()).add(path)
        return out

    def other_names(self, programs: "set[str]") -> dict[str, list[str]]:
        """Return program -> its other names, by links to it or to its folder (/bin -> /usr/bin)."""
        out: dict[str, list[str]] = {}
        for link in self.links:
            target = self.real(link)
            for path in programs:
                if path == target or path.startswith(target + "/"):
                    out.setdefault(path, []).append(link + path[len(target) :])
        return out


def reach(
    links: ProgramLinks, consumers: "Iterable[str]", scripts: "Mapping[str, str]"
) -> "dict[str, list[str]]":
    """Return program or language -> the files among `consumers` that it loads.

    The keys are the paths of programs, by each of their names; "python", "R", ... for all that the
    packages of an interpreter load; and the paths of scripts for such interpreters. {} for more
    than MOST keys.
    """
    users, found = links.users(), dict[str, set[str]]()
    for consumer in consumers:
        seen, new = {consumer}, [consumer]
        while new:
            for user in users.get(new.pop(), ()):
                if user not in seen:
                    seen.add(user)
                    new.append(user)
        for path in seen:
            if is_program(links.files[path], path):
                found.setdefault(path, set()).add(consumer)
            for name, pattern in _PACKAGES:
                if pattern.search(path):
                    found.setdefault(name, set()).add(consumer)
    for path, other in links.other_names({p for p in found if p[0] == "/"}).items():
        for name in other:
            found.setdefault(name, found[path])
    for path, word in scripts.items():
        for name, _pattern in _PACKAGES:
            if name in found and word.startswith(name):
                found.setdefault(path, found[name])
    if len(found) > MOST:
        return {}
    return {name: sorted(found[name]) for name in sorted(found)}
