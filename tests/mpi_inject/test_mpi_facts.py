"""What a pull notes of an image: libraries, who needs them, where ld.so looks."""

import json
import subprocess
from pathlib import Path

import pytest

from rootless_udi.mpi_inject.libraries import image_facts, ldcache
from tests.kit import mpi
from tests.kit import mpihosts as h
from tests.mpi_inject.test_ldcache import ENTRIES, new

ARCH = h.ARCH


@pytest.mark.needs("gcc")
def test_an_image(tmp_path: Path) -> None:
    found = h.facts(h.mpich_image())
    assert (found["machine"], found["bits"], found["libc"]) == ("x86_64", 64, "glibc")
    assert found["libc_versions"] == ["GLIBC_2.36", "GLIBC_PRIVATE"]
    assert found["provides"]["libz.so.1"] == ["ZLIB_1.2.9"]
    assert found["provides"]["libmpich.so.12"] == []
    (library,) = [one for one in found["libraries"] if one["role"] == "C"]
    assert library["path"] == f"{ARCH}/libmpich.so.12.1.8"
    assert library["names"] == ["libmpich.so.12", "libmpich.so.12.1.8"]
    assert (library["family"], library["version"]) == ("mpich", [12, 1, 8])
    fortran = next(one for one in found["libraries"] if one["role"] == "Fortran")
    assert fortran["symbols"] == ["MPI_Init"]
    assert found["consumers"] == {
        "mpich": {
            "symbols": ["MPI_Init", "MPI_Send"],
            "libraries": ["libmpich.so.12"],
            "files": ["/app/run"],
            "count": 1,
            "rpath": 0,
            "provided": {},
            "each": [["/app/run", [0, 1], [0]]],
        }
    }
    assert found["reach"] == {"/app/run": ["/app/run"]}
    assert json.loads(json.dumps(found)) == found


@pytest.mark.needs("gcc")
def test_what_the_images_own_fortran_library_has() -> None:
    """Not asked of the host: what programs need of it, and what one of these needs of another."""
    inner, f08 = "ompi_send_f", "mpi_send_f08_"
    mpifh, usempif08 = "libmpi_mpifh.so.40", "libmpi_usempif08.so.40"
    tree: h.Tree = {
        **h.glibc(),
        "/m/libmpi_mpifh.so.40": h.library(
            "libmpi_mpifh.so.40", ("mpi_send_", inner), ("MPI_Send",)
        ),
        "/m/libmpi_usempif08.so.40": h.library(
            "libmpi_usempif08.so.40", (f08,), (inner, "PMPI_Send")
        ),
        "/app/run": h.program(("libmpi_usempif08.so.40",), (f08, "mpi_send_", "MPI_Init")),
    }
    found = h.facts(tree)
    assert found["consumers"]["openmpi"]["provided"] == {
        "Fortran": ["mpi_send_"],
        "Fortran 2008": [f08],
    }
    symbols = {one["soname"]: one["symbols"] for one in found["libraries"] if one["symbols"]}
    assert symbols == {mpifh: ["MPI_Send"], usempif08: ["PMPI_Send", inner]}
    (one,) = [one for one in found["libraries"] if "provided" in one]
    assert (one["soname"], one["provided"]) == (usempif08, {"Fortran": [inner]})


@pytest.mark.needs("gcc")
def test_paths_are_real_whatever_the_links(tmp_path: Path) -> None:
    """A merged /usr, a link to a link, a link out of the root, a hard link."""
    tree: h.Tree = {
        **h.glibc(),
        "/lib64": "/usr/lib64",
        "/usr/lib64/libmpi.so.12": "../../opt/m/libmpi.so.12",
        "/opt/m": "../../../../opt/real",
        "/opt/real/libmpi.so.12": "libmpi.so.12.1.0",
        "/opt/real/libmpi.so.12.1.0": h.library("libmpi.so.12", h.C),
    }
    inspector = image_facts.Inspector()
    for path, content in tree.items():
        if isinstance(content, str):
            inspector.link(path.lstrip("/"), content)
        else:
            inspector.file("./" + path.lstrip("/"), content)
    inspector.same("/opt/hard.so", "/opt/real/libmpi.so.12.1.0")
    found = inspector.result()
    assert [one["path"] for one in found["libraries"]] == [
        "/opt/hard.so",
        "/opt/real/libmpi.so.12.1.0",
    ]
    assert "libmpi.so.12" in found["provides"]


