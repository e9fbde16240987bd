#!/usr/bin/env python3
"""Start /bin/true and import numpy, against the peers of this machine; count opens of one start."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from bench import peers
from bench.fuse_cold import forgetful


def opens(words: list[str]) -> int:
    """Return the number of files that the first process opens before it becomes /bin/true."""
    with tempfile.NamedTemporaryFile() as log:
        argv = ["strace", "-f", "-e", "trace=open,openat,execve", "-o", log.name, *words]
        subprocess.run([*argv, "/bin/true"], env=peers.ENV, check=True)
        lines = Path(log.name).read_text().splitlines()
    pid = lines[0].split()[0]
    last = max(i for i, line in enumerate(lines) if "execve" in line and '"/bin/true"]' in line)
    return sum(bool(re.match(rf"{pid} +open(at)?\(", line)) for line in lines[:last])


def main() -> None:
    """Print three tables: a start, an import (fresh mount, file cache warm), opens."""
    image = peers.Image("numpy", "bookworm", ("python3-numpy",))
    runners = peers.runners(image)
    for name in ("ch-run", "apptainer", "bwrap", "podman"):
        if program := peers.find(name):
            print(f"{name}: {peers.version(program)}")
    runners["udi-run --fuse=squashfuse_ll"] = [
        "udi-run",
        "--fuse=squashfuse_ll",
        str(image.squashfs),
    ]
    runners["udi-run by the script"] = [str(peers.TREE / "bin/udi-run"), str(image.squashfs)]
    true = {name: [*words, "/bin/true"] for name, words in runners.items()}
    peers.table("start of /bin/true, a fresh container each", peers.rounds(true))
    numpy = {n: [*w, "/usr/bin/python3", "-c", "import numpy"] for n, w in runners.items()}
    with tempfile.TemporaryDirectory() as folder:
        for name, value in forgetful(Path(folder)).items():
            numpy["udi-run, the node's first"] = ["env", f"{name}={value}", *numpy["udi-run"]]
        peers.table(
            'python3 -c "import numpy", a fresh mount each, the file in the page cache',
            peers.rounds(numpy, runs=3),
        )
    print(f"\nfile opens of one start before exec: {opens(runners['udi-run'])}")


if __name__ == "__main__":
    main()
