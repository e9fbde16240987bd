#!/usr/bin/env python3
"""Two requests in one MPI job against one: latency and bandwidth between two ranks of a node.

    python bench/mpi_pair.py [--runs 40] [--kinds mpich openmpi]

The same program in the same image; in "two" the second rank has a volume of its own, and so a
container of its own. Runs alternate. Printed are the medians of the runs' medians in microseconds,
and two / one: of the medians, of the fastest runs, and the middle half of the ratios of neighbours,
which says how much of it is noise of the machine. Every content is verified.
"""

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import peers
from bench.mpi_join import once
from tests.kit import mpiprogs

ITERATIONS = 100
SIZES = (8, 65536, 4 << 20)


def commands(kind: mpiprogs.Kind) -> dict[str, list[str]]:
    """Return the command lines that are compared."""
    rank = mpiprogs.contained(kind, 1, ITERATIONS)
    other = mpiprogs.contained(kind, 1, ITERATIONS, options=("--volume=/tmp:/mnt/other",))
    begin = len(kind.launcher)
    return {"one": [*rank, ":", *rank[begin:]], "two": [*rank, ":", *other[begin:]]}


def compare(kind: mpiprogs.Kind, runs: int, env: dict[str, str]) -> None:
    """Print one table."""
    found: dict[str, list[dict[tuple[str, int], float]]] = {"one": [], "two": []}
    for number in range(runs):
        asked = list(commands(kind).items())
        for name, argv in asked if number % 2 else reversed(asked):
            found[name].append(once(argv, env))
    print(f"\n{kind.name}, 2 ranks, medians of {runs} alternating runs of {ITERATIONS} (us)")
    print(f"  {'ping-pong':>9}{'one':>10}{'two':>10}{'two/one':>9}{'fastest':>9}   neighbours")
    for size in SIZES:
        one, two = ([times["pingpong", size] for times in found[name]] for name in ("one", "two"))
        low, _, high = statistics.quantiles([b / a for a, b in zip(one, two, strict=True)], n=4)
        medians = statistics.median(one), statistics.median(two)
        print(
            f"  {size:>9}{medians[0]:>10.2f}{medians[1]:>10.2f}{medians[1] / medians[0]:>9.3f}"
            f"{min(two) / min(one):>9.3f}   {low:.3f} to {high:.3f}"
        )


def main() -> None:
    """Run all that was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument(
        "--kinds", nargs="*", choices=sorted(mpiprogs.KINDS), default=sorted(mpiprogs.KINDS)
    )
    asked = parser.parse_args()
    os.chdir("/tmp")
    with tempfile.TemporaryDirectory() as runtime:
        env = {**peers.ENV, "XDG_RUNTIME_DIR": runtime}
        for name in asked.kinds:
            compare(mpiprogs.KINDS[name], asked.runs, env)


if __name__ == "__main__":
    main()
