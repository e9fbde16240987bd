"""Host and image trees for MPI plans, made of tiny real libraries: compiled, never run."""

import functools
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rootless_udi.mpi_inject.libraries import elf
from rootless_udi.mpi_inject.libraries.glibc_names import REQUIRED
from rootless_udi.mpi_inject.libraries.image_facts import Inspector

Tree = dict[str, bytes | str]
"""Absolute path -> a file's content, or a symbolic link's target."""
Files = Mapping[str, bytes | str]
"""A tree that is only read."""

ARCH = "/usr/lib/x86_64-linux-gnu"


@functools.cache
def library(
    soname: str = "",
    exports: tuple[str, ...] = (),
    undefined: tuple[str, ...] = (),
    needed: tuple[str, ...] = (),
    defines: tuple[str, ...] = (),
    versions: tuple[tuple[str, str], ...] = (),
    runpath: str = "",
    rpath: str = "",
    numbers: str = "",
) -> bytes:
    """Return a shared library with these symbols, NEEDED, versions defined, versions needed.

    `versions` are pairs (file, version): ("libc.so.6", "GLIBC_2.34"). `numbers` becomes MPICH's
    constant MPII_Version_ABI.
    """
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        lines = [f"int {symbol}(void) {{ return 0; }}" for symbol in exports]
        if numbers:
            lines.append(f'const char MPII_Version_ABI[] = "{numbers}";')
        words = []
        for at, (file, version) in enumerate(versions):
            words.append(str(_versioned(folder / f"v{at}" / file, at, version)))
            lines.append(f"extern int need{at}(void); int use{at}(void) {{ return need{at}(); }}")
        for at, symbol in enumerate(undefined):
            lines.append(f"extern int {symbol}(void); int u{at}(void) {{ return {symbol}(); }}")
        for at, file in enumerate(needed):
            stub = folder / f"n{at}" / file
            stub.parent.mkdir()
            _link(stub, "", [f"-Wl,-soname,{file}"])
            words.append(str(stub))
        if defines:
            script = folder / "versions"
            nodes = [f"{v} {{ {f'local_{i};'} }};" for i, v in enumerate(defines)]
            lines += [f"int local_{i}(void) {{ return 0; }}" for i in range(len(defines))]
            script.write_text("\n".join(nodes))
            words.append(f"-Wl,--version-script={script}")
        words += [f"-Wl,-soname,{soname}"] if soname else []
        words += [f"-Wl,--enable-new-dtags,-rpath,{runpath}"] if runpath else []
        words += [f"-Wl,--disable-new-dtags,-rpath,{rpath}"] if rpath else []
        out = folder / "out.so"
        _link(out, "\n".join(lines), ["-Wl,--no-as-needed", *words])
        return out.read_bytes()


def _versioned(path: Path, at: int, version: str) -> Path:
    """Make a library that defines one function of a version, for others to need."""
    path.parent.mkdir()
    script = path.with_suffix(".map")
    script.write_text(f"{version} {{ need{at}; }};")
    words = [f"-Wl,-soname,{path.name}", f"-Wl,--version-script={script}"]
    _link(path, f"int need{at}(void) {{ return 0; }}", words)
    return path


def _link(out: Path, source: str, words: list[str]) -> None:
    argv = ["gcc", "-shared", "-fPIC", "-nostdlib", "-xc", "-", "-xnone", *words, "-o", str(out)]
    subprocess.run(argv, input=source, text=True, check=True, capture_output=True)


def write(tree: Files, root: Path) -> str:
    """Write a tree below `root` and return that as text."""
    for name, content in tree.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
    return str(root)


def facts(tree: Files) -> dict[str, Any]:
    """Return what a pull notes of an image with these files."""
    inspector = Inspector()
    for path, content in tree.items():
        if isinstance(content, str):
            inspector.link(path, content)
        elif inspector.wants(path, len(content), content[:4]):
            inspector.file(path, content)
    return inspector.result()


