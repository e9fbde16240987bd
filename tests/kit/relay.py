"""Between a client and a server, byte by byte: it counts, and holds back at a given moment."""

import contextlib
import socket
import threading
from collections.abc import Iterator


class Relay:
    """Forwards to the server at `host`, HOST:PORT; `sent` are the bytes that clients sent it.

    Nothing more is forwarded once `bytes` of them were sent, or `answers` answers with the status
    202 came back; `held` is set when a client sends more then. What was held back never arrives,
    nor what follows it on the same connection.
    """

    def __init__(self, host: str) -> None:
        name, _, port = host.rpartition(":")
        self.target = (name, int(port))
        self.sent = self.accepted = 0
        self.bytes = self.answers = 1 << 60
        self.held = threading.Event()
        self._server = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def open(self) -> None:
        """Forward all from now on."""
        self.sent = self.accepted = 0
        self.bytes = self.answers = 1 << 60

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                server = socket.create_connection(self.target)
                for call in (self._up, self._down):
                    threading.Thread(target=call, args=(client, server), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket) -> None:
        held = False
        with contextlib.suppress(OSError):
            while data := client.recv(1 << 16):
                held = held or self.sent >= self.bytes or self.accepted >= self.answers
                if held:
                    self.held.set()
                    continue
                self.sent += len(data)
                server.sendall(data)
        _end(client, server)

    def _down(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(1 << 16):
                self.accepted += data.count(b"HTTP/1.1 202 ")
                client.sendall(data)
        _end(client, server)


def _end(*both: socket.socket) -> None:
    for one in both:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def relay(host: str) -> Iterator[Relay]:
    one = Relay(host)
    try:
        yield one
    finally:
        one.close()
