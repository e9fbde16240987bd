#!/usr/bin/env python3
"""Check two images at once: `udi verify` against sha256sum and openssl of the same two files.

    python3 -m bench.verify [--size=MB] [--rounds=N] [--folder=DIR]

All read from the page cache: what is compared is the summing, not the disk. Some sha256sum know the
CPU's instructions for it, others, as Debian 12's, do not; openssl does.
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
        argvs = {"sha256sum": ["sha256sum"], "openssl": ["openssl", "dgst", "-sha256"]}
        took: dict[str, list[float]] = {"udi verify": [], **{name: [] for name in argvs}}
        udi = [sys.executable, str(TREE / "bin/udi"), "verify", *map(str, paths)]
        for _ in range(chosen.rounds):
            for name, argv in argvs.items():
                took[name].append(together(*([*argv, str(path)] for path in paths)))
            took["udi verify"].append(together(udi))
        ours = took.pop("udi verify")
        print(f"two files of {chosen.size} MB at once: {statistics.median(ours):.2f} s")
        for name, theirs in took.items():
            ratio = statistics.median(t / o for t, o in zip(theirs, ours, strict=True))
            print(f"  {name} {statistics.median(theirs):.2f} s: our speed {ratio:.2f} of its")


if __name__ == "__main__":
    main()
