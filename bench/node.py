#!/usr/bin/env python3
"""A node's worth of ranks at once, joined, against the peers of this machine.

    python bench/node.py [--ranks 64] [--rounds 5] [--failure-rounds 100] [--only PART ...]

Parts: start (wall time of all ranks of /bin/true and of `import numpy`, medians over alternating
rounds), failures (ranks that failed, over many rounds; also with ranks that start up to seconds
apart behind a first one that ends at once), memory (sum of PSS while all ranks live), join (one
join against a bare interpreter, and its file opens).
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import peers
from bench.start import opens
from tests.kit.mpiprogs import codename
from tests.kit.nodes import descendants, subreaper

OURS = "udi-run, joined"
TRUE = ("/bin/true",)
NUMPY = ("/usr/bin/python3", "-c", "import numpy")


def start(argv: Sequence[str], env: dict[str, str]) -> int:
    """Start a process whose standard streams are nobody's; return its id."""
    null = [(os.POSIX_SPAWN_OPEN, fd, "/dev/null", os.O_RDWR, 0) for fd in (0, 1, 2)]
    return os.posix_spawnp(argv[0], list(argv), env, file_actions=null)


def at_once(argv: Sequence[str], ranks: int, env: dict[str, str]) -> tuple[float, int]:
    """Run `ranks` of `argv` at once; return (seconds until the last has ended, how many failed)."""
    begin = time.perf_counter()
    pids = [start(argv, env) for _ in range(ranks)]
    failed = sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)
    return time.perf_counter() - begin, failed


def apart(argv: Sequence[str], ranks: int, env: dict[str, str], seconds: float) -> int:
    """Run `ranks`, the first at once and the others at any time in `seconds`; count failures."""
    pids = [start(argv, env)]
    begin = time.perf_counter()
    for at in sorted(random.uniform(0, seconds) for _ in range(ranks - 1)):
        time.sleep(max(0.0, begin + at - time.perf_counter()))
        pids.append(start(argv, env))
    return sum(os.waitpid(pid, 0)[1] != 0 for pid in pids)


def pss() -> int:
    """Return the proportional set size of all descendants in KiB (proc(5), smaps_rollup)."""
    total = 0
    for pid in descendants():
        try:
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
        except OSError:  # it has ended
            continue
    return total


@contextmanager
def living(argv: Sequence[str], ranks: int, env: dict[str, str]) -> Iterator[None]:
    """Keep `ranks` of `argv` alive; each prints a line when it is ready and waits for its input."""
    pipe = subprocess.PIPE
    all_ranks = [subprocess.Popen(argv, stdin=pipe, stdout=pipe, env=env) for _ in range(ranks)]
    try:
        for one in all_ranks:
            assert one.stdout and one.stdout.readline(), "a rank did not start"
        yield
    finally:
        for one in all_ranks:
            one.communicate()


def quiet() -> None:
    """Wait until the round before has ended for good: its image servers too."""
    while descendants():
        time.sleep(0.01)


def measure_start(
    runners: dict[str, list[str]], ranks: int, rounds: int, env: dict[str, str]
) -> None:
    """Print both tables of wall times."""
    for title, command in (("/bin/true", TRUE), ('python3 -c "import numpy"', NUMPY)):
        times: dict[str, list[float]] = {name: [] for name in runners}
        failures = dict.fromkeys(runners, 0)
        for _ in range(rounds):
            for name, words in runners.items():
                seconds, failed = at_once([*words, *command], ranks, env)
                times[name].append(seconds)
                failures[name] += failed
                quiet()
        medians = {name: statistics.median(found) for name, found in times.items()}
        peers.table(f"{ranks} ranks of {title} at once, {rounds} rounds", medians, OURS)
        print(f"  ranks that failed: {failures}")


def measure_failures(words: list[str], ranks: int, rounds: int, env: dict[str, str]) -> None:
    """Print how many of our ranks failed."""
    failed = sum(at_once([*words, *TRUE], ranks, env)[1] for _ in range(rounds))
    print(
        f"\n{OURS}: {failed} of {ranks * rounds} ranks failed, {rounds} rounds of {ranks} at once"
    )
    late = max(1, rounds // 10)
    failed = sum(apart([*words, *TRUE], ranks, env, 3.0) for _ in range(late))
    print(f"{OURS}: {failed} of {ranks * late} failed that started in the course of 3 s")
    quiet()


def measure_memory(runners: dict[str, list[str]], ranks: int, env: dict[str, str]) -> None:
    """Print the memory of all ranks with numpy in them, by runtime."""
    wait = "import numpy, sys; print(flush=True); sys.stdin.read()"
    found = {}
    for name, words in runners.items():
        if name == OURS or name.startswith("bwrap"):
            with living([*words, *NUMPY[:2], wait], ranks, env):
                found[name] = pss()
            quiet()
    print(f"\nmemory of {ranks} ranks with numpy, image server included (sum of PSS)")
    for name, kib in found.items():
        print(f"  {name:<24}{kib / 1024:9.1f} MiB   {OURS} / this = {found[OURS] / kib:.3f}")


def measure_join(words: list[str], runners: dict[str, list[str]], env: dict[str, str]) -> None:
    """Print a join's time against bubblewrap's start and the bare interpreter's, and its opens."""
    peers.ENV.update(env)
    with living([*words, "/bin/sh", "-c", "echo; read line"], 1, env):
        commands = {
            "join": [*words, *TRUE],
            "join, GPUs chosen": ["env", "NVIDIA_VISIBLE_DEVICES=0,1", *words, *TRUE],
            "join by the script": [str(peers.TREE / "bin/udi-run"), *words[1:], *TRUE],
            **{f"start of {n}": [*w, *TRUE] for n, w in runners.items() if n.startswith("bwrap")},
            "python3 -IS -c pass": ["python3", "-I", "-S", "-c", "pass"],
            "/bin/true": list(TRUE),
        }
        peers.table("one join", peers.rounds(commands, runs=20), "join")
        print(f"  file opens of a join: {opens(words)}")
    quiet()


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--failure-rounds", type=int, default=100)
    parts = ("start", "failures", "memory", "join")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    asked = parser.parse_args()
    os.chdir("/tmp")
    subreaper(True)
    image = peers.Image("numpy", codename(), ("python3-numpy",))
    runners = peers.runners(image)
    runners.pop("udi-run")
    joined = ["udi-run", "--share=bench", str(image.squashfs)]
    runners = {OURS: joined, **runners}
    with tempfile.TemporaryDirectory() as runtime:
        env = {**peers.ENV, "XDG_RUNTIME_DIR": runtime}
        os.environ["PATH"] = env["PATH"]
        if "start" in asked.only:
            measure_start(runners, asked.ranks, asked.rounds, env)
        if "failures" in asked.only:
            measure_failures(joined, asked.ranks, asked.failure_rounds, env)
        if "memory" in asked.only:
            measure_memory(runners, asked.ranks, env)
        if "join" in asked.only:
            measure_join(joined, runners, env)


if __name__ == "__main__":
    main()