def needs(version: str) -> tuple[tuple[str, str], ...]:
    """Return the `versions` of a library that needs this glibc."""
    return (("libc.so.6", f"GLIBC_{version}"),)


def glibc(version: str = "2.36") -> Tree:
    """Return the C library of an image."""
    libc = library("libc.so.6", defines=("GLIBC_2.2.5", f"GLIBC_{version}", "GLIBC_PRIVATE"))
    return {f"{ARCH}/libc.so.6": libc, "/lib": "usr/lib"}


LOADER = "/lib64/ld-linux-x86-64.so.2"
PLAIN = tuple(name for name in REQUIRED if name != "libc.so.6")


def whole_glibc(version: str, folder: str = ARCH, more: tuple[str, ...] = ()) -> Tree:
    """Return all files of a glibc: libc has `version` as its newest, and the names of `more`."""
    names = ("GLIBC_2.2.5", *(f"GLIBC_{v}" for v in ("2.31", "2.36", "2.41") if v <= version))
    loader = f"{folder}/ld-linux-x86-64.so.2"
    libc = library("libc.so.6", defines=(*names, *more, "GLIBC_PRIVATE"))
    plain = {f"{folder}/{name}": library(name, defines=("GLIBC_2.2.5",)) for name in PLAIN}
    usr: Tree = {"/lib": "usr/lib", "/lib64": "usr/lib64"}
    return {
        **usr,
        **plain,
        f"{folder}/libc.so.6": libc,
        f"{folder}/libnss_compat.so.2": library("libnss_compat.so.2", defines=("GLIBC_PRIVATE",)),
        loader: library("ld-linux-x86-64.so.2", defines=("GLIBC_2.2.5", "GLIBC_PRIVATE")),
        **({f"/usr{LOADER}": loader} if f"/usr{LOADER}" != loader else {}),
    }


C = ("MPI_Init", "PMPI_Init", "MPI_Send", "MPI_Finalize")
NEWER = (*C, "MPI_Session_init")


def program(
    needed: tuple[str, ...] = ("libmpi.so.12",),
    undefined: tuple[str, ...] = ("MPI_Init", "MPI_Send"),
    rpath: str = "",
) -> bytes:
    """Return what stands for a program: it needs an MPI library and functions of it."""
    return library(undefined=undefined, needed=needed, rpath=rpath)


def mpich_host(glibc_version: str = "2.17", exports: tuple[str, ...] = NEWER) -> Tree:
    """Return a host with MPICH in /opt/mpich: its own libfabric and UCX, plugins, a tool."""
    needs_glibc = needs(glibc_version)
    return {
        "/opt/mpich/bin/mpiexec": b"#!/bin/sh\n",
        "/opt/mpich/lib/libmpi.so.12": library(
            "libmpi.so.12",
            exports,
            needed=("libfabric.so.1", "libucp.so.0", "libz.so.1"),
            versions=needs_glibc,
            runpath="$ORIGIN/mpich",
            numbers="14:2:2",
        ),
        "/opt/mpich/lib/mpich/libfabric.so.1": library(
            "libfabric.so.1", ("fi_version",), defines=("FABRIC_1.0", "FABRIC_1.7")
        ),
        "/opt/mpich/lib/mpich/libfabric/libverbs-fi.so": library("libverbs-fi.so"),
        "/opt/mpich/lib/mpich/libucp.so.0": library(
            "libucp.so.0", needed=("libucs.so.0",), runpath="${ORIGIN}"
        ),
        "/opt/mpich/lib/mpich/libucs.so.0": library("libucs.so.0", needed=("libucp.so.0",)),
        "/opt/mpich/lib/mpich/ucx/libuct_cma.so.0": library("libuct_cma.so.0"),
        "/usr/lib64/libz.so.1": library("libz.so.1", defines=("ZLIB_1.2.9",)),
    }


