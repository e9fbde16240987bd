#!/usr/bin/env python3
"""Covers against an overlay: a plain start, a folder of 2,000 entries, ranks that join.

    python -m bench.layer [--runs 20] [--rounds 5] [--ranks 64]

The image is a root of busybox that no `udi pull` made: "/" and an /etc of 100 entries are covered.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench.node import at_once, living, quiet
from tests.kit.nodes import subreaper
from tests.kit.places import TREE

KINDS = ("overlay", "underlay")
MANY = 2000


def image(folder: Path) -> Path:
    """Make the image in `folder`; return the squashfs file."""
    root = folder / "root"
    for name in ("bin", "etc", "usr/lib/many"):
        (root / name).mkdir(parents=True)
    shutil.copy(shutil.which("busybox") or "", root / "bin/busybox")
    for name in ("true", "sh"):
        (root / "bin" / name).symlink_to("busybox")
    for count, where in ((100, "etc"), (MANY, "usr/lib/many")):
        for number in range(count):
            (root / where / f"file{number}").touch()
    path = folder / "image.sqfs"
    subprocess.run(["mksquashfs", root, path, "-quiet", "-no-progress"], check=True)
    return path


def seconds(argv: Sequence[str], env: dict[str, str]) -> tuple[float, float]:
    """Return how long one run takes, and its time on CPUs, which a busy machine changes less."""
    null = [(os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
    begin = time.perf_counter()
    _, status, used = os.wait4(os.posix_spawnp(argv[0], list(argv), env, file_actions=null), 0)
    assert status == 0, argv
    return time.perf_counter() - begin, used.ru_utime + used.ru_stime


def medians(
    commands: dict[str, list[str]], runs: int, env: dict[str, str]
) -> tuple[dict[str, float], dict[str, float]]:
    """Return the medians of each command in seconds, of both times; the runs alternate."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(runs + 1):
        for name, argv in commands.items():
            times[name].append(seconds(argv, env))
    wall, cpu = (
        {name: statistics.median(pair[which] for pair in rows[1:]) for name, rows in times.items()}
        for which in (0, 1)
    )
    return wall, cpu


def main() -> None:
    """Print the three figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=64)
    asked = parser.parse_args()
    subreaper(True)
    os.chdir("/")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        box = str(image(folder))
        (folder / "run").mkdir(mode=0o700)
        env = {"PATH": f"{TREE}/bin:/usr/bin:/bin", "HOME": name, "XDG_RUNTIME_DIR": f"{name}/run"}
        os.environ["PATH"] = env["PATH"]
        start = {kind: ["udi-run", f"--layer={kind}", box, "true"] for kind in KINDS}
        wall, cpu = medians(start, asked.runs, env)
        ratios = [found["underlay"] / found["overlay"] for found in (wall, cpu)]
        print(
            f"a plain start: overlay {1000 * wall['overlay']:.1f} ms, underlay / overlay ", end=""
        )
        print("{:.2f}, on CPUs {:.2f} (asked: 1.30)".format(*ratios))
        words = ["udi-run", "--layer=underlay", f"--volume={name}:"]
        many = {
            where: [*words[:-1], f"{words[-1]}{where}/new", box, "true"]
            for where in ("/usr/lib", "/usr/lib/many")
        }
        costs = [
            1000 * (found["/usr/lib/many"] - found["/usr/lib"])
            for found in medians(many, asked.runs, env)
        ]
        print(f"covering a folder of {MANY} entries: ", end="")
        print("{:.1f} ms, on CPUs {:.1f} (asked: 60)".format(*costs))
        joins: dict[str, list[float]] = {kind: [] for kind in KINDS}
        ranks = {
            kind: ["udi-run", "--share=bench", f"--layer={kind}", box, "/bin/true"]
            for kind in KINDS
        }
        for kind in KINDS * asked.rounds:
            with living([*ranks[kind][:-1], "sh", "-c", "echo; read x"], 1, env):
                took, failed = at_once(ranks[kind], asked.ranks, env)
                assert not failed
                joins[kind].append(took)
            quiet()
        over, under = (statistics.median(joins[kind]) for kind in KINDS)
        print(f"{asked.ranks} joins: overlay {1000 * over:.0f} ms, ", end="")
        print(f"underlay / overlay {under / over:.2f} (asked: 1.10)")


if __name__ == "__main__":
    main()
