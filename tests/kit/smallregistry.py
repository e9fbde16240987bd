"""A registry in memory, with what Debian's docker-registry lacks: the referrers API of OCI 1.1.

And with faults on request: uploads that are cut, forgotten, or sent to another host. It is written
from the distribution specification alone, and shares no code with the product.
"""

import contextlib
import hashlib
import json
import re
import socket
import threading
import urllib.parse
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler

from tests.kit.registry import Quiet, serve

_NAME = r"/v2/(?P<name>.+?)"


class SmallRegistry:
    """`referrers`: whether it has that API. `log` has (method, path, Authorization).

    `cuts`: how many uploads of a chunk break off after `cut` bytes, which count or (`lose`) are
    lost. `forget`: uploads that vanish at their first chunk; `lost`: last answers. `elsewhere`: the
    host that uploads are sent to. `chunks` are the sizes of those that came; `least` is announced
    as the smallest. `answers`, each (method, status, body), are given once to the next of such
    requests. After an index was put under a tag of `replace`, it has that one's next entry alone.
    """

    def __init__(self, referrers: bool = True) -> None:
        self.referrers = referrers
        self.blobs: dict[tuple[str, str], bytes] = {}
        self.manifests: dict[tuple[str, str], tuple[bytes, str]] = {}
        self.uploads: dict[str, bytearray] = {}
        self.log: list[tuple[str, str, str]] = []
        self.chunks: list[int] = []
        self.cut = self.cuts = self.forget = self.least = self.lost = 0
        self.lose = False
        self.elsewhere = ""
        self.scheme = "http"
        self.replace: dict[str, list[dict[str, object]]] = {}
        self.answers: list[tuple[str, int, bytes]] = []
        self.busy = threading.Event()
        self._lock = threading.Lock()
        self._server = serve(self._handler())
        self.host = f"127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def settled(self) -> None:
        """Wait until the last chunk has ended, be it with its client."""
        assert self.busy.wait(60)

    def paths(self, method: str) -> list[str]:
        return [path for one, path, _ in self.log if one == method]

    def _handler(outer) -> type[BaseHTTPRequestHandler]:
        class Handler(Quiet):
            def _do(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                self.query = dict(urllib.parse.parse_qsl(url.query))
                given = self.headers.get("Authorization", "")
                outer.log.append((self.command, self.path, given))
                for number, (method, status, body) in enumerate(outer.answers):
                    if method == self.command:
                        del outer.answers[number]
                        self.rfile.read(int(self.headers.get("Content-Length") or 0))
                        self.answer(status, body)
                        return
                for pattern, methods in _ROUTES:
                    found = re.fullmatch(pattern, url.path)
                    if found and self.command in methods:
                        getattr(self, methods[self.command])(**found.groupdict())
                        return
                self.answer(404)

            do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _do

            def body(self) -> bytes:
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))

            def say(self, status: int, body: bytes = b"", /, **headers: str) -> None:
                if self.command == "HEAD":
                    self.send_response(status)
                    self.send_header("Content-Length", str(len(body)))
                    self.end_headers()
                else:
                    self.answer(status, body, **headers)

            def ping(self) -> None:
                self.say(200, b"{}")

            def get_blob(self, name: str, digest: str) -> None:
                data = outer.blobs.get((name, digest))
                self.say(404) if data is None else self.say(200, data)

            def get_manifest(self, name: str, reference: str) -> None:
                found = outer.manifests.get((name, reference))
                if found is None:
                    self.say(404)
                else:
                    self.say(200, found[0], Content_Type=found[1])

            def put_manifest(self, name: str, reference: str) -> None:
                body = self.body()
                digest = "sha256:" + hashlib.sha256(body).hexdigest()
                for one in {digest, reference}:
                    outer.manifests[name, one] = body, self.headers["Content-Type"]
                if outer.replace.get(reference):
                    index = {**json.loads(body), "manifests": [outer.replace[reference].pop()]}
                    data = json.dumps(index).encode()
                    outer.manifests[name, reference] = data, self.headers["Content-Type"]
                subject = json.loads(body).get("subject")
                headers: dict[str, str] = {"Docker_Content_Digest": digest}
                if subject and outer.referrers:
                    headers["OCI_Subject"] = subject["digest"]
                self.say(201, **headers)

            def get_referrers(self, name: str, digest: str) -> None:
                if not outer.referrers:
                    self.say(404)
                    return
                found, seen = [], set()
                for (one, _), (body, media) in list(outer.manifests.items()):
                    document = json.loads(body)
                    own = "sha256:" + hashlib.sha256(body).hexdigest()
                    if one == name and document.get("subject", {}).get("digest") == digest:
                        kind = document.get("artifactType")
                        if self.query.get("artifactType") in (None, kind) and own not in seen:
                            seen.add(own)
                            entry = {"mediaType": media, "digest": own, "size": len(body)}
                            found.append({**entry, "artifactType": kind})
                media = "application/vnd.oci.image.index.v1+json"
                index = {"schemaVersion": 2, "mediaType": media, "manifests": found}
                self.say(200, json.dumps(index).encode(), Content_Type=media)

            def start(self, name: str) -> None:
                wanted, origin = self.query.get("mount"), self.query.get("from", "")
                if wanted and (origin, wanted) in outer.blobs:
                    outer.blobs[name, wanted] = outer.blobs[origin, wanted]
                    self.say(201)
                    return
                key = str(len(outer.log))
                outer.uploads[key] = bytearray()
                host = outer.elsewhere or self.headers["Host"]
                least = {"OCI_Chunk_Min_Length": str(outer.least)} if outer.least else {}
                place = f"{outer.scheme}://{host}/v2/{name}/blobs/uploads/{key}"
                self.say(202, Location=place, Range="0-0", **least)

            def chunk(self, name: str, key: str) -> None:
                if outer.forget:
                    outer.forget -= 1
                    outer.uploads.pop(key, None)
                held = outer.uploads.get(key)
                if held is None:
                    self.body()
                    self.say(404)
                    return
                size = int(self.headers["Content-Length"])
                first, _, last = self.headers["Content-Range"].partition("-")
                assert int(last) - int(first) + 1 == size
                if int(first) != len(held):
                    self.body()
                    self.say(416)
                    return
                outer.chunks.append(size)
                with outer._lock:
                    broken = outer.cuts > 0
                    outer.cuts -= broken
                if broken:
                    data = self.rfile.read(min(outer.cut, size))
                    if not outer.lose:
                        held += data
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                outer.busy.clear()
                try:
                    while size and (data := self.rfile.read1(min(size, 1 << 20))):
                        held += data
                        size -= len(data)
                finally:
                    outer.busy.set()
                if not size:
                    self.came(name, key, 202)

            def came(self, name: str, key: str, status: int = 204) -> None:
                held = outer.uploads.get(key)
                if held is None:
                    self.say(404)
                    return
                place = f"/v2/{name}/blobs/uploads/{key}?state={len(held)}"
                self.say(status, Location=place, Range=f"0-{max(len(held) - 1, 0)}")

            def put_blob(self, name: str, key: str) -> None:
                held = outer.uploads.pop(key, None)
                if held is None:
                    self.say(404)
                    return
                data = bytes(held) + self.body()
                digest = self.query["digest"]
                if "sha256:" + hashlib.sha256(data).hexdigest() != digest:
                    self.say(400, b'{"errors": [{"code": "DIGEST_INVALID"}]}')
                    return
                outer.blobs[name, digest] = data
                if outer.lost:
                    outer.lost -= 1
                    self.close_connection = True
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.say(201)

            def cancel(self, name: str, key: str) -> None:
                outer.uploads.pop(key, None)
                self.say(204)

        return Handler


_ROUTES = (
    (r"/v2/?", {"GET": "ping"}),
    (_NAME + r"/blobs/uploads/", {"POST": "start"}),
    (
        _NAME + r"/blobs/uploads/(?P<key>\w+)",
        {"PATCH": "chunk", "GET": "came", "PUT": "put_blob", "DELETE": "cancel"},
    ),
    (_NAME + r"/blobs/(?P<digest>sha256:\w+)", {"GET": "get_blob", "HEAD": "get_blob"}),
    (
        _NAME + r"/manifests/(?P<reference>[\w:.-]+)",
        {"GET": "get_manifest", "HEAD": "get_manifest", "PUT": "put_manifest"},
    ),
    (_NAME + r"/referrers/(?P<digest>sha256:\w+)", {"GET": "get_referrers"}),
)


@contextlib.contextmanager
def small_registry(referrers: bool = True) -> Iterator[SmallRegistry]:
    one = SmallRegistry(referrers)
    try:
        yield one
    finally:
        one.close()