def openmpi_host() -> Tree:
    """Return a host with a distribution's Open MPI: everything in the system's folders."""
    base = ("libopen-pal.so.40",)
    return {
        "/usr/bin/mpirun.openmpi": b"#!/bin/sh\n",
        "/usr/bin/mpiexec": "/etc/alternatives/mpirun",
        "/etc/alternatives/mpirun": "/usr/bin/mpirun.openmpi",
        "/etc/openmpi/openmpi-mca-params.conf": b"mtl = ^ofi\n",
        "/usr/share/openmpi/help-mpi-runtime.txt": b"[mpi_init:startup]\n",
        f"{ARCH}/libmpi.so.40": "libmpi.so.40.30.4",
        f"{ARCH}/libmpi.so.40.30.4": library(
            "libmpi.so.40", (*C, "ompi_mpi_comm_world"), needed=(*base, "libhwloc.so.15")
        ),
        f"{ARCH}/libmpi_mpifh.so.40": library(
            "libmpi_mpifh.so.40", ("mpi_init_",), needed=("libmpi.so.40",)
        ),
        f"{ARCH}/libopen-pal.so.40": library("libopen-pal.so.40", ("opal_init",)),
        f"{ARCH}/libhwloc.so.15": library("libhwloc.so.15"),
        f"{ARCH}/libpmix.so.2": library("libpmix.so.2"),
        f"{ARCH}/libmca_common_sm.so.40": library("libmca_common_sm.so.40"),
        f"{ARCH}/openmpi/lib/openmpi3/mca_pmix_ext3x.so": library(needed=("libpmix.so.2",)),
        f"{ARCH}/openmpi/lib/openmpi3/mca_coll_sm.so": library(needed=("libmca_common_sm.so.40",)),
    }


def mpich_image(program_: bytes | None = None, glibc_version: str = "2.36") -> Tree:
    """Return an image with Debian's names of MPICH and a program."""
    return {
        **glibc(glibc_version),
        f"{ARCH}/libmpich.so.12": "libmpich.so.12.1.8",
        f"{ARCH}/libmpich.so.12.1.8": library("libmpich.so.12", C),
        f"{ARCH}/libmpichfort.so.12.1.8": library(
            "libmpichfort.so.12", ("mpi_init_",), ("MPI_Init",), ("libmpich.so.12",)
        ),
        f"{ARCH}/libz.so.1": library("libz.so.1", defines=("ZLIB_1.2.9",)),
        "/app/run": program_ or program(("libmpich.so.12",)),
    }


@functools.cache
def executable_stack() -> bytes:
    """Return a library that asks for an executable stack."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        _link(Path(name) / "out.so", "int f(void) { return 0; }", ["-Wl,-z,execstack"])
        return (Path(name) / "out.so").read_bytes()


@functools.cache
def with_loader(library_: bytes, loader: str) -> bytes:
    """Return a program that names `loader` in PT_INTERP and needs what a library needs."""
    needed = elf.parse(library_).needed
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        words = []
        for soname in needed:
            _link(folder / soname, "int MPI_Init(void) { return 0; }", [f"-Wl,-soname,{soname}"])
            words.append(str(folder / soname))
        source = "int MPI_Init(void); int main(void) { return MPI_Init(); }"
        source = source if needed else "int main(void) { return 0; }"
        argv = ["gcc", "-nostdlib", "-pie", "-xc", "-", "-xnone", "-Wl,--no-as-needed", *words]
        argv += [f"-Wl,--dynamic-linker={loader}", "-Wl,-e,main", "-o", str(folder / "out")]
        subprocess.run(argv, input=source, text=True, check=True, capture_output=True)
        return (folder / "out").read_bytes()


@functools.cache
def static_with_nss() -> bytes:
    """Return a static program that asks NSS for names, as busybox does."""
    source = '#include <pwd.h>\nint main(void) { return getpwnam("root") == 0; }'
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        out = Path(name) / "out"
        argv = ["gcc", "-static", "-xc", "-", "-o", str(out)]
        subprocess.run(argv, input=source, text=True, check=True, capture_output=True)
        return out.read_bytes()
