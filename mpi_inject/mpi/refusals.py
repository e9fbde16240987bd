"""Errors that say why a host's MPI can't be used in an image, and what would work."""

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.mpi import command
from rootless_udi.mpi_inject.mpi.gather import kept, wanted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from rootless_udi.mpi_inject.libraries.search import Found
    from rootless_udi.mpi_inject.mpi.discover import HostMpi
    from rootless_udi.mpi_inject.mpi.gather import Gathered

_FORTRAN = (abi.MPICH, "Fortran")
_GO_ON = "go on without by --mpi-compat=warn"
_NONE = "--mpi=none runs the image's own MPI"


def check_image(image: "dict[str, Any]") -> None:
    """Raise UdiError for an image into which no host MPI can be put."""
    if image["libc"] == "musl":
        raise UdiError(
            "--mpi: the image's C library is musl (Alpine?), the host's MPI needs glibc",
            f"rebuild the image on Debian, Ubuntu, Rocky or another with glibc, or {_NONE}",
        )
    if image["static"] and not image["consumers"]:
        files = ", ".join(image["static"][:3])
        raise UdiError(
            f"--mpi: the image's MPI programs ({files}) have their MPI linked in statically:"
            " there is nothing to replace",
            f"link them with the shared MPI library, or {_NONE}",
        )
    other = image["consumers"].get("other")
    if other and len(image["consumers"]) == 1:
        names, files = ", ".join(other["libraries"]), ", ".join(other["files"][:3])
        raise UdiError(
            f"--mpi: the image's programs ({files}) need {names} of an MPI that nothing current"
            " can stand for (Open MPI 1 or 2, MPICH before 3.1)",
            f"rebuild them with a current MPICH or Open MPI, or {_NONE}",
        )
    if image["libc"] != "glibc":
        raise UdiError(
            "--mpi: the image has no glibc, which the host's MPI needs",
            f"rebuild the image on Debian, Ubuntu, Rocky or another with glibc, or {_NONE}",
        )


def no_host_mpi(family: str, foreign: "list[tuple[str, str]]") -> UdiError:
    """Return the error for a host without an MPI (of a family).

    `foreign` has (path, machine) of libraries that are for another machine.
    """
    what = abi.NAMES[family] if family else "MPI"
    if foreign:
        path, machine = foreign[0]
        return UdiError(
            f"--mpi: no {what} for the image's machine on this host: {path} is for {machine}",
            f"use an image for this host's machine, or {_NONE}",
        )
    return UdiError(
        f"--mpi: no {what} found on this host: not by the variables of MPI modules (MPI_HOME,"
        " MPICH_DIR, I_MPI_ROOT, ...), not by mpiexec on the PATH, not in LD_LIBRARY_PATH,"
        " ld.so.cache or the usual prefixes",
        f"load the site's MPI module first, name one by --mpi=PROFILE, or {_NONE}",
    )


def no_family(
    families: "tuple[str, ...]", found: "list[HostMpi]", image: "dict[str, Any]"
) -> UdiError:
    """Return the error for a host with MPIs of which none fits the image's programs."""
    have_families = {f for mpi in found for f in mpi.families}
    families = tuple(f for f in families if f not in have_families) or families
    wanted = " and ".join(abi.NAMES[f] for f in families)
    files = [f for family in families for f in image["consumers"].get(family, {}).get("files", ())]
    by = f" ({files[0]})" if files else ""
    have = "; ".join(m.text() for m in found)
    return UdiError(
        f"--mpi: the image needs {wanted}{by}, and the host has {have}",
        f"load a module of {_modules(families)}, rebuild the image with an MPI of the host's"
        f" family, or {_NONE}",
    )


def _modules(families: "tuple[str, ...]") -> str:
    """Return which modules would help, for a hint."""
    words = {abi.ABI: "an MPI with libmpi_abi.so (MPICH 5, Intel MPI 2021.17 or later)"}
    return " or ".join(words.get(f, abi.NAMES[f]) for f in families)


def refuse_version(host: abi.Library, own: abi.Library, why: str, compat: str) -> UdiError:
    """Return the error for two versions that don't fit."""
    weaker = {
        "strict": "--mpi-compat=full or =major asks for less; ",
        "full": "--mpi-compat=major looks at the symbols alone; ",
    }.get(compat, "")
    return UdiError(
        f"--mpi: the host's {host.text()} ({host.path}) can't replace the image's {own.text()}"
        f" ({own.path}): {why} (--mpi-compat={compat})",
        f"{weaker}use another MPI of the host (--mpi=PROFILE), or {_NONE}",
    )


def fault(got: "Gathered", image: "dict[str, Any]", families: "Iterable[str]") -> "UdiError | None":
    """Return why MPI files of the image can't run on the host's MPI, None where all can."""
    for family in families:
        if error := _kept_fault(got, image, family):
            return error
    for family, symbols in got.lacks.items():
        if lacks := wanted(image, family, got.roles(family)).intersection(symbols):
            return _lacking(got, image, family, sorted(lacks))
    return _descriptors_fault(got, image)


def judge(
    got: "Gathered",
    image: "dict[str, Any]",
    families: "tuple[str, ...]",
    files: "set[str] | None",
    lenient: bool,
) -> tuple[str, ...]:
    """Raise UdiError where files that the command loads can't run; return why other files can't.

    `files` is None where it isn't known what the command loads: then an image is refused only if no
    file of it can run. With `lenient` nothing is refused.
    """
    error = fault(got, image, families)
    if error is None:
        return ()
    every = {f for family in families for f in command.noted(image, family)}
    if files is None or not every:
        fit = {f for f in every if fault(got, command.part(image, {f}), families) is None}
        rest = every - fit
        if not fit and not lenient:
            raise error
    else:
        first = fault(got, command.part(image, files), families)
        if first and not lenient:
            raise first
        rest = every if lenient else every - files
    other = fault(got, command.part(image, rest), families) if rest else error
    return (other.message,) if other else ()


