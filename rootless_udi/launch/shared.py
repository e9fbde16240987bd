"""udi-run for a node's ranks: join the container that another rank built, or build it.

The first rank of a launcher wins the election (`rootless_udi.node.election`) and builds; the others
wait for its record and join.
"""

import os

from rootless_udi.base import process
from rootless_udi.base.process import complain
from rootless_udi.launch import command
from rootless_udi.node.election import Election, elect, say_passed_over, with_room
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
    # The lock is needed to build, not to join. So a rank that finds a record releases the lock
    # before it enters. If that fails since the last member has just ended, it tries once more and
    # keeps the lock, to build if it must.
    election, holding = None, False
    while election is None:
        election = elect(environ, name)
        found = _record(election, key)
        if found is not None:
            record, fd = found
            if not holding:
                election.release()
            command.enter(record, fd, request, environ, own)
            os.close(fd)
            if not holding:
                os.close(election.directory)
                holding, election = True, None
                continue
        election = with_room(environ, election)
    path, directory = election.path, election.directory
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

        known = facts.find(request, environ, who, helper)
        from rootless_udi.launch import container

        return container.build(request, environ, own, place, fields, known, helper, election)
    except BaseException:
        election.give_up()
        raise


def _record(election: Election, key: str) -> tuple[NodeRecord, int] | None:
    """Return the record of this very container, in whichever place it is; None for none."""
    for one in (election, *election.along):
        record, fd = one.record()
        if record is None:
            continue
        lost = record.lost()
        if not lost and record.get("request") == key:
            return record, fd
        _say_why_rebuilt(record, lost)
        os.close(fd)
    return None


def _say_why_rebuilt(record: NodeRecord, lost: str) -> None:
    """Say why a container that has living members is not joined."""
    if lost and joinable(record):
        complain(
            "udi-run",
            f"this node's container of {record.get('image')} has lost its image server "
            f"({lost}); starting a new one",
        )
