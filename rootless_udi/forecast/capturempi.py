"""The MPIs of this machine as data: what `hosttree` needs to ask the planner of --mpi elsewhere.

The section "mpi" of a capture:

    environ    PATH (folders with an MPI's tools), LD_LIBRARY_PATH, and variables of MPI modules
    links      [path, target]: tools of the PATH that are links, by which mpiexec's family is told
    found      for people: family, folder, version, by (how it was found)
    libraries  a row for each: path (as it was found), real, soname, needed, rpath, runpath,
               needs (file -> newest symbol versions), defines (the newest), cached (names in
               ld.so.cache); of MPI's own also exports (see `symbolgroups`), numbers, release
    trees      [kind, folder, files] of plugins
    plugins    path -> libraries below an MPI that it needs, where there are any
    fabric     whether there is hardware for which such plugins are read

Symbol versions are the newest of each series: no more is compared.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.forecast import symbolgroups
from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.libraries.search import Found, HostLibraries, is_stack
from rootless_udi.mpi_inject.libraries.symbols import Symbols, newest
from rootless_udi.mpi_inject.mpi import discover, gather, planner
from rootless_udi.mpi_inject.mpi import profiles as profile_list
from rootless_udi.mpi_inject.mpi.profiles import Profile

MOST = 6
"""Most MPIs that are captured; a machine with modules has one loaded."""
_NOTHING: dict[str, Any] = {
    "consumers": {},
    "provides": {},
    "libraries": [],
    "libc_versions": [],
    "plugins": {},
}
"""The facts of an image that has nothing: all that the host's MPI needs is then the host's."""


def capture(
    environ: Mapping[str, str],
    machine: str = "",
    root: str = "/",
    profiles: Iterable[Profile] = (),
) -> dict[str, Any]:
    """Return the section; {"found": []} where there is no MPI. `profiles` are the site's MPIs."""
    path = [p for p in environ.get("LD_LIBRARY_PATH", "").split(":") if p.startswith("/")]
    host = HostLibraries(root, path, machine)
    libraries: dict[str, dict[str, Any]] = {}
    trees: dict[str, list[Any]] = {}
    found = []
    for mpi, more in _all(environ, host, profiles):
        got = gather.gather(host, mpi, _NOTHING, mpi.families, more)
        found.append(_told(mpi, got))
        for one in got.libraries:
            libraries.setdefault(one.path, _row(host, one))
        for tree in got.trees:
            trees.setdefault(tree.folder, [tree.kind, tree.folder, list(tree.files)])
    if not found:
        return {"found": []}
    folders = {os.path.dirname(path) for path in libraries}
    return {
        "found": found,
        "environ": _environ(environ, [p for p in path if p in folders], root),
        "links": _links(environ, root),
        "libraries": list(libraries.values()),
        "trees": list(trees.values()),
        "plugins": _plugins(host, trees.values()),
        "fabric": gather.has_fabric(host),
    }


def _all(
    environ: Mapping[str, str], host: HostLibraries, profiles: Iterable[Profile]
) -> Iterator[tuple[discover.HostMpi, list[str]]]:
    """Yield the MPIs that are found, and those of profiles with the libraries that these name."""
    for number, mpi in enumerate(discover.find(environ, host)):
        if number == MOST:
            break
        yield mpi, []
    known = tuple(profiles)
    for one in [profile for profile in known if profile.family][:MOST]:
        try:
            together = profile_list.together(known, one)
            search = [folder for profile in together for folder in profile.search]
            mpi = planner.of_profile(one, HostLibraries(host.root, search, host.machine))
        except UdiError:
            continue  # A profile that doesn't fit this node is refused at a launch, too.
        yield mpi, [path for profile in together for path in profile.dependencies]


def _told(mpi: discover.HostMpi, got: gather.Gathered) -> dict[str, str]:
    main = next((lib for lib in got.mains if lib.role == "C"), None)
    return {
        "family": " ".join(mpi.families),
        "folder": mpi.folder,
        "version": main.text() if main else "",
        "by": mpi.origin,
    }


