"""Which images go: those that nobody used for long, and the longest unused where room is short.

Used means looked up, pulled or read: the kernel records a read about once a day, and never on a
file system mounted with noatime. Rules are applied when an administrator asks, never by a clock.
"""

import time
from typing import Any

from sqlalchemy import Connection, select

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.gateway import audit, catalogue
from rootless_udi.gateway.tables import IMAGES
from rootless_udi.store import upkeep
from rootless_udi.store.store import Store
from rootless_udi.store.upkeep import Use

_JUMP = 3600.0
"""Seconds by which the clock may differ from what passed since the gateway began."""


class Rules(Record):
    """`keep`: seconds for which an unused image stays, 0 for ever; `room`: most bytes of all, 0
    for no limit."""

    keep: float = 0.0
    room: int = 0


class Clock:
    """Tells whether the clock has jumped: then no image's age is known."""

    def __init__(self) -> None:
        self._began = time.time() - time.monotonic()

    def now(self) -> float:
        """Return the time. Raises UdiError where the clock has jumped since the gateway began."""
        jump = time.time() - time.monotonic() - self._began
        if abs(jump) > _JUMP:
            raise UdiError(
                f"the clock has jumped by {jump:.0f} seconds since the gateway began: nothing is "
                "expired",
                "set it right, and start the gateway anew",
            )
        return time.time()


def looked_up(connection: Connection) -> dict[str, float]:
    """Return digest -> when it was last looked up."""
    return {row.digest: row.used for row in connection.execute(select(IMAGES))}


def chosen(store: Store, used: dict[str, float], rules: Rules, now: float) -> list[Use]:
    """Return the images that go by the rules, the longest unused first."""
    found = [
        one.replace(used=max(one.used, used.get(_digest(one), 0.0))) for one in upkeep.uses(store)
    ]
    found.sort(key=lambda one: (one.used, _digest(one)))
    gone = [one for one in found if rules.keep and one.used < now - rules.keep]
    left = sum(one.size for one in found) - sum(one.size for one in gone)
    for one in found[len(gone) :]:
        if not rules.room or left <= rules.room:
            break
        gone.append(one)
        left -= one.size
    return gone


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
