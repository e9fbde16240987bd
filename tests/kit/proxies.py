"""Small real proxies: HTTP's (also behind TLS) and SOCKS 5, which lead everywhere to one server.

`asked` has "HOST:PORT" of every tunnel and the URL of every request, `given` the names and
passwords. What is behind them is that one server, whatever the name: tests ask for names that no
resolver knows.
"""

import base64
import contextlib
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

from tests.kit.registry import Quiet, certificate


class Proxy:
    """A proxy at `url`, to the server at `target` ("HOST:PORT").

    `kind` is "http", "https" or "socks5h"; with `user` ("NAME:PASSWORD") it wants that.
    """

    def __init__(self, kind: str, target: str, folder: Path, user: str = "") -> None:
        self.asked: list[str] = []
        self.given: list[str] = []
        self.user = user
        name, _, port = target.rpartition(":")
        self.target = name, int(port)
        handler = self._socks() if kind == "socks5h" else self._http()
        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        if kind == "https":
            folder.mkdir(exist_ok=True)
            self.cert, key = certificate(folder, "proxy")
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.cert, key)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        login = f"{user}@" if user else ""
        self.url = f"{kind}://{login}127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _http(outer) -> type[Quiet]:
        class Handler(Quiet):
            def do_CONNECT(self) -> None:
                outer.asked.append(self.path)
                if self._refused():
                    return
                self.send_response(200)
                self.end_headers()
                with socket.create_connection(outer.target) as there:
                    relay(self.connection, there)
                self.close_connection = True

            def do_GET(self) -> None:
                outer.asked.append(self.path)
                if self._refused():
                    return
                connection = HTTPConnection(*outer.target)
                names = [n for n in ("Accept", "Range", "Host") if self.headers.get(n)]
                path = "/" + self.path.split("/", 3)[3]
                connection.request("GET", path, headers={n: self.headers[n] for n in names})
                reply = connection.getresponse()
                self.answer(reply.status, reply.read(), Content_Type=reply.headers["Content-Type"])
                connection.close()

            def _refused(self) -> bool:
                given = self.headers.get("Proxy-Authorization", "")
                if given:
                    outer.given.append(base64.b64decode(given.removeprefix("Basic ")).decode())
                if outer.user and outer.user not in outer.given[-1:]:
                    self.answer(407)
                    return True
                return False

        return Handler

    def _socks(outer) -> type[socketserver.StreamRequestHandler]:
        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                _, count = self.rfile.read(2)
                offered = self.rfile.read(count)
                wanted = 2 if outer.user else 0
                self.wfile.write(bytes([5, wanted if wanted in offered else 255]))
                if wanted not in offered:
                    return
                if outer.user:
                    self.rfile.read(1)
                    name, password = self._counted(), self._counted()
                    outer.given.append(f"{name}:{password}")
                    known = outer.given[-1] == outer.user
                    self.wfile.write(bytes([1, not known]))
                    if not known:
                        return
                kind = self.rfile.read(4)[3]
                # 3: a name; 1 and 4: an address of that many bytes.
                host = self._counted() if kind == 3 else self._address({1: 4, 4: 16}[kind])
                port = int.from_bytes(self.rfile.read(2), "big")
                outer.asked.append(f"{host}:{port}")
                if host == "forbidden.invalid":
                    self.wfile.write(b"\5\2\0\1" + bytes(6))
                    return
                with socket.create_connection(outer.target) as there:
                    self.wfile.write(b"\5\0\0\3\5bound\0\1")
                    relay(self.connection, there)

            def _counted(self) -> str:
                return self.rfile.read(self.rfile.read(1)[0]).decode()

            def _address(self, length: int) -> str:
                family = socket.AF_INET if length == 4 else socket.AF_INET6
                return socket.inet_ntop(family, self.rfile.read(length))

        return Handler


def relay(here: socket.socket, there: socket.socket) -> None:
    """Copy both ways until one side ends."""

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    back = threading.Thread(target=copy, args=(there, here), daemon=True)
    back.start()
    copy(here, there)
    back.join()


@contextlib.contextmanager
def proxy(kind: str, target: str, folder: Path, user: str = "") -> Iterator[Proxy]:
    one = Proxy(kind, target, folder, user)
    try:
        yield one
    finally:
        one.close()
