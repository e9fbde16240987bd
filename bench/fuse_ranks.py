"""64 ranks of one job step on one node, each `python3 -c "import numpy"`, joined to one container.

    python3 -m bench.fuse_ranks IMAGE [--ranks=N] [--rounds=N]

Alternates udi-run over our server, udi-run over squashfuse_ll (both joined, Python's joiner) and
bubblewrap on the unpacked directory; prints medians of the time until the last rank has ended.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.fuse_cold import COMMAND, TREE, bubblewrap, unpacked


def together(argv: list[str], ranks: int, env: dict[str, str]) -> float:
    """Start `ranks` times `argv` at once; return the seconds until all have ended well."""
    clean = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), **env}
    before = time.perf_counter()
    started = [
        subprocess.Popen(argv, env={**clean, "SLURM_PROCID": str(rank)}, cwd="/")
        for rank in range(ranks)
    ]
    failed = [one.returncode for one in started if one.wait(timeout=300)]
    assert not failed, failed
    return time.perf_counter() - before


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    option = dict(w[2:].split("=") for w in argv if w.startswith("--"))
    image = next(w for w in argv if not w.startswith("--"))
    ranks, rounds = int(option.get("ranks", "64")), int(option.get("rounds", "5"))
    run = str(TREE / "bin/udi-run")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        cases = {
            "ours": [run, "--fuse=udi", image, *COMMAND],
            "squashfuse_ll": [run, "--fuse=squashfuse_ll", image, *COMMAND],
            "bubblewrap": bubblewrap(unpacked(image, Path(name))),
        }
        times: dict[str, list[float]] = {case: [] for case in cases}
        for round_ in range(rounds + 1):
            for number, (case, words) in enumerate(cases.items()):
                step = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": f"{round_}{number}"}
                taken = together(words, ranks, {**step, "SLURM_NTASKS": str(ranks)})
                if round_:
                    times[case].append(taken)
        for case, found in times.items():
            to = {b: [x / y for x, y in zip(found, times[b], strict=True)] for b in times}
            print(
                f"{case:16} {statistics.median(found):6.2f} s"
                f"   {statistics.median(to['bubblewrap']):5.2f} of bubblewrap"
                f"   {statistics.median(to['squashfuse_ll']):5.2f} of squashfuse_ll"
            )
        subprocess.run(["chmod", "-R", "u+rwX", name], check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
