"""The examples of captures, made of public documents: rootless_udi/forecast/sites/*.json.

    python3 -m tests.kit.examplesites          write them anew

What no document says is taken from builds of the same versions that are public, and each file's
"source" says which: the symbols of MPI libraries are those of Debian 11 (MPICH 3.4.1, Open MPI
4.1.0), as those of glibc are (2.31), whose versions above 2.28 are left out for the older system.
"""

import json
import os
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import archspec.cpu

from rootless_udi.forecast import capturempi, places, site
from rootless_udi.forecast.site import FORMAT, VERSION, Capture
from tests.kit import images
from tests.kit.places import TREE

FOLDER = TREE / "rootless_udi/forecast/sites"
GIB = 1 << 30
NOTE = (
    "an example, made of public documents, not taken on the machine; symbols of MPI are those of"
    " Debian 11's {build}, symbol versions of glibc those of Debian 11"
    " (2.31){older}; what libraries need of glibc is taken to be the newest that the system has;"
    " versions of kernel, driver and batch system are assumed"
)


def cpu(name: str, model: str, cores: int) -> dict[str, Any]:
    """Return the section "cpu" of a processor that archspec knows."""
    one = archspec.cpu.TARGETS[name]
    return {
        "name": one.name,
        "vendor": one.vendor,
        "generic": one.generic.name,
        "model": model,
        "cores": cores,
        "features": sorted(one.features),
    }


def system(kernel: str, name: str, overlay: bool) -> dict[str, Any]:
    return {
        "machine": "x86_64",
        "kernel": kernel,
        "os": name,
        "pagesize": 4096,
        "userns": True,
        "fuse": True,
        "overlay": overlay,
        "findings": [],
    }


@contextmanager
def bullseye(package: str) -> Iterator[str]:
    """Unpack the libraries of Debian 11 with a package in them; yield the root."""
    archive = images.debian_root("bullseye", ("python3", package))
    with tempfile.TemporaryDirectory() as root:
        with tarfile.open(archive) as tar:
            tar.extractall(root, [member for member in tar if _is_library(member)])
        yield root


def glibc(folder: str, newest: tuple[int, int]) -> dict[str, Any]:
    """Return the section "libc": Debian 11's, without versions above `newest`."""
    with bullseye("libmpich12") as root:
        found = capturempi.glibc("x86_64", root)

    def fits(version: str) -> bool:
        numbers = version.removeprefix("GLIBC_").split(".")
        return not numbers[0].isdigit() or (int(numbers[0]), int(numbers[1])) <= newest

    files = {
        name: [f"{folder}/{name}", [v for v in versions if fits(v)]]
        for name, (_real, versions) in found["files"].items()
    }
    return {"folder": folder, "files": files}


def _is_library(member: tarfile.TarInfo) -> bool:
    name = member.name.removeprefix("./")
    return name in ("lib", "lib64", "usr", "etc/ld.so.cache") or any(
        part in name for part in ("x86_64-linux-gnu", "lib64", "etc/alternatives")
    )


_NAMES = {"libmpich": "libmpi", "libmpichfort": "libmpifort", "libmpichcxx": "libmpicxx"}
"""Debian's names of MPICH's libraries -> those that other builds have."""


