"""Read this machine into a capture: what hardware, kernel, libraries and configuration it has.

Reads only; of programs it asks srun and nvidia-smi, each for seconds at most. What it can't read is
left out, which a check takes for "not known".
"""

import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from rootless_udi.forecast import capturempi
from rootless_udi.forecast.site import FORMAT, VERSION, Capture, check_name, scrubbed
from rootless_udi.host import facts as host
from rootless_udi.mpi_inject.gpu import amd, intel, nvidia
from rootless_udi.mpi_inject.gpu.cuda_require import cuda_of
from rootless_udi.mpi_inject.libraries.rooted import listing, read
from rootless_udi.mpi_inject.mpi import network, profiles
from rootless_udi.plan.modules import BUILT_IN
from rootless_udi.plan.site import Site
from rootless_udi.version import VERSION as RELEASE

WAIT = 3.0
"""Seconds for a program that is asked."""
_JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "JOB_ID", "LSB_JOBID", "FLUX_JOB_ID", "COBALT_JOBID")
"""Variables of a batch system's job: the capture is of a compute node then."""
_ABILITIES = {
    "userns": "user and mount namespaces",
    "fuse": "FUSE in a user namespace",
    "overlay": "overlay in a user namespace",
}
"""Key of the section "system" -> the finding of udi doctor that says it."""

Finding = tuple[str, str, str]
"""Of udi doctor: its state ("ok", ...), what it is about, what was found."""


def capture(
    name: str,
    site: Site,
    findings: Iterable[Finding],
    environ: Mapping[str, str],
    store: str = "",
    on: str = "",
    root: str = "/",
) -> Capture:
    """Return the capture of this machine. `root` is a tree that stands for the host in tests.

    `findings` are udi doctor's, `store` is the path of the user's image store. `on` is what the
    node is: "login", "compute", or "here" for the machine that is checked; "" tells by the batch
    system's variables.
    """
    check_name(name)
    on = on or ("compute" if any(key in environ for key in _JOBS) else "login")
    date = time.strftime("%Y-%m-%d", time.gmtime())
    machine = os.uname().machine
    head: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "name": name,
        "taken": [{"on": on, "date": date, "by": RELEASE}],
    }
    parts: dict[str, Callable[[], Any]] = {
        "system": lambda: _system(list(findings), root),
        "cpu": _cpu,
        "memory": lambda: _memory(root),
        "networks": lambda: [{"name": n.name, "kind": n.kind} for n in _networks(root)],
        "gpus": lambda: _gpus(root) or (None if on == "login" else []),
        "drivers": lambda: _drivers(root, machine, environ),
        "launchers": lambda: _launchers(environ),
        "config": lambda: _config(site, store),
        "libc": lambda: capturempi.glibc(machine, root),
        "mpi": lambda: capturempi.capture(environ, machine, root, _profiles(site)),
    }
    read_parts = {key: part() for key, part in parts.items()}
    known = {key: found for key, found in read_parts.items() if found is not None}
    return Capture(name, head | scrubbed(known, _secrets(environ)))


