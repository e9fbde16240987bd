#!/usr/bin/env python3
"""Short steps, one after the other, in a container that is kept; against bubblewrap.

    python bench/keep.py [--rounds 5] [--starts 100] [--many 10000] [--only PART ...]

Parts: loop (a shell's loop of starts of /bin/true, with --keep=30 and nothing there before), many
(a join of a container through which many short commands have passed, against a new container's),
memory (what waits, sum of PSS).
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import peers
from bench.node import living, pss, quiet
from tests.kit.mpiprogs import codename
from tests.kit.nodes import subreaper

OURS = "udi-run --keep=30"
USED = "  its processor time, the shell's included"
LOOP = 'n=$1; shift; i=0; while [ "$i" -lt "$n" ]; do "$@" /bin/true || exit 1; i=$((i+1)); done'


def loop(words: Sequence[str], starts: int, env: dict[str, str]) -> float:
    """Return the seconds that a shell takes for so many starts, one after the other."""
    begin = time.perf_counter()
    subprocess.run(["sh", "-c", LOOP, "sh", str(starts), *words], env=env, check=True)
    return time.perf_counter() - begin


def processor() -> float:
    """Return the seconds of processor time that processes of this one have used and ended."""
    used = os.times()
    return used.children_user + used.children_system


def stop(env: dict[str, str]) -> None:
    """End what is kept, and wait until it has ended."""
    subprocess.run(["udi", "stop", "--all"], env=env, check=True, stdout=subprocess.DEVNULL)
    quiet()


def measure_loop(
    runners: dict[str, list[str]], starts: int, rounds: int, env: dict[str, str]
) -> None:
    """Print the time of one start of a loop."""
    times: dict[str, list[float]] = {name: [] for name in runners}
    used: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, words in runners.items():
            before = processor()
            times[name].append(loop(words, starts, env) / starts)
            used[name].append((processor() - before) / starts)
            if name == OURS:
                stop(env)
    title = f"each of {starts} starts in a loop, the first included, {rounds} rounds"
    for what, found in ((title, times), (USED, used)):
        peers.table(what, {name: statistics.median(one) for name, one in found.items()}, OURS)


def measure_many(image: str, many: int, env: dict[str, str]) -> None:
    """Print joins of an old and of a new container: of two that are kept, and of two in which a
    first rank lives."""
    old, new = (["udi-run", f"--keep={seconds}", image] for seconds in (600, 601))
    joins(f"a join of a kept container after {many} short commands", old, new, many, env)
    stop(env)
    old, new = (["udi-run", f"--share={name}", image] for name in ("old", "new"))
    wait = ("/bin/sh", "-c", "echo; read line")
    with living([*old, *wait], 1, env), living([*new, *wait], 1, env):
        joins(f"the same beside a rank that lives, after {many}", old, new, many, env)
    quiet()


def joins(
    title: str, old: Sequence[str], new: Sequence[str], many: int, env: dict[str, str]
) -> None:
    """Print joins of two containers, alternating, after `many` of the old one."""
    loop(old, many, env)
    loop(new, 1, env)
    times: dict[str, list[float]] = {"old": [], "new": []}
    used: dict[str, list[float]] = {"old": [], "new": []}
    for number in range(60):
        for name, words in (("old", old), ("new", new))[:: 1 if number % 2 else -1]:
            before = processor()
            times[name].append(loop(words, 5, env) / 5)
            used[name].append((processor() - before) / 5)
    for what, found in ((f"{title}, against a new one's", times), (USED, used)):
        peers.table(what, {name: statistics.median(one) for name, one in found.items()}, "old")
    records = sorted(Path(env["XDG_RUNTIME_DIR"]).rglob("*.2"))
    print(f"  records' bytes: {[path.stat().st_size for path in records]}")


def measure_memory(image: str, env: dict[str, str]) -> None:
    """Print the memory of one container that waits."""
    loop(["udi-run", "--keep=600", image], 2, env)
    print(f"\nmemory of a container that waits (sum of PSS): {pss() / 1024:.1f} MiB")
    stop(env)


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--starts", type=int, default=100)
    parser.add_argument("--many", type=int, default=10000)
    parts = ("loop", "many", "memory")
    parser.add_argument("--only", nargs="*", choices=parts, default=parts)
    asked = parser.parse_args()
    os.chdir("/tmp")
    subreaper(True)
    image = peers.Image("numpy", codename(), ("python3-numpy",))
    found = peers.runners(image)
    runners = {OURS: ["udi-run", "--keep=30", str(image.squashfs)]}
    runners |= {name: words for name, words in found.items() if name.startswith("bwrap")}
    with tempfile.TemporaryDirectory() as runtime:
        env = {**peers.ENV, "XDG_RUNTIME_DIR": runtime}
        os.environ["PATH"] = env["PATH"]
        if "loop" in asked.only:
            measure_loop(runners, asked.starts, asked.rounds, env)
        if "many" in asked.only:
            measure_many(str(image.squashfs), asked.many, env)
        if "memory" in asked.only:
            measure_memory(str(image.squashfs), env)


if __name__ == "__main__":
    main()
