"""What no host MPI can be put into, with the exact reason; damaged hosts and images."""

from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.libraries import ldcache
from rootless_udi.mpi_inject.mpi import planner, profiles
from tests.kit import mpihosts as h
from tests.mpi_inject.test_elf import header
from tests.mpi_inject.test_mpi_plan import inject, sources, targets

pytestmark = pytest.mark.needs("gcc")
ARCH = h.ARCH
NONE = "--mpi=none runs the image's own MPI"


def refused(*arguments: Any, **named: Any) -> UdiError:
    with pytest.raises(UdiError) as caught:
        inject(*arguments, **named)
    assert caught.value.hint, "every refusal says what to do"
    return caught.value


def test_musl(tmp_path: Path) -> None:
    image = {
        "/lib/ld-musl-x86_64.so.1": h.library("libc.musl-x86_64.so.1"),
        "/app": h.program(("libmpi.so.12", "libc.musl-x86_64.so.1")),
    }
    error = refused(h.mpich_host(), image, tmp_path)
    assert error.message == (
        "--mpi: the image's C library is musl (Alpine?), the host's MPI needs glibc"
    )
    assert error.hint == (
        f"rebuild the image on Debian, Ubuntu, Rocky or another with glibc, or {NONE}"
    )


def test_no_c_library(tmp_path: Path) -> None:
    error = refused(h.mpich_host(), {"/bin/busybox": b"#!"}, tmp_path)
    assert error.message == "--mpi: the image has no glibc, which the host's MPI needs"


def test_mpi_linked_in_statically(tmp_path: Path) -> None:
    """What a static program looks like: its symbol table, or stripped its texts."""
    inside = header(64, "<", 62) + b"\0MPI_Init\0PMPI_Init\0"
    stripped = header(64, "<", 62) + b"MPI_Init(%p, %p) failed\0MPICH Version:\t%s"
    image = {**h.glibc(), "/app/one": inside, "/app/two": stripped}
    error = refused(h.mpich_host(), image, tmp_path)
    assert error.message == (
        "--mpi: the image's MPI programs (/app/one, /app/two) have their MPI linked in"
        " statically: there is nothing to replace"
    )
    assert error.hint == f"link them with the shared MPI library, or {NONE}"


def test_a_host_without_mpi(tmp_path: Path) -> None:
    error = refused({"/etc/x": b""}, h.mpich_image(), tmp_path)
    assert error.message.startswith("--mpi: no MPI found on this host: not by the variables")
    assert error.hint.startswith("load the site's MPI module first")
    error = refused({"/etc/y": b""}, h.mpich_image(), tmp_path / "b", "openmpi")
    assert error.message.startswith("--mpi: no Open MPI found on this host")


def test_another_family(tmp_path: Path) -> None:
    image = {**h.glibc(), "/app/run": h.program(("libmpi.so.40",))}
    error = refused(h.mpich_host(), image, tmp_path)
    assert error.message == (
        "--mpi: the image needs Open MPI (/app/run), and the host has MPICH in /opt/mpich/lib"
        " (by mpiexec on the PATH)"
    )
    assert error.hint == (
        "load a module of Open MPI, rebuild the image with an MPI of the host's family, or " + NONE
    )


def test_a_program_of_the_standard_abi_on_an_older_mpich(tmp_path: Path) -> None:
    """Also where the image has MPICH's own library beside: that is not what the program needs."""
    image = {**h.mpich_image(h.program(("libmpi_abi.so.1",)))}
    error = refused(h.mpich_host(), image, tmp_path)
    assert "the image needs the MPI standard ABI (/app/run)" in error.message
    assert "libmpi_abi.so (MPICH 5, Intel MPI 2021.17 or later)" in error.hint
    assert inject(h.mpich_host(), image, tmp_path / "asked", "mpich").steps


def test_open_mpi_1_10_is_no_mpich(tmp_path: Path) -> None:
    host = {"/old/lib/libmpi.so.12": h.library("libmpi.so.12", (*h.C, "ompi_mpi_comm_world"))}
    error = refused(host, h.mpich_image(), tmp_path, environ={"MPI_HOME": "/old"})
    assert error.message.startswith("--mpi: no MPI found")
    image = {**h.glibc(), "/a": h.program(undefined=("MPI_Init", "ompi_mpi_comm_world"))}
    error = refused(h.mpich_host(), image, tmp_path / "b")
    assert error.message == (
        "--mpi: the image's programs (/a) need libmpi.so.12 of an MPI that nothing current can"
        " stand for (Open MPI 1 or 2, MPICH before 3.1)"
    )


