"""The proxies of a pull: which one a host is reached through, and the connection that leads there.

Proxies are http://, https:// and socks5h:// URLs in http_proxy, https_proxy and all_proxy; no_proxy
names hosts without one. The names may also be in capitals, as other clients read them. With socks5h
the proxy looks up the server's name, which a node behind a proxy often can't (as socks5 needs).
"""

import http.client
import ipaddress
import os
import socket
import ssl
import urllib.parse
from errno import ECONNRESET

from rootless_udi.base.errors import UdiError
from rootless_udi.pull import parties

CONNECT_SECONDS = 30
"""Most seconds for each step of connecting: TCP, the proxy's answer, TLS."""
_PORTS = {"http": 80, "https": 443, "socks5h": 1080}
_SOCKS_REFUSED = {
    1: "it failed",
    2: "its rules forbid it",
    3: "Network unreachable",
    4: "Host unreachable",
    5: "Connection refused",
}


class Proxies:
    """The proxies that the environment names; read once."""

    def __init__(self) -> None:
        self._proxies: dict[str, str] = {}
        if any(name.lower().endswith("_proxy") for name in os.environ):
            import urllib.request  # a fifth of what a lazy start has to load

            self._proxies = urllib.request.getproxies()

    def of(self, scheme: str, host: str, port: int) -> str:
        """Return the proxy's URL for a server, empty for none.

        This machine itself is never reached through one. Raises UdiError for another kind of proxy.
        """
        proxy = self._proxies.get(scheme) or self._proxies.get("all") or ""
        if not proxy or is_loopback(host) or self._direct(host, port):
            return ""
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        try:
            at = urllib.parse.urlsplit(proxy)
            usable = at.scheme in _PORTS and bool(at.hostname) and at.port != 0
        except ValueError:
            usable = False
        if not usable:
            shown = proxy.rpartition("@")[2]
            raise UdiError(
                f"connecting to {host} failed: cannot use the proxy {shown}",
                "http://, https:// and socks5h:// proxies are supported: "
                f"set {scheme}_proxy, or no_proxy={host}",
            )
        return proxy

    def _direct(self, host: str, port: int) -> bool:
        """Tell whether no_proxy names the host."""
        words = self._proxies.get("no", "").lower().replace(",", " ").split()
        return any(_names(word, host.lower().rstrip("."), port) for word in words)


def address(proxy: str) -> tuple[str, str, int]:
    """Return (scheme, host, port) of a proxy's URL, which `Proxies.of` has checked."""
    at = urllib.parse.urlsplit(proxy)
    return at.scheme, at.hostname or "", at.port or _PORTS[at.scheme]


def is_loopback(host: str) -> bool:
    """Tell whether `host` (no port) is this machine by name or by address."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _names(word: str, host: str, port: int) -> bool:
    """Tell whether a word of no_proxy names a host.

    NAME, .NAME and *.NAME mean a host and all below it; NAME:PORT that port only; * every host;
    10.0.0.0/8 a network. So do Go's tools (golang.org/x/net/http/httpproxy).
    """
    name, _, number = word.rpartition(":")
    if name and number.isascii() and number.isdigit() and (":" not in name or name[-1] == "]"):
        if int(number[:6]) != port:
            return False
        word = name
    word = word.strip("[]")
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(word, strict=False)
    except ValueError:
        pass
    name = word.removeprefix("*").strip(".")
    return word == "*" or (bool(name) and (host == name or host.endswith(f".{name}")))


class Connection(http.client.HTTPConnection):
    """A connection to HOST:PORT, through a proxy where one is given.

    `inner` is for TLS with an https server, `outer` for TLS with an https:// proxy. To an http
    server there is no tunnel through HTTP proxies: the request line has the whole URL instead.
    `seconds` is the most that connecting may take.
    """

    def __init__(
        self,
        host: str,
        port: int,
        proxy: str,
        inner: ssl.SSLContext | None,
        outer: ssl.SSLContext | None,
        seconds: float = CONNECT_SECONDS,
    ) -> None:
        super().__init__(host, port, timeout=seconds)
        # http.client leaves this port out of the Host header.
        self.default_port = 80 if inner is None else 443
        self._inner, self._outer, self._proxy = inner, outer, proxy
        self._seconds = seconds
        self._scheme, *_ = address(proxy) if proxy else ("",)
        if inner is not None and self._scheme in ("http", "https"):
            self.set_tunnel(host, port, parties.for_proxy(proxy))

    def connect(self) -> None:
        """Connect, TLS included. Raises OSError, also where a proxy refuses."""
        # self.sock is set before each step that waits: to stop the pull, `Stop` shuts that socket.
        at = address(self._proxy)[1:] if self._proxy else (self.host, self.port)
        self.sock = socket.create_connection(at, self._seconds)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._outer is not None:
            self._shake_hands(self._outer, at[0])
        if self._scheme == "socks5h":
            _socks(self.sock, self.host, self.port, parties.for_socks(self._proxy))
        elif self._scheme and self._inner is not None:
            self._tunnel()  # type: ignore[attr-defined]  # of http.client, for CONNECT
        if self._inner is not None and self._outer is not None:
            from rootless_udi.pull.tlsintls import TlsInTls

            self.sock = TlsInTls(self._inner, self.sock, self.host)
        elif self._inner is not None:
            self._shake_hands(self._inner, self.host)

    def _shake_hands(self, context: ssl.SSLContext, name: str) -> None:
        sock = context.wrap_socket(self.sock, server_hostname=name, do_handshake_on_connect=False)
        self.sock = sock
        sock.do_handshake()


def _socks(sock: socket.socket, host: str, port: int, user: tuple[bytes, bytes] | None) -> None:
    """Ask a SOCKS 5 proxy for a connection to HOST:PORT (RFC 1928; name and password RFC 1929)."""
    with sock.makefile("rb", buffering=0) as raw:

        def read(count: int) -> bytes:
            found = b""
            while len(found) < count:
                part = raw.read(count - len(found))
                if not part:
                    raise ConnectionResetError(ECONNRESET, "the SOCKS proxy closed the connection")
                found += part
            return found

        sock.sendall(b"\5\1\0" if user is None else b"\5\2\0\2")
        version, method = read(2)
        if version != 5:
            raise OSError("Tunnel connection failed: it speaks no SOCKS 5")
        if method == 2 and user is not None:
            name, password = user
            sock.sendall(b"\1" + _counted(name) + _counted(password))
            if read(2)[1] != 0:
                raise OSError("Tunnel connection failed: it refuses the name or password")
        elif method != 0:
            raise OSError("Tunnel connection failed: it wants a name and password")
        sock.sendall(b"\5\1\0" + _socks_address(host) + port.to_bytes(2, "big"))
        status, kind = read(4)[1::2]
        if status:
            said = _SOCKS_REFUSED.get(status, f"status {status}")
            raise OSError(f"Tunnel connection failed: {said}")
        # The proxy's own address, of no use here: 4 or 16 bytes, or a name; and a port.
        read({1: 4, 4: 16}.get(kind) or read(1)[0])
        read(2)


def _socks_address(host: str) -> bytes:
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return b"\3" + _counted(host.encode("ascii"))
    return (b"\1" if ip.version == 4 else b"\4") + ip.packed


def _counted(text: bytes) -> bytes:
    if len(text) > 255:
        raise OSError("Tunnel connection failed: a name of more than 255 bytes")
    return bytes([len(text)]) + text
