#!/usr/bin/env python3
"""Pull and convert one image from one registry on loopback: udi pull against skopeo + umoci +
mksquashfs with the same compressor and level, and apptainer pull where it is installed.

    bench/pull.py [sci]     "sci" is the large image: 1 GB of scientific Python, made first
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import peers
from tests.kit import images
from tests.kit.registry import Registry, open_registry

ROUNDS = 3
PYTHON = ("python3-numpy", "python3-scipy", "python3-pandas", "python3-matplotlib", "python3-sympy")
WRITER = ["mksquashfs", "-quiet", "-no-progress", "-all-root", "-comp", "zstd"]
WRITER += ["-Xcompression-level", "3"]


def timed(*commands: list[str]) -> float:
    """Return the wall time of commands one after the other."""
    start = time.perf_counter()
    for argv in commands:
        subprocess.run(argv, env=peers.ENV, check=True, capture_output=True)
    return time.perf_counter() - start


def memory(argv: list[str]) -> int:
    """Return the largest resident size of a command's processes in MiB."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
        "capture_output=True); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *argv],
        env=peers.ENV,
        check=True,
        capture_output=True,
        text=True,
    )
    return int(done.stdout) // 1024


def disk(folder: Path) -> int:
    """Return the bytes that a folder takes."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if not path.is_symlink())


def main() -> None:
    """Print the medians of alternating rounds and their ratios."""
    large = "sci" in sys.argv[1:]
    root = images.debian_root("bookworm", PYTHON if large else ("python3-numpy",))
    with tempfile.TemporaryDirectory(dir=images.cache()) as name:
        folder = Path(name)
        images.Layout(folder / "layout").image("latest", [root.read_bytes()])
        with open_registry(folder, folder / "data") as registry:
            run(folder, registry, root.stat().st_size)


def run(folder: Path, registry: Registry, size: int) -> None:
    """Push the image once and pull it in rounds."""
    where = f"{registry.host}/bench/image:latest"
    push = ["skopeo", "copy", "--dest-tls-verify=false", f"oci:{folder}/layout:latest"]
    subprocess.run([*push, f"docker://{where}"], check=True, capture_output=True)
    times: dict[str, list[float]] = {"udi pull": [], "skopeo + umoci + mksquashfs": []}
    apptainer = peers.find("apptainer")
    if apptainer:
        times["apptainer pull"] = []
    os.environ["UDI_STORE"] = peers.ENV["UDI_STORE"] = str(folder / "store")
    for _ in range(ROUNDS):
        shutil.rmtree(folder / "store", ignore_errors=True)
        times["udi pull"].append(timed(["udi", "pull", "-q", where]))
        for left in ("oci", "bundle", "out.sqfs", "out.sif"):
            path = folder / left
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        times["skopeo + umoci + mksquashfs"].append(
            timed(
                [
                    "skopeo",
                    "copy",
                    "--src-tls-verify=false",
                    f"docker://{where}",
                    f"oci:{folder}/oci:x",
                ],
                ["umoci", "unpack", "--rootless", "--image", f"{folder}/oci:x", f"{folder}/bundle"],
                [WRITER[0], f"{folder}/bundle/rootfs", f"{folder}/out.sqfs", *WRITER[1:]],
            )
        )
        if apptainer:
            peers.ENV["APPTAINER_CACHEDIR"] = str(folder / "cache")
            shutil.rmtree(folder / "cache", ignore_errors=True)
            pull = [apptainer, "-s", "pull", "--no-https", f"{folder}/out.sif", f"docker://{where}"]
            times["apptainer pull"].append(timed(pull))
    peers.table(
        f"pull and convert, {size / 1e6:.0f} MB of tar, {ROUNDS} rounds",
        {name: statistics.median(found) for name, found in times.items()},
        "udi pull",
    )
    made = disk(folder / "store")
    shutil.rmtree(folder / "store")
    print(f"\nin the store afterwards: {made / 1e6:.0f} MB")
    print(f"peak memory of one of udi pull's processes: {memory(['udi', 'pull', '-q', where])} MiB")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
