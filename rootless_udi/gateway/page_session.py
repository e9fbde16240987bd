"""Who looks at the pages: by a cookie that a token was changed for, else as for any request.

The cookie is made of the token's number and time by a MAC whose key is the token's mark in the
database. So it ends with the token, at once when that is taken back, and is good for the pages
alone: the token can't be computed from it. It is the browser's until that is closed, for a week at
most.
"""

import contextlib
import hmac
import time
from typing import Any
from urllib.parse import parse_qs

from sqlalchemy import Connection, select
from starlette.requests import Request
from starlette.responses import Response

from rootless_udi.base.errors import UdiError
from rootless_udi.gateway import requests, tokens
from rootless_udi.gateway.people import Asker, Denied
from rootless_udi.gateway.service import Service
from rootless_udi.gateway.tables import TOKENS

COOKIE = "udi_page"
_LOOKER = "udi.looker"
"""Who looks at a page, in the scope of his request."""
_SECONDS = 7 * 86400
_PURPOSE = b"a session of the gateway's pages"
_LONGEST = 200
_NOBODY = Asker(-1, "", frozenset(), False, "nobody")


async def looker(service: Service, request: Request) -> Asker:
    """Return who looks at a page. Raises Denied, and Busy."""
    request.scope[_LOOKER] = None
    asker = request.scope[_LOOKER] = await _looker(service, request)
    return asker


async def found(service: Service, request: Request) -> Asker | None:
    """Return who looks at an error: the `looker` of its page, or None where there is none.

    Nobody is looked for twice: a munge credential proves its sender once.
    """
    if _LOOKER not in request.scope:
        with contextlib.suppress(UdiError):
            await looker(service, request)
    one: Asker | None = request.scope[_LOOKER]
    return one


async def _looker(service: Service, request: Request) -> Asker:
    text = request.cookies.get(COOKIE, "")
    if text:
        owner = await service.database.read(_owner, text)
        if owner is not None:
            asker = await service.holder(*owner)
            service.spend(asker)
            return asker.replace(how="page")
    return await service.asker(request)


async def log_in(service: Service, request: Request, response: Response) -> None:
    """Give the browser a cookie for the token that it sends in a form. Raises Denied, and Busy."""
    service.spend(_NOBODY)
    fields = parse_qs((await requests.raw(request)).decode(errors="replace"))
    text = fields.get("token", [""])[0].strip()
    made = await service.database.read(_made, text)
    if made is None:
        raise Denied("this token is not known, or its time is over", "udi gateway token")
    # Without a path it is for the folder of this page, whatever a web server has put before it.
    secure = "https" in (request.url.scheme, request.headers.get("x-forwarded-proto", ""))
    response.set_cookie(COOKIE, made, path=None, secure=secure, httponly=True, samesite="lax")


def log_out(response: Response) -> None:
    """Have the browser forget its cookie."""
    response.delete_cookie(COOKIE, path=None, httponly=True, samesite="lax")  # type: ignore[arg-type]


def _made(connection: Connection, token: str) -> str | None:
    if tokens.find(connection, token) is None:
        return None
    mark = tokens.mark(token)
    number = connection.execute(select(TOKENS.c.id).where(TOKENS.c.mark == mark)).scalar_one()
    now = int(time.time())
    return f"{number}.{now}.{_code(mark, number, now)}"


def _code(mark: str, number: int, made: int) -> str:
    message = b"%s %d %d" % (_PURPOSE, number, made)
    return hmac.digest(bytes.fromhex(mark), message, "sha256").hex()


def _owner(connection: Connection, text: str) -> tuple[int, str] | None:
    """Return (uid, scope) of a cookie's token while both are good, or None."""
    number, made, code = _parts(text)
    now = time.time()
    if not code or not made - 60 <= now < made + _SECONDS:
        return None
    row: Any = connection.execute(select(TOKENS).where(TOKENS.c.id == number)).first()
    if row is None or not now < row.expires:
        return None
    if not hmac.compare_digest(code, _code(row.mark, number, made)):
        return None
    return row.uid, row.scope


def _parts(text: str) -> tuple[int, int, str]:
    words = text.split(".")
    fits = len(text) <= _LONGEST and len(words) == 3 and text.isascii()
    if not fits or not all(word.isdecimal() and len(word) <= 15 for word in words[:2]):
        return 0, 0, ""
    return int(words[0]), int(words[1]), words[2]