@pytest.mark.needs("gcc")
def test_where_ld_so_looks(tmp_path: Path) -> None:
    tree: h.Tree = {
        **h.glibc(),
        "/etc/ld.so.conf": b"include ld.so.conf.d/*.conf\n/opt/a # a comment\nhwcap 1 nosegneg",
        "/etc/ld.so.conf.d/b.conf": b"/opt/b,/opt/c\n",
        "/opt/b/liba.so.1": h.library("liba.so.1"),
        "/elsewhere/libb.so.1": h.library("libb.so.1"),
    }
    found = h.facts(tree)
    assert found["search"][:3] == ["/opt/b", "/opt/c", "/opt/a"]
    assert found["search"][-1] == "/usr/lib"
    assert "liba.so.1" in found["provides"]
    assert "libb.so.1" not in found["provides"]
    tree[ldcache.PATH] = new("<", 2)
    found = h.facts(tree)
    assert found["cache"] is True
    assert {path.rpartition("/")[0] for _, path in ENTRIES} - {"/lib"} <= set(found["search"])


@pytest.mark.needs("gcc")
def test_where_musl_looks() -> None:
    musl = {"/lib/ld-musl-x86_64.so.1": h.library("libc.musl-x86_64.so.1")}
    found = h.facts(musl)
    assert found["libc"] == "musl"
    assert found["search"] == ["/lib", "/usr/local/lib", "/usr/lib"]
    found = h.facts({**musl, "/etc/ld-musl-x86_64.path": b"/opt/lib:/lib\n/more\n"})
    assert found["search"] == ["/opt/lib", "/lib", "/more"]


@pytest.mark.needs("gcc")
def test_an_mpis_own_tools_and_plugins_are_no_programs() -> None:
    tree: h.Tree = {**h.glibc()}
    for name in ("bin/mpichversion", "bin/ompi_info", "lib/openmpi/mca_pml_ob1.so"):
        tree[f"/usr/{name}"] = h.program(("libmpi.so.40",))
    assert h.facts(tree)["consumers"] == {}


def test_damaged_and_huge_files_are_noted() -> None:
    inspector = image_facts.Inspector()
    assert not inspector.wants("/etc/passwd", 10, b"root")
    assert not inspector.wants("/huge.so", image_facts.LARGEST + 1, b"\x7fELF")
    assert inspector.wants("/cut.so", 20, b"\x7fELF")
    inspector.file("/cut.so", b"\x7fELF\x02\x01")
    assert inspector.result()["unread"] == ["/cut.so", "/huge.so"]


def test_an_empty_image() -> None:
    found = image_facts.Inspector().result()
    assert (found["machine"], found["libc"], found["consumers"]) == ("", "", {})


@pytest.mark.needs("mpich")
def test_a_real_static_program(tmp_path: Path) -> None:
    """Debian's libmpich.a, with its symbol table and stripped; the shared one is no such."""
    static = mpi.program("debian-mpich", "static").read_bytes()
    stripped = tmp_path / "stripped"
    stripped.write_bytes(static)
    subprocess.run(["strip", str(stripped)], check=True)
    shared = mpi.program("debian-mpich").read_bytes()
    inspector = image_facts.Inspector()
    inspector.file("/app/static", static)
    inspector.file("/app/stripped", stripped.read_bytes())
    inspector.file("/app/shared", shared)
    found = inspector.result()
    assert found["static"] == ["/app/static", "/app/stripped"]
    assert found["consumers"]["mpich"]["files"] == ["/app/shared"]
    assert "MPI_Allreduce" in found["consumers"]["mpich"]["symbols"]


@pytest.mark.parametrize(
    ("name", "library", "version", "release"),
    [
        ("mpich-3.4.3", "libmpi.so.12", [12, 1, 12], "3.4.3"),
        ("mpich-4.1.3", "libmpi.so.12", [12, 3, 2], "4.1.3"),
        ("mpich-5.0.2", "libmpi.so.12", [12, 6, 2], "5.0.2"),
        ("mpich-5.0.2", "libmpi_abi.so.1", [1], "5.0.2"),
        ("openmpi-4.1.8", "libmpi.so.40", [40, 30], "4.1.8"),
        ("openmpi-5.0.11", "libmpi.so.40", [40, 40], "5.0.11"),
    ],
)
def test_versions_of_real_mpis(name: str, library: str, version: list[int], release: str) -> None:
    """Wheels' files have no numbers, MPICH 4.1 and later hide their constants."""
    inspector = image_facts.Inspector()
    inspector.file(f"/usr/lib/{library}", (mpi.prefix(name) / "lib" / library).read_bytes())
    (found,) = inspector.result()["libraries"]
    assert (found["version"], found["release"]) == (version, release)
