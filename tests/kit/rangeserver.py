"""An HTTP server of one file with Range requests, which can fail in each way that servers do."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any


class RangeServer(ThreadingHTTPServer):
    """Serves `data` at /image.sqfs; `asked` are the ranges that were asked for.

    `fault(number, begin, end)` is called for each request and returns the name of a fault, "" for
    none. `held` is waited for by the fault "hang".
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, data: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.data = data
        self.version, self.scheme = '"one"', "http"
        self.asked: list[tuple[int, int]] = []
        self.headers: list[dict[str, str]] = []
        self.fault: Callable[[int, int, int], str] = lambda number, begin, end: ""
        self.held = threading.Event()
        self.open: set[socket.socket] = set()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.server_address[1]}/image.sqfs"

    def handle_error(self, *_: Any) -> None:
        """Say nothing: clients that go away are what is tested."""

    def cut(self) -> None:
        """Cut the network: no new connection, and the open ones break."""
        self.socket.close()
        for one in list(self.open):
            try:
                one.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.server.open.add(self.connection)

    def finish(self) -> None:
        self.server.open.discard(self.connection)
        super().finish()

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        begin, _, end = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        at, stop = int(begin), min(int(end) + 1, len(server.data))
        server.asked.append((at, stop))
        server.headers.append(dict(self.headers))
        fault = server.fault(len(server.asked), at, stop)
        body, total = server.data[at:stop], len(server.data)
        if fault == "redirect" and not self.path.startswith("/signed"):
            return self._simple(307, {"Location": f"/signed?by={len(server.asked)}"})
        if fault == "expired" and self.path.startswith("/signed"):
            return self._simple(403, {})
        if fault == "hang":
            server.held.wait(60)
            self.close_connection = True
            return None
        if fault.isdigit():
            return self._simple(int(fault), {"Retry-After": "0"} if fault == "429" else {})
        if fault == "whole":
            return self._send(200, server.data, {})
        if fault == "other range":
            at, stop = at + 1, stop + 1
        if fault == "shorter range":
            stop -= 1
            body = body[:-1]
        if fault == "no range":
            return self._send(206, body, {"Content-Range": "bytes */*"})
        if fault == "rot":
            body = bytes((body[0] ^ 1,)) + body[1:]
        if fault == "larger file":
            total += 1
        headers = {"Content-Range": f"bytes {at}-{stop - 1}/{total}", "ETag": server.version}
        if fault == "other version":
            headers["ETag"] = '"two"'
        if fault == "long":
            return self._send(206, body + b"more", headers)
        if fault == "break":
            self._send(206, body[: len(body) // 2], headers, len(body))
            self.close_connection = True
            return None
        return self._send(206, body, headers)

    def _simple(self, status: int, headers: dict[str, str]) -> None:
        self._send(status, b"", headers)

    def _send(
        self, status: int, body: bytes, headers: dict[str, str], length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def serving(data: bytes, cert: tuple[Path, Path] | None = None) -> Iterator[RangeServer]:
    """Yield a server of `data` on loopback; with TLS where a certificate and its key are given."""
    server = RangeServer(data)
    if cert is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*cert)
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
        server.scheme = "https"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.held.set()
        server.shutdown()
        server.server_close()