@pytest.mark.parametrize("name", ["libmpi.so.1", "libmpi.so.20", "libmpich.so.10"])
def test_older_mpis(name: str, tmp_path: Path) -> None:
    image = {**h.glibc(), "/a": h.program((name,))}
    error = refused(h.mpich_host(), image, tmp_path)
    assert f"(/a) need {name} of an MPI that nothing current can stand for" in error.message
    assert error.hint == f"rebuild them with a current MPICH or Open MPI, or {NONE}"


def test_another_machine(tmp_path: Path) -> None:
    host = {"/m/lib/libmpi.so.12": header(64, "<", 183)}
    error = refused(host, h.mpich_image(), tmp_path, environ={"MPI_HOME": "/m"})
    assert error.message == (
        "--mpi: no MPI for the image's machine on this host: /m/lib/libmpi.so.12 is for aarch64"
    )
    host = {"/m/lib/libmpi.so.12": header(32, "<", 62)}
    error = refused(host, h.mpich_image(), tmp_path / "b", environ={"MPI_HOME": "/m"})
    assert error.message.endswith("/m/lib/libmpi.so.12 is for 32 bits")


def test_symbols(tmp_path: Path) -> None:
    used = ("MPI_Init", "MPI_A", "MPI_B", "MPI_C", "MPI_D")
    image = h.mpich_image(h.program(("libmpich.so.12",), used))
    error = refused(h.mpich_host(), image, tmp_path)
    assert error.message == (
        "--mpi: the host's libmpi.so.12.2.2 (/opt/mpich/lib/libmpi.so.12) lacks MPI_A, MPI_B,"
        " MPI_C and 1 more, which the image's programs (/app/run) need"
    )
    assert error.hint == (
        "use a newer MPI of the host (--mpi=PROFILE), rebuild the image with MPICH of the host"
        f" or older, go on without by --mpi-compat=warn, or {NONE}"
    )


def test_symbols_of_the_images_own_fortran_library(tmp_path: Path) -> None:
    image = h.mpich_image(h.program(("libmpichfort.so.12",), ("mpi_init_",)))
    image[f"{ARCH}/libmpichfort.so.12.1.8"] = h.library(
        "libmpichfort.so.12", ("mpi_init_",), ("MPIR_Inner",), ("libmpich.so.12",)
    )
    error = refused(h.mpich_host(), image, tmp_path)
    assert error.message.endswith(
        "lacks MPIR_Inner, which the image's own Fortran or C++ library, for which the host has"
        " none, needs"
    )


OPENMPI = ("libmpi.so.40", "libopen-pal.so.40")


def openmpi_image(inner: str = "ompi_inner") -> h.Tree:
    """Open MPI with a Fortran library, of which the program needs the mpi_f08 one alone."""
    return {
        **h.glibc(),
        "/m/libmpi.so.40": h.library("libmpi.so.40", (*h.C, inner), needed=OPENMPI[1:]),
        "/m/libopen-pal.so.40": h.library("libopen-pal.so.40"),
        "/m/libmpi_mpifh.so.40": h.library(
            "libmpi_mpifh.so.40", ("mpi_send_", "ompi_send_f"), ("MPI_Send", inner), OPENMPI
        ),
        "/m/libmpi_usempif08.so.40": h.library(
            "libmpi_usempif08.so.40",
            ("mpi_send_f08_",),
            ("ompi_send_f",),
            ("libmpi_mpifh.so.40",),
        ),
        "/app/run": h.program(("libmpi_usempif08.so.40",), ("mpi_send_f08_",)),
    }


def openmpi_host(pal: str, exports: tuple[str, ...] = h.C) -> h.Tree:
    return {
        "/m/lib/libmpi.so.40": h.library("libmpi.so.40", exports, needed=(pal,)),
        f"/m/lib/{pal}": h.library(pal),
    }


