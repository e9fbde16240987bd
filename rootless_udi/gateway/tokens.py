"""Tokens: a proof of who asks for laptops and CI, made by a user for himself.

The database has a token's SHA-256 alone. What is lost is made anew.
"""

import hashlib
import secrets
import time
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from rootless_udi.base.errors import UdiError
from rootless_udi.gateway import audit
from rootless_udi.gateway.tables import TOKENS

PREFIX = "udi_"
SCOPES = ("read", "pull", "all")
"""What a token is for: to list, look up and fetch; also to pull; also to share and expire."""
DAYS_MOST = 366
_EACH = 20
"""Most tokens of one user."""


class NoToken(UdiError):
    """A token that can't be made or is not there."""


def make(connection: Connection, uid: int, scope: str, days: float, note: str) -> dict[str, Any]:
    """Return a new token, the only time that it is to be seen, with its number and end.

    Raises NoToken for too many.
    """
    now = time.time()
    connection.execute(delete(TOKENS).where(TOKENS.c.expires < now))
    query = select(func.count()).select_from(TOKENS).where(TOKENS.c.uid == uid)
    if (connection.execute(query).scalar() or 0) >= _EACH:
        raise NoToken(f"you have {_EACH} tokens", "udi gateway token --revoke=NUMBER removes one")
    text = PREFIX + secrets.token_urlsafe(32)
    values = {"mark": mark(text), "uid": uid, "scope": scope, "note": note, "created": now}
    expires = now + days * 86400
    found = connection.execute(insert(TOKENS).values(**values, expires=expires))
    assert found.inserted_primary_key is not None
    number = found.inserted_primary_key[0]
    audit.note(connection, uid, "token", str(number), scope)
    return {"token": text, "id": number, "scope": scope, "expires": expires}


def mark(text: str) -> str:
    """Return what the database has of a token."""
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()


def find(connection: Connection, text: str) -> tuple[int, str, float] | None:
    """Return (uid, scope, end) of a token that is good now, or None."""
    row = connection.execute(select(TOKENS).where(TOKENS.c.mark == mark(text))).first()
    if row is None or not row.created - 86400 <= time.time() < row.expires:
        return None
    return row.uid, row.scope, row.expires


def listed(connection: Connection, uid: int) -> list[dict[str, Any]]:
    """Return a user's tokens, without what they are."""
    keys = ("id", "scope", "note", "created", "expires")
    rows = connection.execute(select(TOKENS).where(TOKENS.c.uid == uid).order_by(TOKENS.c.id))
    return [{key: getattr(row, key) for key in keys} for row in rows]


def revoke(connection: Connection, uid: int, number: int) -> None:
    """Remove a user's token. Raises NoToken where he has none of that number."""
    gone = connection.execute(
        delete(TOKENS).where(TOKENS.c.uid == uid, TOKENS.c.id == number)
    ).rowcount
    if not gone:
        raise NoToken(f"you have no token {number}", "udi gateway token --list shows yours")
    audit.note(connection, uid, "revoke", str(number))
