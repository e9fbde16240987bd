"""Where `udi sshd` runs: which job, which of its nodes, and how many of them there are."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.node.kept import JOBS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_RANKS = (
    ("PALS_RANKID", "PMI_SIZE"),
    ("PMIX_RANK", "PMIX_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("FLUX_TASK_RANK", "FLUX_JOB_SIZE"),
)
"""Variables with a task's number and their count."""


class JobNode(Record):
    """`job` is the batch job's name, or the node's without one; `node` the name by which the job
    knows the node, `names` all of its names; `rank` of `size` tasks."""

    job: str
    node: str
    names: tuple[str, ...]
    host: str
    rank: int
    size: int


def here(environ: "Mapping[str, str]") -> JobNode:
    """Return where this process is, by the variables of the workload manager.

    Raises UdiError for a step of Slurm with several tasks on a node.
    """
    host = os.uname().nodename
    # Several slurmd on one machine, for tests of Slurm, each count as a node.
    node = environ.get("SLURMD_NODENAME") or host.partition(".")[0]
    names = [node]
    if node in (host, host.partition(".")[0]):
        names += [host, host.partition(".")[0]]
    job = next((environ[name] for name in JOBS if environ.get(name)), "") or node
    rank, size = _task(environ)
    nodes = environ.get("SLURM_STEP_NUM_NODES", "")
    if environ.get("SLURM_STEP_ID") and nodes.isdecimal() and size > int(nodes):
        raise UdiError(
            f"udi sshd: {size} tasks on {nodes} of the job's nodes, and it is one on each",
            "srun --ntasks-per-node=1 udi sshd ...",
        )
    return JobNode(
        _plain(job), _plain(node), tuple(map(_plain, dict.fromkeys(names))), host, rank, size
    )


def _task(environ: "Mapping[str, str]") -> tuple[int, int]:
    # A batch script has SLURM_PROCID too, and is no task of a step.
    step = (("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),) if environ.get("SLURM_STEP_ID") else ()
    for name, count in (*step, *_RANKS):
        rank, size = environ.get(name, ""), environ.get(count, "")
        if rank.isdecimal() and size.isdecimal() and int(rank) < int(size):
            return int(rank), int(size)
    return 0, 1


def _plain(text: str) -> str:
    """Return a name for files and for ssh: `1234[7].server` has characters that both obey."""
    return (
        "".join(c if c.isascii() and (c.isalnum() or c in "-_.") else "-" for c in text).lstrip(
            "-."
        )
        or "job"
    )
