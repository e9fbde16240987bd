"""Whose a kept container is: who may join it, and which process's end ends it.

Outside any launcher a container is kept (--keep) for the next start of the same user with the same
request. Its image server and the process that keeps it are killed together with all that is in
their cgroup, or with their batch job: so a start in another cgroup or job, a login session for
example, makes a container of its own. The current folder is mounted in it, so it belongs to this
folder too, unless a volume has brought the folder in (`plan.keeping.covered`).
"""

import os

from rootless_udi.base.process import current, start_and_parent, started
from rootless_udi.node.launcher import ranked
from rootless_udi.plan import keeping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootless_udi.plan.options import Request

KIND = "keep"
"""With this the names of such containers begin, and what they are told by."""
JOBS = ("SLURM_JOB_ID", "PBS_JOBID", "JOB_ID", "LSB_JOBID")
"""Variables that name the caller's batch job."""


def owner(request: "Request", environ: "Mapping[str, str]") -> str:
    """Return a name for the starts that share a kept container, as `launcher.launcher` for ranks.

    Its first line is for people: the batch job. "" for a rank, whose launcher has one already, and
    for a request whose container can't be kept.
    """
    if request.share not in (None, "auto") or not keeping.possible(request) or ranked(environ):
        return ""
    job = next((f" {name}={environ[name]}" for name in JOBS if environ.get(name)), "")
    names = current(environ)
    if keeping.covered(request, names, environ.get("HOME", "")):
        names = []
    return "\n".join([f"{KIND}{job}", _cgroup(), *names])


def _cgroup() -> str:
    """Return the caller's cgroups, cgroups(7); "" where /proc does not tell."""
    try:
        fd = os.open("/proc/self/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return ""
    with open(fd, encoding="utf-8", errors="surrogateescape") as file:
        return file.read()


def job_process(environ: "Mapping[str, str]") -> tuple[int, int]:
    """Return (pid, start time) of the first process of the caller's batch job; (0, 0) for none.

    That is the caller's ancestor furthest above that has the job's variable, often the batch
    script. Not every batch system ends all that a job has started.
    """
    name = next((name for name in JOBS if environ.get(name)), "")
    if not name:
        return 0, 0
    mark = f"{name}={environ[name]}".encode("utf-8", "surrogateescape")
    pid = os.getpid()
    while True:
        try:
            parent = start_and_parent(pid)[1]
            fd = os.open(f"/proc/{parent}/environ", os.O_RDONLY | os.O_CLOEXEC)
            with open(fd, "rb", buffering=0) as file:
                block = file.readall() or b""
        except OSError:
            break
        if mark not in block.split(b"\0"):
            break
        pid = parent
    return pid, started(pid)
