"""Stop all threads of a pull at once, by shutting their sockets (shutdown(2))."""

import contextlib
import http.client
import socket
import threading


class Stopped(Exception):
    """The pull has been stopped while this thread was working for it."""


class Stop:
    """Ends all threads of a pull: wakes those that sleep, and those that wait for the network."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._connections: dict[http.client.HTTPConnection, socket.socket | None] = {}

    def set(self) -> None:
        self._event.set()
        with self._lock:
            for connection, sock in self._connections.items():
                shut(connection.sock or sock)

    def check(self) -> None:
        if self._event.is_set():
            raise Stopped

    def sleep(self, seconds: float) -> None:
        if self._event.wait(seconds):
            raise Stopped

    def watch(self, connection: http.client.HTTPConnection) -> None:
        """Have `set` shut this connection. Raises Stopped if that has been called already.

        Call it before connecting, and again after: only then there is a socket. It is kept here,
        since http.client forgets it when the server will close the connection after the answer,
        whose body may still be read.
        """
        with self._lock:
            self._connections[connection] = connection.sock
        self.check()

    def forget(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            self._connections.pop(connection, None)


def shut(sock: socket.socket | None) -> None:
    if sock is not None:
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_RDWR)
