"""perNodeCache against what it stands on, in one run, as ratios.

    bench/cache.py IMAGE [DIRECTORY [TIMES]]    as an ordinary user; DIRECTORY backs the file method

- dd of 1 GiB to a tmpfs cache / the same dd to a bare tmpfs (asked: within 5 %)
- dd of 1 GiB to a file cache / the same dd to its backing file system (asked: at least 0.5)
- 10,000 small files in a file cache on an NFS-like backing (slowfs.py) / on that backing itself
  (asked: at least 3 times as fast)
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUN = str(HERE.parent / "bin/udi-run")
DD = "dd if=/dev/zero of={0}/big bs=1M count=1024 {1} 2>/dev/null && rm {0}/big"
FILES = (
    "mkdir {0}/many && cd {0}/many && i=0 && while [ $i -lt {1} ]; do echo x > $i; i=$((i+1)); done"
)


def seconds(*argv: str) -> float:
    begin = time.perf_counter()
    subprocess.run(argv, check=True)
    return time.perf_counter() - begin


def inside(image: str, source: str, options: str, script: str, *before: str) -> float:
    """Time a script in a container, less the time of the same container doing nothing."""
    volume = f"--volume={source}:/cache:perNodeCache=size=1100M,{options}"
    base = [*before, RUN, "--share=off", volume, image, "/bin/sh", "-c"]
    return seconds(*base, script) - seconds(*base, ":")


def bare(script: str, *before: str) -> float:
    return seconds(*before, "/bin/sh", "-c", script)


def compare(name: str, ours: "list[float]", theirs: "list[float]") -> None:
    best, other = min(ours), min(theirs)
    print(f"{name:<44} {best:8.3f} s against {other:8.3f} s: speed {other / best:.2f}")


def main() -> None:
    image = sys.argv[1]
    backing = sys.argv[2] if len(sys.argv) > 2 else "/var/tmp"
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    tmpfs = ["unshare", "--user", "--map-current-user", "--mount", "--keep-caps", "sh", "-c"]
    with tempfile.TemporaryDirectory(dir=backing) as folder:
        rows: list[list[float]] = [[], [], [], [], [], []]
        for _ in range(rounds):
            script = DD.format("/mnt", "")
            mounted = "mount -t tmpfs -o size=1100M tmpfs /mnt && "
            empty = seconds(*tmpfs, mounted + ":")
            rows[0].append(inside(image, folder, "method=tmpfs", DD.format("/cache", "")))
            rows[1].append(seconds(*tmpfs, mounted + script) - empty)
            for at, flags in ((2, ""), (4, "conv=fsync")):
                script = DD.format("/cache", flags)
                rows[at].append(inside(image, folder, "method=file", script))
                rows[at + 1].append(bare(DD.format(folder, flags)))
        compare("tmpfs: 1 GiB", rows[0], rows[1])
        compare("file: 1 GiB", rows[2], rows[3])
        compare("file: 1 GiB, fsync", rows[4], rows[5])
        for name in ("backing", "slow"):
            os.mkdir(f"{folder}/{name}")
        slow = f"{folder}/slow"
        before = (sys.executable, str(HERE / "slowfs.py"), f"{folder}/backing", slow)
        count = 10000
        ours = inside(image, slow, "method=file", FILES.format("/cache", count), *before)
        theirs = bare(FILES.format(slow, count), *before)
        compare(f"file on slowfs: {count} small files", [ours], [theirs])


if __name__ == "__main__":
    main()
