"""What a command will load decides whether it may run on the host's MPI; the rest is a warning."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.mpi import command, planner
from rootless_udi.plan.steps import Injection
from tests.kit import mpihosts as h

pytestmark = pytest.mark.needs("gcc")
ARCH = h.ARCH
PACKAGES = "/usr/lib/python3/dist-packages"
LACKS = ("MPI_Init", "MPI_Later")
"""What a file of the image needs: the host has the first of them."""

PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}


def executable(needed: tuple[str, ...] = ()) -> bytes:
    """Return a real program's file, of which the loader would want `needed`."""
    source = "int main(void) { return 0; }"
    with tempfile.TemporaryDirectory(dir="/dev/shm") as name:
        stubs = [Path(name, one) for one in needed]
        for stub in stubs:
            stub.write_bytes(h.library(stub.name))
        out = Path(name, "program")
        argv = ["gcc", "-xc", "-", "-xnone", "-Wl,--no-as-needed", *map(str, stubs), "-o", str(out)]
        subprocess.run(argv, input=source, text=True, check=True)
        return out.read_bytes()


def image() -> h.Tree:
    """An image of many programs: one by its library alone, one of Python's packages, scripts."""
    return {
        **h.mpich_image(h.program(("libmpich.so.12",))),
        "/bin": "usr/bin",
        "/usr/bin/lmp": "/etc/alternatives/lmp",
        "/etc/alternatives/lmp": "/usr/bin/lmp_mpi",
        "/usr/bin/lmp_mpi": executable(("liblammps.so.0",)),
        "/usr/bin/newer": executable(("libnewer.so.1",)),
        "/usr/bin/python3": executable(),
        "/usr/bin/gpaw": b"#!/usr/bin/env python3\nimport gpaw\n",
        "/usr/bin/tune": b"#!/bin/sh\nexec newer\n",
        f"{ARCH}/liblammps.so.0": h.library(
            "liblammps.so.0", undefined=("MPI_Init",), needed=("libmpich.so.12",)
        ),
        f"{ARCH}/libnewer.so.1": h.library(
            "libnewer.so.1", undefined=LACKS, needed=("libmpich.so.12",)
        ),
        f"{PACKAGES}/h5py/defs.so": h.library(needed=("libhdf5_mpi.so.1",)),
        f"{ARCH}/libhdf5_mpi.so.1": h.library(
            "libhdf5_mpi.so.1", undefined=LACKS, needed=("libmpich.so.12",)
        ),
        "/opt/own/ext.so": h.library(undefined=LACKS, needed=("libmpich.so.12",)),
    }


FACTS: dict[str, Any] = {}


def facts() -> dict[str, Any]:
    if not FACTS:
        FACTS.update(h.facts(image()))
    return FACTS


def inject(
    tmp_path: Path, *words: str, compat: str = "", known: dict[str, Any] | None = None
) -> Injection:
    root = str(tmp_path / "host")
    if not Path(root).exists():
        h.write(h.mpich_host(), Path(root))
    environ = {"PATH": "/opt/mpich/bin"}
    return planner.inject("", compat, known or facts(), environ, (), root, words, PATH)


LAMMPS, NEWER, HDF5 = (f"{ARCH}/lib{n}" for n in ("lammps.so.0", "newer.so.1", "hdf5_mpi.so.1"))
LOADED: list[tuple[str, set[str] | None]] = [
    ("lmp -in in.melt", {LAMMPS}),
    ("/usr/bin/lmp", {LAMMPS}),
    ("/bin/lmp_mpi", {LAMMPS}),
    ("/app/run", {"/app/run"}),
    ("newer", {NEWER}),
    ("python3 run.py", {HDF5}),
    ("python3.11 -m mpi4py run.py", {HDF5}),
    ("gpaw python job.py", {HDF5}),
    ("time numactl -N0 lmp", {LAMMPS}),
    ("sh -c 'ulimit -s unlimited;exec lmp'", {LAMMPS}),
    ("./select_gpu newer -x", {NEWER}),
    ("python3 -u drive.py /app/run", {HDF5, "/app/run"}),
    ("ls -l /app/run", set()),
    ("Rscript job.R", set()),
    ("sh", None),
    ("tune", None),
    ("/home/me/solve", None),
]


@pytest.mark.parametrize(("text", "files"), LOADED)
def test_what_a_command_loads(text: str, files: set[str] | None) -> None:
    words = text.split(" ", 2) if text.startswith("sh -c") else text.split()
    assert command.loaded(facts(), words, PATH) == files


