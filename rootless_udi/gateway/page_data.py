"""What the pages show of the database, and to whom: the rules are those of the REST interface.

Functions get a connection of `database.Database` and run in its threads, in which names of accounts
are looked up too. `readable` is SQL for `CatalogueEntry.readable`.
"""

import time
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import BigInteger, Connection, and_, case, cast, desc, func, or_, select, true

from rootless_udi.base.records import Record
from rootless_udi.gateway import jobs
from rootless_udi.gateway.catalogue import Wanted, wanted_of
from rootless_udi.gateway.people import Asker, user_name
from rootless_udi.gateway.tables import GRANTS, IMAGES, JOBS, LOOKUPS, NAMES, STARTS

PAGE = 50
"""Rows of one page of the list."""
ORDERS = {
    "used": IMAGES.c.used.desc(),
    "pulled": NAMES.c.pulled.desc(),
    "size": IMAGES.c.size.desc(),
    "name": NAMES.c.name,
}
_WORDS_MOST = 8
_WORD_MOST = 100
_DAY = 86400
_LATELY = 86400.0
"""Seconds for which a job that has ended is shown."""
_LATELY_MOST = 50
_WHO_MOST = 20


class NameRow(Record):
    """A name of an image. `owners` are those whom the registry let have a private one; of a public
    one who brought it, as far as who looks may know."""

    name: str
    platform: str
    digest: str
    size: int
    pulled: float
    used: float
    public: bool
    owners: tuple[str, ...] = ()
    readers: int = 0


class QueueRow(Record):
    """A job of the queue, and who may know of it: `wanted`, or the readers of what it pulled."""

    id: int
    name: str
    platform: str
    uid: int
    user: str
    state: str
    message: str
    digest: str
    created: float
    changed: float
    secret: bool
    wanted: Wanted
    done: int
    total: int

    def shown_to(self, asker: Asker) -> bool:
        """Tell whether somebody may know of this job: one with credentials is its asker's alone."""
        if asker.admin or asker.uid == self.uid:
            return True
        public, users, groups = self.wanted.public, self.wanted.users, self.wanted.groups
        return not self.secret and (public or asker.uid in users or bool({*groups} & asker.groups))


def readable(asker: Asker) -> Any:
    """Return the condition that an image of IMAGES may be read by somebody."""
    if asker.admin:
        return true()
    mine = or_(
        and_(GRANTS.c.kind == "user", GRANTS.c.id == asker.uid),
        and_(GRANTS.c.kind == "group", GRANTS.c.id.in_(sorted(asker.groups))),
    )
    return or_(IMAGES.c.public, IMAGES.c.digest.in_(select(GRANTS.c.digest).where(mine)))


def images(
    connection: Connection, asker: Asker, search: str, order: str, page: int
) -> tuple[list[NameRow], int]:
    """Return a page of the names that somebody may read, and how many there are.

    Each word of `search` is part of a name, or the beginning of a digest.
    """
    where = [readable(asker), *_matches(search)]
    both = NAMES.join(IMAGES, NAMES.c.digest == IMAGES.c.digest)
    number = connection.execute(select(func.count()).select_from(both).where(*where)).scalar_one()
    columns = (NAMES.c.name, NAMES.c.platform, NAMES.c.pulled)
    query = select(*columns, IMAGES.c.digest, IMAGES.c.size, IMAGES.c.used)
    query = query.add_columns(IMAGES.c.public, IMAGES.c.brought)
    query = query.select_from(both).where(*where).order_by(ORDERS[order], NAMES.c.name)
    rows = connection.execute(query.limit(PAGE).offset((page - 1) * PAGE)).all()
    return _with_lists(connection, asker, rows), int(number)


def _matches(search: str) -> list[Any]:
    found = []
    for word in search.split()[:_WORDS_MOST]:
        word = word[:_WORD_MOST].lower()
        here = func.lower(NAMES.c.name).contains(word, autoescape=True)
        digest = word if word.startswith("sha256:") else f"sha256:{word}"
        found.append(or_(here, IMAGES.c.digest.startswith(digest, autoescape=True)))
    return found


def _with_lists(connection: Connection, asker: Asker, rows: Sequence[Any]) -> list[NameRow]:
    digests = {row.digest for row in rows if not row.public}
    owners: dict[str, list[str]] = {
        row.digest: [user_name(row.brought)]
        for row in rows
        if row.public and row.brought >= 0 and (asker.admin or asker.uid == row.brought)
    }
    readers: dict[str, int] = {}
    for one in connection.execute(select(GRANTS).where(GRANTS.c.digest.in_(digests))):
        readers[one.digest] = readers.get(one.digest, 0) + 1
        if one.owner:
            owners.setdefault(one.digest, []).append(user_name(one.id))
    return [
        NameRow(
            **{name: getattr(row, name) for name in ("name", "platform", "digest", "size")},
            pulled=row.pulled,
            used=row.used,
            public=row.public,
            owners=tuple(owners.get(row.digest, ())),
            readers=readers.get(row.digest, 0),
        )
        for row in rows
    ]


def names(connection: Connection, digest: str) -> list[tuple[str, str]]:
    """Return (name, platform) of all names of an image."""
    query = select(NAMES.c.name, NAMES.c.platform).where(NAMES.c.digest == digest)
    rows = connection.execute(query.order_by(NAMES.c.name, NAMES.c.platform)).all()
    return [(row.name, row.platform) for row in rows]