def test_the_images_own_fortran_library_on_the_hosts_c_library(tmp_path: Path) -> None:
    """Refused where that lacks an inner function or library, also of one that another needs."""
    environ = {"MPI_HOME": "/m", "LD_LIBRARY_PATH": "/m/lib"}
    good = openmpi_host("libopen-pal.so.40", (*h.C, "ompi_inner"))
    found = targets(inject(good, openmpi_image(), tmp_path, environ=environ))
    assert "/m/libmpi.so.40" in found and "/m/libmpi_mpifh.so.40" not in found
    older = openmpi_host("libopen-pal.so.40")
    error = refused(older, openmpi_image(), tmp_path / "older", environ=environ)
    assert "lacks ompi_inner, which the image's own Fortran or C++ library" in error.message
    newer = openmpi_host("libopen-pal.so.80", (*h.C, "ompi_inner"))
    error = refused(newer, openmpi_image(), tmp_path / "newer", environ=environ)
    assert error.message == (
        "--mpi: the image's own libmpi_mpifh.so.40 (/m/libmpi_mpifh.so.40), for which the host has"
        " none, needs libopen-pal.so.40, and the host's libmpi.so.40 (/m/lib/libmpi.so.40) has"
        " another one"
    )
    assert error.hint == (
        "use an MPI of the host that has Fortran and C++ libraries, or is of the image's release"
        f" (--mpi=PROFILE), or {NONE}"
    )


def test_the_images_mpi_f08_library_on_the_hosts_mpif_h_library(tmp_path: Path) -> None:
    environ = {"MPI_HOME": "/m", "LD_LIBRARY_PATH": "/m/lib"}
    host = openmpi_host("libopen-pal.so.40")
    for at, names in enumerate([("mpi_send_", "ompi_send_f"), ("mpi_send_",)]):
        mpifh = h.library("libmpi_mpifh.so.40", names, ("MPI_Send",), ("libmpi.so.40",))
        host = {**host, "/m/lib/libmpi_mpifh.so.40": mpifh}
        if at == 0:
            found = targets(inject(host, openmpi_image(), tmp_path / "good", environ=environ))
            assert "/m/libmpi_mpifh.so.40" in found and "/m/libmpi_usempif08.so.40" not in found
    error = refused(host, openmpi_image(), tmp_path / "bad", environ=environ)
    assert "lacks ompi_send_f, which the image's own Fortran or C++ library" in error.message


def test_images_pulled_before_provided_was_noted(tmp_path: Path) -> None:
    """They ask for more of the host than they need: pulled again, they would run."""
    facts = h.facts(openmpi_image())
    for one in (facts["consumers"]["openmpi"], *facts["libraries"]):
        one.pop("provided", None)
    root = h.write(openmpi_host("libopen-pal.so.40", (*h.C, "ompi_inner")), tmp_path)
    environ = {"MPI_HOME": "/m", "LD_LIBRARY_PATH": "/m/lib"}
    with pytest.raises(UdiError, match="lacks ompi_send_f"):
        planner.inject("auto", "", facts, environ, (), root)


def test_mpi_f08_of_another_compiler(tmp_path: Path) -> None:
    image = h.mpich_image(h.program(("libmpichfort.so.12",), ("mpi_send_f08ts_",)))
    path = f"{ARCH}/libmpichfort.so.12.1.8"
    names = ("mpi_send_f08ts_",)
    image[path] = h.library("libmpichfort.so.12", names, needed=("libgfortran.so.5",))
    host = h.mpich_host()
    host["/opt/mpich/lib/libmpifort.so.12"] = h.library("libmpifort.so.12", names)
    error = refused(host, image, tmp_path)
    assert error.message == (
        "--mpi: the image's programs (/app/run) use mpi_f08, whose array descriptors are each"
        " compiler's own: the image's libmpichfort.so.12 is of gfortran, the host's"
        f" libmpifort.so.12 ({tmp_path}/host/opt/mpich/lib/libmpifort.so.12) of another compiler"
    ).replace(f"{tmp_path}/host", "")
    assert error.hint == (
        "use an MPI of the host that was built with the image's compiler (--mpi=PROFILE), rebuild"
        f" the programs with `use mpi` or the host's compiler, or {NONE}"
    )
    image["/app/run"] = h.program(("libmpichfort.so.12",), ("mpi_send_",))
    host["/opt/mpich/lib/libmpifort.so.12"] = h.library("libmpifort.so.12", ("mpi_send_",))
    assert inject(host, image, tmp_path / "plain").steps


