"""Which images go: those that nobody used for long, and the longest unused where room is short.

Used means looked up, pulled or read: the kernel records a read about once a day, and never on a
file system mounted with noatime. Rules are applied when an administrator asks, never by a clock.
"""

import time
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, func, select

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.gateway import audit, catalogue
from rootless_udi.gateway.people import user_name
from rootless_udi.gateway.tables import IMAGES
from rootless_udi.store import upkeep
from rootless_udi.store.store import Store
from rootless_udi.store.upkeep import Use

_USES = select(IMAGES.c.digest, IMAGES.c.used, IMAGES.c.brought)
_JUMP = 3600.0
"""Seconds by which the clock may differ from what passed since the gateway began."""


class Rules(Record):
    """`keep`: seconds for which an unused image stays, 0 for ever; `room`: most bytes of all, 0
    for no limit. `user_keep` and `user_room` are the same for what a user has brought: by his
    name, or by "" for who is not named.
    """

    keep: float = 0.0
    room: int = 0
    user_keep: Mapping[str, float] = {}
    user_room: Mapping[str, int] = {}

    def any(self) -> bool:
        """Tell whether anything can go by them."""
        return bool(self.keep or self.room or self.user_keep or self.user_room)

    def keep_of(self, user: str) -> float:
        """Return the seconds for which an unused image that `user` has brought stays."""
        own = self.user_keep.get(user, self.user_keep.get("", 0.0))
        return min(own, self.keep) if own and self.keep else own or self.keep

    def room_of(self, user: str) -> int:
        """Return the most bytes of what `user` has brought, 0 for no limit."""
        return self.user_room.get(user, self.user_room.get("", 0))


class KnownUse(Record):
    """When an image was last looked up or started, and the uid of who has brought it."""

    used: float
    brought: int


class Clock:
    """Tells whether the clock has jumped: then no image's age is known."""

    def __init__(self) -> None:
        self._began = time.time() - time.monotonic()

    def jump(self) -> float:
        """Return by how many seconds the clock has jumped; 0 where that may be an adjustment."""
        jump = time.time() - time.monotonic() - self._began
        return jump if abs(jump) > _JUMP else 0.0

    def now(self) -> float:
        """Return the time. Raises UdiError where the clock has jumped since the gateway began."""
        jump = self.jump()
        if jump:
            raise UdiError(
                f"the clock has jumped by {jump:.0f} seconds since the gateway began: nothing is "
                "expired",
                "set it right, and start the gateway anew",
            )
        return time.time()


def looked_up(connection: Connection) -> dict[str, KnownUse]:
    """Return digest -> when it was last looked up, and who has brought it."""
    return {row.digest: KnownUse(row.used, row.brought) for row in connection.execute(_USES)}


def brought(connection: Connection, uid: int) -> int:
    """Return the bytes of the images that a user has brought."""
    query = select(func.coalesce(func.sum(IMAGES.c.size), 0)).where(IMAGES.c.brought == uid)
    return int(connection.execute(query).scalar_one())


def chosen(store: Store, known: Mapping[str, KnownUse], rules: Rules, now: float) -> list[Use]:
    """Return the images that go by the rules, the longest unused first.

    First those that were unused for too long, then what does not fit a user's room, then the
    store's.
    """
    nothing = KnownUse(0.0, -1)
    found = [
        one.replace(used=max(one.used, known.get(_digest(one), nothing).used))
        for one in upkeep.uses(store)
    ]
    found.sort(key=lambda one: (one.used, _digest(one)))
    uids = {known.get(_digest(one), nothing).brought for one in found}
    names = {uid: user_name(uid) if uid >= 0 else "" for uid in uids}
    owner = {_digest(one): names[known.get(_digest(one), nothing).brought] for one in found}
    gone: list[Use] = []
    left: list[Use] = []
    for one in found:
        user = owner[_digest(one)]
        keep = rules.keep_of(user) if user else rules.keep
        (gone if keep and one.used < now - keep else left).append(one)
    for user in set(owner.values()) - {""}:
        his = {digest for digest, name in owner.items() if name == user}
        _fit(left, gone, rules.room_of(user), his)
    _fit(left, gone, rules.room, {*owner})
    return sorted(gone, key=lambda one: (one.used, _digest(one)))


def _fit(left: list[Use], gone: list[Use], room: int, which: set[str]) -> None:
    """Move the longest unused of those that are `which` from `left` to `gone`, until they fit."""
    if not room:
        return
    some = [one for one in left if _digest(one) in which]
    total = sum(one.size for one in some)
    for one in some:
        if total <= room:
            return
        left.remove(one)
        gone.append(one)
        total -= one.size


def _digest(one: Use) -> str:
    return str(one.entry.image.digest)


def remove(connection: Connection, store: Store, uid: int, one: Use) -> bool:
    """Remove an image with its names, unless it was used meanwhile; return whether it is gone.

    The names go first: who starts it just now has its file open.
    """
    query = select(IMAGES.c.used).where(IMAGES.c.digest == _digest(one))
    if (connection.execute(query).scalar() or 0.0) > one.used:
        return False
    if not upkeep.remove(store, one, named=True):
        return False
    catalogue.forget(connection, store)
    audit.note(connection, uid, "expire", _digest(one), ", ".join(n for _, n in one.entry.names))
    return True


def described(one: Use) -> dict[str, Any]:
    """Return an image that goes as a row for people."""
    names = [name for _, name in one.entry.names]
    return {"digest": _digest(one), "names": names, "size": one.size, "used": one.used}
