"""HTTP for the registry client: one request with redirects, proxies and TLS.

Made of http.client, for worker threads. Redirects are followed here, one by one, since at each of
them `parties` decides what is sent. Nothing here knows what a registry is.
"""

import glob
import http.client
import os
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Iterable, Mapping

from rootless_udi.base.errors import UdiError, amount
from rootless_udi.pull import parties, proxies
from rootless_udi.pull.parties import Origin, Pass, origin
from rootless_udi.pull.proxies import Connection, Proxies
from rootless_udi.pull.retry import within
from rootless_udi.pull.stop import Stop

_IDLE_SECONDS = 60
ANSWER_SECONDS = 300
"""Most seconds for an answer's status and headers, for a whole document, for 64 KiB of a blob."""
_REDIRECTS_MAX = 10
_SAFE = "%/:=&?~#+!$,;'@()*[]|"
_USER_AGENT = "rootless_udi/1"
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
)


Body = bytes | Iterable[bytes]
"""What is sent. It is gone through again where it is sent again, and so is no iterator."""
_Place = tuple[Origin, bool, str]
"""Where a connection leads, whether its certificate went unchecked, and through which proxy."""


class SpentProof(ConnectionError):
    """A kept connection broke, and what says who asks may have been taken: another is needed."""


class Reply:
    """An answer whose body is read by the caller, who must `close` it.

    `url` is what answered; `visited` are all URLs of the redirects that led there, and `url`;
    `proxy` is the URL of the proxy between, or empty.
    """

    def __init__(
        self,
        transport: "Transport",
        place: "_Place",
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        url: str,
        sock: socket.socket | None,
    ) -> None:
        self.status = response.status
        self.headers = response.headers
        self.url = url
        self.visited: tuple[str, ...] = (url,)
        self.proxy = place[2]
        self._transport = transport
        self._place = place
        self._connection = connection
        self._response = response
        self._sock = sock

    def read_some(self, most: int) -> bytes:
        """Return at most `most` bytes that have arrived; b"" at the end or a broken connection."""
        return self._response.read1(most)

    def read_into(self, view: memoryview) -> int:
        """Put bytes that have arrived into `view`, without a copy on the way; return how many.

        0 at the end or a broken connection.
        """
        response = self._response
        if response.chunked or response.length is None or response.fp is None:
            piece = response.read1(len(view))
            view[: len(piece)] = piece
            return len(piece)
        # As HTTPResponse.read1 does, which allocates and copies.
        got = response.fp.readinto1(view[: response.length])
        response.length -= got
        return got

    def read_all(self, most: int, what: str) -> bytes:
        """Return the whole body. Raises UdiError where it has more than `most` bytes."""
        parts = []
        left = most + 1
        with within(self._transport.seconds, self._sock):
            while left > 0:
                part = self._response.read1(min(left, 1 << 16))
                if not part:
                    break
                parts.append(part)
                left -= len(part)
        if left <= 0:
            raise UdiError(f"{what}: the answer has more than {amount(most)}")
        body = b"".join(parts)
        length = self.length()
        if length is not None and length != len(body):
            raise http.client.IncompleteRead(body, length - len(body))
        return body

    def length(self) -> int | None:
        """Return Content-Length, None where it is not given or no number of bytes."""
        text = self.headers.get("Content-Length", "").strip()
        # int() refuses numbers of thousands of digits; no file is longer than 18 digits say.
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 18 else None

    def close(self) -> None:
        """Keep the connection for the next request, if the body was read to its end."""
        self._transport.done(self._place, self._connection, self._response)


