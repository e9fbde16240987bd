"""A squashfs volume against the directory that it was packed of, on a slow file system.

    python3 -m bench.volume [--files=N] [--rounds=N] [--ms=N]

- a walk and read of 20,000 files of 4 KiB, 100 in a folder, by find and cat in a container, on a
  file system that takes 1 ms for each call, reads included (slowfs.py): the file that `udi pack`
  wrote / the directory itself (asked: at least 10 times as fast), each by a mount of its own, so
  that nothing is cached
- the same on this machine's own disk, from its page cache, and by squashfuse_ll
- four volumes of a quarter of the files each, read at once by four processes
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.cache import HERE, RUN
from tests.kit import nodes

WALK = "find {0} -type f -exec cat {{}} + | wc -c"


def made(folder: Path, count: int) -> None:
    """Write `count` files of 4 KiB that don't compress, 100 in a folder."""
    for number in range(count):
        place = folder / f"{number // 100:05}"
        if number % 100 == 0:
            place.mkdir(parents=True)
        (place / f"{number:07}.bin").write_bytes(os.urandom(4096))


def seconds(image: Path, script: str, expected: int, *options: str, before: list[str]) -> float:
    argv = [*before, RUN, "--share=off", *options, str(image), "sh", "-c", script]
    begin = time.perf_counter()
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    taken = time.perf_counter() - begin
    assert sum(map(int, done.stdout.split())) == expected, done
    return taken


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    option = dict(word[2:].split("=") for word in argv)
    count, rounds = int(option.get("files", "20000")), int(option.get("rounds", "3"))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        data, slow = folder / "data", folder / "slow"
        slow.mkdir()
        for part in range(4):
            made(data / str(part), count // 4)
        image = nodes.busybox(folder)
        pack = [str(HERE.parent / "bin/udi"), "pack", str(data)]
        begin = time.perf_counter()
        subprocess.run([*pack, str(folder / "data.sqfs")], check=True, capture_output=True)
        print(f"udi pack of {count} files: {time.perf_counter() - begin:.1f} s")
        for part in range(4):
            one = [*pack[:2], str(data / str(part)), str(folder / f"{part}.sqfs")]
            subprocess.run(one, check=True, capture_output=True)
        size, walk = count * 4096, WALK.format("/data")
        late = f"--ms={option.get('ms', '1')}", "--reads", str(folder), str(slow)
        before = [sys.executable, str(HERE / "slowfs.py"), *late]
        ours = seconds(image, walk, size, f"--volume={slow}/data.sqfs:/data", before=before)
        bare = seconds(image, walk, size, f"--volume={slow}/data:/data", before=before)
        print(
            f"slow file system: {ours:.2f} s against {bare:.2f} s: {bare / ours:.1f} times as fast"
        )
        cases = {
            "squashfs volume": [f"--volume={folder}/data.sqfs:/data"],
            "directory": [f"--volume={data}:/data"],
        }
        if shutil.which("squashfuse_ll"):
            volume = f"--volume={folder}/data.sqfs:/data"
            cases["squashfuse_ll"] = [volume, "--fuse=squashfuse_ll"]
        four = [f"--volume={folder}/{part}.sqfs:/data/{part}" for part in range(4)]
        cases["four volumes at once"] = four
        times: dict[str, list[float]] = {case: [] for case in cases}
        for _ in range(rounds):
            for case, options in cases.items():
                script = walk
                if case.startswith("four"):
                    parts = " & ".join(WALK.format(f"/data/{part}") for part in range(4))
                    script = f"{parts} & wait"
                times[case].append(seconds(image, script, size, *options, before=[]))
        for case, found in times.items():
            print(f"{case:24} {statistics.median(found):6.2f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