def used_by(connection: Connection, digest: str, since: float) -> list[tuple[str, int, float]]:
    """Return (user, lookups, the last of them) of an image since a time, the most first."""
    count, last = func.count().label("n"), func.max(LOOKUPS.c.time)
    query = select(LOOKUPS.c.user, count, last).where(
        LOOKUPS.c.digest == digest, LOOKUPS.c.time >= since
    )
    rows = connection.execute(query.group_by(LOOKUPS.c.user).order_by(desc("n")).limit(_WHO_MOST))
    return [(row[0], row[1], row[2]) for row in rows]


def queue(connection: Connection) -> list[QueueRow]:
    """Return the jobs of the queue: what is not done yet in its order, then what ended lately."""
    waits = select(JOBS).where(JOBS.c.state.not_in(jobs.DONE)).order_by(JOBS.c.id)
    ended = and_(JOBS.c.state.in_(jobs.DONE), JOBS.c.changed > time.time() - _LATELY)
    ended_query = select(JOBS).where(ended).order_by(JOBS.c.changed.desc()).limit(_LATELY_MOST)
    rows = [*connection.execute(waits).all(), *connection.execute(ended_query).all()]
    lists = _lists(connection, {row.digest for row in rows if row.state == "READY"})
    found = []
    for row in rows:
        if row.state == "READY" and row.digest not in lists:
            # It has expired since.
            continue
        ready = row.state == "READY"
        found.append(
            QueueRow(
                id=row.id,
                name=row.name,
                platform=row.platform,
                uid=row.uid,
                user=user_name(row.uid),
                state=row.state,
                message=row.message,
                digest=row.digest,
                created=row.created,
                changed=row.changed,
                # What was pulled is known to its readers, however it was pulled.
                secret=row.secret and not ready,
                wanted=lists[row.digest] if ready else wanted_of(row.access),
                done=row.done,
                total=row.total,
            )
        )
    return found


def _lists(connection: Connection, digests: Iterable[str]) -> dict[str, Wanted]:
    """Return who may read each of some images; those that are gone are missing."""
    digests = sorted(digests)
    query = select(IMAGES.c.digest, IMAGES.c.public).where(IMAGES.c.digest.in_(digests))
    found = {row.digest: Wanted(row.public) for row in connection.execute(query)}
    for row in connection.execute(select(GRANTS).where(GRANTS.c.digest.in_(digests))):
        one = (row.id,)
        more = Wanted(False, one) if row.kind == "user" else Wanted(False, (), one)
        if row.digest in found:
            found[row.digest] |= more
    return found


def lookups(
    connection: Connection, since: float, uid: int | None
) -> list[tuple[int, str, str, int]]:
    """Return (day, user, tag, number) of lookups since a time, of one user or of all.

    A day is the number of days since 1970, by UTC.
    """
    # An integer by an integer: the databases differ in how they round a quotient.
    day = cast(LOOKUPS.c.time, BigInteger) // _DAY
    query = select(day.label("day"), LOOKUPS.c.user, LOOKUPS.c.tag, func.count())
    query = query.where(LOOKUPS.c.time >= since).group_by("day", LOOKUPS.c.user, LOOKUPS.c.tag)
    if uid is not None:
        query = query.where(LOOKUPS.c.uid == uid)
    return [(int(row[0]), row[1], row[2], row[3]) for row in connection.execute(query)]


def starts(
    connection: Connection, since: float, user: str | None
) -> list[tuple[int, str, str, int]]:
    """Return (day, user, image's name or "", number) of starts since a time, of one user or of all.

    `user` is as the table has it; one whose id was told has his name in the answer.
    """
    day = cast(STARTS.c.time, BigInteger) // _DAY
    query = select(day.label("day"), STARTS.c.user, STARTS.c.digest, func.count())
    query = query.where(STARTS.c.time >= since).group_by("day", STARTS.c.user, STARTS.c.digest)
    if user is not None:
        query = query.where(STARTS.c.user == user)
    rows = connection.execute(query).all()
    started = select(STARTS.c.digest).where(STARTS.c.time >= since)
    first = select(NAMES.c.digest, func.min(NAMES.c.name)).group_by(NAMES.c.digest)
    found = connection.execute(first.where(NAMES.c.digest.in_(started))).all()
    names: dict[str, str] = dict(row.tuple() for row in found)
    users = {row[1]: _starter(row[1]) for row in rows}
    return [
        (int(row[0]), users[row[1]], names.get(row[2], row[2][:19]), int(row[3])) for row in rows
    ]


def _starter(user: str) -> str:
    if user == "-":
        return "not told"
    return user_name(int(user)) if user.isdecimal() and int(user) < 2**32 - 1 else user


def pulls(connection: Connection, since: float, uid: int | None) -> list[tuple[int, int, int]]:
    """Return (day, pulls that succeeded, pulls that failed) since a time, of one user or of all."""
    day = cast(JOBS.c.changed, BigInteger) // _DAY
    good = func.sum(case((JOBS.c.state == "READY", 1), else_=0))
    bad = func.sum(case((JOBS.c.state == "FAILURE", 1), else_=0))
    query = select(day.label("day"), good, bad).group_by("day")
    query = query.where(JOBS.c.changed >= since, JOBS.c.state.in_(jobs.DONE))
    if uid is not None:
        query = query.where(JOBS.c.uid == uid)
    return [(int(row[0]), int(row[1]), int(row[2])) for row in connection.execute(query)]
