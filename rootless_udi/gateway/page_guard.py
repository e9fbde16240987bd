"""Requests that a browser was made to send: refused before anything is done for them.

Who forwards the Unix socket to his own machine (`ssh -L`) lends his rights to every page that his
browser shows: such a page may send requests to http://localhost:PORT, and one whose name is made to
mean 127.0.0.1 afterwards (DNS rebinding) may read the answers too. So what another site's page has
sent is refused (Fetch Metadata, RFC 6454), and the socket's peer counts only where the gateway is
asked for by a name that nobody else can own.
"""

import ipaddress
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import PlainTextResponse

from rootless_udi.gateway.service import PEER

PAGES = "/page/"
"""Where the pages lie, all beside one another: links need not know what a proxy puts before it."""
_OURS = ("", "none", "same-origin")
_REFUSED = "another site's page has sent this request: it is refused"
_HEADERS = frozenset((b"host", b"origin", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"))


def around(app: Callable[..., Any]) -> Callable[..., Any]:
    """Return an ASGI application that refuses such requests, and has `app` answer the others."""

    async def guarded(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            told = {name: value for name, value in scope["headers"] if name in _HEADERS}
            if _is_from_elsewhere(scope, told):
                await PlainTextResponse(_REFUSED, 403)(scope, receive, send)
                return
            if scope.get(PEER) is not None and not is_local(told):
                scope[PEER] = None
        await app(scope, receive, send)

    return guarded


def _host(told: Mapping[bytes, bytes]) -> str:
    return told.get(b"host", b"").decode("latin-1").lower()


def _is_from_elsewhere(scope: Any, told: Mapping[bytes, bytes]) -> bool:
    """Tell whether another site's page has sent a request, but for a link to one of our pages."""
    site = told.get(b"sec-fetch-site")
    page, read = scope["path"].startswith(PAGES), scope["method"] in ("GET", "HEAD")
    if site is not None:
        link = told.get(b"sec-fetch-mode") == b"navigate" and page and read
        framed = told.get(b"sec-fetch-dest") in (b"iframe", b"frame", b"object", b"embed")
        return site.decode("latin-1") not in _OURS and (framed or not link)
    origin = told.get(b"origin")
    if origin is not None:
        try:
            return urlsplit(origin.decode("latin-1").lower()).netloc != _host(told)
        except ValueError:
            return True
    # Browsers send one of the two with each form: without it nothing is changed by a page.
    return page and not read


def is_local(told: Mapping[bytes, bytes]) -> bool:
    """Tell whether a request's Host, one of the headers `told`, is a name that only this machine or
    its network gives.

    A name of one label (localhost, gateway) can't be bought; an address is not looked up.
    """
    host = _host(told)
    name, _, port = host.rpartition(":") if ":" in host.rpartition("]")[2] else (host, "", "")
    if port and not port.isdecimal():
        return False
    bare = name.removesuffix(".")
    if not set(bare) & {".", ":", "[", "]"} or bare.endswith(".localhost"):
        return True
    bracketed = name.startswith("[") and name.endswith("]")
    try:
        return bracketed is (ipaddress.ip_address(name[1:-1] if bracketed else bare).version == 6)
    except ValueError:
        return False
