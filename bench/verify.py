#!/usr/bin/env python3
"""Check two images at once: `udi verify` against sha256sum of the same two files.

    python3 -m bench.verify [--size=MB] [--rounds=N] [--folder=DIR]

Both read from the page cache: what is compared is the summing, not the disk.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rootless_udi.base.superblock import MAGIC, SIZE, USED, VERSION, VERSION_4_0
from rootless_udi.store import windows
from tests.kit.places import TREE


def image(path: Path, size: int) -> None:
    """Write a file of `size` bytes that begins as a squashfs does, with its list of windows."""
    import random

    head = bytearray(SIZE)
    head[:4] = MAGIC.to_bytes(4, "little")
    head[VERSION] = VERSION_4_0
    head[USED] = size.to_bytes(8, "little")
    noise = random.Random(str(path)).randbytes(16 << 20)
    with path.open("w+b", buffering=0) as file:
        file.write(head + noise[SIZE:])
        while file.tell() < size:
            file.write(noise[: size - file.tell()])
        windows.append(file.fileno())


def together(*commands: list[str]) -> float:
    """Return the seconds until all of `commands`, started at once, have ended."""
    begin = time.perf_counter()
    running = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for argv in commands]
    for one in running:
        said = one.communicate()[0]
        assert one.returncode == 0, said
    return time.perf_counter() - begin


def main() -> None:
    """Print the medians of alternating rounds and the ratio of the speeds."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        paths = [Path(folder, name) for name in ("one.sqfs", "other.sqfs")]
        for path in paths:
            image(path, chosen.size * 10**6)
        ours, theirs = [], []
        udi = [sys.executable, str(TREE / "bin/udi"), "verify", *map(str, paths)]
        for _ in range(chosen.rounds):
            theirs.append(together(*(["sha256sum", str(path)] for path in paths)))
            ours.append(together(udi))
        ratio = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
        print(
            f"two files of {chosen.size} MB at once: sha256sum {statistics.median(theirs):.2f} s, "
            f"udi verify {statistics.median(ours):.2f} s; its speed {ratio:.2f} (asked: 0.90)"
        )


if __name__ == "__main__":
    main()
