"""Tell the user that a rank of the launcher runs bare, beside those in its container.

They can't reach each other's memory (ptrace(2)), whatever udi-run does: MPI between them ends or
hangs, with words of its own that name no container. The container's helper looks once, some seconds
after its start, among the processes below the launcher. A wrapper script is no rank: who is meant
has a rank's number and has an MPI library in its memory. `udi ps` looks more closely.
"""

import os

from rootless_udi.base.process import RANK_VARIABLES, start_and_parent
from rootless_udi.node import launcher
from rootless_udi.serve import lastwords

_MOST = 4096
"""Processes below a launcher that are looked at."""


def tell(command: int) -> None:
    """Print it to the standard error of the process `command`, once udi-run. Raises OSError."""
    found = bare(_launcher(command))
    if not found:
        return
    rank, (pid, program) = min(found.items())
    others = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    lastwords.say(
        command,
        f"rank {rank}{others} of this launcher (process {pid}, {program}) is outside its "
        "container: MPI can't reach from one into the other's memory",
        'start it by udi-run too, or see "Ranks outside" in docs/launchers.md',
    )


def _launcher(command: int) -> int:
    """Return the process that started the ranks, of which `command` is one; 0 for none."""
    name = next((name for name in launcher.RANKS if name in os.environ), "")
    if not name:
        name = next((name for name in RANK_VARIABLES if name in os.environ), "")
    if not name:
        return 0
    parent = start_and_parent(command)[1]
    return launcher.starter(f"{name}={os.environ[name]}", parent)[0]


def bare(top: int) -> dict[str, tuple[int, str]]:
    """Return the bare ranks below the process `top`: their numbers, process ids and programs."""
    found = {}
    here, left = os.readlink("/proc/self/ns/user"), _children(top) if top > 1 else []
    for _ in range(_MOST):
        if not left:
            break
        pid = left.pop()
        left += _children(pid)
        try:
            if os.readlink(f"/proc/{pid}/ns/user") != here or b"/libmpi" not in _read(pid, "maps"):
                continue
            environ = dict(one.split(b"=", 1) for one in _read(pid, "environ").split(b"\0") if one)
            program = os.fsdecode(_read(pid, "cmdline").split(b"\0")[0])
        except (OSError, ValueError):
            # It has ended, is somebody else's, or has odd variables.
            continue
        for name in RANK_VARIABLES:
            if number := environ.get(name.encode()):
                # Of a wrapper and its program the later one.
                found[os.fsdecode(number)] = pid, program
                break
    return found


def _children(pid: int) -> list[int]:
    """Return a process's children; none where the kernel does not say (CONFIG_PROC_CHILDREN)."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            found += map(int, _read(pid, f"task/{thread}/children").split())
    except OSError:
        pass
    return found


def _read(pid: int, name: str) -> bytes:
    with open(f"/proc/{pid}/{name}", "rb", buffering=0) as file:
        return file.readall() or b""
