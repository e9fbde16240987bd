"""udi-run for a node's ranks: join the container that another rank built, or build it.

The first rank of a launcher wins the election (`rootless_udi.node.election`) and builds; the others
wait for its record and join.
"""

import os

from rootless_udi.base import process
from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain
from rootless_udi.launch import command
from rootless_udi.node import places
from rootless_udi.node.election import Election, say_passed_over
from rootless_udi.node.record import NodeRecord, joinable
from rootless_udi.plan.options import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.plan.environment import Operation


def run(
    request: Request,
    environ: "dict[str, str]",
    own: "list[Operation]",
    who: str,
    name: str,
    key: str,
) -> int:
    """Take part in the election; join what another rank built, or build.

    `who` is the launcher, `name` and `key` the container's file name and description.
    """
    path, directory = places.find(environ, make=True)
    if directory < 0:
        tried = [*places.directories(environ, os.getuid()), *places.further(environ)]
        raise UdiError(
            f"no state directory for the node's shared container: tried {', '.join(tried)}",
            "set XDG_RUNTIME_DIR to a directory of your own on this node, or use --share=off",
        )
    # The lock is needed to build, not to join. So a rank that finds a record releases the lock
    # before it enters. If that fails since the last member has just ended, it tries once more and
    # keeps the lock, to build if it must.
    for holding in (False, True):
        election = Election(path, directory, name)
        record, fd = election.record()
        if record is None:
            break
        lost = record.lost()
        if lost or record.get("request") != key:
            _say_why_rebuilt(record, lost)
            os.close(fd)
            break
        if not holding:
            election.release()
        command.enter(record, fd, request, environ, own)
        os.close(fd)
    say_passed_over(environ, path)
    try:
        from rootless_udi.serve.helper import Helper

        me = os.getpid()
        place = path, directory, name
        fields = {"request": key, "job": who, "token": f"{me}.{process.started(me)}"}
        # The helper first, as in `rootless_udi.run`.
        helper = Helper((path, name, fields["token"]))
        election.make()
        from rootless_udi.launch import facts

        found = facts.find(request, environ, who, helper)
        from rootless_udi.launch import container

        return container.build(request, environ, own, place, fields, found, helper, election)
    except BaseException:
        election.give_up()
        raise


def _say_why_rebuilt(record: NodeRecord, lost: str) -> None:
    """Say why a container that has living members is not joined."""
    if lost and joinable(record):
        complain(
            "udi-run",
            f"this node's container of {record.get('image')} has lost its image server "
            f"({lost}); starting a new one",
        )
