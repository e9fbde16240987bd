"""Ranges of a file by plain HTTP, as most servers give them: by sockets alone (RFC 9112).

`pull.http` knows proxies, TLS, redirects and each oddity of servers, and takes 50 ms to load, which
the first start of an image would wait for. So what is usual is asked for here; for anything else
`ask` returns None, and nothing is lost but a request. No secret is sent.
"""

import _socket
from errno import ECONNRESET, ENOTCONN
from time import monotonic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_HOST = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-")
_PATH = _HOST | frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZ/%:=&?~+!$,;'@()*_")
_HERE = "localhost", "127.0.0.1"
_IDLE = 60.0
"""Most seconds without a byte."""
_HEAD = 16 << 10
"""Most bytes of an answer's headers."""
_FIRST = 2048
"""Bytes that are read with the headers, and then copied."""


class Headers:
    """The headers of an answer, each its first value. Raises ValueError for what is none."""

    def __init__(self, lines: "Iterable[bytes]") -> None:
        self._values: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.decode("latin-1").partition(":")
            if not colon or not name or name != name.strip():
                raise ValueError(name)
            self._values.setdefault(name.lower(), value.strip())

    def get(self, name: str, default: str = "") -> str:
        return self._values.get(name.lower(), default)


class PlainReply:
    """An answer, as `pull.http.Reply`. `lasts`: the connection can be used again."""

    def __init__(
        self,
        server: "Plain",
        sock: "_socket.socket",
        status: int,
        headers: Headers,
        begun: bytes,
        lasts: bool,
    ) -> None:
        """`begun` is what has come of the body."""
        self.status, self.headers = status, headers
        self.visited: tuple[str, ...] = (server.url,)
        self._server, self._sock, self._lasts = server, sock, lasts
        text = headers.get("Content-Length")
        usual = text.isdigit() and len(text) <= 18 and not headers.get("Transfer-Encoding")
        self._length = int(text) if usual else None
        self._left = self._length or 0
        self._begun = begun[: self._left]
        self._lasts = lasts and len(begun) <= self._left

    def length(self) -> "int | None":
        """Return the body's bytes, None where they are not said."""
        return self._length

    def read_into(self, view: memoryview) -> int:
        """Put bytes of the body into `view`, as many as it holds or have come in time; return how
        many, 0 at the end or a broken connection. Raises OSError."""
        if begun := self._begun:
            got = min(len(begun), len(view))
            view[:got], self._begun = begun[:got], begun[got:]
        else:
            try:
                # All of it by one call, since each has to wait for the other threads.
                most = min(len(view), self._left)
                got = self._sock.recv_into(view, most, _socket.MSG_WAITALL) if most else 0
            except BlockingIOError:
                raise TimeoutError from None
        self._left -= got
        return got

    def read_some(self, most: int) -> bytes:
        room = bytearray(min(most, self._left))
        return bytes(room[: self.read_into(memoryview(room))]) if room else b""

    def close(self) -> None:
        """Keep the connection for the next request, if the body was read to its end."""
        if self._lasts and not self._left:
            self._server.idle.append(self._sock)
        else:
            self._sock.close()


class Plain:
    """The file at `url`. Safe for several threads; connections are kept for the next request."""

    def __init__(self, url: str, host: str, port: int, target: str, timeout: float) -> None:
        """`target` is what stands in the request line; `timeout` the seconds for an answer."""
        self.url = url
        self.idle: list[_socket.socket] = []
        self.reached = False
        self._place = host, port
        named = host if port == 80 else f"{host}:{port}"
        self._head = f"GET {target} HTTP/1.1\r\nHost: {named}\r\nUser-Agent: rootless_udi/1\r\n"
        self._timeout = timeout
        self.sent: Callable[[], object] = lambda: None
        """Is called while an answer is on its way."""

    def ask(self, headers: "dict[str, str]") -> "PlainReply | None":
        """Return the answer to a GET, None for an answer that `pull.http` is to ask for.

        Raises OSError.
        """
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        request = f"{self._head}{lines}\r\n".encode("latin-1")
        end = monotonic() + self._timeout
        while True:
            try:
                sock, kept = self.idle.pop(), True
            except IndexError:
                sock, kept = self._connected(end), False
            try:
                sock.sendall(request)
                self.sent()
                reply = self._answer(sock, end)
            except ValueError:
                sock.close()
                return None
            except OSError as error:
                sock.close()
                if not kept or isinstance(error, TimeoutError):
                    raise
                continue  # the server has closed it meanwhile
            self.reached = True
            return reply

    def _connected(self, end: float) -> "_socket.socket":
        """Return a new connection. Raises OSError."""
        host, port = self._place
        failure = OSError(ENOTCONN, "no address")
        for family, kind, protocol, _, address in _socket.getaddrinfo(
            host.encode(), port, 0, _socket.SOCK_STREAM
        ):
            sock = _socket.socket(family, kind, protocol)
            try:
                sock.settimeout(_left(end))
                sock.connect(address)
                sock.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
                return sock
            except TimeoutError:
                sock.close()
                raise
            except OSError as error:
                sock.close()
                failure = error
        raise failure

    def _answer(self, sock: "_socket.socket", end: float) -> "PlainReply | None":
        """Return what a server answers, None for what is unusual. Raises OSError, ValueError."""
        data = b""
        while b"\r\n\r\n" not in data:
            sock.settimeout(_left(end))
            more = sock.recv(_FIRST)
            if not more:
                raise ConnectionResetError(ECONNRESET, "the connection broke")
            if len(data) > _HEAD:
                raise ValueError("more headers than any server sends")
            data += more
        head, _, begun = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        version, _, rest = first.partition(b" ")
        status = rest[:3].decode("latin-1")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not status.isdigit():
            raise ValueError("no HTTP")
        headers = Headers(lines)
        lasts = version == b"HTTP/1.1" and not headers.get("Connection")
        reply = PlainReply(self, sock, int(status), headers, begun, lasts)
        if reply.status < 200 or (reply.status == 206 and reply.length() is None):
            sock.close()
            return None
        # From here on the kernel looks at the time, while one call reads all (socket(7)).
        sock.settimeout(None)
        seconds = min(_IDLE, self._timeout)
        whole, part = int(seconds), int(seconds % 1 * 1e6)
        sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVTIMEO, _timeval(whole, part))
        return reply


def _timeval(seconds: int, micros: int) -> bytes:
    from _struct import pack

    return pack("@ll", seconds, max(micros, 0 if seconds else 1))


def _left(end: float) -> float:
    """Return the seconds until `end`. Raises TimeoutError where it is over."""
    left = end - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def usual(url: str, insecure: bool, timeout: float, environ: "Iterable[str]") -> "Plain | None":
    """Return what reads a URL, None for one that `pull.http` is to ask for.

    `environ` are the names of the environment's variables: any of a proxy's is read there. Plain
    http to another machine is for who asks for it (`insecure`).
    """
    scheme, _, rest = url.partition("://")
    netloc, slash, path = rest.partition("/")
    host, colon, number = netloc.lower().partition(":")
    if scheme != "http" or not slash or not host or not _HOST.issuperset(host):
        return None
    if not _PATH.issuperset(path) or (host not in _HERE and not insecure):
        return None
    if colon and not (number.isascii() and number.isdigit() and 0 < int(number[:6]) < 65536):
        return None
    if any(name.lower().endswith("_proxy") for name in environ) and host not in _HERE:
        return None
    return Plain(url, host, int(number or "80"), f"/{path}", timeout)
