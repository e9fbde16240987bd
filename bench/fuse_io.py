"""Cold sequential reads, `find`, the first answer and memory of the servers, each on a fresh mount.

    python3 -m bench.fuse_io IMAGE [--rounds=N] [--size=MB]

IMAGE is for `find` (18,000 inodes or so); the file to read is made here (zstd 3, half noise). Wall
time and the server's own CPU time: the second is what a busy machine leaves comparable.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tests.kit.fusemount import Mount, ours, squashfuse

Times = dict[str, list[tuple[float, float]]]


def cpu(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(server: list[str], image: Path, folder: Path, argv: list[str]) -> tuple[float, float]:
    """Return (wall, server CPU) seconds of `argv`, with M for the mount, on a fresh mount."""
    with Mount(server, image, folder / "m", overlay=False) as one:
        one.run("ls", one.point)  # the server is up
        start = cpu(one.server.pid)
        words = [w.replace("M/", f"{one.point}/") for w in argv]
        before = time.perf_counter()
        done = one.run(*words)
        wall = time.perf_counter() - before
        assert done.stdout or done.returncode == 0, done.stderr
        return wall, cpu(one.server.pid) - start


def compare(name: str, case: Callable[[list[str]], tuple[float, float]], rounds: int) -> None:
    """Alternate our server with squashfuse_ll; print medians and ratios."""
    servers = {"ours": ours(), "ours, one thread": ours("raw", "--threads=0")}
    if shutil.which("squashfuse_ll"):
        servers["squashfuse_ll"] = squashfuse()
    times: Times = {key: [] for key in servers}
    for round_ in range(rounds + 1):
        for key, argv in servers.items():
            found = case(argv)
            if round_:
                times[key].append(found)
    base = times.get("squashfuse_ll", times["ours"])
    for key, found_ in times.items():
        wall = statistics.median(w / b for (w, _), (b, _) in zip(found_, base, strict=True))
        print(
            f"{name:10} {key:18} {statistics.median(w for w, _ in found_) * 1000:7.0f} ms"
            f"  {wall:5.2f} of squashfuse_ll; server CPU"
            f" {statistics.median(c for _, c in found_) * 1000:6.0f} ms"
        )


def big_image(folder: Path, megabytes: int) -> Path:
    """Make an image with one large file that compresses to half."""
    (folder / "in").mkdir()
    with open(folder / "in/big", "wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 19) + b"half of this compresses well....." * 15888)
    argv: list[str | Path] = [
        "mksquashfs",
        folder / "in",
        folder / "big.sqfs",
        "-comp",
        "zstd",
        "-quiet",
    ]
    options = ["-Xcompression-level", "3", "-no-progress", "-noappend"]
    subprocess.run([*argv, *options], check=True, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder / "in")
    return folder / "big.sqfs"


def first_answer(image: Path, folder: Path, rounds: int) -> None:
    """Print ms from exec of our server to where it answers, and its memory."""
    found = []
    for _ in range(rounds):
        with Mount(ours(), image, folder / "m") as m:
            found.append(m.seconds)
            m.run("sh", "-c", f"cat {m.point}/usr/bin/* >/dev/null; ls -lR {m.point}")
            status = Path(f"/proc/{m.server.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) >> 10
    print(f"first answer after {statistics.median(found) * 1000:.0f} ms; {peak} MiB at most")


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    option = dict(w[2:].split("=") for w in argv if w.startswith("--"))
    rounds = int(option.get("rounds", "5"))
    image = Path(next(w for w in argv if not w.startswith("--")))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        first_answer(image, folder, rounds)
        find = ["find", "M/", "-xdev"]
        compare("find", lambda server: measure(server, image, folder, find), rounds)
        stat = ["find", "M/", "-xdev", "-size", "+1k"]
        compare("find -size", lambda server: measure(server, image, folder, stat), rounds)
        big = big_image(folder, int(option.get("size", "500")))
        cat = ["dd", "if=M/big", "of=/dev/null", "bs=1M"]
        compare("read", lambda server: measure(server, big, folder, cat), rounds)


if __name__ == "__main__":
    main(sys.argv[1:])