class _Local(http.client.HTTPConnection):
    """A connection to the Unix socket at `path`."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(_IDLE_SECONDS)
        self.sock.connect(self._path)


class Transport:
    """GETs for one pull. Safe for several threads; keeps connections for the next request.

    Certificates of `insecure` hosts are not checked; those of hosts that they redirect to are.
    """

    def __init__(
        self,
        stop: Stop | None = None,
        environ: Mapping[str, str] | None = None,
        answer: float | None = None,
        local: str = "",
    ) -> None:
        """`answer`: most seconds for an answer's status and headers, and for a whole document,
        ANSWER_SECONDS without it; and for bytes or to connect, if fewer than those usually have.
        `local`: a Unix socket to which all requests go."""
        self.stop = stop or Stop()
        self._local = local
        self._most = answer
        self.reached: set[str] = set()
        self._environ = os.environ if environ is None else environ
        self._proxies = Proxies()
        self._idle: dict[_Place, list[http.client.HTTPConnection]] = {}
        self._contexts: dict[tuple[str, bool], ssl.SSLContext] = {}
        self._lock = threading.Lock()

    @property
    def seconds(self) -> float:
        """The most seconds for an answer, or a whole document."""
        return ANSWER_SECONDS if self._most is None else self._most

    def get(
        self,
        url: str,
        headers: Mapping[str, str],
        given: Pass = parties.NOTHING,
        insecure: bool = False,
        method: str = "GET",
        body: Body | None = None,
        located: str = "",
    ) -> Reply:
        """Return the answer after redirects, whatever its status. `located` is the Location that
        the URL has answered already, if it has.

        Raises OSError and HTTPException for failures of the network, SpentProof among them where
        only a new `given` helps; UdiError for what would fail again.
        """
        visited = []
        if located:
            visited.append(url)
            url = target(url, located, insecure, url)
        for _ in range(_REDIRECTS_MAX):
            visited.append(url)
            sent = dict(headers)
            proof = parties.sent(given, visited)
            if proof:
                sent[given.header] = proof
            here = parties.lenient(insecure, url, visited[0])
            single = given.single and bool(proof)
            reply = self._once(method, url, sent, body, here, single)
            reply.visited = tuple(visited)
            # A POST, which has an identity token in it, is not sent to anybody else.
            if reply.status not in (301, 302, 303, 307, 308) or method != "GET":
                return reply
            location = reply.headers.get("Location", "")
            reply.read_some(1 << 16)
            reply.close()
            url = target(url, location, insecure, visited[0])
        raise UdiError(f"GET {url} failed: more than {_REDIRECTS_MAX} redirects")

    def _once(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        body: Body | None,
        insecure: bool,
        single: bool,
    ) -> Reply:
        scheme, host, port = origin(url)
        proxy = "" if self._local else self._proxies.of(scheme, host, port)
        place = (scheme, host, port), insecure, proxy
        # A Location or realm may have blanks and other characters that http.client refuses.
        parts = urllib.parse.urlsplit(urllib.parse.quote(url, safe=_SAFE))
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        if proxy and scheme == "http" and proxies.address(proxy)[0] != "socks5h":
            # A Location may have a name and password in it: they are not sent.
            netloc = parts.netloc.rpartition("@")[2]
            target = urllib.parse.urlunsplit((scheme, netloc, parts.path, parts.query, ""))
            headers |= parties.for_proxy(proxy)
        headers.setdefault("User-Agent", _USER_AGENT)
        while True:
            self.stop.check()
            connection, fresh = self._connection(place)
            try:
                self.stop.watch(connection)
                if fresh:
                    connection.connect()
                    if connection.sock is not None:
                        connection.sock.settimeout(min(_IDLE_SECONDS, self.seconds))
                    self.stop.watch(connection)
                # Kept, since http.client takes it from the connection if the server will close it.
                sock = connection.sock
                with within(self.seconds, sock):
                    connection.request(method, target, body, headers)
                    response = connection.getresponse()
            except BaseException as error:
                self._drop(connection)
                if isinstance(error, UnicodeError):
                    raise UdiError(f"GET {url} failed: {host!r} is no host name") from None
                # A kept connection, which the server may have closed meanwhile: try a new one. Of a
                # PATCH the server may have taken a part, which it would have twice.
                again = not (fresh or method == "PATCH" or isinstance(error, TimeoutError))
                if again and isinstance(error, OSError | http.client.HTTPException):
                    if single:
                        raise SpentProof(str(error)) from None
                    continue
                self.stop.check()
                raise
            self.reached.add(host)
            return Reply(self, place, connection, response, url, sock)

    def _connection(self, place: _Place) -> tuple[http.client.HTTPConnection, bool]:
        with self._lock:
            idle = self._idle.get(place)
            if idle:
                return idle.pop(), False
        if self._local:
            return _Local(self._local), True
        (scheme, host, port), insecure, proxy = place
        inner = self._context(host, port, insecure) if scheme == "https" else None
        outer = None
        through, name, number = proxies.address(proxy) if proxy else ("", "", 0)
        if through == "https":
            # `insecure` is about the registry: a proxy's certificate is checked.
            outer = self._context(name, number, False)
        seconds = min(proxies.CONNECT_SECONDS, self.seconds)
        return Connection(host, port, proxy, inner, outer, seconds), True

    def done(
        self,
        place: _Place,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
    ) -> None:
        """Take a connection back (see `Reply.close`)."""
        whole = response.isclosed() or response.length == 0
        response.close()
        if whole and not response.will_close:
            self.stop.forget(connection)
            with self._lock:
                self._idle.setdefault(place, []).append(connection)
        else:
            self._drop(connection)

    def _drop(self, connection: http.client.HTTPConnection) -> None:
        self.stop.forget(connection)
        connection.close()

    def close(self) -> None:
        with self._lock:
            for connections in self._idle.values():
                for connection in connections:
                    connection.close()
            self._idle.clear()

    def _context(self, host: str, port: int, insecure: bool) -> ssl.SSLContext:
        key = (f"{host}:{port}", insecure)
        with self._lock:
            if key not in self._contexts:
                self._contexts[key] = self._new_context(*key)
            return self._contexts[key]

    def _new_context(self, host: str, insecure: bool) -> ssl.SSLContext:
        """Trust the system's CAs, certs.d, and $SSL_CERT_FILE and $SSL_CERT_DIR (by OpenSSL)."""
        context = ssl.create_default_context()
        if insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        paths = ssl.get_default_verify_paths()
        if paths.cafile is None and not context.get_ca_certs():
            # A Python that was built elsewhere may look for CAs where this distribution has none.
            for bundle in _BUNDLES:
                if os.path.exists(bundle):
                    context.load_verify_locations(bundle)
                    break
        home = self._environ.get("HOME", "/")
        for top in (f"{home}/.config/containers", "/etc/containers", "/etc/docker"):
            for name in {host, host.removesuffix(":443")}:
                folder = f"{top}/certs.d/{glob.escape(name)}"
                try:
                    for file in glob.glob(f"{folder}/*.crt"):
                        context.load_verify_locations(file)
                    for file in glob.glob(f"{folder}/*.cert"):
                        context.load_cert_chain(file, f"{file.removesuffix('.cert')}.key")
                except (OSError, ssl.SSLError) as error:
                    raise UdiError(f"loading certificates failed on {folder}: {error}") from None
        return context


def target(url: str, location: str, insecure: bool, asked: str, method: str = "GET") -> str:
    """Return where a Location leads; `insecure` is about the host of `asked`, the first URL."""
    if not location:
        raise UdiError(f"{method} {url} failed: it redirects to nowhere")
    # http.client decodes headers as Latin-1; these are the bytes that were sent.
    location = urllib.parse.quote(location.encode("latin-1", "replace"), safe=_SAFE)
    try:
        target = urllib.parse.urljoin(url, location)
    except ValueError as error:
        raise UdiError(f"{method} {url} failed: it redirects to {location!r}: {error}") from None
    secure = origin(url)[0] == "https" and origin(target)[0] != "https"
    if secure and not parties.lenient(insecure, target, asked):
        raise UdiError(
            f"{method} {url} failed: it redirects from https to plain http",
            "--insecure allows it on the registry's own host",
        )
    return target