def _lacking(
    got: "Gathered", image: "dict[str, Any]", family: str, symbols: "list[str]"
) -> UdiError:
    """Return the error that names the functions which the host's library lacks, and their users."""
    main = next(lib for lib in got.mains if lib.family == family and lib.role == "C")
    shown = ", ".join(symbols[:3])
    more = f" and {len(symbols) - 3} more" if len(symbols) > 3 else ""
    one = image["consumers"].get(family, {})
    files, hint = command.lacking(image, family, symbols), ""
    if not set(symbols) & set(one.get("symbols", ())):
        whose = "own Fortran or C++ library, for which the host has none, needs"
    elif files or one["count"] == 1:
        whose = f"programs ({_some(files or one['files'])}) need"
    else:
        whose = f"programs need, at least one of {one['count']} ({_some(one['files'])})"
        hint = "`udi pull --force` notes which, so that the others run; "
    return UdiError(
        f"--mpi: the host's {main.text()} ({main.path}) lacks {shown}{more}, which the image's"
        f" {whose}",
        f"{hint}use a newer MPI of the host (--mpi=PROFILE), rebuild the image with"
        f" {abi.NAMES[family]} {main.release or 'of the host'} or older,"
        f" {_GO_ON}, or {_NONE}",
    )


def _some(files: "list[str]") -> str:
    """Return the first of some files for a message."""
    return ", ".join(files[:2]) + (f" and {len(files) - 2} more" if len(files) > 2 else "")


def _kept_fault(got: "Gathered", image: "dict[str, Any]", family: str) -> "UdiError | None":
    """Return the error for an image's library that needs an internal one the host lacks.

    Open MPI 5 has no libopen-pal.so.40, for example. The image's would be loaded beside the host's
    newer one, and each would call the other's functions.
    """
    names = {name for f in got.libraries for name in (f.name, f.elf.soname)}
    main = next((lib for lib in got.mains if lib.family == family and lib.role == "C"), None)
    for own in kept(image, family, got.roles(family)) if main else ():
        for name in own["needed"]:
            if main and abi.identify(name)[1] in abi.INNER and name not in names:
                return UdiError(
                    f"--mpi: the image's own {own['soname']} ({own['path']}), for which the"
                    f" host has none, needs {name}, and the host's {main.text()}"
                    f" ({main.path}) has another one",
                    "use an MPI of the host that has Fortran and C++ libraries, or is of the"
                    f" image's release (--mpi=PROFILE), or {_NONE}",
                )
    return None


def _descriptors_fault(got: "Gathered", image: "dict[str, Any]") -> "UdiError | None":
    """Return the error for programs with MPICH's mpi_f08 and a host's library of another compiler.

    The functions with a buffer (mpi_send_f08ts_) take an array descriptor, which each compiler lays
    out in its own way: from gfortran's, Intel MPI reads a negative count. mpif.h, `use mpi` and
    Open MPI's mpi_f08 pass plain addresses.
    """
    one = image["consumers"].get(abi.MPICH, {})
    symbols = [s for s in one.get("symbols", ()) if s.endswith("_f08ts_")]
    own = [lib for lib in image["libraries"] if (lib["family"], lib["role"]) == _FORTRAN]
    for found in got.libraries if symbols and own else ():
        theirs = _gfortran(found.elf.needed)
        if abi.identify(found.name) == _FORTRAN and theirs != _gfortran(own[0]["needed"]):
            words = ("gfortran", "another compiler")
            host, image_ = words if theirs else words[::-1]
            files = command.lacking(image, abi.MPICH, symbols) or one["files"]
            return UdiError(
                f"--mpi: the image's programs ({_some(files)}) use mpi_f08, whose array descriptors"
                f" are each compiler's own: the image's {own[0]['soname']} is"
                f" of {image_}, the host's {found.name} ({found.real}) of {host}",
                "use an MPI of the host that was built with the image's compiler"
                " (--mpi=PROFILE), rebuild the programs with `use mpi` or the host's compiler,"
                f" or {_NONE}",
            )
    return None


def _gfortran(needed: "Iterable[str]") -> bool:
    """Tell whether a library was built with gfortran."""
    return any(name.startswith("libgfortran.") for name in needed)


def refuse_glibc(
    found: "Found", version: str, image: "dict[str, Any]", beside: str = ""
) -> UdiError:
    """Return the error for a library that needs a newer glibc than the image has.

    `beside` says why the host's glibc can't be put in too, "" where --mpi-glibc=never forbids it.
    """
    have = [v for v in image["libc_versions"] if v.startswith("GLIBC_2")]
    if version == "GLIBC_PRIVATE":
        why = "glibc's private symbols, which only its own system has"
    else:
        why = f"{version}, and the image's glibc has {have[-1] if have else 'none'}"
    number = version.removeprefix("GLIBC_")
    along = f"; the host's glibc can't come along: {beside}" if beside else ""
    hint = "" if beside else "--mpi-glibc=auto brings the host's along, "
    number = number if number[:1].isdigit() else "of the host"
    return UdiError(
        f"--mpi: the host's {found.name} ({found.real}) needs {why}{along}",
        f"{hint}use an MPI of the host that was built on an older system (--mpi=PROFILE), rebuild"
        f" the image on one with glibc {number} or later, or {_NONE}",
    )
