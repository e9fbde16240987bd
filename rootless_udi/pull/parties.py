"""Decide which secret may be sent to whom. A pull talks to several parties:

    party              known by                                      may be sent
    registry, mirror   origin (scheme, host, port) of its own URL    Basic or a token, if it asked
    its token server   realm in a challenge of that very origin      Basic, or the identity token
    redirect target    a Location, from whomever                     nothing, whatever it asks for,
                                                                     nor whoever it leads to
    proxy              http_proxy, https_proxy                       the user of that URL
    image gateway      origin of its own URL, which the              a token, or a munge credential
                       configuration names

A secret is a `Pass`, which has the only origin that it may be sent to. An identity token is in the
body of a POST, which is never redirected. Pure. Such decisions went wrong in CVE-2020-15157: a
manifest named a layer on another server; that server answered 401 with a realm of its own, and the
client sent the registry's password there.
"""

import base64
import urllib.parse
from collections.abc import Sequence

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record

Origin = tuple[str, str, int]
"""(scheme, host, port)."""
_PORTS = {"http": 80, "https": 443}


class Pass(Record):
    """The value of a `header` that says who asks, and the only origin that it may be sent to.

    One that is `single` proves it once: it is not sent again where a connection breaks.
    """

    value: str = ""
    good_for: Origin = ("", "", 0)
    header: str = "Authorization"
    single: bool = False

    def __repr__(self) -> str:
        return f"Pass(for {self.good_for})"


NOTHING = Pass()


def origin(url: str) -> Origin:
    """Return where a URL leads; raises UdiError for what is no URL of a web server."""
    try:
        parts = urllib.parse.urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    except ValueError as error:
        raise UdiError(f"GET {url!r} failed: {error}") from None
    if scheme not in _PORTS or not host:
        raise UdiError(f"GET {url!r} failed: is no http or https URL")
    return scheme, host, port or _PORTS[scheme]


def sent(given: Pass, visited: Sequence[str]) -> str:
    """Return what the last of the `visited` URLs of a request is sent, "" for nothing.

    The earlier URLs are those that redirected here. After a redirect to another origin nothing is
    sent any more, also if that redirects back: it would choose what the secret is used for.
    """
    if given.value and all(origin(url) == given.good_for for url in visited):
        return given.value
    return ""


def at_home(visited: Sequence[str], asked: str) -> bool:
    """Tell whether all URLs of a request are of the origin of `asked`, the registry's URL.

    If another origin has redirected back, the request is that origin's choice, and not ours.
    """
    return all(origin(url) == origin(asked) for url in visited)


def challenge(values: Sequence[str], visited: Sequence[str], asked: str) -> Sequence[str]:
    """Return the WWW-Authenticate `values` if they are the registry's own, else nothing.

    `asked` is the registry's URL, `visited` are those on the way to the answer, its own included.
    """
    return values if at_home(visited, asked) else ()


def lenient(insecure: bool, url: str, asked: str) -> bool:
    """Tell whether `insecure`, which is said of the registry at `asked`, holds for `url`.

    It does on the same host alone.
    """
    return insecure and origin(url)[1] == origin(asked)[1]


def for_registry(value: str, base: str) -> Pass:
    """Return what a registry itself is sent: a token, or the password if it asks for Basic."""
    return Pass(value, origin(base))


def for_token_server(value: str, realm: str, base: str, insecure: bool, what: str) -> Pass:
    """Return what is sent to `realm`, the token server that the registry at `base` names.

    `value` is empty with an identity token. Raises UdiError where a secret of a registry that is
    reached over TLS would be sent in the clear.
    """
    place = origin(realm)
    if origin(base)[0] == "https" and place[0] != "https" and not lenient(insecure, realm, base):
        hint = "--insecure allows it for a token server on the registry's own host"
        raise UdiError(f"{what}: its token server {realm} is plain http", hint)
    return Pass(value, place)


def for_proxy(proxy: str) -> dict[str, str]:
    """Return the header for a proxy: the name and password of its own URL, nobody else's."""
    at = urllib.parse.urlsplit(proxy)
    if at.username is None:
        return {}
    user = urllib.parse.unquote(at.username)
    return {"Proxy-Authorization": basic(user, urllib.parse.unquote(at.password or ""))}


def for_socks(proxy: str) -> tuple[bytes, bytes] | None:
    """Return the name and password of a SOCKS proxy's own URL, nobody else's; None without."""
    at = urllib.parse.urlsplit(proxy)
    if at.username is None:
        return None
    user, password = (urllib.parse.unquote_to_bytes(x or "") for x in (at.username, at.password))
    return user, password


def basic(user: str, password: str) -> str:
    """Return Basic's credentials (RFC 7617)."""
    text = f"{user}:{password}".encode("utf-8", "surrogateescape")
    return "Basic " + base64.b64encode(text).decode()
