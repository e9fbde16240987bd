"""Real registries on loopback ports of their own, and a proxy that misbehaves on request.

`Registry` is Debian's docker-registry: open, with htpasswd, with tokens (`TokenServer`), or with
TLS. `Flaky` stands before one and cuts, refuses, redirects, corrupts; it counts what it is asked.
All run as the tests' ordinary user.
"""

import base64
import contextlib
import json
import re
import shutil
import socket
import ssl
import subprocess
import threading
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

USER, PASSWORD = "udi", "secret"


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """A port that refuses every connection, and that nobody else can take meanwhile."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield int(sock.getsockname()[1])


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """Return a self-signed certificate for 127.0.0.1 and localhost, and its key."""
    cert, key = folder / f"{name}.crt", folder / f"{name}.key"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "30"]
    argv += ["-keyout", str(key), "-out", str(cert), "-subj", f"/CN={name}"]
    argv += ["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost,DNS:registry.invalid"]
    subprocess.run(argv, check=True, capture_output=True)
    return cert, key


class Registry:
    """A docker-registry on `host` ("127.0.0.1:PORT") that keeps its blobs in `data`."""

    def __init__(self, folder: Path, data: Path, extra: str = "", tls: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        config = folder / "config.yml"
        # It takes a free port, and says which.
        config.write_text(
            "version: 0.1\nlog: {level: info}\n"
            f"storage: {{filesystem: {{rootdirectory: {data}}}, delete: {{enabled: true}}}}\n"
            f"http: {{addr: '127.0.0.1:0'{tls}}}\n{extra}"
        )
        self._log = open(folder / "log", "w")  # noqa: SIM115
        self._process = subprocess.Popen(
            ["docker-registry", "serve", config],
            stdout=self._log,
            stderr=self._log,
            stdin=subprocess.DEVNULL,
        )
        self.host = said_host(folder / "log", self._process)

    def push(self, layout: Path, tag: str, name: str, *options: str) -> None:
        """Copy LAYOUT:TAG to NAME here, with skopeo."""
        argv = ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", *options]
        argv += ["--multi-arch=all", f"oci:{layout}:{tag}", f"docker://{self.host}/{name}"]
        subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL)

    def put_manifest(self, name: str, tag: str, body: bytes, media: str) -> None:
        """Push a manifest as it is."""
        request = urllib.request.Request(
            f"http://{self.host}/v2/{name}/manifests/{tag}",
            data=body,
            method="PUT",
            headers={"Content-Type": media},
        )
        urllib.request.urlopen(request).close()

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()


def said_host(log: Path, process: "subprocess.Popen[bytes]") -> str:
    """Wait until a registry listens; return where, as its log says it."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        text = log.read_text()
        if found := re.search(r"listening on (127\.0\.0\.1:\d+)\W", text):
            return found[1]
        if process.poll() is not None:
            raise RuntimeError(f"docker-registry ended with {process.returncode}: {text}")
        time.sleep(0.05)
    raise RuntimeError(f"docker-registry does not listen: {log.read_text()}")


@contextlib.contextmanager
def open_registry(folder: Path, data: Path) -> Iterator[Registry]:
    one = Registry(folder, data)
    try:
        yield one
    finally:
        one.close()


@contextlib.contextmanager
def basic_registry(folder: Path, data: Path) -> Iterator[Registry]:
    folder.mkdir(parents=True)
    out = subprocess.run(
        ["htpasswd", "-Bbn", USER, PASSWORD], capture_output=True, text=True, check=True
    ).stdout
    (folder / "htpasswd").write_text(out)
    one = Registry(folder, data, f"auth: {{htpasswd: {{realm: t, path: {folder}/htpasswd}}}}\n")
    try:
        yield one
    finally:
        one.close()


@contextlib.contextmanager
def tls_registry(folder: Path, data: Path) -> Iterator[tuple[Registry, Path]]:
    folder.mkdir(parents=True)
    cert, key = certificate(folder, "tls")
    one = Registry(folder, data, tls=f", tls: {{certificate: {cert}, key: {key}}}")
    try:
        yield one, cert
    finally:
        one.close()


