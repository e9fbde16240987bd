"""An image with this machine's own Python, built on the spot: for tests and figures on a GPU."""

import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from rootless_udi.mpi_inject.libraries import ldcache
from tests.kit import images
from tests.kit.places import TREE

DRIVERS_NEEDS = (
    "libdl.so.2",
    "libgcc_s.so.1",
    "libm.so.6",
    "libpthread.so.0",
    "librt.so.1",
    "libstdc++.so.6",
)
"""What NVIDIA's driver and torch need of an image and Python itself may not."""

BASE: list[images.Entry] = [(name, None, {}) for name in ("bin", "etc", "usr", "usr/bin")]

SKIPPED = {"test", "tests", "__pycache__", "dist-packages", "site-packages", "idlelib", "tkinter"}


def pulled(folder: Path, entries: list[images.Entry], env: list[str]) -> Path:
    """Pull an image of these entries into a store in `folder`; return its squashfs file."""
    layout = images.Layout(folder / "layout")
    layout.image("latest", [images.tar(entries)], {"Env": env})
    argv: list[str | Path] = [TREE / "bin/udi", "pull", "-q", f"oci:{folder}/layout:latest"]
    environ = {**os.environ, "UDI_STORE": str(folder / "store")}
    done = subprocess.run(argv, env=environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "store/images" / (str(done.stdout).strip().replace(":", "-") + ".sqfs")


def usable(folder: Path) -> Path:
    """Return a Python image as `pulled` does where this machine can, else a root directory.

    So that the checks on a GPU need nothing installed; root may not pull.
    """
    entries = python_entries(busybox=shutil.which("busybox") is not None)
    writer = shutil.which("tar2sqfs") or shutil.which("mksquashfs")
    fuse = os.access("/dev/fuse", os.R_OK | os.W_OK)
    if writer and fuse and os.getuid() and importlib.util.find_spec("trio"):
        return pulled(folder, entries, ["PATH=/bin"])
    return unpacked(folder / "root", entries)


def unpacked(root: Path, entries: list[images.Entry]) -> Path:
    """Write `entries` below `root`; return it."""
    for name, content, extra in entries:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            path.mkdir(exist_ok=True)
        elif isinstance(content, str):
            path.symlink_to(content)
        else:
            path.write_bytes(content)
            path.chmod(extra.get("mode", 0o644))
    return root


def needed(*binaries: Path) -> set[str]:
    """Return the libraries that ld.so loads for these files, itself among them."""
    found: set[str] = set()
    for binary in binaries:
        done = subprocess.run(["ldd", binary], capture_output=True, text=True)
        found |= {word for word in done.stdout.split() if word.startswith("/")}
    # A Python beside its libraries finds them as /opt/python/bin/../lib/libpython3.so.
    return {os.path.normpath(path) if "/../" in path else path for path in found}


def installed(*names: str) -> list[Path]:
    """Return where ld.so.cache has these libraries; those that it has not are left out."""
    data = Path(ldcache.PATH).read_bytes()
    cache = ldcache.parse(data, tuple(name + "\0" for name in names))
    mine = [e for e in cache if e.machine == os.uname().machine and not e.hwcaps]
    first = {entry.name: Path(entry.path) for entry in reversed(mine)}
    return [first[name] for name in names if name in first]


def with_files(entries: list[images.Entry], paths: set[str]) -> list[images.Entry]:
    """Return `entries` and these files of the machine, with the folders that they need."""
    have = {name for name, _content, _extra in entries}
    folders = {str(parent) for path in paths for parent in Path(path.lstrip("/")).parents}
    found = [*entries, *((f, None, {}) for f in sorted(folders - have - {"."}))]
    for path in sorted(p for p in paths if p.lstrip("/") not in have):
        found.append((path.lstrip("/"), Path(path).read_bytes(), {"mode": 0o755}))
    return found


def python_entries(busybox: bool = True) -> list[images.Entry]:
    """A root of busybox and the Python that runs this, standard library and all."""
    program = Path(getattr(sys, "_base_executable", sys.executable)).resolve()
    library = Path(sysconfig.get_path("stdlib"))
    files = [
        path
        for path in library.rglob("*")
        if path.is_file() and not SKIPPED & set(path.relative_to(library).parts)
    ]
    paths = {str(path) for path in (program, *files)}
    others = installed(*DRIVERS_NEEDS)
    paths |= {str(path) for path in others}
    paths |= needed(program, *(p for p in files if p.suffix == ".so"), *others)
    found = with_files(images.busybox_entries() if busybox else BASE, paths)
    if str(program) != "/bin/python3":
        found.append(("bin/python3", str(program), {}))
    return found
