"""Answer what a registry asks for in WWW-Authenticate: a password, or a token of its token server.

RFC 9110 11.6.1; Docker Registry v2 token and OAuth2 authentication (distribution, "token/").
"""

import http.client
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

from rootless_udi.base import fastjson
from rootless_udi.base.errors import UdiError
from rootless_udi.pull import credentials, parties
from rootless_udi.pull.http import Reply, Transport
from rootless_udi.pull.parties import Pass
from rootless_udi.pull.retry import TRANSIENT

_TOKEN_MAX = 1 << 20
"""Most bytes of a token server's answer."""
_TOKEN_SECONDS = 60
"""Seconds that a token is good for where the server does not say, and the least that is believed
(Docker's token specification)."""
_TOKEN_SECONDS_MAX = 86400
_EARLY = 0.9
"""The part of that time after which a new token is asked for, so that none runs out on its way."""
_NAME = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)")
_VALUE = re.compile(r'\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')

Lookup = Callable[[str, str], credentials.Credentials | None]
"""(registry, repository) -> credentials; `credentials.find` is one."""


def challenges(values: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Parse WWW-Authenticate headers (RFC 9110, 11.6.1): [(scheme in lower case, parameters)].

    The list ends before what cannot be parsed.
    """
    found: list[tuple[str, dict[str, str]]] = []
    for text in values:
        at = 0
        while at < len(text):
            while at < len(text) and text[at] in ", \t":
                at += 1
            name = _NAME.match(text, at)
            if name is None:
                break
            value = _VALUE.match(text, name.end())
            if value is not None and found:
                quoted, bare = value.groups()
                plain = bare if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
                found[-1][1].setdefault(name[1].lower(), plain)
                at = value.end()
            else:
                found.append((name[1].lower(), {}))
                at = name.end()
    return found


class Authorizer:
    """Makes the Authorization header for one repository, and a new one when it is refused.

    Of each scheme (Basic, Bearer) the registry's first challenge is kept and later ones ignored:
    the token server does not change from request to request, and Docker does the same.
    """

    def __init__(
        self,
        registry: str,
        repository: str,
        transport: Transport,
        insecure: bool,
        lookup: Lookup,
        scope: str = "",
    ) -> None:
        self.registry = registry
        self.repository = repository
        self._transport = transport
        self._insecure = insecure
        self._lookup = lookup
        self._scope = scope
        self._lock = threading.Lock()
        self._pass = parties.NOTHING
        self._expires = 0.0
        self._accepted = False
        self._schemes: dict[str, dict[str, str]] = {}

    def pinged(self, reply: Reply, base: str) -> None:
        """Keep the challenge with which GET /v2/ was refused."""
        with self._lock:
            self._learn(reply, base)

    def accepted(self, used: Pass) -> None:
        """Note that the registry accepted `used`; if that is refused later, it has expired."""
        with self._lock:
            self._accepted = self._accepted or used == self._pass

    def refused(self, reply: Reply, base: str, used: Pass) -> bool:
        """Note that a request with `used` was refused; return whether to repeat it with `right`.

        Yes after 401 with a new challenge, after 401 for a token, and after 400 or 403 for a token
        that was accepted before: some registries answer so when it has expired.
        """
        with self._lock:
            news = reply.status == 401 and self._learn(reply, base)
            if self._pass != used:
                # Another thread has a new one already.
                return True
            bearer = used.value.startswith("Bearer ")
            again = news or (bearer and (reply.status == 401 or self._accepted))
            if again:
                self._pass, self._accepted = parties.NOTHING, False
            return again

    def _learn(self, reply: Reply, base: str) -> bool:
        """Keep a reply's challenges; return whether one is of a scheme that is new.

        Their scope is ignored: after a redirect it may be somebody else's choice, and that of
        GET /v2/ is a placeholder (GHCR: "repository:user/image:pull").
        """
        values = reply.headers.get_all("WWW-Authenticate") or []
        news = False
        for scheme, parameters in challenges(parties.challenge(values, reply.visited, base)):
            parameters.pop("scope", None)
            if scheme == "bearer" and not parameters.get("realm"):
                continue
            if scheme not in self._schemes:
                self._schemes[scheme] = parameters
                news = True
        return news

    def right(self, what: str, base: str) -> Pass:
        """Return what to send to the registry at `base`, NOTHING where it asks for nothing.

        Raises UdiError where there are no credentials or they are refused, OSError and
        HTTPException as the network does.
        """
        with self._lock:
            if self._pass.value and time.monotonic() < self._expires:
                return self._pass
            if "bearer" in self._schemes:
                token, seconds = self._token(self._schemes["bearer"], what, base)
                self._pass = parties.for_registry(f"Bearer {token}", base)
                self._expires = time.monotonic() + seconds * _EARLY
            elif "basic" in self._schemes:
                found = self._lookup(self.registry, self.repository)
                if found is None or not found.username:
                    raise self.denied(what, "")
                value = parties.basic(found.username, found.password)
                self._pass = parties.for_registry(value, base)
                self._expires = float("inf")
            elif self._schemes:
                asked = ", ".join(self._schemes)
                raise UdiError(f"{what}: authentication by {asked} is not supported")
            return self._pass

    def denied(self, what: str, body: str) -> UdiError:
        """Return the error for a refusal, which says whose credentials were used."""
        found = self._lookup(self.registry, self.repository)
        if found is None:
            return UdiError(
                f"{what}: access denied{said(body)}",
                f"no credentials for {self.registry} were found: `udi login {self.registry}`; "
                "or the name is wrong",
            )
        return UdiError(
            f"{what}: access denied to {found.username or 'the identity token'}{said(body)}",
            f"the credentials are from {found.origin}; `udi login {self.registry}` renews them",
        )

    def _token(self, parameters: dict[str, str], what: str, base: str) -> tuple[str, float]:
        """Get a token from the token server; return it and how many seconds it is good for."""
        found = self._lookup(self.registry, self.repository)
        realm = parameters["realm"]
        asked: dict[str, Any] = {}
        if self._scope:
            # Not the challenge's scope: this is all that is wanted.
            asked["scope"] = self._scope.split()
        if parameters.get("service"):
            asked["service"] = parameters["service"]
        insecure = parties.lenient(self._insecure, realm, base)
        given = parties.NOTHING
        if found:
            secret = "" if found.token else parties.basic(found.username, found.password)
            given = parties.for_token_server(secret, realm, base, self._insecure, what)
        headers = {"Accept": "application/json"}
        if found and found.token:
            form = {**asked, "grant_type": "refresh_token", "client_id": "rootless_udi"}
            form |= {"refresh_token": found.token, "scope": self._scope}
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            data = urllib.parse.urlencode(form).encode()
            reply = self._transport.get(realm, headers, given, insecure, "POST", data)
        else:
            mark = "&" if "?" in realm else "?"
            # A scope each, as Docker does.
            url = realm + mark + urllib.parse.urlencode(asked, doseq=True)
            reply = self._transport.get(url, headers, given, insecure)
        try:
            body = reply.read_all(_TOKEN_MAX, what).decode("utf-8", "replace")
        finally:
            reply.close()
        if reply.status in TRANSIENT:
            raise http.client.HTTPException(f"the token server answers {reply.status}{said(body)}")
        if reply.status not in (200, 400, 401, 403):
            raise UdiError(f"{what}: the token server {realm} answers {reply.status}{said(body)}")
        if reply.status != 200:
            raise self.denied(what, body)
        return _parse(body, realm, what)


def _parse(body: str, realm: str, what: str) -> tuple[str, float]:
    try:
        answer: Any = fastjson.loads(body)
        token = answer.get("token") or answer["access_token"]
        seconds = float(answer.get("expires_in") or _TOKEN_SECONDS)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise UdiError(f"{what}: the answer of {realm} is no token") from None
    # It is put into a header, so it must be a word of visible ASCII (RFC 6750).
    if not isinstance(token, str) or not all("!" <= c <= "~" for c in token):
        raise UdiError(f"{what}: the answer of {realm} is no token")
    # In this order NaN becomes the least too: it compares as False.
    seconds = seconds if seconds > _TOKEN_SECONDS else _TOKEN_SECONDS
    return token, min(seconds, _TOKEN_SECONDS_MAX)


def said(body: str) -> str:
    """Return ": MESSAGE" of an error document (distribution-spec, "Error Codes"), or nothing."""
    try:
        first = fastjson.loads(body)["errors"][0]
        message, code = first.get("message") or first["code"], first.get("code", "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    if not isinstance(message, str):
        return ""
    text = " ".join(message.split())[:200]
    return f": {text}" + (f" ({code[:40]})" if isinstance(code, str) and code else "")
