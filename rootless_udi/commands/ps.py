"""udi ps: the user's containers on this node, from the state directories and /proc.

It also removes records of dead containers, which are left where a helper was killed.
"""

import os
from time import time

from rootless_udi.base import jsontext
from rootless_udi.base.errors import UdiError, plain
from rootless_udi.base.process import complain, page
from rootless_udi.base.records import Record
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, add_json, command
from rootless_udi.node import places
from rootless_udi.node.record import file_of, living, read_record
from rootless_udi.node.sweep import sweep


class Container(Record):
    """A living container.

    `members` are process ids, `age` is in seconds, `memory` in KiB is that of its image server (0:
    it has none), `trouble` says how the server has died.
    """

    image: str
    digest: str
    job: str
    members: tuple[int, ...]
    age: int
    server: str
    memory: int
    trouble: str = ""


def add(commands: Parsers) -> None:
    """Add the parser of `udi ps`."""
    add_json(command(commands, "ps", ps, "list the containers that live on this node"))


def ps(arguments: Arguments) -> int:
    """udi ps: a row for each container, the oldest first."""
    found = containers(dict(os.environ))
    if arguments.json:
        page(jsontext.text([dict(zip(c.FIELDS, c.values(), strict=True)) for c in found]) + "\n")
    else:
        page(_table(found))
    return 0


def containers(environ: dict[str, str]) -> list[Container]:
    """Return this user's living containers on this node, oldest first."""
    found = []
    paths = (*places.directories(environ, os.getuid()), *places.further(environ))
    for text in places.passed_over(paths):
        complain("udi", text, "have it removed")
    for path in paths:
        _, directory = places.state([path], make=False)
        if directory < 0:
            continue
        try:
            sweep(directory)
            for file in os.listdir(directory):
                name = file.removesuffix(file_of(""))
                if name != file:
                    one = _container(directory, name)
                    if one is not None:
                        found.append(one)
        finally:
            os.close(directory)
    return sorted(found, key=lambda c: -c.age)


def _container(directory: int, name: str) -> Container | None:
    try:
        record, fd = read_record(directory, name)
    except UdiError:
        # Nobody's record: ours are for their owner to read.
        return None
    if record is None:
        return None
    os.close(fd)
    members = living(record)
    pid = _number(record.get("server").partition(" ")[0])
    if not members:
        return None
    return Container(
        image=record.get("image"),
        digest=record.get("digest"),
        job=record.get("job"),
        members=tuple(members),
        age=max(0, int(time()) - _number(record.get("started"))),
        server=record.get("rung"),
        memory=_resident(pid) if pid else 0,
        trouble=record.lost(),
    )


def _number(text: str) -> int:
    return int(text) if text.isdecimal() else 0


def _resident(pid: int) -> int:
    """Return the resident memory of a process in KiB, from /proc/PID/status (VmRSS)."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            for line in file:
                if line.startswith("VmRSS:"):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def _table(found: list[Container]) -> str:
    """Return the containers as a table for a person; the header alone where there are none."""
    rows = [("IMAGE", "JOB", "MEMBERS", "AGE", "SERVER", "MEMORY")]
    for one in found:
        rows.append(
            (
                one.image,
                one.job or "-",
                str(len(one.members)),
                age(one.age),
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
