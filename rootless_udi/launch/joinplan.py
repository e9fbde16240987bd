"""Print what a rank that joins would do, and do nothing: UDI_JOIN_PLAN=1, for tests.

udi-run in C (joiner/) prints the same, and tests compare the two. Each field is LENGTH:NAME=VALUE
and a newline, as in a node's record. The names are `by` (the program that decided), `name` and
`request` of the container, `state` ("join", or "none" where there is no container), and what the
command would get: `argv`, `env`, `cwd` (the names of its folder), once for each value.
"""

import os

from rootless_udi.launch import command
from rootless_udi.node import places
from rootless_udi.node.record import NodeRecord, read_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.plan.environment import Operation
    from rootless_udi.plan.options import Request


def show(
    request: "Request", environ: "dict[str, str]", own: "list[Operation]", name: str, key: str
) -> int:
    """Print the plan to standard output; return the exit status."""
    text = plan(request, environ, own, name, key)
    while text:
        text = text[os.write(1, text) :]
    return 0


def plan(
    request: "Request", environ: "dict[str, str]", own: "list[Operation]", name: str, key: str
) -> bytes:
    """Return the fields of the plan to join. `name` and `key` are as in `shared.run`. Raises
    UdiError."""
    fields = [("by", "python"), ("name", name), ("request", key)]
    record = _record(environ, name, key) if name else None
    fields.append(("state", "join" if record else "none"))
    if record is not None:
        words, env, names = command.planned(record, request, environ, own)
        fields += [("argv", word) for word in words]
        fields += [("env", f"{variable}={value}") for variable, value in env.items()]
        fields += [("cwd", folder) for folder in names]
    data = [f"{field}={value}".encode("utf-8", "surrogateescape") for field, value in fields]
    return b"".join(b"%d:%s\n" % (len(one), one) for one in data)


def _record(environ: "dict[str, str]", name: str, key: str) -> NodeRecord | None:
    _, directory = places.find(environ, make=False)
    if directory < 0:
        return None
    record, fd = read_record(directory, name)
    os.close(directory)
    if record is None:
        return None
    os.close(fd)
    fits = record.get("request") == key and not record.lost() and not record.changed()
    return record if fits else None
