"""udi sshd on several nodes: the first runs the command, the others serve as long as it runs."""

import os
import select
import subprocess
import time

from rootless_udi.base.errors import UdiError, counted
from rootless_udi.ssh import folder

_SECONDS = 120.0
"""For so long nodes wait for each other: a shared file system shows new files of another node late,
NFS after up to a minute (nfs(5), acdirmax)."""
_STEP = 0.1
_BY_SSH = {
    "HYDRA_LAUNCHER": "ssh",
    "I_MPI_HYDRA_BOOTSTRAP": "ssh",
    "OMPI_MCA_plm": "rsh",
    "PRTE_MCA_plm": "ssh",
}
"""By these MPI's launchers start ranks by ssh: inside they would look for the srun of the job."""
_OF_RANKS = (
    "PMI_",
    "PMI2_",
    "PMIX_",
    "OMPI_COMM_WORLD_",
    "SLURM_PMI",
    "SLURM_PROCID",
    "FLUX_TASK_",
)
"""Beginnings of variables that make a program take itself for a rank of the step."""


_BY_SRUN = ("slurm", "--external-launcher")
"""What newer versions of Slurm (23.11) set for MPI's launchers in each job, in variables that begin
so:"""
_OF_LAUNCHERS = ("HYDRA_", "I_MPI_HYDRA_")


def by_ssh(environ: dict[str, str]) -> dict[str, str]:
    """Return an environment in which MPI's launchers use ssh, unless the user says otherwise."""
    own = {
        name: value
        for name, value in environ.items()
        if not (name.startswith(_OF_LAUNCHERS) and value in _BY_SRUN)
    }
    return {**_BY_SSH, **own}


def without_rank(environ: dict[str, str]) -> dict[str, str]:
    """Return the command's environment: of a job's command, as its script has it, not of a rank."""
    return {name: value for name, value in environ.items() if not name.startswith(_OF_RANKS)}


def all_there(job: str, size: int, wait: int) -> None:
    """Wait until all nodes serve. Raises UdiError where one does not, or this one has ended."""
    found: dict[int, str] = {}
    end = time.monotonic() + _SECONDS
    while len(found) < size and time.monotonic() < end:
        found = dict(folder.nodes(job))
        if len(found) < size and _ended(wait):
            break
    if len(found) < size:
        raise UdiError(
            f"udi sshd: {counted(len(found), 'node', 'nodes')} of {size} serve after "
            f"{_SECONDS:.0f} s: {' '.join(found.values())}",
            f"do all see {os.path.dirname(job)}? --folder=DIR takes another one",
        )


def follow(job: str, ssh: str, wait: int) -> None:
    """Return when the first node's container has ended, which a session sees. Raises UdiError."""
    end = time.monotonic() + _SECONDS
    first = ""
    while not first:
        first = dict(folder.nodes(job)).get(0, "")
        if not first and (_ended(wait) or time.monotonic() > end):
            raise UdiError(
                f"udi sshd: the first node does not serve after {_SECONDS:.0f} s",
                f"do all see {os.path.dirname(job)}? --folder=DIR takes another one",
            )
    argv = [ssh, "-q", "-F", f"{job}/config", first, "echo ready; read x"]
    watch = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert watch.stdout
    if watch.stdout.readline() != b"ready\n":
        watch.kill()
        raise UdiError(
            f"udi sshd: ssh to the first node, {first}, fails",
            f"ssh -v -F {job}/config {first} says why",
        )
    poll = select.poll()
    for fd in (wait, watch.stdout.fileno()):
        poll.register(fd, select.POLLIN)
    poll.poll()
    watch.kill()
    watch.wait()


def _ended(wait: int) -> bool:
    """Tell whether this node's container has ended, after a moment."""
    time.sleep(_STEP)
    poll = select.poll()
    poll.register(wait, select.POLLIN)
    return bool(poll.poll(0))
