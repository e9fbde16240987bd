"""udi ps: the user's containers on this node."""

import os

from rootless_udi.base import jsontext
from rootless_udi.base.errors import plain
from rootless_udi.base.process import complain, page, tell
from rootless_udi.commands.common.containers import Container, containers, short
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.mixed import mixed
from rootless_udi.commands.common.parsers import Parsers, add_json, command


def add(commands: Parsers) -> None:
    """Add the parser of `udi ps`."""
    one = command(commands, "ps", ps, "list the containers that live on this node")
    add_json(one)
    one.add_argument("--names", action="store_true", help="only their names, for udi exec")


def ps(arguments: Arguments) -> int:
    """udi ps: a row for each container, the oldest first."""
    found = containers(dict(os.environ))
    if arguments.json:
        page(jsontext.text([dict(zip(c.FIELDS, c.values(), strict=True)) for c in found]) + "\n")
    elif arguments.names:
        page("".join(f"{short(one.name)}\n" for one in found))
    elif found:
        page(_table(found))
    else:
        tell("no container of yours is on this node")
    for job, rank, pid, program in mixed(found):
        complain(
            "udi",
            f"rank {rank} of {job} (process {pid}, {program}) is in none of its containers: MPI "
            "can't reach from one into the other's memory",
            'start it by udi-run too, or see "Ranks outside" in docs/launchers.md',
        )
    return 0


def _table(found: list[Container]) -> str:
    """Return the containers as a table for a person."""
    rows = [("NAME", "IMAGE", "JOB", "MEMBERS", "AGE", "WAITS", "SERVER", "MEMORY")]
    for one in found:
        rows.append(
            (
                short(one.name),
                one.image,
                one.job or "-",
                str(len(one.members)),
                age(one.age),
                "-" if one.waits is None else f"{age(one.waits)} of {age(one.keep)}",
                one.server if not one.trouble else f"dead: {one.trouble}",
                f"{one.memory / 1024:.1f} MiB" if one.memory else "-",
            )
        )
    widths = [max(len(plain(row[i])) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:<{w}}" for cell, w in zip(map(plain, row), widths, strict=True))
        for row in rows
    ]
    return "".join(line.rstrip() + "\n" for line in lines)


def age(seconds: int) -> str:
    """Return a duration as a person says it: 12s, 5m 3s, 2h 10m, 3d 4h."""
    for unit, size, small, fraction in (("d", 86400, "h", 3600), ("h", 3600, "m", 60)):
        if seconds >= size:
            return f"{seconds // size}{unit} {seconds % size // fraction}{small}"
    return f"{seconds // 60}m {seconds % 60}s" if seconds >= 60 else f"{seconds}s"
