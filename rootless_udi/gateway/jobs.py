"""The queue of pulls: rows of the database, done by worker processes, Shifter's states.

A row is written before anybody is answered. So a gateway that was killed goes on where it was: what
was unfinished is done again, and a pull resumes its downloads. Only a pull whose credentials came
with the request is not: these are kept in memory alone.
"""

import time
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, and_, func, insert, or_, select, update

from rootless_udi.base.errors import UdiError, amount
from rootless_udi.gateway import catalogue, expiry
from rootless_udi.gateway.catalogue import Wanted, wanted_of
from rootless_udi.gateway.people import Forbidden
from rootless_udi.gateway.tables import GATEWAYS, JOBS

DONE = ("READY", "FAILURE")
"""The states in which a job stays."""
FRESH_SECONDS = 300.0
"""For so long what was pulled is not pulled again (Shifter's PullUpdateTimeout)."""
_FAILED_SECONDS = 10.0
"""For so long a failure is the answer to a pull; Shifter's clients ask again until they see it."""
ATTEMPTS = 5
PAUSES = (5.0, 20.0, 60.0, 180.0)
"""Seconds before the second attempt and so on."""
_KEPT_SECONDS = 30 * 86400.0
"""For how long a job that is done is kept."""
RESTARTED = (
    "the gateway was started anew meanwhile, and keeps no credentials: ask for the pull again"
)


class TooMany(UdiError):
    """A user asks for more than the site allows."""


def ask(
    connection: Connection,
    platform: str,
    name: str,
    uid: int,
    wanted: Wanted,
    secret: bool,
    most: int,
    other: bool = False,
    gateway: int = 0,
    file: tuple[str, str] = ("", ""),
    room: int = 0,
) -> tuple[Any, bool]:
    """Return the job for a request to pull, and whether it is new.

    One that is under way is joined, and one that ended a moment ago answers too. With credentials
    (`secret`) each user has a job of his own: what the registry lets him have is asked by him.
    With `other` credentials than before, an earlier failure is no answer. `gateway` is the number
    of who asks, in whose memory credentials are; `file` is one to import and its version. Raises
    TooMany where `most` of his jobs wait, Forbidden where he has brought `room` bytes (if not 0).
    """
    now = time.time()
    key = f"{platform}/{name}" + (f"#{uid}" if secret else "") + (f"@{file[1]}" if file[1] else "")
    query = select(JOBS).where(JOBS.c.key == key).order_by(JOBS.c.id.desc()).limit(1)
    job = connection.execute(query).first()
    if job is not None and job.state not in DONE:
        both = wanted | wanted_of(job.access)
        connection.execute(update(JOBS).where(JOBS.c.id == job.id).values(access=both.text()))
        return job, False
    failed = job is not None and job.state == "FAILURE"
    # Its credentials died with a gateway, and here they are again.
    if secret and job is not None and job.message == RESTARTED:
        other = True
    if job is not None and not (failed and other) and _answers(connection, job, wanted, now):
        return job, False
    _check_bounds(connection, uid, most, room)
    values = {
        "key": key,
        "platform": platform,
        "name": name,
        "uid": uid,
        "state": "PENDING",
        "message": "",
        "digest": "",
        "attempts": 0,
        "due": 0.0,
        "created": now,
        "changed": now,
        "secret": secret,
        "access": wanted.text(),
        "gateway": gateway if secret else 0,
        "file": file[0],
    }
    number = connection.execute(insert(JOBS).values(**values)).inserted_primary_key
    assert number is not None
    return connection.execute(select(JOBS).where(JOBS.c.id == number[0])).one(), True


def _check_bounds(connection: Connection, uid: int, most: int, room: int) -> None:
    waiting = select(func.count()).where(JOBS.c.uid == uid, JOBS.c.state.not_in(DONE))
    if (connection.execute(waiting).scalar() or 0) >= most:
        raise TooMany(f"{most} pulls of yours are in the queue already", "wait for one to end")
    held = expiry.brought(connection, uid) if room else 0
    if room and held >= room:
        raise Forbidden(
            f"the images that you have brought take {amount(held)}, and you may have "
            f"{amount(room)}",
            "shifterimg expire removes your private ones; ask the site for the others",
        )


