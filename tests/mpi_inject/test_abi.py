"""Which MPI library is which, and the three predicates, by tables."""

import pytest

from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.libraries.symbols import lacking, newest

pytestmark = pytest.mark.alike


def library(family: str = "mpich", version: tuple[int, ...] = (12, 1, 8)) -> abi.Library:
    return abi.Library("/lib/x", "libmpi.so.12", family, "C", version)


@pytest.mark.parametrize(
    ("name", "family", "role"),
    [
        ("libmpi.so.12", "mpich", "C"),
        ("libmpi.so.12.1.8", "mpich", "C"),
        ("libmpich.so.12", "mpich", "C"),
        ("libmpifort.so.12", "mpich", "Fortran"),
        ("libmpichfort.so.12.2.2", "mpich", "Fortran"),
        ("libmpicxx.so.12", "mpich", "C++"),
        ("libmpi.so.40", "openmpi", "C"),
        ("libmpi_mpifh.so.40", "openmpi", "Fortran"),
        ("libmpi_usempif08.so.40", "openmpi", "Fortran 2008"),
        ("libmpi_usempi_ignore_tkr.so.40", "openmpi", "Fortran module"),
        ("libmpi_cxx.so.40", "openmpi", "C++"),
        ("libopen-pal.so.80", "openmpi", "portability"),
        ("libmpi_abi.so.1", "abi", "C"),
        ("libmpi_abi.so.0", "abi", "C"),
        ("libmpifort_abi.so.1", "abi", "Fortran"),
        ("libmpi.so", "", ""),
        ("libmpi.so.1", "", ""),
        ("libmpich.so.10", "", ""),
        ("libmpi.so.20", "", ""),
        ("libmpi_ilp64.so.4", "", ""),
        ("libmpifoo.so.12", "", ""),
        ("libm.so.6", "", ""),
        ("", "", ""),
    ],
)
def test_names(name: str, family: str, role: str) -> None:
    assert abi.identify(name) == (family, role)


def test_open_mpi_1_10_is_not_taken_for_mpich() -> None:
    assert abi.identify("libmpi.so.12", openmpi=True) == ("", "")
    assert abi.identify("libmpi.so.40", openmpi=True) == ("openmpi", "C")


def test_other_names_of_a_library() -> None:
    assert abi.aliases("libmpich.so.12") == ("libmpi.so.12",)
    assert abi.aliases("libmpifort.so.12") == ("libmpichfort.so.12",)
    assert abi.aliases("libmpi.so.40") == ()


@pytest.mark.parametrize(
    ("family", "path", "soname", "numbers", "release", "version"),
    [
        ("mpich", "/l/libmpi.so.12.1.8", "libmpi.so.12", "", "", (12, 1, 8)),
        ("mpich", "/l/libmpi.so.12", "libmpi.so.12", "14:2:2", "4.0.2", (12, 2, 2)),
        ("mpich", "/l/libmpi.so.12", "libmpi.so.12", "nonsense", "", (12,)),
        ("mpich", "/l/libmpi.so.12", "libmpi.so.12", "1:2:9", "", (12,)),
        ("mpich", "/l/libmpi.so", "libmpi.so.12", "", "", (12,)),
        ("openmpi", "/l/libmpi.so.40.30.4", "libmpi.so.40", "", "4.1.4", (40, 30, 4)),
        ("openmpi", "/l/libmpi.so.40", "libmpi.so.40", "", "5.0.11", (40, 40)),
        ("openmpi", "/l/libmpi.so.40", "libmpi.so.40", "", "9.9.9", (40,)),
        ("abi", "/l/libmpi_abi.so.1.0", "libmpi_abi.so.1", "18:2:6", "5.0.2", (1, 0)),
    ],
)
def test_versions(
    family: str, path: str, soname: str, numbers: str, release: str, version: tuple[int, ...]
) -> None:
    assert abi.version(family, path, soname, numbers, release) == version


@pytest.mark.parametrize(
    ("host", "image", "major", "full", "strict"),
    [
        ((12, 1, 8), (12, 1, 8), True, True, True),
        ((12, 1, 9), (12, 1, 8), True, True, True),
        ((12, 5, 0), (12, 1, 8), True, True, False),
        ((12, 1, 8), (12, 5, 0), True, False, False),
        ((40, 30, 4), (12, 1, 8), False, False, False),
        ((12,), (12, 1, 8), True, False, False),
        ((12, 1), (12,), True, False, False),
    ],
)
def test_predicates(
    host: tuple[int, ...], image: tuple[int, ...], major: bool, full: bool, strict: bool
) -> None:
    pair = library(version=host), library(version=image)
    for name, wanted in (("major", major), ("full", full), ("strict", strict)):
        assert (abi.CHECKS[name](*pair) == "") is wanted, name


def test_reasons() -> None:
    assert abi.major(library("openmpi"), library()) == "Open MPI can't stand for MPICH"
    assert abi.full(library(version=(12, 1)), library(version=(12, 2))) == (
        "the host's minor number is lower"
    )
    assert abi.strict(library(version=(12, 2)), library(version=(12, 1))) == (
        "the minor numbers differ"
    )
    assert abi.full(library(version=(12,)), library()) == "the host's minor number is not known"
    assert abi.strict(library(), library(version=(12,))) == "the image's minor number is not known"


def test_text() -> None:
    assert library().replace(release="3.4.3").text() == "libmpi.so.12.1.8 (3.4.3)"
    assert library(version=()).text() == "libmpi.so.12"


@pytest.mark.parametrize(
    ("needed", "defined", "gone"),
    [
        (["GLIBC_2.34"], ["GLIBC_2.36"], []),
        (["GLIBC_2.4"], ["GLIBC_2.36"], []),
        (["GLIBC_2.38", "GLIBC_2.2.5"], ["GLIBC_2.36"], ["GLIBC_2.38"]),
        (["GLIBC_ABI_DT_RELR"], ["GLIBC_2.31"], ["GLIBC_ABI_DT_RELR"]),
        (["GLIBCXX_3.4.30"], ["GLIBCXX_3.4.28", "CXXABI_1.3"], ["GLIBCXX_3.4.30"]),
        (["FABRIC_1.7"], ["FABRIC_1.6"], ["FABRIC_1.7"]),
        (["LIBFOO"], ["LIBFOO"], []),
        (["ANY_1.0"], [], []),
    ],
)
def test_symbol_versions(needed: list[str], defined: list[str], gone: list[str]) -> None:
    assert lacking(needed, defined) == gone


def test_newest_of_each_series() -> None:
    assert newest(["GLIBC_2.2.5", "GLIBC_2.34", "GLIBC_2.4", "X_1", "PLAIN"]) == [
        "GLIBC_2.34",
        "PLAIN",
        "X_1",
    ]
