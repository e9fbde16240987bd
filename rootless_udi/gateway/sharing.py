"""Access lists: who may read a private image, changed by its owners, in force by the kernel."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, and_, delete, select

from rootless_udi.base.errors import UdiError
from rootless_udi.gateway import audit, catalogue
from rootless_udi.gateway.catalogue import CatalogueEntry
from rootless_udi.gateway.people import group_name, user_name
from rootless_udi.gateway.tables import GRANTS, IMAGES
from rootless_udi.store.store import Store


def add(
    connection: Connection,
    store: Store,
    uid: int,
    digest: str,
    users: Iterable[int],
    groups: Iterable[int],
) -> None:
    """Let users and groups read an image. Raises UdiError where the list gets too long."""
    users, groups = sorted({*users}), sorted({*groups})
    catalogue.grant(connection, digest, users, groups)
    audit.note(connection, uid, "share", digest, _people(users, groups))
    catalogue.enforce(connection, store, digest)


def remove(
    connection: Connection,
    store: Store,
    uid: int,
    digest: str,
    users: Iterable[int],
    groups: Iterable[int],
) -> None:
    """Take users and groups off an image's list; not those whom the registry let have it."""
    users, groups = sorted({*users}), sorted({*groups})
    for kind, ids in (("user", users), ("group", groups)):
        where = and_(GRANTS.c.digest == digest, GRANTS.c.kind == kind, GRANTS.c.id.in_(ids))
        connection.execute(delete(GRANTS).where(where, ~GRANTS.c.owner))
    audit.note(connection, uid, "unshare", digest, _people(users, groups))
    catalogue.enforce(connection, store, digest)


def _people(users: list[int], groups: list[int]) -> str:
    words = [f"user {user_name(one)} ({one})" for one in users]
    return ", ".join(words + [f"group {group_name(one)} ({one})" for one in groups])


def described(entry: CatalogueEntry) -> dict[str, Any]:
    """Return who may read an image, with names."""
    owners = {*entry.owners}
    return {
        "digest": entry.digest,
        "public": entry.public,
        "users": [
            {"id": one, "name": user_name(one), "owner": one in owners} for one in entry.users
        ],
        "groups": [{"id": one, "name": group_name(one)} for one in entry.groups],
    }


def enforce_all(connection: Connection, store: Store) -> list[str]:
    """Bring the files of all private images to their lists; return what could not be.

    A gateway that was killed between the kernel's list and the database's has left one that is
    longer or shorter. Images without a list are left alone: another may have set their rights.
    """
    failed = []
    query = (
        select(IMAGES.c.digest)
        .where(~IMAGES.c.public)
        .where(IMAGES.c.digest.in_(select(GRANTS.c.digest)))
    )
    for digest in connection.execute(query).scalars().all():
        try:
            catalogue.enforce(connection, store, digest)
        except UdiError as error:
            failed.append(error.message)
    return failed
