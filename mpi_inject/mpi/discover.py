"""Find the MPIs of a host without configuration: by environment, PATH and ld.so.cache.

No tool of an MPI (mpicc -show) is run: its files tell more, and cost no process. In the order of
preference: what the user's modules set, the launcher on the PATH, LD_LIBRARY_PATH, the ld.so.cache,
the usual prefixes.
"""

import os

from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries import abi, elf
from rootless_udi.mpi_inject.libraries.rooted import under
from rootless_udi.mpi_inject.libraries.search import MULTIARCH, Found, HostLibraries
from rootless_udi.mpi_inject.libraries.symbols import Symbols

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

VARIABLES = (
    "CRAY_MPICH_DIR",
    "I_MPI_ROOT",
    "MPICH_DIR",
    "MPICH_HOME",
    "MPICH_ROOT",
    "OPENMPI_DIR",
    "OPENMPI_HOME",
    "OPENMPI_ROOT",
    "OMPI_DIR",
    "OPAL_PREFIX",
    "MVAPICH2_HOME",
    "EBROOTOPENMPI",
    "EBROOTMPICH",
    "EBROOTIMPI",
    "EBROOTMVAPICH2",
    "MPI_HOME",
    "MPI_ROOT",
    "MPI_DIR",
    "MPI_LIB",
)
"""Variables that modules (of Cray, Intel, EasyBuild, Spack, Fedora, sites) set to an MPI's
prefix."""

TOOLS = ("mpiexec", "mpirun", "mpichversion", "ompi_info", "mpiexec.hydra", "prterun", "orterun")
_PREFIXES = (
    "/usr/lib64/mpich",
    "/usr/lib64/openmpi",
    "/usr/lib64/mvapich2",
    "/opt/cray/pe/mpich/default/ofi/gnu/default",
    "/opt/cray/pe/mpich/default/ofi/gnu/9.1",
    "/opt/intel/oneapi/mpi/latest",
    "/opt/mpich",
    "/opt/openmpi",
    "/opt/mvapich2",
    "/usr/local/mpich",
    "/usr/local/openmpi",
    "/usr/local",
    "/usr",
)

_FILES = (
    "libmpi.so.12",
    "libmpich.so.12",
    "libmpifort.so.12",
    "libmpichfort.so.12",
    "libmpicxx.so.12",
    "libmpichcxx.so.12",
    "libmpi_abi.so.1",
    "libmpi_abi.so.0",
    "libmpifort_abi.so.1",
    "libmpi.so.40",
    "libmpi_mpifh.so.40",
    "libmpi_usempif08.so.40",
    "libmpi_usempi_ignore_tkr.so.40",
    "libmpi_cxx.so.40",
)


class HostMpi(Record):
    """One MPI of the host: its folder, the libraries in it, how it was found.

    `families` are those that it can serve; `prefix` is the folder of its own tree, "" where it is
    spread over the system ("/usr"). `files` maps a library's name to its path.
    """

    folder: str
    families: tuple[str, ...]
    files: "dict[str, str]"
    prefix: str
    origin: str

    def text(self) -> str:
        """Return the MPI for a message."""
        names = " and ".join(abi.NAMES[f] for f in self.families)
        return f"{names} in {self.folder} (by {self.origin})"


def candidates(
    environ: "Mapping[str, str]", host: HostLibraries, tools: "list[tuple[str, str]]"
) -> "Iterator[tuple[str, str]]":
    """Yield (folder, why) where an MPI's libraries may be, the likeliest first.

    `tools` are the (name, real path) of the MPI tools on the PATH.
    """
    for name in VARIABLES:
        value = environ.get(name, "")
        if value.startswith("/"):
            for folder in folders(value, host.machine):
                yield folder, name
    for name, path in tools:
        prefix = path.rpartition("/")[0].rpartition("/")[0]
        for folder in folders(prefix or "/", host.machine):
            yield folder, f"{name} on the PATH"
    for folder in host.search:
        yield folder, "LD_LIBRARY_PATH"
    for name in abi.MAIN:
        for path in host.cached(name):
            yield path.rpartition("/")[0], "ld.so.cache"
    for prefix in _PREFIXES:
        for folder in folders(prefix, host.machine):
            yield folder, "a standard prefix"


def folders(prefix: str, machine: str) -> "Iterator[str]":
    """Yield the folders below a prefix where libraries may be; Cray's ABI build first."""
    prefix = prefix.rstrip("/")
    yield f"{prefix}/lib-abi-mpich"
    yield f"{prefix}/lib/release"
    yield f"{prefix}/lib64"
    yield f"{prefix}/lib"
    arch = MULTIARCH.get(machine, "")
    if arch:
        yield f"{prefix}/lib/{arch}"
    yield prefix or "/"


def _tools(path: str, host: HostLibraries) -> "Iterator[tuple[str, str]]":
    """Yield (name, real path) of the MPI tools on the PATH."""
    for folder in path.split(":"):
        if not folder.startswith("/"):
            continue
        for name in TOOLS:
            if os.path.lexists(under(host.root, f"{folder}/{name}")):
                yield name, host.real(f"{folder}/{name}")


def find(environ: "Mapping[str, str]", host: HostLibraries) -> "Iterator[HostMpi]":
    """Yield the host's MPIs, the preferred first; each real library once.

    An iterator, since the first one can mostly be used and looking everywhere takes 10 ms.
    """
    folders_seen: set[str] = set()
    mains: set[str] = set()
    tools = list(_tools(environ.get("PATH", ""), host))
    favourite = _favourite(tools)
    for folder, origin in candidates(environ, host, tools):
        if folder in folders_seen:
            continue
        folders_seen.add(folder)
        for mpi in at(folder, origin, host, favourite):
            main = host.real(next(iter(mpi.files.values())))
            if main not in mains:
                mains.add(main)
                yield mpi


