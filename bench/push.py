#!/usr/bin/env python3
"""Push an image's squashfs to a registry on loopback: udi push, and skopeo copy of the same bytes.

bench/push.py [MB]      1000 by default
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import peers
from tests.kit import images
from tests.kit.registry import open_registry

ROUNDS = 3


def timed(argv: list[str]) -> float:
    """Return the wall time of a command, which knows nothing of others.

    skopeo remembers which repository has a blob, and would have it mounted from there.
    """
    with tempfile.TemporaryDirectory() as folder:
        env = {**peers.ENV, "XDG_DATA_HOME": folder}
        start = time.perf_counter()
        subprocess.run(argv, env=env, check=True, capture_output=True)
        return time.perf_counter() - start


def image(folder: Path, megabytes: int) -> Path:
    """Make a squashfs file of so many MB that nothing compresses."""
    tree = folder / "tree"
    tree.mkdir()
    with open(tree / "noise", "wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(10**6))
    path = folder / "image.sqfs"
    argv = ["mksquashfs", str(tree), str(path), "-quiet", "-no-progress", "-noD", "-noF"]
    subprocess.run(argv, check=True, capture_output=True)
    (tree / "noise").unlink()
    return path


def main() -> None:
    """Print the medians of alternating rounds and their ratio."""
    megabytes = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    times: dict[str, list[float]] = {"udi push": [], "skopeo copy": []}
    with tempfile.TemporaryDirectory(dir=images.cache()) as name:
        folder = Path(name)
        path = image(folder, megabytes)
        with open_registry(folder, folder / "data") as registry:
            push = ["udi", "push", "-q", str(path)]
            subprocess.run([*push, f"{registry.host}/first:1"], env=peers.ENV, check=True)
            copy = ["skopeo", "copy", "-q", "--preserve-digests"]
            layout = f"oci:{folder}/layout:1"
            first = f"docker://{registry.host}/first:1"
            timed([*copy, "--src-tls-verify=false", first, layout])
            for number in range(ROUNDS):
                times["udi push"].append(timed([*push, f"{registry.host}/ours{number}:1"]))
                there = f"docker://{registry.host}/theirs{number}:1"
                times["skopeo copy"].append(
                    timed([*copy, "--dest-tls-verify=false", layout, there])
                )
    peers.table(
        f"push of {megabytes} MB, {ROUNDS} rounds",
        {name: statistics.median(found) for name, found in times.items()},
        "udi push",
    )


if __name__ == "__main__":
    main()
