"""MPI's binary interfaces: what a library is by its name, and which one may replace which.

Three families are known. MPICH's (MPICH 3.1 and later, Intel MPI, MVAPICH2, Cray MPICH's ABI build;
www.mpich.org/abi) has `libmpi.so.12`, which Debian calls `libmpich.so.12`; Open MPI 3 to 5 has
`libmpi.so.40`; the MPI 5 standard ABI has `libmpi_abi.so.1`. The numbers behind `.so` are
libtool's: libraries with the same major number are compatible, and a higher minor one has more
functions.
"""

from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

MPICH, OPENMPI, ABI = "mpich", "openmpi", "abi"
FAMILIES = (MPICH, OPENMPI, ABI)
NAMES = {MPICH: "MPICH", OPENMPI: "Open MPI", ABI: "the MPI standard ABI"}

_ROLES = {
    MPICH: {
        "libmpi": "C",
        "libmpich": "C",
        "libmpifort": "Fortran",
        "libmpichfort": "Fortran",
        "libmpicxx": "C++",
        "libmpichcxx": "C++",
    },
    OPENMPI: {
        "libmpi": "C",
        "libmpi_mpifh": "Fortran",
        "libmpi_usempi": "Fortran module",
        "libmpi_usempi_ignore_tkr": "Fortran module",
        "libmpi_usempif08": "Fortran 2008",
        "libmpi_cxx": "C++",
        "libmpi_java": "Java",
        "libopen-rte": "runtime",
        "libopen-pal": "portability",
        "liboshmem": "OpenSHMEM",
    },
    ABI: {
        "libmpi_abi": "C",
        "libmpifort_abi": "Fortran",
        "libmpi_abi_fort": "Fortran",
    },
}
_MAJORS = {MPICH: (12,), OPENMPI: (40, 80), ABI: (0, 1)}
_ALIASES = (
    ("libmpi.so.12", "libmpich.so.12"),
    ("libmpifort.so.12", "libmpichfort.so.12"),
    ("libmpicxx.so.12", "libmpichcxx.so.12"),
    ("libmpi_abi.so.1", "libmpi_abi.so.0"),
)
_OPENMPI_MINORS = {"3.0": 0, "3.1": 10, "4.0": 20, "4.1": 30, "5.0": 40}
"""libtool's minor number of each Open MPI series (the VERSION file of its sources)."""

MAIN = {
    "libmpi.so.12": MPICH,
    "libmpich.so.12": MPICH,
    "libmpi.so.40": OPENMPI,
    "libmpi_abi.so.1": ABI,
    "libmpi_abi.so.0": ABI,
}
"""File names of the C libraries, which stand for a whole MPI."""

INTERFACES = ("Fortran", "Fortran module", "Fortran 2008", "C++", "Java")
"""Roles of libraries that call the C library. Where the host has none, the image may keep its
own."""

INNER = ("runtime", "portability")
"""Roles of libraries that only an MPI's own libraries need, and no program of the image."""

SPLIT_OFF = "libopen_mpi.so.40"
"""Open MPI 6 has the inside of libmpi.so.40 in this library, and its mpicc links programs with
both. The libmpi.so.40 of older versions stands for both: ld.so loads a file once, whatever its
names are."""

PUBLIC = (
    "MPI_",
    "PMPI_",
    "MPIX_",
    "mpi_",
    "pmpi_",
    "mpix_",
    "ompi_mpi_",
    "ompi_request_null",
    "ompi_message_",
)
"""How symbols begin that a program gets from mpi.h and from Fortran's modules."""

SYMBOLS = ("MPI_", "PMPI_", "MPIX_", "MPII_", "MPIR_", "mpi_", "pmpi_", "mpix_", "ompi_", "opal_")
"""How the functions of an MPI library begin, its internal ones too."""