def _row(host: HostLibraries, one: Found) -> dict[str, Any]:
    """Return a library; empty values are left out."""
    names = dict.fromkeys((one.name, one.elf.soname, one.path.rpartition("/")[2]))
    row: dict[str, Any] = {
        "path": one.path,
        "real": one.real,
        "soname": one.elf.soname,
        "needed": list(one.elf.needed),
        "rpath": list(one.elf.rpath),
        "runpath": list(one.elf.runpath),
        "needs": {name: newest(versions) for name, versions in one.elf.needs.items()},
        "defines": newest(one.elf.defines),
        "cached": [name for name in names if name and one.path in host.cached(name)],
    }
    if abi.identify(one.name)[0] or one.name == abi.SPLIT_OFF:
        row |= _mpi(host, one)
    if row["real"] == row["path"]:
        del row["real"]
    return {key: value for key, value in row.items() if value}


def _mpi(host: HostLibraries, one: Found) -> dict[str, Any]:
    """Return what an MPI library exports, and what it says of itself."""
    library = discover.library(host, one, exact=True)
    numbers, release = discover.statement(host.root, one.path)
    if not numbers and library.family == abi.MPICH and len(library.version) == 3:
        major, age, revision = library.version
        numbers = f"{major + age}:{revision}:{age}"
    exports: set[str] = set()
    # Of the inner libraries of an MPI only its own libraries call functions.
    if library.role not in abi.INNER:
        with open(host.real(one.path) if host.root == "/" else _under(host, one), "rb") as file:
            exports = Symbols(file.read()).exported((*abi.PUBLIC, "ompi_", "MPIR_", "MPII_"))
    return {
        "exports": symbolgroups.pack(exports),
        "numbers": numbers,
        "release": release or library.release,
    }


def _under(host: HostLibraries, one: Found) -> str:
    return f"{host.root.rstrip('/')}{one.real}"


def _environ(environ: Mapping[str, str], path: list[str], root: str) -> dict[str, str]:
    """Return the variables by which an MPI is found, cut down to what it is found by."""
    kept = {name: environ[name] for name in discover.VARIABLES if environ.get(name, "")[:1] == "/"}
    folders = [folder for folder in environ.get("PATH", "").split(":") if folder.startswith("/")]
    tools = [f for f in folders if any(_there(root, f, name) for name in discover.TOOLS)]
    kept["PATH"] = ":".join(dict.fromkeys(tools))
    kept["LD_LIBRARY_PATH"] = ":".join(path)
    return {name: value for name, value in kept.items() if value}


def _there(root: str, folder: str, name: str) -> bool:
    return os.path.lexists(f"{root.rstrip('/')}{folder}/{name}")


def _links(environ: Mapping[str, str], root: str) -> list[list[str]]:
    host = HostLibraries(root)
    found: dict[str, str] = {}
    for folder in environ.get("PATH", "").split(":"):
        for name in discover.TOOLS if folder.startswith("/") else ():
            if _there(root, folder, name):
                found.setdefault(f"{folder}/{name}", host.real(f"{folder}/{name}"))
    return [[path, real] for path, real in found.items()]


def _plugins(host: HostLibraries, trees: Iterable[list[Any]]) -> dict[str, list[str]]:
    """Return the libraries below an MPI that those plugins need of which a launch reads it."""
    found = {}
    for kind, folder, files in trees:
        for name in files:
            if not name.startswith(gather.READ.get(kind, ())):
                continue
            needed = [n for n in host.needed(f"{folder}/{name}") if is_stack(n)]
            if needed:
                found[f"{folder}/{name}"] = needed
    return found


def glibc(machine: str = "", root: str = "/") -> dict[str, Any]:
    """Return the section "libc": the host's glibc, every version that each of its files defines."""
    from rootless_udi.mpi_inject.libraries import glibc as reader

    family = reader.of_host(HostLibraries(root, (), machine))
    files = {name: [real, list(versions)] for name, (real, versions) in family.files.items()}
    return {"folder": family.folder, "files": files} if files else {}


def newest_glibc(versions: Iterable[str]) -> str:
    """Return the number of the newest GLIBC_2.x of symbol versions ("2.31"), "" for none."""
    found = newest(v for v in versions if v.startswith("GLIBC_2"))
    return found[-1].removeprefix("GLIBC_") if found else ""
