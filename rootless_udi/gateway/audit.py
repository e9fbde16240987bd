"""The log of who gave what to whom. A row is written in the transaction of what it tells."""

import time
from typing import Any

from sqlalchemy import Connection, insert, select

from rootless_udi.gateway.people import user_name
from rootless_udi.gateway.tables import AUDIT

_WHAT_MOST = 512


def note(connection: Connection, uid: int, action: str, what: str, detail: str = "") -> None:
    """Write that the user `uid` did `action` to `what`."""
    values = {"time": time.time(), "uid": uid, "user": user_name(uid)[:64], "action": action}
    connection.execute(insert(AUDIT).values(**values, what=what[:_WHAT_MOST], detail=detail))


def last(connection: Connection, limit: int) -> list[dict[str, Any]]:
    """Return the last rows, the oldest first."""
    query = select(AUDIT).order_by(AUDIT.c.id.desc()).limit(limit)
    keys = ("time", "uid", "user", "action", "what", "detail")
    rows = connection.execute(query).all()
    return [{key: getattr(row, key) for key in keys} for row in reversed(rows)]
