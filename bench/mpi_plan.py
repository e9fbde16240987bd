#!/usr/bin/env python3
"""What planning a host's MPI costs a launch, and what noting an image's libraries costs a pull.

    python bench/mpi_plan.py [--runs 21]

Planning is measured in the launch's interpreter (python3 -I -S), which has the launch's modules,
with everything in the page cache: import of the MPI's modules, then the first call, as wall and as
processor time; the figure asked is 15 ms for the first rank, and the others never come here. The
pull's figure is per ELF file of the image's tree.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tarfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rootless_udi.mpi_inject.libraries.image_facts import Inspector
from tests.kit import images, mpi
from tests.kit.places import TREE

PROGRAM = """
import gc, sys, time
sys.path.insert(0, sys.argv[1])
from rootless_udi.base import fastjson
from rootless_udi.launch import container as launch
from rootless_udi import run
facts = fastjson.loads(open(sys.argv[2]).read())["elf"]
environ = dict(word.split("=", 1) for word in sys.argv[3:])
wall, cpu = time.perf_counter(), time.process_time()
gc.disable()  # as the launcher does
from rootless_udi.mpi_inject.mpi import planner as mpi
between = time.perf_counter(), time.process_time()
# UDI_GLIBC=off: as if the image had the host's C library, so that what bringing it costs shows.
if environ.pop("UDI_GLIBC", "") == "off":
    import os
    number = int(os.confstr("CS_GNU_LIBC_VERSION").rpartition(".")[2])
    facts["libc_versions"] = [f"GLIBC_2.{number}"]
found = mpi.inject("auto", "", facts, environ)
end = time.perf_counter(), time.process_time()
print(between[0] - wall, between[1] - cpu, end[0] - between[0], end[1] - between[1],
      len(found.steps))
"""


def facts(image: str) -> Path:
    """Return the facts file of an image in the tests' store."""
    reference = mpi.pulled(image)
    for path in (mpi.store() / "images").glob("*.json"):
        if json.loads(path.read_text()).get("reference", "") == reference:
            return path
    raise SystemExit(f"no facts of {reference} in {mpi.store()}")


def planning(image: str, host: str, runs: int, glibc: str = "") -> None:
    """Print one line: medians in ms."""
    env = mpi.host_env(host) or {"PATH": "/usr/bin:/bin"}
    env |= {"UDI_GLIBC": glibc} if glibc else {}
    words = [f"{name}={value}" for name, value in env.items()]
    argv = [sys.executable, "-I", "-S", "-c", PROGRAM, str(TREE), str(facts(image)), *words]
    rows = []
    for _ in range(runs):
        out = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
        rows.append([float(word) for word in out.split()])
    medians = [statistics.median(column) for column in zip(*rows, strict=True)]
    ms = [1000 * value for value in medians[:4]]
    name = f"{image}:{host} {glibc}"
    print(
        f"{name:40} import {ms[0]:5.1f} (cpu {ms[1]:5.1f})  plan {ms[2]:5.1f}"
        f" (cpu {ms[3]:5.1f}) ms, {medians[4]:.0f} steps",
        flush=True,
    )


def noting(suite: str, packages: tuple[str, ...]) -> None:
    """Print what a pull spends on an image's ELF files."""
    inspector, spent, count, total = Inspector(), 0.0, 0, 0
    with tarfile.open(images.debian_root(suite, packages)) as archive:
        for member in archive:
            if not member.isreg():
                continue
            file = archive.extractfile(member)
            assert file is not None
            data = file.read()
            start = time.process_time()
            if inspector.wants("/" + member.name, len(data), data[:4]):
                inspector.file("/" + member.name, data)
                count, total = count + 1, total + len(data)
            spent += time.process_time() - start
    start = time.process_time()
    size = len(json.dumps(inspector.result()))
    rest = time.process_time() - start
    print(
        f"{suite} with {', '.join(packages)}: {count} ELF files of {total / 1e6:.0f} MB,"
        f" {1e3 * spent / count:.3f} ms each, {1e3 * rest:.0f} ms at the end, {size / 1e3:.0f} kB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=21)
    arguments = parser.parse_args()
    for image, host in (
        ("bookworm-mpich", "mpich-5.0.2"),
        ("bookworm-mpich", "debian-mpich"),
        ("bookworm-mpich", "impi-2021.18.1"),
        ("spack-openmpi-5.0.11", "openmpi-5.0.11"),
        ("spack-openmpi-5.0.11", "debian-openmpi"),
    ):
        planning(image, host, arguments.runs)
    # The host's C library over the image's: the difference is what that costs.
    for glibc in ("off", "", "off", ""):
        planning("bullseye-mpich", "debian-mpich", arguments.runs, glibc)
    noting("bookworm", ("python3", "libmpich12"))


if __name__ == "__main__":
    main()
