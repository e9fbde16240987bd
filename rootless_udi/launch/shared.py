"""udi-run for the ranks of a node: one makes the container, and the others join it.

The rank that first gets the lock wins the election (`rootless_udi.node.election`) and makes the
container. The others wait for its record, by which they join.
"""

import os
from sys import modules

from rootless_udi.base import process
from rootless_udi.base.process import complain
from rootless_udi.launch import command
from rootless_udi.node.election import Election, elect, inherited, say_passed_over, with_room
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
    """Join the container that another rank has made, or win the election and make it.

    `who` is the launcher. `name` is the name of the container's record, `key` the text that says
    what is in the container, which is compared. Raises UdiError, OSError.
    """
    # The lock is needed to make a container, not to join one. So a rank that finds a record
    # releases the lock and then joins. If that fails, since the last member has just ended, it
    # tries again and keeps the lock, so that it can make a container.
    first = inherited(environ, name)
    # Who inherits the lock has tried before, in C.
    election, holding = None, first is not None
    while election is None:
        election, first = first or elect(environ, name), None
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
    say_passed_over(environ, election.path)
    try:
        return _build(request, environ, own, who, key, election)
    except BaseException:
        # Not imported here: it may be inside the container, where our files are not.
        if "rootless_udi.node.pair" in modules:
            modules["rootless_udi.node.pair"].give_up()
        election.give_up()
        raise


def _build(
    request: Request,
    environ: "dict[str, str]",
    own: "list[Operation]",
    who: str,
    key: str,
    election: Election,
) -> int:
    """Make the container, as the one that won the election, and become the command."""
    from rootless_udi.serve.helper import Helper

    me = os.getpid()
    place = election.path, election.directory, election.name
    waits, job = who.startswith("keep"), who.partition("\n")[0]
    fields = {"request": key, "job": job, "token": f"{me}.{process.started(me)}"}
    maker = None
    if not waits:
        # In the other bundle, since runs without a launcher need none of both.
        from rootless_udi.idmap import userns
        from rootless_udi.node import pair

        maker = userns.Maker()
    # The helper is started first, as in `rootless_udi.run`: it loads the image server meanwhile.
    helper = Helper(
        (election.path, election.name, fields["token"]), None if maker is None else maker.work
    )
    helper.ranks = not waits and not request.quiet and request.share in (None, "auto")
    election.make()
    spaces = None
    if maker is not None:
        # Before it plans: builders of other requests wait no longer than it takes to find it.
        spaces = pair.take(election, who, maker.made)
        maker.close()
    from rootless_udi.launch import facts

    # The starts of a kept container are no ranks: a missing image may be pulled.
    known = facts.find(request, environ, "" if waits else who, helper)
    keep = 0
    if waits or request.keep is not None or known.site.keep:
        from rootless_udi.launch.holding import seconds

        keep = seconds(request, known.site, environ, election.directory)
    from rootless_udi.launch import container

    more = election, spaces, keep
    return container.build(request, environ, own, place, fields, known, helper, *more)


def _record(election: Election, key: str) -> tuple[NodeRecord, int] | None:
    """Return the record of the container for `key`, and its descriptor; None if there is none.

    All places of records are looked at.
    """
    for one in (election, *election.along):
        record, fd = one.record()
        if record is None:
            continue
        lost = record.lost()
        if not lost and record.get("request") == key and not record.changed():
            return record, fd
        _say_why_rebuilt(record, lost)
        os.close(fd)
    return None


def _say_why_rebuilt(record: NodeRecord, lost: str) -> None:
    """Print why a container that has living members is not joined: it `lost` its image server."""
    if lost and joinable(record):
        complain(
            "udi-run",
            f"this node's container of {record.get('image')} has lost its image server "
            f"({lost}); starting a new one",
        )