def libraries(
    package: str, folder: str, version: str, extra: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the rows of a package's MPI libraries as if they lay in `folder`.

    `version` is the newest glibc that they need; `extra` are rows of what they need besides.
    """

    def renamed(name: str) -> str:
        stem, dot, tail = name.partition(".so")
        return _NAMES.get(stem, stem) + dot + tail

    with bullseye(package) as root:
        section = capturempi.capture({"PATH": ""}, "x86_64", root)
    needed = [one["soname"] for one in extra]
    rows = []
    for one in section["libraries"]:
        if "exports" not in one and not one["soname"].startswith("libopen-"):
            continue
        name = renamed(one["soname"])
        ours = ("libmpi", "libopen-", "libgfortran", "libc.", "libm.")
        own = [n for n in map(renamed, one.get("needed", ())) if n.startswith(ours)]
        kept = {key: one[key] for key in ("exports", "numbers") if one.get(key)}
        first = name.startswith("libmpi.")
        rows.append(
            {
                "path": f"{folder}/{name}",
                "soname": name,
                "needed": list(dict.fromkeys([*own, *(needed if first else ())])),
                "needs": {"libc.so.6": ["GLIBC_2.2.5", f"GLIBC_{version}"]},
                **kept,
            }
        )
    return rows + extra


def row(path: str, needed: tuple[str, ...] = (), version: str = "2.14") -> dict[str, Any]:
    """Return a library below an MPI, found by ld.so.cache."""
    name = path.rpartition("/")[2]
    return {
        "path": path,
        "soname": name,
        "needed": [*needed, "libc.so.6"],
        "needs": {"libc.so.6": ["GLIBC_2.2.5", f"GLIBC_{version}"]},
        "cached": [name],
    }


def cray(version: str) -> dict[str, Any]:
    """Return the section "mpi" of Cray MPICH, which is built on MPICH 3.4a2."""
    prefix = f"/opt/cray/pe/mpich/{version}/ofi/gnu/9.1"
    folder = f"{prefix}/lib-abi-mpich"
    pe = "/opt/cray/pe/lib64"
    below = [
        row("/opt/cray/libfabric/1.20.1/lib64/libfabric.so.1", ("libcxi.so.1",)),
        row("/usr/lib64/libcxi.so.1"),
        row(f"{pe}/libpmi.so.0", ("libpals.so.0",)),
        row(f"{pe}/libpmi2.so.0", ("libpals.so.0",)),
        row("/opt/cray/pe/lib64/libpals.so.0"),
        row("/opt/cray/xpmem/default/lib64/libxpmem.so.0"),
    ]
    rows = libraries("libmpich12", folder, "2.31", below)
    for one in rows:
        if one["soname"] == "libmpi.so.12":
            one |= {"numbers": "13:12:1", "release": "3.4a2"}
    return {
        "found": [
            {
                "family": "mpich",
                "folder": folder,
                "version": f"Cray MPICH {version} (MPICH 3.4a2)",
                "by": "CRAY_MPICH_DIR",
            }
        ],
        "environ": {"CRAY_MPICH_DIR": prefix},
        "links": [],
        "libraries": rows,
        "trees": [],
        "plugins": {},
        "fabric": True,
    }


def perlmutter() -> dict[str, Any]:
    return {
        "name": "perlmutter-like",
        "source": [
            "https://docs.nersc.gov/systems/perlmutter/architecture/",
            "https://docs.nersc.gov/filesystems/",
            "https://docs.nersc.gov/development/programming-models/mpi/",
            NOTE.format(build="MPICH 3.4.1", older=""),
        ],
        "taken": [{"on": "compute", "date": "2025-11-01", "by": "documents"}],
        "system": system("5.14.21-150500.55.65_13.0.73-cray_shasta_c", "SLES 15 SP5", True),
        "cpu": cpu("zen3", "AMD EPYC 7763 64-Core Processor", 128),
        "memory": 256 * GIB,
        "networks": [{"name": f"hsn{n}", "kind": "Slingshot"} for n in range(4)],
        "gpus": [
            {
                "vendor": "nvidia",
                "name": "NVIDIA A100-SXM4-40GB",
                "capability": "8.0",
                "memory": 40960 << 20,
            }
        ]
        * 4,
        "drivers": {"nvidia": {"version": "550.163.01", "cuda": "12.4", "product": "datacenter"}},
        "launchers": [
            {
                "name": "slurm",
                "version": "24.11",
                "pmi": ["pmi1", "pmi2", "pmix_v4", "cray_shasta"],
            }
        ],
        "config": {
            "mounts": [
                *DEFAULT,
                ["/global/cfs", "/global/cfs", ["rec"]],
                ["/global/homes", "/global/homes", ["rec"]],
                ["/global/common", "/global/common", ["ro", "rec"]],
                ["/pscratch", "/pscratch", ["rec"]],
            ],
            "modules": ["gpu", "mpi"],
            "default_modules": [],
            "mpi": {},
            "cache_limit": 0,
            "cache_paths": [],
            "cwd": True,
            "home": False,
            "store": 20 * 10**12,
        },
        "libc": glibc("/lib64", (2, 31)),
        "mpi": cray("8.1.30"),
    }


DEFAULT: list[Any] = [[path, path, ["rec"]] for path in ("/proc", "/sys", "/dev", "/tmp")]


def mi250() -> dict[str, Any]:
    """An AMD node as LUMI-G's, four MI250X, each of which is two GPUs to programs."""
    return {
        "name": "mi250-node",
        "source": [
            "https://docs.lumi-supercomputer.eu/hardware/lumig/",
            "https://docs.lumi-supercomputer.eu/storage/",
            "https://rocm.docs.amd.com/en/latest/reference/gpu-arch-specs.html",
            NOTE.format(build="MPICH 3.4.1", older=""),
        ],
        "taken": [{"on": "compute", "date": "2025-11-01", "by": "documents"}],
        "system": system("5.14.21-150500.55.49_13.0.56-cray_shasta_c", "SLES 15 SP5", True),
        "cpu": cpu("zen3", "AMD EPYC 7A53 64-Core Processor", 128),
        "memory": 512 * GIB,
        "networks": [{"name": f"hsn{n}", "kind": "Slingshot"} for n in range(4)],
        "gpus": [
            {"vendor": "amd", "name": "AMD Instinct MI250X", "arch": "gfx90a", "memory": 64 * GIB}
        ]
        * 8,
        "drivers": {"amd": {"version": "6.3.6"}},
        "launchers": [
            {"name": "slurm", "version": "23.02", "pmi": ["pmi1", "pmi2", "cray_shasta"]}
        ],
        "config": {
            "mounts": [
                *DEFAULT,
                *([path, path, ["rec"]] for path in ("/scratch", "/flash", "/project", "/users")),
            ],
            "modules": ["gpu", "mpi"],
            "default_modules": [],
            "mpi": {},
            "cache_limit": 0,
            "cache_paths": [],
            "cwd": True,
            "home": False,
            "store": 10 * 10**12,
        },
        "libc": glibc("/lib64", (2, 31)),
        "mpi": cray("8.1.29"),
    }


def ethernet() -> dict[str, Any]:
    """A department's cluster on CentOS 8.3, with the MPIs of its own packages."""
    folder = "/usr/lib64/openmpi/lib"
    below = [row("/usr/lib64/libhwloc.so.15"), row("/usr/lib64/libpmix.so.2")]
    rows = libraries("libopenmpi3", folder, "2.28", below)
    for one in rows:
        one.pop("numbers", None)
        if one["soname"] == "libmpi.so.40":
            one["release"] = "4.0.3"
            one["real"] = f"{folder}/libmpi.so.40.20.3"
        if one["path"].startswith(folder):
            one["runpath"] = [folder]
    return {
        "name": "ethernet-el8",
        "source": [
            "https://vault.centos.org/8.3.2011/ (packages kernel, glibc, openmpi 4.0.3)",
            "https://ark.intel.com: Xeon E5-2680 v4 (Broadwell)",
            NOTE.format(build="Open MPI 4.1.0", older=", without those above 2.28"),
        ],
        "taken": [{"on": "compute", "date": "2025-11-01", "by": "documents"}],
        "system": system("4.18.0-240.el8.x86_64", "CentOS Linux 8 (8.3.2011)", False),
        "cpu": cpu("broadwell", "Intel(R) Xeon(R) CPU E5-2680 v4 @ 2.40GHz", 28),
        "memory": 128 * GIB,
        "networks": [{"name": "eno1", "kind": ""}],
        "gpus": [],
        "drivers": {},
        "launchers": [
            {"name": "slurm", "version": "20.11.9", "pmi": ["pmi1", "pmi2"]},
            {"name": "openmpi", "version": "4.0.3", "pmi": ["pmix"]},
        ],
        "config": {
            "mounts": [*DEFAULT, ["/home", "/home", ["rec"]], ["/data", "/data", ["rec"]]],
            "modules": ["gpu", "mpi"],
            "default_modules": [],
            "mpi": {},
            "cache_limit": 0,
            "cache_paths": [],
            "cwd": True,
            "home": False,
            "store": 500 * 10**9,
        },
        "libc": glibc("/lib64", (2, 28)),
        "mpi": {
            "found": [
                {
                    "family": "openmpi",
                    "folder": folder,
                    "version": "libmpi.so.40.20.3 (4.0.3)",
                    "by": "mpiexec on the PATH",
                }
            ],
            "environ": {"PATH": "/usr/lib64/openmpi/bin"},
            "links": [
                ["/usr/lib64/openmpi/bin/mpiexec", "/usr/lib64/openmpi/bin/orterun"],
            ],
            "libraries": rows,
            "trees": [],
            "plugins": {},
            "fabric": False,
        },
    }


def write() -> None:
    """Write the three files, each after it has been read as any capture is."""
    FOLDER.mkdir(exist_ok=True)
    for data in (perlmutter(), mi250(), ethernet()):
        whole = {"format": FORMAT, "version": VERSION, **data}
        text = site.text(Capture(data["name"], whole))
        site.parse(text.encode(), data["name"])
        (FOLDER / f"{data['name']}{places.SUFFIX}").write_text(text)
        print(data["name"], len(text), json.dumps(whole["mpi"]["found"]))


if __name__ == "__main__":
    os.environ.setdefault(
        "UDI_TEST_CACHE", str(Path("/var/tmp") / f"rootless_udi-cache-{os.getuid()}")
    )
    write()