def _answers(connection: Connection, job: Any, wanted: Wanted, now: float) -> bool:
    """Tell whether a job that has ended answers a request of now."""
    age = now - job.changed
    if job.state == "FAILURE":
        return bool(0 <= age < _FAILED_SECONDS)
    (entry,) = catalogue.answers(connection, [(job.platform, True, job.name)])
    if entry is None or entry.digest != job.digest or not 0 <= age < FRESH_SECONDS:
        return False
    if entry.public:
        return True
    users, groups = {*entry.users}, {*entry.groups}
    # Who brought credentials and no list asked for himself.
    asked = not wanted.public or (job.secret and job.uid in users)
    return bool(asked and {*wanted.users} <= users and {*wanted.groups} <= groups)


def take(connection: Connection, running: frozenset[int], gateway: int = 0) -> Any:
    """Return the next job for the gateway of this number to do, or None.

    `running` are those that it is doing. Other gateways can't take it until it is `given_back`.
    """
    now = time.time()
    # A clock that was set back must not make a pause longer than the longest.
    due = or_(JOBS.c.due <= now, JOBS.c.due > now + max(PAUSES))
    # A number that none has any more: it asked just when it entered anew with another (`nodes`).
    free = or_(JOBS.c.gateway.in_((0, gateway)), JOBS.c.gateway.not_in(select(GATEWAYS.c.id)))
    query = select(JOBS).where(JOBS.c.state.not_in(DONE), JOBS.c.id.not_in(running), due, free)
    query = query.order_by(JOBS.c.id).limit(1).with_for_update(skip_locked=True)
    job = connection.execute(query).first()
    if job is not None:
        values = {"attempts": job.attempts + 1, "gateway": gateway, "done": 0, "total": 0}
        change(connection, job.id, "PENDING", **values)
    return job


def is_of(connection: Connection, number: int, gateway: int) -> bool:
    """Tell whether a job is this gateway's still, and unfinished."""
    where = (JOBS.c.id == number, JOBS.c.gateway == gateway, JOBS.c.state.not_in(DONE))
    return connection.execute(select(JOBS.c.id).where(*where)).first() is not None


def change(
    connection: Connection, number: int, state: str, message: str = "", **values: Any
) -> None:
    """Set a job's state; `values` are further columns."""
    # PostgreSQL takes neither, and a registry may answer with both.
    message = message.encode(errors="replace").decode().replace("\0", "?")
    values |= {"state": state, "message": message, "changed": time.time()}
    connection.execute(update(JOBS).where(JOBS.c.id == number).values(**values))


def restart(connection: Connection) -> None:
    """Have a new gateway go on: put unfinished jobs back into the queue, remove old ones."""
    _again(connection, JOBS.c.state.not_in(DONE))
    remove_old(connection)


def recover(connection: Connection, gateways: Iterable[int]) -> None:
    """Put the unfinished jobs of gateways that have died back into the queue."""
    _again(connection, and_(JOBS.c.state.not_in(DONE), JOBS.c.gateway.in_(list(gateways))))


def _again(connection: Connection, which: Any) -> None:
    connection.execute(
        update(JOBS)
        .where(which, JOBS.c.secret)
        .values(state="FAILURE", message=RESTARTED, changed=time.time(), gateway=0)
    )
    values = {"state": "PENDING", "attempts": 0, "due": 0.0, "gateway": 0}
    connection.execute(update(JOBS).where(which, ~JOBS.c.secret).values(**values))


def pass_on(connection: Connection, before: int, now: int) -> None:
    """Give a gateway that has a new number what it had by the number before."""
    mine = and_(JOBS.c.gateway == before, JOBS.c.state.not_in(DONE))
    connection.execute(update(JOBS).where(mine).values(gateway=now))


def remove_old(connection: Connection) -> None:
    """Remove jobs that were done long ago."""
    old = JOBS.c.changed < time.time() - _KEPT_SECONDS
    connection.execute(JOBS.delete().where(JOBS.c.state.in_(DONE), old))


def unfinished(connection: Connection) -> list[Any]:
    """Return the jobs that wait or are being done, and those that failed lately."""
    lately = and_(JOBS.c.state == "FAILURE", JOBS.c.changed > time.time() - FRESH_SECONDS)
    query = select(JOBS).where(or_(JOBS.c.state.not_in(DONE), lately)).order_by(JOBS.c.id)
    return list(connection.execute(query).all())


def by_number(connection: Connection, number: int) -> Any:
    """Return a job, or None."""
    return connection.execute(select(JOBS).where(JOBS.c.id == number)).first()