def _secrets(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Return what is left out: the home, the user's name, this host's name."""
    one = host.gather({})
    homes = sorted({one.home, environ.get("HOME", "")}, key=len, reverse=True)
    found = [(home.rstrip("/"), "$HOME") for home in homes if home.count("/") > 1]
    names = {one.user, environ.get("USER", ""), environ.get("LOGNAME", "")}
    # "root" and "bin" are in many paths, and name nobody.
    found += [(name, "$USER") for name in names if len(name) > 1 and one.uid >= 100]
    node = os.uname().nodename
    hosts = {node, node.partition(".")[0]} - {"localhost", "localhost.localdomain"}
    return found + [(name, "$HOST") for name in sorted(hosts, key=len, reverse=True)]


def _system(findings: list[Finding], root: str) -> dict[str, Any]:
    system = os.uname()
    try:
        os_name = platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        os_name = ""
    found: dict[str, Any] = {
        "machine": system.machine,
        "kernel": system.release,
        "os": os_name,
        "pagesize": os.sysconf("SC_PAGE_SIZE"),
    }
    states = {what: state for state, what, _text in findings}
    for key, what in _ABILITIES.items():
        if what in states:
            found[key] = states[what] == "ok"
    if states.get("/dev/fuse", "ok") != "ok" or found.get("userns") is False:
        found["fuse"] = False
    found["findings"] = [list(one) for one in findings if one[0] != "ok"]
    return found


def _cpu() -> dict[str, Any]:
    import archspec.cpu

    one = archspec.cpu.host()
    model = re.search(r"^model name\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.M)
    return {
        "name": one.name,
        "vendor": one.vendor,
        "generic": one.generic.name,
        "model": " ".join(model[1].split()) if model else "",
        "cores": os.cpu_count() or 0,
        "features": sorted(one.features),
    }


def _memory(root: str) -> int | None:
    found = re.search(r"^MemTotal:\s*(\d+) kB$", read(root, "/proc/meminfo"), re.M)
    return int(found[1]) * 1024 if found else None


def _networks(root: str) -> list[network.Interface]:
    """Return the interfaces that are up, the fast ones first, but for those of containers."""
    up = [one for one in network.from_sys(root) if one.up]
    plain = [n for n in up if not n.name.startswith(("veth", "docker", "br-", "virbr", "tap"))]
    return sorted(plain, key=lambda one: not one.kind)[:32]


def _gpus(root: str) -> list[dict[str, Any]]:
    """Return the GPUs; [] where there is none, which for a login node says nothing of the site."""
    found = _nvidia_smi(root) or [
        {"vendor": "nvidia", "name": one.model} for one in nvidia.gpus(root)
    ]
    found += [_kfd(root, node) for node in listing(root, _KFD) if _target(root, node)]
    if not any(one["vendor"] == "amd" for one in found):
        found += [{"vendor": "amd", "name": card.name} for card in amd.discover(root)]
    return found + [{"vendor": "intel", "name": card.name} for card in intel.discover(root)]


def _nvidia_smi(root: str) -> list[dict[str, Any]]:
    if root != "/":
        return []
    said = _asked(
        "nvidia-smi", "--query-gpu=name,memory.total,compute_cap", "--format=csv,noheader"
    )
    found = []
    for line in said.splitlines():
        words = [word.strip() for word in line.split(",")]
        if len(words) == 3 and re.fullmatch(r"\d+\.\d+", words[2]):
            size = re.fullmatch(r"(\d+) MiB", words[1])
            one = {"vendor": "nvidia", "name": words[0], "capability": words[2]}
            found.append(one | ({"memory": int(size[1]) << 20} if size else {}))
    return found


_KFD = "/sys/class/kfd/kfd/topology/nodes"


def _target(root: str, node: str) -> int:
    """Return the kernel's gfx_target_version of a node: 90010 is gfx90a; 0 for a processor."""
    found = re.search(r"^gfx_target_version (\d+)$", read(root, f"{_KFD}/{node}/properties"), re.M)
    return int(found[1]) if found else 0


def _kfd(root: str, node: str) -> dict[str, Any]:
    major, minor, step = (number := _target(root, node)) // 10000, number // 100 % 100, number % 100
    one: dict[str, Any] = {"vendor": "amd", "arch": f"gfx{major}{minor:x}{step:x}"}
    if name := read(root, f"{_KFD}/{node}/name").strip():
        one["name"] = name
    size = re.search(
        r"^size_in_bytes (\d+)$", read(root, f"{_KFD}/{node}/mem_banks/0/properties"), re.M
    )
    return one | ({"memory": int(size[1])} if size else {})


def _drivers(root: str, machine: str, environ: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    version = nvidia.kernel_version(read(root, "/proc/driver/nvidia/version"))
    if version:
        cuda, _sure = cuda_of(version)
        found["nvidia"] = {"version": version, **({"cuda": cuda} if cuda else {})}
    if version := amd.version(root):
        found["amd"] = {"version": version}
    return found


def _launchers(environ: Mapping[str, str]) -> list[dict[str, Any]]:
    found = []
    version = re.match(r"slurm (\S+)", _asked("srun", "--version"))
    if version:
        listed = re.findall(r"\b(pmi2|pmix(?:_v\d+)?|cray_shasta|cray_alps)\b", _plugins())
        pmi = ["pmi1", *dict.fromkeys(listed)]
        found.append({"name": "slurm", "version": version[1], "pmi": pmi})
    for program in ("mpiexec", "mpiexec.hydra", "mpiexec.openmpi"):
        row = _mpiexec(_asked(program, "--version"))
        if row and all(row["name"] != one["name"] for one in found):
            found.append(row)
    return found


def _mpiexec(said: str) -> dict[str, Any] | None:
    """Return the launcher that says this of its version."""
    if "HYDRA" in said or "Intel" in said:
        number = re.search(r"Version:?\s+(\S+)", said)
        return {"name": "hydra", "version": number[1] if number else "", "pmi": ["pmi1", "pmi2"]}
    if "Open MPI" in said or "OpenRTE" in said or "prterun" in said:
        number = re.search(r"(\d+\.\d+\S*)", said)
        return {"name": "openmpi", "version": number[1] if number else "", "pmi": ["pmix"]}
    if "PALS" in said:
        return {"name": "pals", "version": said.split()[-1], "pmi": ["pmi1", "pmi2"]}
    return None


def _plugins() -> str:
    return _asked("srun", "--mpi=list")


def _config(site: Site, store: str) -> dict[str, Any]:
    """Return what of the configuration decides about a launch."""
    found: dict[str, Any] = {
        "mounts": [[m.source, m.destination, list(m.options)] for m in site.mounts],
        "modules": sorted({*site.modules, *BUILT_IN}),
        "default_modules": list(site.default_modules),
        "mpi": {name: dict(table) for name, table in site.mpi.items()},
        "cache_limit": site.cache_limit,
        "cache_paths": list(site.cache_paths),
        "cwd": site.cwd,
        "home": site.home,
    }
    there = Path(store) if store else None
    while there and not there.exists() and there != there.parent:
        there = there.parent
    if there:
        usage = os.statvfs(there)
        found["store"] = usage.f_bavail * usage.f_frsize
    return found


def _profiles(site: Site) -> list[profiles.Profile]:
    return [profiles.from_dict(name, table) for name, table in site.mpi.items()]


def _asked(program: str, *words: str) -> str:
    """Return what a program says on both streams; "" where it is missing, fails or hangs."""
    path = host.which(program, os.environ)
    if not path:
        return ""
    try:
        done = subprocess.run(
            [path, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=WAIT,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return "" if done.returncode else (done.stdout + done.stderr)[:65536].decode(errors="replace")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
