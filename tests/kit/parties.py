"""A small world of parties that a pull meets, each of which may answer as it likes.

`registry` and `mirror` ask for a token of the token server `realm` (or for Basic), and redirect
blobs to `cdn`, which redirects to `cdn2`. Evil answers redirect to `thief`, which asks for all
secrets. `seen` records what each party was sent. Parties are ports of this machine, or names behind
a proxy.
"""

import base64
import hashlib
import json
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from rootless_udi.pull.credentials import Credentials
from tests.kit.registry import Quiet, serve

NAMES = ("registry", "mirror", "realm", "cdn", "cdn2", "thief")
LAYER = b"layer" * 100
CONFIG = b"{}"
PROXY_USER = "proxy-user:proxy-password"


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "config": {"mediaType": "c", "digest": digest(CONFIG), "size": len(CONFIG)},
        "layers": [{"mediaType": "l", "digest": digest(LAYER), "size": len(LAYER)}],
    }
).encode()


class Seen(NamedTuple):
    """A request: to whom, and every secret that it had."""

    party: str
    path: str
    authorization: str
    proxy_authorization: str
    body: str


Answer = Callable[["World", Quiet], None]


class World:
    """The parties; `evil` is (party, answer, the number of the first request to get it)."""

    def __init__(self, proxied: bool, scheme: str = "bearer") -> None:
        self.proxied = proxied
        self.scheme = scheme
        self.seen: list[Seen] = []
        self.evil: tuple[str, Answer, int] | None = None
        self._servers: dict[str, ThreadingHTTPServer] = {}
        for name in ("proxy",) if proxied else NAMES:
            self._servers[name] = serve(self._handler(name))

    @property
    def proxy(self) -> str:
        return f"http://{PROXY_USER}@127.0.0.1:{self._servers['proxy'].server_port}"

    def host(self, party: str) -> str:
        if self.proxied:
            return f"{party}.invalid"
        return f"127.0.0.1:{self._servers[party].server_port}"

    def url(self, party: str, path: str = "") -> str:
        return f"http://{self.host(party)}{path}"

    def credentials(self, host: str, identity: bool) -> Credentials | None:
        for party in ("registry", "mirror"):
            if host == self.host(party):
                token = f"identity-of-{party}" if identity else ""
                return Credentials(f"user-of-{party}", f"password-of-{party}", token, "here")
        return None

    def _handler(outer, party: str) -> type[BaseHTTPRequestHandler]:
        class Handler(Quiet):
            def do_GET(self) -> None:
                outer._serve(self, party)

            do_POST = do_GET

        return Handler

    def _serve(self, request: Quiet, party: str) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length", 0))).decode()
        path = request.path
        given = [request.headers.get(n, "") for n in ("Authorization", "Proxy-Authorization")]
        if party == "proxy":
            self.seen.append(Seen("proxy", path, "", given[1], ""))
            if self._is_evil("proxy"):
                assert self.evil is not None
                self.evil[1](self, request)
                return
            host, _, path = path.removeprefix("http://").partition("/")
            # The proxy keeps to itself what is its own.
            party, path, given[1] = host.removesuffix(".invalid"), f"/{path}", ""
        self.seen.append(Seen(party, path, given[0], given[1], body))
        if self._is_evil(party):
            assert self.evil is not None
            self.evil[1](self, request)
            return
        getattr(self, f"_{party}")(request, path.partition("?")[0], given[0])

    def _is_evil(self, party: str) -> bool:
        if self.evil is None or self.evil[0] != party:
            return False
        return sum(one.party == party for one in self.seen) >= self.evil[2]

    def _registry(self, request: Quiet, path: str, given: str, party: str = "registry") -> None:
        if path == f"/own-token-of-{party}":
            request.answer(200, json.dumps({"token": f"token-of-{party}"}).encode())
            return
        wanted = f"Bearer token-of-{party}"
        asked = f'Bearer realm="{self.url("realm", f"/{party}")}",service="{party}"'
        if self.scheme == "basic":
            wanted, asked = basic(f"user-of-{party}:password-of-{party}"), 'Basic realm="x"'
        if given != wanted:
            request.answer(401, b"", WWW_Authenticate=asked)
        elif "/manifests/" in path:
            request.answer(200, MANIFEST)
        elif path.endswith(digest(CONFIG)):
            request.answer(200, CONFIG)
        elif "/blobs/" in path:
            request.answer(307, b"", Location=self.url("cdn", "/blob"))
        else:
            request.answer(200)

    def _mirror(self, request: Quiet, path: str, given: str) -> None:
        self._registry(request, path, given, "mirror")

    def _realm(self, request: Quiet, path: str, given: str) -> None:
        request.answer(200, json.dumps({"token": f"token-of-{path[1:]}"}).encode())

    def _cdn(self, request: Quiet, path: str, given: str) -> None:
        request.answer(302, b"", Location=self.url("cdn2", "/blob"))

    def _cdn2(self, request: Quiet, path: str, given: str) -> None:
        request.answer(200, LAYER)

    def _thief(self, request: Quiet, path: str, given: str) -> None:
        if path == "/token":
            request.answer(200, b'{"token": "stolen"}')
        else:
            request.answer(401, b"", WWW_Authenticate=f'Bearer realm="{self.url("thief")}/token"')

    def close(self) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.server_close()
