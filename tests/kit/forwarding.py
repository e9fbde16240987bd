"""A gateway's Unix socket on a port of loopback, as `ssh -L PORT:SOCKET` puts it there."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from pathlib import Path


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            target.sendall(data)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def forwarded(path: Path) -> Iterator[int]:
    """Yield the port; whoever connects there is this process' user for the socket at `path`."""
    server = socket.create_server(("127.0.0.1", 0))

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = server.accept()
                there = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                try:
                    there.connect(str(path))
                except OSError:
                    # Nobody listens just now: ssh closes the connection too.
                    client.close()
                    continue
                for pair in ((client, there), (there, client)):
                    threading.Thread(target=_copy, args=pair, daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
