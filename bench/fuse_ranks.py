"""64 ranks of one job step on one node, each `python3 -c "import numpy"`, joined to one container.

    python3 -m bench.fuse_ranks IMAGE [--ranks=N] [--rounds=N]

Alternates udi-run over our server (as the node's first such start, and as a later one), udi-run
over squashfuse_ll (all joined, Python's joiner) and bubblewrap on the unpacked directory; prints
medians of the time until the last rank has ended: once from the start, and once from execve(2) of
the command, before which all ranks wait for the last.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.fuse_cold import COMMAND, TREE, bubblewrap, forgetful, unpacked

Times = dict[str, list[float]]


def together(argv: list[str], ranks: int, env: dict[str, str]) -> float:
    """Start `ranks` times `argv` at once; return the seconds until all have ended well."""
    clean = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), **env}
    before = time.perf_counter()
    started = [
        subprocess.Popen(argv, env={**clean, "SLURM_PROCID": str(rank)}, cwd="/")
        for rank in range(ranks)
    ]
    failed = [one.returncode for one in started if one.wait()]
    assert not failed, failed
    return time.perf_counter() - before


HELD = ("/bin/sh", "-c", 'echo; read word; exec "$@"', "sh", *COMMAND)
"""COMMAND that says a byte and waits for the end of its standard input before it is executed."""


def alone(argv: list[str], ranks: int, env: dict[str, str]) -> float:
    """Start `ranks` times `argv` with HELD; return the seconds from letting go to the last end."""
    hold, go = os.pipe()
    said, say = os.pipe()
    clean = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), **env}
    started = [
        subprocess.Popen(
            [*argv, *HELD], env={**clean, "SLURM_PROCID": str(n)}, cwd="/", stdin=hold, stdout=say
        )
        for n in range(ranks)
    ]
    os.close(hold)
    os.close(say)
    ready = 0
    while ready < ranks:
        data = os.read(said, 4096)
        assert data, "a rank failed"
        ready += len(data)
    before = time.perf_counter()
    os.close(go)
    failed = [one.returncode for one in started if one.wait()]
    assert not failed, failed
    os.close(said)
    return time.perf_counter() - before


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    option = dict(w[2:].split("=") for w in argv if w.startswith("--"))
    image = next(w for w in argv if not w.startswith("--"))
    ranks, rounds = int(option.get("ranks", "64")), int(option.get("rounds", "5"))
    run = str(TREE / "bin/udi-run")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        cases = {
            "ours, first": [run, "--fuse=udi", image],
            "ours": [run, "--fuse=udi", image],
            "squashfuse_ll": [run, "--fuse=squashfuse_ll", image],
            "bubblewrap": bubblewrap(unpacked(image, Path(name)))[: -len(COMMAND)],
        }
        first = forgetful(Path(name))
        whole: Times = {case: [] for case in cases}
        part: Times = {case: [] for case in cases}
        for round_ in range(rounds + 1):
            for number, (case, words) in enumerate(cases.items()):
                job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": str(ranks)}
                job |= first if case == "ours, first" else {}
                step = f"{round_}{number}"
                taken = together([*words, *COMMAND], ranks, {**job, "SLURM_STEP_ID": f"{step}0"})
                held = alone(words, ranks, {**job, "SLURM_STEP_ID": f"{step}1"})
                if round_:
                    whole[case].append(taken)
                    part[case].append(held)
        report(f"{ranks} ranks, from the start", whole)
        report("the ranks' part alone, from exec to exit", part)
        subprocess.run(["chmod", "-R", "u+rwX", name], check=False)


def report(title: str, times: Times) -> None:
    """Print medians and ratios, the medians of those within a round."""
    print(title)
    for case, found in times.items():
        to = {b: [x / y for x, y in zip(found, times[b], strict=True)] for b in times}
        print(
            f"  {case:16} {statistics.median(found):6.2f} s"
            f"   {statistics.median(to['bubblewrap']):5.2f} of bubblewrap"
            f"   {statistics.median(to['squashfuse_ll']):5.2f} of squashfuse_ll"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