class Library(Record):
    """One MPI library, of the host or of an image.

    `path` is the real file; `name` the name that programs ask for ("libmpi.so.12"); `family` and
    `role` say which it is; `version` are libtool's numbers as far as known, `release` is the
    MPI's own ("4.0.2").
    """

    path: str
    name: str
    family: str
    role: str
    version: tuple[int, ...] = ()
    release: str = ""

    def text(self) -> str:
        """Return the library with its version for a message: "libmpi.so.12.1.8 (4.0.2)"."""
        stem = self.name.partition(".so")[0]
        name = f"{stem}.so." + ".".join(map(str, self.version)) if self.version else self.name
        return f"{name} ({self.release})" if self.release else name


def split(name: str) -> tuple[str, tuple[int, ...]]:
    """Return a file name's stem and numbers: "libmpi.so.12.1.8" is ("libmpi", (12, 1, 8))."""
    stem, _, tail = name.partition(".so")
    numbers = []
    for word in tail.split(".")[1:]:
        if not (word.isascii() and word.isdigit()):
            break
        numbers.append(int(word))
    return stem, tuple(numbers)


def identify(name: str, openmpi: bool = False) -> tuple[str, str]:
    """Return (family, role) of a library's SONAME or file name; ("", "") for any other.

    `openmpi` says that the library defines Open MPI's own symbols: Open MPI 1.10 too has a
    libmpi.so.12, and is no family that can be served.
    """
    stem, numbers = split(name)
    if not numbers:
        return "", ""
    for family, roles in _ROLES.items():
        if stem in roles and numbers[0] in _MAJORS[family]:
            if family == MPICH and openmpi:
                return "", ""
            return family, roles[stem]
    return "", ""


def aliases(name: str) -> tuple[str, ...]:
    """Return the other names of the same library that programs may ask for."""
    return tuple(b if a == name else a for a, b in _ALIASES if name in (a, b))


def _libtool(text: str) -> tuple[int, ...]:
    """Return the numbers behind .so for libtool's "current:revision:age", () for any other text."""
    words = text.split(":")
    if len(words) != 3 or not all(w.isascii() and w.isdigit() for w in words):
        return ()
    current, revision, age = map(int, words)
    return (current - age, age, revision) if current >= age else ()


def version(
    family: str, path: str, soname: str, numbers: str = "", release: str = ""
) -> tuple[int, ...]:
    """Return a library's version from what is known of it.

    `path` is the real file ("…/libmpi.so.12.1.8"); `numbers` is MPICH's own statement
    ("14:2:2", its constant MPII_Version_ABI), `release` the MPI's. The last two are used where the
    file's name has no minor number, as in Python wheels and Cray's trees.
    """
    found = split(path.rpartition("/")[2])[1] or split(soname)[1]
    if len(found) >= 2:
        return found
    if family == MPICH and _libtool(numbers):
        return _libtool(numbers)
    if family == OPENMPI and found[:1] == (40,):
        minor = _OPENMPI_MINORS.get(".".join(release.split(".")[:2]))
        if minor is not None:
            return (40, minor)
    return found


def major(host: Library, image: Library) -> str:
    """Sarus' "major": the same major number. Return "" or why not."""
    if host.family != image.family:
        return f"{NAMES[host.family]} can't stand for {NAMES[image.family]}"
    if host.version[:1] != image.version[:1]:
        return "the major numbers differ"
    return ""


def full(host: Library, image: Library) -> str:
    """Sarus' "full": the same major, and a minor at least the image's. Return "" or why not."""
    if why := major(host, image) or _unknown(host, image):
        return why
    if host.version[1] < image.version[1]:
        return "the host's minor number is lower"
    return ""


def strict(host: Library, image: Library) -> str:
    """Sarus' "strict": the same major and minor. Return "" or why not."""
    if why := major(host, image) or _unknown(host, image):
        return why
    if host.version[1] != image.version[1]:
        return "the minor numbers differ"
    return ""


def _unknown(host: Library, image: Library) -> str:
    for whose, library in (("host", host), ("image", image)):
        if len(library.version) < 2:
            return f"the {whose}'s minor number is not known"
    return ""


CHECKS: "dict[str, Callable[[Library, Library], str]]" = {
    "warn": major,
    "major": major,
    "full": full,
    "strict": strict,
}
"""The values of --mpi-compat, the weakest first; with "warn" nothing is refused."""
