"""What the gateway knows of the store's images: names, access lists, what Shifter's clients ask.

The store's folders are what starts read, and the database follows them (`adopt`). Functions get a
connection of `database.Database` and run in its threads.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, insert, select, update

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.gateway import access
from rootless_udi.gateway.tables import GRANTS, IMAGES, NAMES
from rootless_udi.plan.reference import Platform
from rootless_udi.store.find import StoredImage
from rootless_udi.store.store import Store

FACTS_MAX = 64 << 10
"""Most bytes of what is kept of an image's facts; more (a megabyte of labels) is left out."""
_AT_ONCE = 500
"""Most values in one IN (...) of SQL."""


class Wanted(Record):
    """Who shall be able to read an image: everybody, or these users and groups (ids)."""

    public: bool = True
    users: tuple[int, ...] = ()
    groups: tuple[int, ...] = ()

    def text(self) -> str:
        """Return it as JSON."""
        return json.dumps([self.public, list(self.users), list(self.groups)])

    def __or__(self, other: "Wanted") -> "Wanted":
        """Return what satisfies both."""
        return Wanted(
            self.public or other.public,
            tuple(sorted({*self.users, *other.users})),
            tuple(sorted({*self.groups, *other.groups})),
        )


def wanted_of(text: str) -> Wanted:
    """Return the `Wanted` of its `text`."""
    public, users, groups = json.loads(text)
    return Wanted(public, tuple(users), tuple(groups))


Question = tuple[str, bool, str]
"""A platform (`Platform.key`), whether an image's name follows, and the name or else the digest."""


class CatalogueEntry(Record):
    """An image of the catalogue. `names` are those for one platform; `facts` is Shifter's part."""

    digest: str
    size: int
    pulled: float
    used: float
    public: bool
    users: tuple[int, ...]
    groups: tuple[int, ...]
    owners: tuple[int, ...]
    names: tuple[str, ...]
    facts: Any = None

    def readable(self, uid: int, groups: Iterable[int]) -> bool:
        """Tell whether the access list lets this user, who is in `groups`, read it."""
        return self.public or uid in self.users or bool({*self.groups} & {*groups})


def answers(connection: Connection, questions: Sequence[Question]) -> list[CatalogueEntry | None]:
    """Return what each question means, or None."""
    found: dict[Question, CatalogueEntry] = {}
    for platform in {platform for platform, _, _ in questions}:
        asked = [one for one in questions if one[0] == platform]
        names = [what for _, named, what in asked if named]
        digests = [what for _, named, what in asked if not named]
        query = select(NAMES.c.name, NAMES.c.digest)
        query = query.where(NAMES.c.platform == platform, NAMES.c.name.in_(names))
        meant = dict(connection.execute(query).all() if names else ())
        wanted = {*digests, *meant.values()}
        rows = connection.execute(select(IMAGES).where(IMAGES.c.digest.in_(wanted))).all()
        entries = {one.digest: one for one in _entries(connection, platform, rows)}
        for one in asked:
            digest = meant.get(one[2], "") if one[1] else one[2]
            if digest in entries:
                found[one] = entries[digest]
    return [found.get(one) for one in questions]


def by_digest(connection: Connection, platform: str, digest: str) -> CatalogueEntry | None:
    """Return the image with this digest, or None."""
    row = connection.execute(select(IMAGES).where(IMAGES.c.digest == digest)).first()
    return None if row is None else next(_entries(connection, platform, [row]))


def named(connection: Connection, platform: str) -> list[CatalogueEntry]:
    """Return all images that have a name for `platform`."""
    query = (
        select(IMAGES)
        .where(IMAGES.c.digest.in_(select(NAMES.c.digest).where(NAMES.c.platform == platform)))
        .order_by(IMAGES.c.pulled.desc())
    )
    return list(_entries(connection, platform, connection.execute(query).all()))


def _entries(connection: Connection, platform: str, rows: Any) -> Iterator[CatalogueEntry]:
    for at in range(0, len(rows), _AT_ONCE):
        some = rows[at : at + _AT_ONCE]
        digests = [row.digest for row in some]
        names: dict[str, list[str]] = {}
        # The platform is compared here: SQLite would take its index and look at all names of it.
        columns = (NAMES.c.digest, NAMES.c.name, NAMES.c.platform)
        query = select(*columns).where(NAMES.c.digest.in_(digests)).order_by(NAMES.c.name)
        for digest, name, key in connection.execute(query):
            if key == platform:
                names.setdefault(digest, []).append(name)
        lists: dict[str, list[Row[Any]]] = {}
        for grant in connection.execute(select(GRANTS).where(GRANTS.c.digest.in_(digests))):
            lists.setdefault(grant.digest, []).append(grant)
        for row in some:
            yield _entry(row, lists.get(row.digest, []), names.get(row.digest, []))


def _entry(row: Any, grants: list[Row[Any]], names: list[str]) -> CatalogueEntry:
    users = tuple(one.id for one in grants if one.kind == "user")
    groups = tuple(one.id for one in grants if one.kind == "group")
    owners = tuple(one.id for one in grants if one.kind == "user" and one.owner)
    return CatalogueEntry(
        row.digest,
        row.size,
        row.pulled,
        row.used,
        row.public,
        users,
        groups,
        owners,
        tuple(names),
        json.loads(row.facts),
    )