def test_glibc(tmp_path: Path) -> None:
    error = refused(h.mpich_host("2.38"), h.mpich_image(), tmp_path, glibc="never")
    assert error.message.startswith("--mpi: the host's libmpi.so.12 (")
    assert error.message.endswith("needs GLIBC_2.38, and the image's glibc has GLIBC_2.36")
    assert error.hint == (
        "--mpi-glibc=auto brings the host's along, use an MPI of the host that was built on an"
        " older system (--mpi=PROFILE), rebuild the image on one with glibc 2.38 or later,"
        f" or {NONE}"
    )
    assert inject(h.mpich_host("2.36"), h.mpich_image(), tmp_path / "same").steps


def test_glibc_of_a_dependency(tmp_path: Path) -> None:
    host = h.mpich_host()
    host["/opt/mpich/lib/mpich/libfabric.so.1"] = h.library(
        "libfabric.so.1", versions=h.needs("2.39")
    )
    error = refused(host, h.mpich_image(), tmp_path)
    assert "the host's libfabric.so.1 (" in error.message
    assert "needs GLIBC_2.39" in error.message


def test_glibcs_private_symbols(tmp_path: Path) -> None:
    host = h.mpich_host()
    host["/opt/mpich/lib/libmpi.so.12"] = h.library(
        "libmpi.so.12", h.C, versions=(("libc.so.6", "GLIBC_PRIVATE"),)
    )
    error = refused(host, h.mpich_image(), tmp_path, glibc="never")
    assert error.message.endswith("needs glibc's private symbols, which only its own system has")
    assert "glibc of the host or later" in error.hint


@pytest.mark.parametrize(
    ("compat", "numbers", "why", "weaker"),
    [
        ("full", "13:5:1", "the host's minor number is lower", "--mpi-compat=major"),
        ("strict", "14:2:2", "the minor numbers differ", "--mpi-compat=full or =major"),
        ("strict", "", "the host's minor number is not known", "--mpi-compat=full or =major"),
    ],
)
def test_versions(compat: str, numbers: str, why: str, weaker: str, tmp_path: Path) -> None:
    host = {"/m/lib/libmpi.so.12": h.library("libmpi.so.12", h.C, numbers=numbers)}
    image = h.mpich_image()
    image[f"{ARCH}/libmpich.so.12"] = "libmpich.so.12.1.8"
    if compat == "full":
        image[f"{ARCH}/libmpich.so.12.2.0"] = image.pop(f"{ARCH}/libmpich.so.12.1.8")
        image[f"{ARCH}/libmpich.so.12"] = "libmpich.so.12.2.0"
    environ = {"MPI_HOME": "/m"}
    error = refused(host, image, tmp_path, compat=compat, environ=environ)
    assert f"{why} (--mpi-compat={compat})" in error.message
    assert error.hint.startswith(weaker)
    assert inject(host, image, tmp_path / "major", environ=environ).steps


def test_full_and_strict_allow(tmp_path: Path) -> None:
    for numbers, compat in (("13:8:1", "strict"), ("13:9:1", "strict"), ("16:0:4", "full")):
        host = {"/m/lib/libmpi.so.12": h.library("libmpi.so.12", h.C, numbers=numbers)}
        place = tmp_path / numbers.replace(":", "-")
        assert inject(host, h.mpich_image(), place, compat=compat, environ={"MPI_HOME": "/m"}).steps


def test_words_that_mean_nothing(tmp_path: Path) -> None:
    error = refused(h.mpich_host(), h.mpich_image(), tmp_path, compat="loose")
    assert error.message == "--mpi-compat=loose: there is no such check"
    error = refused(h.mpich_host(), h.mpich_image(), tmp_path / "b", "craympi")
    assert error.message == "--mpi=craympi: there is no such MPI profile"
    assert error.hint == "one of auto, none, mpich, openmpi, abi"


DAMAGED = {
    "truncated": h.library("libmpi.so.12", h.C)[:2000],
    "a linker script, not a library": b"INPUT(libmpi.so.12)\n",
    "for aarch64 with 64 bits, not for x86_64": header(64, "<", 183),
    "for i386 with 32 bits, not for x86_64": header(32, "<", 3),
    "empty file": b"",
    "a static library (ar archive)": b"!<arch>\nlibmpi.a",
}


@pytest.mark.parametrize("why", DAMAGED)
def test_what_a_profile_names_wrongly(why: str, tmp_path: Path) -> None:
    profile = profiles.from_dict("site", {"family": "mpich", "libraries": ["/m/libmpi.so.12"]})
    host = {"/m/libmpi.so.12": DAMAGED[why]}
    error = refused(host, h.mpich_image(), tmp_path, "site", site=(profile,))
    assert error.message.startswith("MPI profile site: /m/libmpi.so.12: ")
    assert why in error.message


