#!/usr/bin/env python3
"""udi check of a 1 GB image against three sites, the first time and later; udi site capture.

    bench/forecast.py          the image is Debian 13 with compilers and two MPIs, made first

No other tool does this, so the yardstick is `udi inspect` of the same image: what starting udi and
reading an image's facts takes. Asked: 3 s the first time, 0.3 s later, 5 s for a capture.
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

from tests.kit import images, mpi
from tests.kit.places import TREE

ROUNDS = 5
Times = tuple[float, float]
SITES = ("perlmutter-like", "mi250-node", "ethernet-el8")


def timed(argv: list[str], env: dict[str, str], fine: tuple[int, ...] = (0,)) -> Times:
    """Return the wall and processor time of a command whose status must be one of `fine`."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    took, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode in fine, done.stdout + done.stderr
    return took, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Print medians."""
    udi = [sys.executable, str(TREE / "bin/udi")]
    root = images.debian_root("trixie", mpi.TOOLS)
    with tempfile.TemporaryDirectory(dir=images.cache()) as name:
        folder = Path(name)
        images.Layout(folder / "layout").image("latest", [root.read_bytes()])
        env = {**os.environ, "UDI_STORE": f"{folder}/store", "XDG_CACHE_HOME": f"{folder}/cache"}
        image = f"oci:{folder}/layout:latest"
        subprocess.run([*udi, "pull", "-q", image], env=env, check=True, capture_output=True)
        check = [*udi, "check", image, *(f"--site={site}" for site in SITES)]
        times: dict[str, list[Times]] = {"inspect": [], "first": [], "later": [], "capture": []}
        for _ in range(ROUNDS):
            shutil.rmtree(f"{folder}/cache", ignore_errors=True)
            times["inspect"].append(timed([*udi, "inspect", image], env))
            times["first"].append(timed(check, env, (0, 1, 3)))
            times["later"].append(timed(check, env, (0, 1, 3)))
            times["capture"].append(timed([*udi, "site", "capture"], env))
        print(f"image: {root.stat().st_size / 1e9:.2f} GB unpacked")
        yard, _ = middle(times["inspect"])
        for what, found in times.items():
            wall, processor = middle(found)
            rest = f"{wall / yard:5.1f} of udi inspect, {processor:.2f} s of processor time"
            print(f"{what:<8} {wall:6.2f} s  {rest}")


def middle(found: list[Times]) -> Times:
    """Return the medians."""
    wall, processor = zip(*found, strict=True)
    return statistics.median(wall), statistics.median(processor)


if __name__ == "__main__":
    main()
