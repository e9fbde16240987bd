#!/usr/bin/env python3
"""MPI between joined ranks against bare ones: latency of ping-pong and allreduce by message size.

    python bench/mpi_join.py [--ranks 2 4 8] [--runs 5] [--kinds mpich openmpi]

The same program, compiled by the machine's MPI; bare it runs with the machine's library, joined
with the image's (the same version). Runs alternate; printed are the medians of their medians in
microseconds and joined / bare. More ranks than cores measure the scheduler: read those for
correctness (every content is verified) and not for time.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import peers
from tests.kit import mpiprogs


def once(argv: list[str], env: dict[str, str]) -> dict[tuple[str, int], float]:
    """Run mpicheck and return its times; an error where a content was wrong."""
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=600)
    result = mpiprogs.parse(done.stdout)
    if done.returncode or not result.done:
        raise SystemExit(f"{argv} failed: {done.stdout}{done.stderr}")
    return result.times


def compare(kind: mpiprogs.Kind, ranks: int, runs: int, env: dict[str, str]) -> None:
    """Print one table."""
    # Ranks that wait spin: with more of them than cores, each step takes whole time slices.
    iterations = 2000 if ranks <= (os.cpu_count() or 1) else 3
    commands = {
        "bare": mpiprogs.bare(kind, ranks, iterations),
        "joined": mpiprogs.contained(kind, ranks, iterations),
    }
    found: dict[str, list[dict[tuple[str, int], float]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, argv in commands.items():
            found[name].append(once(argv, env))
    print(f"\n{kind.name}, {ranks} ranks, medians of {runs} alternating runs of {iterations} (us)")
    print(f"  {'':<10}{'bytes':>9}{'bare':>12}{'joined':>12}{'joined/bare':>13}")
    ratios = []
    for what, size in found["bare"][0]:
        bare, joined = (
            statistics.median(times[what, size] for times in found[name]) for name in commands
        )
        ratios.append(joined / bare)
        print(f"  {what:<10}{size:>9}{bare:>12.2f}{joined:>12.2f}{ratios[-1]:>13.3f}")
    print(f"  geometric mean of joined / bare: {statistics.geometric_mean(ratios):.3f}")


def main() -> None:
    """Run all that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4, 8])
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--kinds", nargs="*", choices=sorted(mpiprogs.KINDS), default=mpiprogs.KINDS
    )
    asked = parser.parse_args()
    os.chdir("/tmp")
    with tempfile.TemporaryDirectory() as runtime:
        env = {**peers.ENV, "XDG_RUNTIME_DIR": runtime}
        for name in asked.kinds:
            for ranks in asked.ranks:
                compare(mpiprogs.KINDS[name], ranks, asked.runs, env)


if __name__ == "__main__":
    main()
