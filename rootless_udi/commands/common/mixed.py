"""Ranks of one launcher of which some are in its containers and others are not.

They can't reach each other's memory (ptrace(2)), whatever udi-run does: MPI between them ends or
hangs. `udi ps` looks for them; a container's helper looks once, and less closely
(`serve.bareranks`).
"""

import os
from collections.abc import Iterator

from rootless_udi.base.process import RANK_VARIABLES, start_and_parent
from rootless_udi.commands.common.containers import Container
from rootless_udi.node.launcher import launcher
from rootless_udi.serve.outside import AHEAD, HELPER, SERVER

_OURS = ("udi-run", "shifter")
"""Programs that are on their way into a container."""

_OUTSIDE = ("", HELPER, SERVER, AHEAD)
"""Programs that have a rank's variables and are none: who is ending, and what serves an image."""

Rank = tuple[str, str]
"""Launcher and number."""


def mixed(found: list[Container]) -> Iterator[tuple[str, str, int, str]]:
    """Yield ranks of the containers' launchers that are in none of the launcher's containers.

    As (launcher, rank, process id, program).
    """
    spaces: dict[str, set[str]] = {}
    for one in found:
        if one.job and not one.job.startswith("name "):
            spaces.setdefault(one.job, set()).update(map(_space, one.members))
    inside: set[Rank] = set()
    outside: dict[Rank, tuple[int, str]] = {}
    for pid in (
        sorted(int(name) for name in os.listdir("/proc") if name.isdigit()) if spaces else ()
    ):
        rank = _rank(pid, set(spaces))
        words = _read(pid, "cmdline")
        if rank is None or words[0] in _OUTSIDE:
            continue
        coming = any(os.path.basename(word) in _OURS for word in words[:16])
        if coming or _space(pid) in spaces[rank[0]]:
            inside.add(rank)
        else:
            # The last of a rank's processes is its program, behind wrapper scripts.
            outside[rank] = pid, words[0]
    for (job, number), (pid, program) in sorted(outside.items()):
        if (job, number) not in inside:
            yield job, number, pid, program


def _rank(pid: int, jobs: set[str]) -> Rank | None:
    """Return which rank of one of the launchers the process is; None for none."""
    pairs = (text.partition("=") for text in _read(pid, "environ"))
    environ = {name: value for name, _, value in pairs}
    number = next((environ[name] for name in RANK_VARIABLES if environ.get(name)), "")
    if not number:
        return None
    try:
        who = launcher(environ, "auto", start_and_parent(pid)[1])
    except OSError:
        return None
    return (who, number) if who in jobs else None


def _read(pid: int, name: str) -> list[str]:
    """Return the words of a file in /proc, which are apart by NUL."""
    try:
        with open(f"/proc/{pid}/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().split("\0")
    except OSError:
        return [""]


def _space(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/user")
    except OSError:
        return ""