def test_a_profile_with_a_dangling_link_or_nothing(tmp_path: Path) -> None:
    profile = profiles.from_dict("site", {"family": "mpich", "libraries": ["/m/libmpi.so.12"]})
    host: h.Tree = {"/m/libmpi.so.12": "gone.so"}
    error = refused(host, h.mpich_image(), tmp_path, "site", site=(profile,))
    assert error.message.endswith("/m/libmpi.so.12: a dangling symbolic link to gone.so")
    error = refused({"/x": b""}, h.mpich_image(), tmp_path / "b", "site", site=(profile,))
    assert error.message.endswith("/m/libmpi.so.12: No such file or directory")
    empty = profiles.from_dict("site", {"family": "mpich", "prefix": "/nowhere"})
    error = refused({"/x": b""}, h.mpich_image(), tmp_path / "c", "site", site=(empty,))
    assert error.message == "MPI profile site: no MPICH library below /nowhere"


@pytest.mark.parametrize("why", DAMAGED)
def test_damaged_libraries_on_the_way_are_passed_over(why: str, tmp_path: Path) -> None:
    host = {**h.mpich_host(), "/m/lib/libmpi.so.12": DAMAGED[why]}
    environ = {"MPI_HOME": "/m", "PATH": "/opt/mpich/bin"}
    found = inject(host, h.mpich_image(), tmp_path, environ=environ)
    assert sources(found)[f"{planner.LIB}/libmpi.so.12"].endswith("/opt/mpich/lib/libmpi.so.12")


@pytest.mark.parametrize("cache", [b"", b"garbage" * 99, b"ld.so-1.7.0\0\xff\xff\xff\xff"])
def test_a_garbage_ld_so_cache_is_an_empty_one(cache: bytes, tmp_path: Path) -> None:
    host = {**h.mpich_host(), ldcache.PATH: cache}
    assert inject(host, h.mpich_image(), tmp_path).steps
    image = {**h.mpich_image(), ldcache.PATH: cache}
    assert h.facts(image)["cache"] is False
    assert inject(h.mpich_host(), image, tmp_path / "image").steps


def test_a_library_without_soname(tmp_path: Path) -> None:
    host = {"/m/lib/libmpi.so.12": h.library("", h.C)}
    image = {**h.mpich_image(), "/usr/local/lib/libmpi.so.12": h.library("", h.C)}
    found = inject(host, image, tmp_path, environ={"MPI_HOME": "/m"})
    assert {f"{planner.LIB}/libmpi.so.12", "/usr/local/lib/libmpi.so.12"} <= set(targets(found))


def test_circular_needed_ends(tmp_path: Path) -> None:
    host = {
        "/m/lib/libmpi.so.12": h.library("libmpi.so.12", h.C, needed=("libucp.so.0",)),
        "/usr/lib64/libucp.so.0": h.library("libucp.so.0", needed=("libucs.so.0", "libmpi.so.12")),
        "/usr/lib64/libucs.so.0": h.library("libucs.so.0", needed=("libucp.so.0", "libucs.so.0")),
    }
    found = targets(inject(host, h.mpich_image(), tmp_path, environ={"MPI_HOME": "/m"}))
    assert (
        found.count(f"{planner.LIB}/libucp.so.0") == found.count(f"{planner.LIB}/libucs.so.0") == 1
    )


def test_links_that_go_round_end(tmp_path: Path) -> None:
    host: h.Tree = {"/m/lib/libmpi.so.12": "libmpi.so", "/m/lib/libmpi.so": "libmpi.so.12"}
    assert refused(host, h.mpich_image(), tmp_path, environ={"MPI_HOME": "/m"})
    round_: h.Tree = {"/usr/lib64/libucp.so.0": "b.so", "/usr/lib64/b.so": "libucp.so.0"}
    libmpi = h.library("libmpi.so.12", h.C, needed=("libucp.so.0",))
    host = {**round_, "/usr/lib64/c": "c/d", "/m/lib/libmpi.so.12": libmpi}
    found = inject(host, h.mpich_image(), tmp_path / "b", environ={"MPI_HOME": "/m"})
    assert "the host has no libucp.so.0, which libmpi.so.12 needs" in found.notes
    image = {**h.mpich_image(), "/loop": "/loop/x", "/usr/lib/libmpi.so.12": "/loop/y"}
    assert h.facts(image)["libc"] == "glibc"
