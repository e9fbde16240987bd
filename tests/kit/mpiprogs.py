"""MPI programs for the tests: compiled with the machine's MPICH and Open MPI, and images for them.

The images are the machine's own distribution with its MPI, so that a program compiled here finds
its libraries inside; the programs lie in /opt/mpi.
"""

import hashlib
import os
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tests.kit import images
from tests.kit.nodes import squashfs
from tests.kit.places import PROGRAMS

SOURCES = PROGRAMS
INSIDE = "/opt/mpi"


@dataclass(frozen=True)
class Kind:
    """An MPI of the machine. `launcher` takes "-n N PROGRAM" after it."""

    name: str
    compiler: str
    launcher: tuple[str, ...]
    package: str
    version: str
    """What MPI_Get_library_version begins with."""
    env: dict[str, str] = field(default_factory=dict)


ALONE = ("--oversubscribe", "--mca", "plm", "isolated")
"""For Open MPI 4: more ranks than cores, and no ssh client to ask for on a machine that has none.
Open MPI 5 has no such component, and asks for ssh only where there is another node."""


@cache
def alone() -> tuple[str, ...]:
    """Return the options by which the machine's own Open MPI starts ranks on this node alone."""
    argv = ["mpiexec.openmpi", "--version"]
    try:
        said = subprocess.run(argv, capture_output=True, text=True).stdout
    except OSError:
        return ALONE
    if ") 4." in said:
        return ALONE
    # Where it finds no other pair of interfaces, it says so, container or not.
    return ("--map-by", ":OVERSUBSCRIBE", "--mca", "btl_tcp_if_include", "lo")


MPICH = Kind("mpich", "mpicc.mpich", ("mpiexec.hydra",), "mpich", "MPICH")
OPENMPI = Kind(
    "openmpi",
    "mpicc.openmpi",
    ("mpiexec.openmpi", *alone()),
    "openmpi-bin",
    "Open MPI",
)
KINDS = {kind.name: kind for kind in (MPICH, OPENMPI)}


def program(kind: Kind, name: str = "mpicheck") -> Path:
    """Compile programs/NAME.c with `kind`'s compiler, once per source, and return the file."""
    source = SOURCES / f"{name}.c"
    target = images.cache() / f"{name}-{kind.name}-{_hash(source.read_bytes())}"
    if not target.exists():
        partial = target.with_name(f"{target.name}.{os.getpid()}")
        argv: list[str | Path] = [
            kind.compiler,
            "-O2",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-o",
            partial,
            source,
        ]
        subprocess.run(argv, check=True)
        partial.rename(target)
    return target


def image(kind: Kind) -> Path:
    """Return a squashfs of the distribution with `kind` and the programs, once per content."""
    root = images.debian_root(codename(), (kind.package,))
    compiled = program(kind)
    layer = images.tar(
        [
            (INSIDE.strip("/"), None, {}),
            (f"{INSIDE}/mpicheck".lstrip("/"), compiled.read_bytes(), {"mode": 0o755}),
        ]
    )
    state = f"{root.stat().st_mtime_ns} {compiled.name}".encode()
    target = images.cache() / f"{kind.name}-{_hash(state)}.squashfs"
    return target if target.exists() else squashfs(target, [root, layer])


@cache
def codename() -> str:
    """Return the release whose packages this machine's apt installs: sid calls itself by the name
    of the next release (os-release(5))."""
    lines = Path("/etc/os-release").read_text().splitlines()
    pairs = dict(line.split("=", 1) for line in lines if "=" in line)
    own = pairs["VERSION_CODENAME"].strip('"')
    argv = ["apt-get", "indextargets", "--format", "$(CODENAME)", "Created-By: Packages"]
    try:
        names = subprocess.run(argv, capture_output=True, text=True).stdout.split()
    except OSError:
        return own
    return own if own in names or not names else names[0]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:12]


@dataclass
class Result:
    """What mpicheck printed, all ranks together."""

    namespaces: dict[int, tuple[str, str]] = field(default_factory=dict)
    node: dict[int, int] = field(default_factory=dict)
    library: dict[int, str] = field(default_factory=dict)
    vm_readv: dict[int, str] = field(default_factory=dict)
    times: dict[tuple[str, int], float] = field(default_factory=dict)
    arrived: bool = False
    done: bool = False


def parse(text: str) -> Result:
    """Read mpicheck's output; lines of others (warnings of a launcher) are passed over."""
    result = Result()
    for line in text.splitlines():
        match line.split():
            case ["rank", rank, "of", _, "node", node, "user", user, "mnt", mnt, "lib", *lib]:
                result.namespaces[int(rank)] = (user, mnt)
                result.node[int(rank)] = int(node)
                result.library[int(rank)] = " ".join(lib)
            case ["vm_readv", rank, what]:
                result.vm_readv[int(rank)] = what
            case [("pingpong" | "allreduce") as what, size, time]:
                result.times[what, int(size)] = float(time)
            case ["arrived"]:
                result.arrived = True
            case ["done"]:
                result.done = True
    return result


def bare(kind: Kind, ranks: int, *arguments: object) -> list[str]:
    """Return the command line of mpicheck without a container."""
    return [*kind.launcher, "-n", str(ranks), str(program(kind)), *map(str, arguments)]


def contained(
    kind: Kind, ranks: int, *arguments: object, options: tuple[str, ...] = ()
) -> list[str]:
    """Return the command line of mpicheck in its image, by the host's launcher."""
    run = ["udi-run", *options, str(image(kind))]
    words = [*run, f"{INSIDE}/mpicheck", *map(str, arguments)]
    return [*kind.launcher, "-n", str(ranks), *words]