def _favourite(tools: "list[tuple[str, str]]") -> str:
    """Return the family of the mpiexec on the PATH, told by its real name (mpirun.openmpi)."""
    for name, path in tools:
        if name in ("mpiexec", "mpirun"):
            base = path.rpartition("/")[2]
            if any(word in base for word in ("openmpi", "orte", "prte")):
                return abi.OPENMPI
            if any(word in base for word in ("mpich", "hydra")):
                return abi.MPICH
    return ""


def at(folder: str, origin: str, host: HostLibraries, favourite: str = "") -> "Iterator[HostMpi]":
    """Yield the MPIs whose libraries are in `folder`: none, one, or one of each kind.

    Debian has MPICH and Open MPI in one folder: the `favourite` family comes first, and the files
    of the other are read only if the caller goes on.
    """
    if not any(os.path.lexists(under(host.root, f"{folder}/{name}")) for name in abi.MAIN):
        return
    named: dict[str, list[str]] = {}
    for name in _FILES:
        if os.path.lexists(under(host.root, f"{folder}/{name}")):
            named.setdefault(abi.identify(name)[0], []).append(name)
    standard = _usable(host, folder, named.pop(abi.ABI, []))
    owner = _owner(host, standard)
    for family in sorted(named, key=lambda f: f != favourite):
        files = _usable(host, folder, named[family])
        if family == abi.MPICH and _is_openmpi(host, files):
            continue
        families: tuple[str, ...] = (family,)
        if standard and files and (family == owner or owner not in named):
            families, files = (family, abi.ABI), files | standard
            standard = {}
        if any(name in abi.MAIN for name in files):
            yield HostMpi(folder, families, files, _prefix(folder, host.machine), origin)
    if any(name in abi.MAIN for name in standard):
        yield HostMpi(folder, (abi.ABI,), standard, _prefix(folder, host.machine), origin)


def _usable(host: HostLibraries, folder: str, names: list[str]) -> "dict[str, str]":
    """Return name -> path of those files that are libraries for the host's machine."""
    return {name: f"{folder}/{name}" for name in names if host.fits(f"{folder}/{name}")}


def _is_openmpi(host: HostLibraries, files: "dict[str, str]") -> bool:
    """Tell Open MPI 1.10's libmpi.so.12 from MPICH's."""
    path = files.get("libmpi.so.12")
    if path is None:
        return False
    return not missing(host.root, path, ["ompi_mpi_comm_world"])


def _owner(host: HostLibraries, files: "dict[str, str]") -> str:
    """Return whose the libraries of the standard ABI are: Open MPI's, since 6, need its others."""
    needed = [name for path in files.values() for name in host.needed(path)]
    return abi.OPENMPI if any(name.startswith("libopen") for name in needed) else abi.MPICH


def _prefix(folder: str, machine: str) -> str:
    """Return the prefix of a library folder, where an MPI has a tree of its own; else ""."""
    arch = MULTIARCH.get(machine, "-")
    for tail in ("/lib/release", "/lib-abi-mpich", f"/lib/{arch}", "/lib64", "/lib"):
        if folder.endswith(tail):
            prefix = folder.removesuffix(tail)
            return "" if prefix in ("", "/usr", "/usr/local") else prefix
    return ""


def missing(root: str, path: str, names: "list[str]") -> list[str]:
    """Return those of `names` that the library at `path` does not export."""
    if not names:
        return []
    try:
        file = os.open(under(root, path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return names
    try:
        return Symbols(file).missing(names)
    except elf.ElfError:
        return names
    finally:
        os.close(file)


def statement(root: str, path: str) -> tuple[str, str]:
    """Return (libtool's numbers, release) that an MPI library exports; "" for what it does not."""
    try:
        file = os.open(under(root, path), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return "", ""
    try:
        reader = Symbols(file)
        numbers = reader.constant("MPII_Version_ABI")
        release = reader.constant("MPII_Version_string") or reader.constant("ompi_version_string")
        if not reader.missing(["I_MPI_Check_image_status"]):
            release = "Intel MPI, " + release
        return numbers, release
    except elf.ElfError:
        return "", ""
    finally:
        os.close(file)


def why_not(host: HostLibraries, path: str) -> str:
    """Say why there is no library for `host` at `path`."""
    try:
        found = elf.read(under(host.root, path))
        if (found.machine, found.bits) != (host.machine, host.bits):
            return f"for {found.machine} with {found.bits} bits, not for {host.machine}"
    except elf.ElfError as error:
        return str(error)
    except OSError as error:
        if os.path.islink(under(host.root, path)):
            return f"a dangling symbolic link to {os.readlink(under(host.root, path))}"
        return error.strerror or str(error)
    return "it changed while it was read"


def library(host: HostLibraries, found: Found, exact: bool = False) -> abi.Library:
    """Return an MPI library of the host as a value for abi's predicates.

    `exact` reads the whole file where its name has no minor number and it hides its version.
    """
    family, role = abi.identify(found.name)
    numbers, release = statement(host.root, found.path) if role == "C" else ("", "")
    if exact and not numbers and role == "C" and len(abi.split(found.real)[1]) < 2:
        from rootless_udi.mpi_inject.libraries.statement import statement as hidden_statement

        with open(under(host.root, found.path), "rb") as file:
            data = file.read()
        numbers, release = hidden_statement(Symbols(data), data)
    version = abi.version(family, found.real, found.name, numbers, release)
    return abi.Library(found.path, found.name, family, role, version, release)
