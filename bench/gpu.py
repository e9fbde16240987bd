"""Cost of GPU planning for a node's first rank: new interpreters, a host as large as real ones.

    python bench/gpu.py [ROUNDS]

Builds a host in a temporary folder (3,000 libraries in ld.so.cache and their folder, a driver of
30 libraries, 8 cards), then times `import` and `plan` in fresh `python -I -S` processes: by
discovery, by CDI in JSON, by CDI in YAML as nvidia-ctk writes it. Prints medians of processor
time in milliseconds (wall time on a shared machine says little), the steps and the opened files.
The figure to keep: 10 ms for import and plan together.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TREE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TREE))

from tests.kit import gpuhosts  # noqa: E402
from tests.kit.gpuhosts import MULTIARCH, VERSION, Host  # noqa: E402

FOLDER = f"/usr/lib/{MULTIARCH}"
CARDS = 8
LIBRARIES = 3000

SOURCE = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>
void *functions[] = {dlopen,     pow,    pthread_create, sched_getcpu,  fmemopen, secure_getenv,
                     getenv,     memcpy, epoll_create1,  clock_gettime, eventfd,  aligned_alloc};
"""
"""As many symbol versions of glibc as NVIDIA's libraries need: they are read in each of them."""

CODE = """
import gc, sys, time
gc.disable()  # as the launcher does
sys.path.insert(0, {tree!r})
import os
import rootless_udi.config.load, rootless_udi.base.fastjson
opened = []
sys.addaudithook(lambda event, args: opened.append(args[0]) if event == "open" else None)
start = time.process_time()
from rootless_udi.mpi_inject.gpu import planner as gpu
middle = time.process_time()
plan = gpu.plan({request!r}, (), {facts!r}, {{}}, {root!r})
end = time.process_time()
print(1e3 * (middle - start), 1e3 * (end - middle), len(plan.steps), len(opened))
"""


def build(path: Path) -> Host:
    """Return a node of 8 cards with a large library folder."""
    host = Host(path)
    names = {f"libnvidia-part{n}": f"libnvidia-part{n}.so.1" for n in range(17)}
    host.libraries(FOLDER, VERSION, gpuhosts.SONAMES | names, SOURCE, "-lm", "-ldl", "-lpthread")
    other = gpuhosts.compile("libother.so.1").read_bytes()
    for number in range(LIBRARIES // 2):
        target = host.path / FOLDER[1:] / f"libother{number}.so.1.2"
        target.write_bytes(other.replace(b"libother.so.1", f"libo{number:05}.so.1".encode()[:13]))
        target.with_name(f"libo{number:05}.so.1"[:13]).symlink_to(target.name)
    host.write("/usr/bin/nvidia-smi", "", 0o755)
    return host.kernel(cards=CARDS).ldconfig(FOLDER)


def document(host: Host) -> dict[str, Any]:
    """Return what nvidia-ctk writes for this host: each card by index and UUID, and `all`."""
    options = ["ro", "nosuid", "nodev", "rbind", "rprivate"]
    nodes = [f"/dev/nvidia{n}" for n in range(CARDS)]
    devices = [
        {"name": name, "containerEdits": {"deviceNodes": [{"path": p} for p in paths]}}
        for number, node in enumerate(nodes)
        for name, paths in ((str(number), [node]), (f"GPU-{number}-aaaa-bbbb", [node]))
    ]
    devices.append({"name": "all", "containerEdits": {"deviceNodes": [{"path": p} for p in nodes]}})
    real = sorted(p.name for p in (host.path / FOLDER[1:]).glob(f"*.so.{VERSION}"))
    hook = "/usr/bin/nvidia-cdi-hook"
    return {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": devices,
        "containerEdits": {
            "deviceNodes": [{"path": "/dev/nvidiactl"}, {"path": "/dev/nvidia-uvm"}],
            "hooks": [
                {
                    "hookName": "createContainer",
                    "path": hook,
                    "args": ["nvidia-cdi-hook", *args],
                    "env": ["NVIDIA_CTK_DEBUG=false"],
                }
                for args in (
                    ["create-symlinks", "--link", f"libcuda.so.1::{FOLDER}/libcuda.so"],
                    ["update-ldcache", "--folder", FOLDER],
                )
            ],
            "mounts": [
                {
                    "hostPath": f"{FOLDER}/{name}",
                    "containerPath": f"{FOLDER}/{name}",
                    "options": options,
                }
                for name in real
            ],
        },
    }


def measure(host: Host, request: str, rounds: int) -> str:
    """Run the planning in new processes; return the row of the table."""
    code = CODE.format(
        tree=str(TREE), request=request, facts=gpuhosts.Facts().json(), root=host.root
    )
    rows = []
    for _ in range(rounds + 1):
        argv = [sys.executable, "-I", "-S", "-X", f"pycache_prefix={host.root}.pyc", "-c", code]
        done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
        rows.append([float(word) for word in done.stdout.split()])
    rows = rows[1:]
    loads, plans = [r[0] for r in rows], [r[1] for r in rows]
    both = [r[0] + r[1] for r in rows]
    medians = "  ".join(f"{statistics.median(x):6.1f}" for x in (loads, plans, both))
    return f"{medians}  {min(both):6.1f}  {rows[0][2]:5.0f}  {rows[0][3]:5.0f}"


def main() -> None:
    """Build the host, print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    print("ms              import    plan    both     min  steps  opens")
    with tempfile.TemporaryDirectory() as folder:
        host = build(Path(folder) / "root")
        print("discovery     ", measure(host, "auto", rounds))
        whole = json.loads(json.dumps(document(host)))
        place = host.path / "etc/cdi"
        host.write("/etc/cdi/nvidia.json", json.dumps(whole, indent=2))
        print("CDI in JSON   ", measure(host, "auto", rounds))
        (place / "nvidia.json").unlink()
        import yaml

        text = yaml.safe_dump(whole, sort_keys=False)
        host.write("/etc/cdi/nvidia.yaml", "---\n" + text)
        print("CDI in YAML   ", measure(host, "auto", rounds), f" ({text.count(chr(10))} lines)")


if __name__ == "__main__":
    main()
