#!/usr/bin/env python3
"""The host's MPI inside an image against the same MPI outside: two ranks on one node.

    python bench/mpi_inside.py [--runs 5] [--pairs IMAGE:HOST ...]

Outside, a program built with the host's MPI; inside, the image's program on the injected library.
Runs alternate; printed are the medians over the runs of the ranks' median half round trips, 8 B as
latency in us and 4 MiB as bandwidth in MB/s, and inside / outside. The figure asked is 3 %.
"""

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.kit import mpi
from tests.kit.places import TREE

PAIRS = [
    "bookworm-mpich:debian-mpich",
    "bullseye-mpich:debian-mpich",
    "conda-mpich-4.1.3:mpich-5.0.2",
    "bookworm-mpich:mpich-4.1.3",
    "spack-openmpi-5.0.11:debian-openmpi",
    "bookworm-openmpi:openmpi-5.0.11",
    "local-mpich-5.0.2:impi-2021.18.1",
]
SMALL, LARGE = 8, 4 << 20


def times(argv: list[str], env: dict[str, str]) -> dict[int, float]:
    """Return bytes -> microseconds as rank 0 printed them."""
    done = subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300
    )
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith("time ")]
    if done.returncode or not rows:
        raise SystemExit(f"{argv} failed: {done.stdout}{done.stderr}")
    return {int(row[1]): float(row[2]) for row in rows}


def outside(host: str, env: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Return the command and the environment of the host's MPI without a container."""
    built = "mpich-5.0.2" if host.startswith("impi") else host
    if host.startswith("impi"):
        env = env | {"LD_LIBRARY_PATH": f"{mpi.prefix(host)}/lib"}
    return [*mpi.launcher(host, 2), str(mpi.program(built)), "times"], env


def compare(pair: str, runs: int) -> None:
    """Print one line."""
    image, _, host = pair.partition(":")
    env = {**os.environ, "UDI_STORE": str(mpi.store()), **mpi.host_env(host)}
    udi = [str(TREE / "bin/udi-run"), "--mpi", mpi.pulled(image), mpi.PROGRAM, "times"]
    if not mpi.IMAGES[image].built:
        # The host's own program, on the C library that came along.
        udi[1:1] = [f"--volume={mpi.program(host).parent}:/opt/programs"]
        udi[-2] = f"/opt/programs/{mpi.program(host).name}"
    commands = {
        "outside": outside(host, env),
        "inside": ([*mpi.launcher(host, 2), *udi], env),
    }
    found: dict[str, list[dict[int, float]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, (argv, one) in commands.items():
            found[name].append(times(argv, one))
    median = {
        (name, size): statistics.median(run[size] for run in rows)
        for name, rows in found.items()
        for size in (SMALL, LARGE)
    }
    cells = []
    for size, scale in ((SMALL, None), (LARGE, LARGE)):
        out, into = (median[name, size] for name in ("outside", "inside"))
        if scale:
            cells.append(f"{scale / out:8.0f} {scale / into:8.0f} {out / into:6.3f}")
        else:
            cells.append(f"{out:8.2f} {into:8.2f} {into / out:6.3f}")
    print(f"{pair:40} {cells[0]}   {cells[1]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--pairs", nargs="*", default=PAIRS)
    arguments = parser.parse_args()
    print(f"{'image:host':40} {'8 B, us: out, in, ratio':>24}   4 MiB, MB/s: out, in, ratio")
    for pair in arguments.pairs:
        compare(pair, arguments.runs)


if __name__ == "__main__":
    main()