def test_packages_of_pythonpath() -> None:
    env = {**PATH, "PYTHONPATH": "/x:/opt/own/"}
    assert command.loaded(facts(), ["python3"], env) == {HDF5, "/opt/own/ext.so"}


@pytest.mark.parametrize("text", ["lmp", "/app/run", "sh", "/home/me/solve", "ls"])
def test_what_can_run_runs_and_others_are_a_warning(text: str, tmp_path: Path) -> None:
    found = inject(tmp_path, text)
    assert found.warnings == (
        "--mpi: the host's libmpi.so.12.2.2 (/opt/mpich/lib/libmpi.so.12) lacks MPI_Later, which"
        f" the image's programs (/opt/own/ext.so, {HDF5} and 1 more) need",
    )


@pytest.mark.parametrize(
    ("text", "files"),
    [("newer", NEWER), ("python3 x", HDF5), ("gpaw", HDF5), ("time newer", NEWER)],
)
def test_what_can_not_run_is_refused_by_the_files_that_lack(
    text: str, files: str, tmp_path: Path
) -> None:
    with pytest.raises(UdiError) as caught:
        inject(tmp_path, *text.split())
    assert caught.value.message.endswith(
        f"lacks MPI_Later, which the image's programs ({files}) need"
    )
    assert "go on without by --mpi-compat=warn" in caught.value.hint
    found = inject(tmp_path, *text.split(), compat="warn")
    assert found.steps and len(found.warnings) == 1


def test_unknown_commands_of_an_image_in_which_nothing_can_run(tmp_path: Path) -> None:
    tree = h.mpich_image(h.program(("libmpich.so.12",), LACKS))
    with pytest.raises(UdiError, match=r"programs \(/app/run\) need"):
        inject(tmp_path, "sh", "job.sh", known=h.facts(tree))
    assert inject(tmp_path, "sh", "job.sh", known=h.facts(tree), compat="warn").warnings


def test_no_warning_where_nothing_lacks(tmp_path: Path) -> None:
    assert inject(tmp_path, "lmp", known=h.facts(h.mpich_image())).warnings == ()


def test_facts_of_older_pulls_judge_the_image_as_a_whole(tmp_path: Path) -> None:
    """And accuse nobody: the message says that it isn't known whose need it is."""
    known = facts()
    old = {
        **{key: value for key, value in known.items() if key != "reach"},
        "consumers": {
            family: {key: value for key, value in one.items() if key != "each"}
            for family, one in known["consumers"].items()
        },
    }
    with pytest.raises(UdiError) as caught:
        inject(tmp_path, "lmp", known=old)
    assert "which the image's programs need, at least one of 5 (/app/run, " in caught.value.message
    assert "udi pull --force" in caught.value.hint
    assert inject(tmp_path, "lmp", known=old, compat="warn").warnings


def test_a_command_of_one_of_two_families(tmp_path: Path) -> None:
    """An image with both: the host's MPI is that of the command's family."""
    tree = {
        **h.mpich_image(executable(("libmpich.so.12",))),
        "/app/other": executable(("libmpi.so.40",)),
    }
    known = h.facts(tree)
    assert inject(tmp_path, "/app/run", known=known).steps
    with pytest.raises(UdiError, match=r"the image needs Open MPI \(/app/other\)"):
        inject(tmp_path, "/app/other", known=known)


def test_two_libraries_of_one_name_are_told_apart_as_ld_so_does() -> None:
    """By RPATH with $ORIGIN, else by ld.so's folders, else both may be meant."""
    tree: h.Tree = {
        **h.glibc(),
        "/a/lib/libx.so.1": h.library("libx.so.1", undefined=LACKS, needed=("libmpi.so.12",)),
        "/b/lib/libx.so.1": h.library("libx.so.1", undefined=LACKS, needed=("libmpi.so.12",)),
        "/a/bin/run": h.library(needed=("libx.so.1",), runpath="$ORIGIN/../lib"),
        "/c/run": h.library(needed=("libx.so.1",)),
    }
    reach = h.facts(tree)["reach"]
    assert reach["/a/bin/run"] == ["/a/lib/libx.so.1"]
    assert reach["/c/run"] == ["/a/lib/libx.so.1", "/b/lib/libx.so.1"]
    tree["/etc/ld.so.conf"] = b"/b/lib\n"
    assert h.facts(tree)["reach"]["/c/run"] == ["/b/lib/libx.so.1"]