class TokenServer:
    """Docker's token server: anybody may pull `public/*`, the user everything.

    `lifetime` is what its tokens have, in seconds; `asked` the Authorization and query, or form, of
    every request. A refresh token `identity` does what the password does.
    """

    identity = "an-identity-token"

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.cert, key = certificate(folder, "issuer")
        self.key = key.read_text()
        self.lifetime = 60
        self.asked: list[tuple[str, dict[str, list[str]]]] = []
        self._server = serve(self._handler())
        self.realm = f"http://127.0.0.1:{self._server.server_port}/token"

    def config(self) -> str:
        return (
            f"auth: {{token: {{realm: '{self.realm}', service: udi-registry, issuer: udi-issuer, "
            f"rootcertbundle: {self.cert}}}}}\n"
        )

    def _handler(outer) -> type[BaseHTTPRequestHandler]:
        class Handler(Quiet):
            def do_GET(self) -> None:
                query = urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)
                self._token(query)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                self._token(urllib.parse.parse_qs(body))

            def _token(self, query: dict[str, list[str]]) -> None:
                given = self.headers.get("Authorization", "")
                outer.asked.append((given, query))
                known = False
                if given.startswith("Basic "):
                    known = base64.b64decode(given[6:]).decode() == f"{USER}:{PASSWORD}"
                    if not known:
                        self.answer(401, b'{"details": "incorrect username or password"}')
                        return
                if query.get("refresh_token"):
                    known = query["refresh_token"] == [outer.identity]
                self.answer(200, outer.token(query, known))

        return Handler

    def token(self, query: dict[str, list[str]], known: bool) -> bytes:
        import jwt
        from cryptography import x509
        from cryptography.hazmat.primitives.serialization import Encoding

        access = []
        for scope in " ".join(query.get("scope", [])).split():
            kind, name, actions = scope.split(":", 2)
            allowed = [
                x
                for x in actions.split(",")
                if known or (x == "pull" and name.startswith("public/"))
            ]
            access.append({"type": kind, "name": name, "actions": allowed})
        now = int(time.time())
        # The registry allows a minute of difference between clocks: an old token is out of that.
        issued = now if self.lifetime > 0 else now - 3600
        claims = {
            "iss": "udi-issuer",
            "sub": USER if known else "",
            "aud": query["service"][0],
            "exp": issued + max(self.lifetime, 1),
            "nbf": issued - 5,
            "iat": issued,
            "jti": str(uuid.uuid4()),
            "access": access,
        }
        der = x509.load_pem_x509_certificate(self.cert.read_bytes()).public_bytes(Encoding.DER)
        head = {"x5c": [base64.b64encode(der).decode()]}
        text = jwt.encode(claims, self.key, algorithm="RS256", headers=head)
        return json.dumps({"token": text, "expires_in": 3600}).encode()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def token_registry(folder: Path, data: Path) -> Iterator[tuple[Registry, TokenServer]]:
    tokens = TokenServer(folder)
    one = Registry(folder, data, tokens.config())
    try:
        yield one, tokens
    finally:
        one.close()
        tokens.close()


class Quiet(BaseHTTPRequestHandler):
    """A handler that logs nothing and answers with a length."""

    protocol_version = "HTTP/1.1"
    # Head and body go out apart: without this the second waits for the first one's ACK, 40 ms.
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: object) -> None:
        pass

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(
    handler: type[BaseHTTPRequestHandler], certificate: Path | None = None
) -> ThreadingHTTPServer:
    """Serve on a free port in a thread of its own; with TLS where a certificate is given."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: object, client_address: object) -> None:
            pass  # cut connections are what this is for

    server = Server(("127.0.0.1", 0), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


Rule = Callable[["Flaky", "Quiet", str], bool]
"""(proxy, request, path) -> answered; else the request goes on to the registry."""


_PASSED = ("Content-Length", "Content-Type", "Content-Range", "Www-Authenticate", "Etag")


class Flaky:
    """Stands before a registry; `rule` may answer in its place, `cut` ends blobs early.

    `log` has (path, Range, Authorization) of every request. `cut` bytes of a blob's body are let
    through, then the connection breaks, `cuts` times; `alter` changes what a path gives. It also
    serves as http proxy: requests with a whole URL go to the registry, whatever the host.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self.log: list[tuple[str, str, str]] = []
        self.rule: Rule | None = None
        self.cut = 0
        self.cuts = 0
        self.ranges = True
        self.alter: Callable[[str, bytes], bytes] | None = None
        self.at_bytes: Callable[[str, int], None] | None = None
        self._lock = threading.Lock()
        self._server = serve(self._handler())
        self.host = f"127.0.0.1:{self._server.server_port}"

    def paths(self, part: str = "") -> list[str]:
        return [path for path, _, _ in self.log if part in path]

    def _handler(outer) -> type[BaseHTTPRequestHandler]:
        class Handler(Quiet):
            def do_GET(self) -> None:
                path = self.path
                if path.startswith("http://"):
                    path = "/" + path.split("/", 3)[3]
                given = self.headers.get("Authorization", "")
                outer.log.append((path, self.headers.get("Range", ""), given))
                if outer.rule is not None and outer.rule(outer, self, path):
                    return
                self._forward(path)

            def do_CONNECT(self) -> None:
                outer.log.append((f"CONNECT {self.path}", "", ""))
                self.answer(403)

            def _forward(self, path: str) -> None:
                connection = HTTPConnection(outer.target)
                names = ["Accept", "Authorization"] + ["Range"] * outer.ranges
                headers = {n: self.headers[n] for n in names if self.headers.get(n)}
                connection.request("GET", path, headers=headers)
                reply = connection.getresponse()
                if outer.alter is not None and reply.status == 200:
                    body = outer.alter(path, reply.read())
                    kind = reply.headers.get("Content-Type", "")
                    self.answer(reply.status, body, Content_Type=kind)
                    return
                self.send_response(reply.status)
                for name, value in reply.getheaders():
                    # Servers of HTTP write names in any case.
                    if name.title() in _PASSED:
                        self.send_header(name, value)
                self.end_headers()
                self._body(path, reply.status, reply)
                connection.close()

            def _body(self, path: str, status: int, reply: object) -> None:
                left = None
                with outer._lock:
                    if "/blobs/" in path and status in (200, 206) and outer.cuts > 0:
                        outer.cuts -= 1
                        left = outer.cut
                sent = 0
                while data := reply.read(1 << 16):  # type: ignore[attr-defined]
                    if left is not None and sent + len(data) >= left:
                        self.wfile.write(data[: left - sent])
                        self.close_connection = True
                        self.connection.shutdown(socket.SHUT_RDWR)
                        return
                    self.wfile.write(data)
                    sent += len(data)
                    if outer.at_bytes is not None:
                        outer.at_bytes(path, sent)

        return Handler

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextlib.contextmanager
def flaky(target: str) -> Iterator[Flaky]:
    one = Flaky(target)
    try:
        yield one
    finally:
        one.close()


def available() -> bool:
    return shutil.which("docker-registry") is not None
