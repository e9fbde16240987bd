"""Answer a registry's WWW-Authenticate: basic, bearer tokens, identity tokens.

RFC 9110 11.6.1; Docker Registry v2 token and OAuth2 authentication (distribution, "token/").
"""

import http.client
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from typing import Any

from rootless_udi import auth
from rootless_udi.errors import UdiError
from rootless_udi.patience import TRANSIENT
from rootless_udi.transport import Transport, basic

_TOKEN_MAX = 1 << 20
_TOKEN_SECONDS = 60
"""A token's life where the server does not say (Docker's token specification)."""
_NAME = re.compile(r"\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)")
_VALUE = re.compile(r'\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')

Lookup = Callable[[str, str], auth.Credentials | None]
"""(registry, repository) -> credentials; `auth.find` is one."""


def challenges(values: Sequence[str]) -> list[tuple[str, dict[str, str]]]:
    """Parse WWW-Authenticate headers (RFC 9110, 11.6.1): [(scheme in lower case, parameters)].

    What cannot be parsed ends the list.
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
    """The Authorization header for one repository, made when asked for, renewed when refused."""

    def __init__(
        self, registry: str, repository: str, transport: Transport, insecure: bool, lookup: Lookup
    ) -> None:
        self.registry = registry
        self.repository = repository
        self._transport = transport
        self._insecure = insecure
        self._lookup = lookup
        self._lock = threading.Lock()
        self._header = ""
        self._expires = 0.0
        self._challenges: list[tuple[str, dict[str, str]]] = []

    def challenged(self, values: Sequence[str], header: str = "", ping: bool = False) -> None:
        """Note a 401's WWW-Authenticate headers; `header` is the Authorization that was refused.

        `ping`: it was GET /v2/ that was refused. The scope that is named there is nobody's, or
        somebody else's (GHCR: "repository:user/image:pull"); only a request's own challenge tells
        what that request needs.
        """
        found = challenges(values)
        if ping:
            found = [(s, {k: v for k, v in p.items() if k != "scope"}) for s, p in found]
        with self._lock:
            if found:
                self._challenges = found
            # Unless another thread has a new one already.
            if self._header == header:
                self._header = ""

    def header(self, what: str, secure: bool) -> str:
        """Return the header's value, empty where no authentication is asked for.

        `secure`: the registry is reached over TLS. Raises UdiError where there are no credentials
        or they are refused, OSError and HTTPException as the network does.
        """
        with self._lock:
            if self._header and time.monotonic() < self._expires:
                return self._header
            for scheme, parameters in self._challenges:
                if scheme == "bearer" and parameters.get("realm"):
                    token, seconds = self._token(parameters, what, secure)
                    self._header = f"Bearer {token}"
                    # A little early: the token must outlive its way to the registry.
                    self._expires = time.monotonic() + seconds * 0.9
                    return self._header
            for scheme, _ in self._challenges:
                if scheme == "basic":
                    found = self._lookup(self.registry, self.repository)
                    if found is None or not found.username:
                        raise self.denied(what, "")
                    self._header = basic(found.username, found.password)
                    self._expires = float("inf")
                    return self._header
            if self._challenges:
                asked = ", ".join(scheme for scheme, _ in self._challenges)
                raise UdiError(f"{what}: authentication by {asked} is not supported")
            return ""

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

    def _token(self, parameters: dict[str, str], what: str, secure: bool) -> tuple[str, float]:
        """Return a token and its seconds."""
        found = self._lookup(self.registry, self.repository)
        realm = parameters["realm"]
        asked = {}
        if self.repository:
            asked["scope"] = parameters.get("scope") or f"repository:{self.repository}:pull"
        if parameters.get("service"):
            asked["service"] = parameters["service"]
        # A registry that is found over TLS must not have the password sent in the clear.
        if found and secure and not self._insecure and not realm.startswith("https:"):
            raise UdiError(
                f"{what}: its token server {realm} is plain http", "--insecure allows it"
            )
        headers = {"Accept": "application/json"}
        if found and found.token:
            form = {**asked, "grant_type": "refresh_token", "client_id": "rootless_udi"}
            form["refresh_token"] = found.token
            headers["Content-Type"] = "application/x-www-form-urlencoded"
            data = urllib.parse.urlencode(form).encode()
            reply = self._transport.get(realm, headers, "", self._insecure, "POST", data)
        else:
            mark = "&" if "?" in realm else "?"
            authorization = basic(found.username, found.password) if found else ""
            url = realm + mark + urllib.parse.urlencode(asked)
            reply = self._transport.get(url, headers, authorization, self._insecure)
        try:
            body = reply.read_all(_TOKEN_MAX, what).decode("utf-8", "replace")
        finally:
            reply.close()
        if reply.status in TRANSIENT:
            raise http.client.HTTPException(f"the token server answers {reply.status}{said(body)}")
        if reply.status != 200:
            raise self.denied(what, body)
        return _parse(body, realm, what)


def _parse(body: str, realm: str, what: str) -> tuple[str, float]:
    try:
        answer: Any = json.loads(body)
        token = answer.get("token") or answer["access_token"]
        seconds = float(answer.get("expires_in") or _TOKEN_SECONDS)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UdiError(f"{what}: the answer of {realm} is no token") from None
    if not isinstance(token, str) or not token.isprintable():
        raise UdiError(f"{what}: the answer of {realm} is no token")
    return token, seconds


def said(body: str) -> str:
    """Return ": MESSAGE" of an error document (distribution-spec, "Error Codes"), or nothing."""
    try:
        first = json.loads(body)["errors"][0]
        message, code = first.get("message") or first["code"], first.get("code", "")
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""
    text = " ".join(str(message).split())
    if not text.isprintable():
        return ""
    return f": {text[:200]}" + (f" ({str(code)[:40]})" if str(code).isprintable() and code else "")