def publish(
    connection: Connection,
    store: Store,
    image: StoredImage,
    platform: Platform,
    wanted: Wanted,
    owner: int | None,
    by: int = -1,
) -> None:
    """Record an image that `by` has brought, let its readers read it, then give it its name.

    Who has it already keeps it. `owner` is a user whom the registry lets have it: he may share it.
    Where this is interrupted, the same again completes it. Raises UdiError.
    """
    now = time.time()
    old = by_digest(connection, platform.key(), image.digest)
    public = wanted.public or (old is not None and old.public)
    facts = summary(store.facts(image))
    values = {"size": image.size, "pulled": now, "public": public, "facts": facts}
    if old is None:
        values |= {"digest": image.digest, "used": now, "brought": by}
        connection.execute(insert(IMAGES).values(**values))
    else:
        connection.execute(update(IMAGES).where(IMAGES.c.digest == image.digest).values(**values))
    if not wanted.public:
        grant(connection, image.digest, wanted.users, wanted.groups, owner)
    enforce(connection, store, image.digest)
    store.set_name(image.name, platform, image.digest)
    set_name(connection, platform.key(), image.name, image.digest, now)


def grant(
    connection: Connection,
    digest: str,
    users: Iterable[int],
    groups: Iterable[int],
    owner: int | None = None,
) -> None:
    """Add to an image's access list. Raises UdiError where it gets too long."""
    rows = connection.execute(select(GRANTS).where(GRANTS.c.digest == digest)).all()
    there = {(row.kind, row.id): row.owner for row in rows}
    new = {("user", uid): False for uid in users} | {("group", gid): False for gid in groups}
    if owner is not None:
        new[("user", owner)] = True
    if len({**there, **new}) > access.MOST:
        raise UdiError(
            f"the access list of image {digest} would have more than {access.MOST} entries",
            "share it with a group",
        )
    for (kind, number), owns in new.items():
        if (kind, number) not in there:
            values = {"digest": digest, "kind": kind, "id": number, "owner": owns}
            connection.execute(insert(GRANTS).values(**values))
        elif owns and not there[kind, number]:
            where = and_(GRANTS.c.digest == digest, GRANTS.c.kind == kind, GRANTS.c.id == number)
            connection.execute(update(GRANTS).where(where).values(owner=True))


def enforce(connection: Connection, store: Store, digest: str) -> None:
    """Have the kernel enforce an image's access list. Raises UdiError."""
    entry = by_digest(connection, "", digest)
    if entry is not None:
        access.allow(store, digest, entry.public, entry.users, entry.groups)


def set_name(connection: Connection, platform: str, name: str, digest: str, pulled: float) -> None:
    """Let a name mean an image."""
    where = and_(NAMES.c.platform == platform, NAMES.c.name == name)
    connection.execute(delete(NAMES).where(where))
    connection.execute(
        insert(NAMES).values(platform=platform, name=name, digest=digest, pulled=pulled)
    )


def forget(connection: Connection, store: Store) -> None:
    """Forget names and images that the store has no longer."""
    links = {(key, name) for key, name, _ in store.links()}
    for key, name in connection.execute(select(NAMES.c.platform, NAMES.c.name)).all():
        if (key, name) not in links:
            where = and_(NAMES.c.platform == key, NAMES.c.name == name)
            connection.execute(delete(NAMES).where(where))
    for digest in connection.execute(select(IMAGES.c.digest)).scalars().all():
        if store.image(digest) is None:
            connection.execute(delete(IMAGES).where(IMAGES.c.digest == digest))


def adopt(connection: Connection, store: Store) -> None:
    """Bring the catalogue to what is in the store, which `udi pull` and `udi rm` change too.

    Whoever can read an image's file may: one that only its owner can read has an empty list.
    """
    forget(connection, store)
    known = set(connection.execute(select(IMAGES.c.digest)).scalars())
    named_as = {
        (row.platform, row.name): row.digest for row in connection.execute(select(NAMES)).all()
    }
    for entry in store.images():
        image = entry.image
        if image.digest not in known:
            try:
                facts, public = summary(store.facts(image)), access.public(image.squashfs)
            except (UdiError, OSError):
                # Its facts are lost: a start would not take it either.
                continue
            connection.execute(
                insert(IMAGES).values(
                    digest=image.digest,
                    size=image.size,
                    pulled=entry.pulled,
                    used=os.stat(image.squashfs).st_atime,
                    public=public,
                    facts=facts,
                )
            )
        for key, name in entry.names:
            if named_as.get((key, name)) != image.digest:
                set_name(connection, key, name, image.digest, entry.pulled)


def summary(facts: dict[str, Any]) -> str:
    """Return as JSON what Shifter's clients are told of an image's facts."""
    labels = facts.get("labels", {})
    found = {
        "ENV": facts.get("env", []),
        "ENTRY": facts.get("entrypoint", []),
        "WORKDIR": facts.get("workdir", ""),
        "LABELS": labels,
    }
    text = json.dumps(found)
    if len(text) > FACTS_MAX:
        text = json.dumps({**found, "LABELS": {}})
    return text if len(text) <= FACTS_MAX else json.dumps({"ENV": [], "WORKDIR": ""})
