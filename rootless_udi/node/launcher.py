"""Which launcher started this rank, and the name of the container of its ranks."""

import os

from rootless_udi.base.digest import digest
from rootless_udi.base.process import start_and_parent, started
from rootless_udi.node.record import FORMAT
from rootless_udi.plan.options import FILE_SUFFIXES, FLAG, LIST, OPTIONS, Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

PLANNED = (
    "UDI_CONFIG",
    "UDI_SITE_DIR",
    "UDI_STORE",
    "XDG_CONFIG_HOME",
    "XDG_DATA_HOME",
    "HOME",
    "MPI_HOME",
    "MPICH_DIR",
    "CRAY_MPICH_DIR",
    "I_MPI_ROOT",
    "NVIDIA_DRIVER_CAPABILITIES",
    "NVIDIA_DISABLE_REQUIRE",
    "CUDA_MPS_PIPE_DIRECTORY",
)
"""Variables on which a plan depends. Others may differ between the ranks of one container."""

RANKS = ("PMIX_RANK", "PMI_RANK", "PMI_ID", "OMPI_COMM_WORLD_RANK", "PMI_FD")
"""Variables of PMI and PMIx that tell a rank from its launcher."""


def launcher(environ: "Mapping[str, str]", share: str, parent: int = 0) -> str:
    """Return a name for what started this process and its peers on this node; "" if nothing did.

    That is a step of Slurm or PALS, or a job of Flux; else a PBS, Grid Engine or LSF job and the
    launcher's process; else, where variables of PMI or PMIx are set, the launcher's process alone.
    `environ` may be another process's, with its `parent`.
    """
    if share == "off":
        return ""
    if share != "auto":
        return f"name {share}"
    get = environ.get
    # For tests of Slurm, several slurmd on one machine each count as a node.
    node = get("SLURMD_NODENAME", "")
    if get("SLURM_JOB_ID") and get("SLURM_STEP_ID") and get("SLURM_PROCID"):
        return f"slurm {get('SLURM_JOB_ID')}.{get('SLURM_STEP_ID')} {node}"
    if get("PALS_APID"):
        return f"pals {get('PALS_APID')}"
    if get("FLUX_JOB_ID") and get("FLUX_TASK_RANK"):
        # An instance in a job (flux-batch(1)) has numbers of its own.
        return f"flux {get('FLUX_JOB_ID')} {get('FLUX_URI', '')}"
    ranked = next((name for name in RANKS if name in environ), None)
    job = ""
    if get("PBS_JOBID"):
        job = f"pbs {get('PBS_JOBID')}"
    elif get("SGE_TASK_ID") and get("JOB_ID"):
        job = f"sge {get('JOB_ID')}.{get('SGE_TASK_ID')}"
    elif get("LSB_JOBID"):
        job = f"lsf {get('LSB_JOBID')}.{get('LSB_JOBINDEX', '0')}"
    if ranked is not None:
        pid, start = starter(f"{ranked}={environ[ranked]}", parent or os.getppid())
    elif job:
        pid = parent or os.getppid()
        start = started(pid)
    else:
        return ""
    return f"{job or 'mpi'} {pid}.{start}"


def ranked(environ: "Mapping[str, str]") -> bool:
    """Tell whether this process is a rank: of Slurm, PALS or Flux, or by PMI or PMIx."""
    get = environ.get
    step = get("SLURM_JOB_ID") and get("SLURM_STEP_ID") and get("SLURM_PROCID")
    job = get("PALS_APID") or (get("FLUX_JOB_ID") and get("FLUX_TASK_RANK"))
    return bool(step or job) or any(name in environ for name in RANKS)


def starter(mark: str, pid: int) -> tuple[int, int]:
    """Return (pid, start) of the nearest ancestor whose environment lacks `mark`, NAME=VALUE.

    `pid` is the parent, where the search begins. Each rank may have been started by a wrapper
    script of its own. The launcher is the first process above them that is no rank itself.
    """
    wanted = mark.encode("utf-8", "surrogateescape")
    while pid > 1:
        try:
            fd = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            break
        try:
            with open(fd, "rb", buffering=0) as file:
                block = file.readall() or b""
        except OSError:
            break
        if wanted not in block.split(b"\0"):
            break
        try:
            pid = start_and_parent(pid)[1]
        except OSError:
            break
    return pid, started(pid)


def scope(who: str) -> str:
    """Return the text that stands for the launcher `who`, and begins each of its containers' texts.

    The group is part of it (newgrp(1), sg(1)): a user namespace maps one group, and in another
    caller's no file could be made (EOVERFLOW).
    """
    return f"udi {FORMAT}\0{who}\0gid {os.getgid()}"


def key(request: Request, who: str, environ: "Mapping[str, str]") -> tuple[str, str]:
    """Return (name, text): the record's name, and the text of all that the container depends on."""
    parts = [scope(who)]
    for option in OPTIONS:
        value = getattr(request, option.field)
        if option.shares and option.name != "share" and (value or value == ""):
            values = value if option.kind == LIST else ["" if option.kind == FLAG else value]
            parts += [f"{option.name}={one}" for one in values]
    if _relative(request.image):
        parts.append(f"cwd={os.getcwd()}")
    parts += [f"{name}={environ[name]}" for name in PLANNED if name in environ]
    # What no argument and no variable can hold: no two requests come to one text.
    text = "\0".join(parts)
    name = digest(text.encode("utf-8", "surrogateescape"))
    # Who may look for a kept container sees by the names whether there is any.
    return f"keep-{name}" if who.startswith("keep") else name, text


def _relative(image: str) -> bool:
    """Tell whether an image is named by a path from the current folder."""
    scheme, colon, path = image.partition(":")
    if colon and scheme in ("oci", "oci-archive", "docker-archive"):
        return not path.startswith("/")
    return image.startswith(".") or ("/" not in image[:1] and image.endswith(FILE_SUFFIXES))
