"""TLS within TLS: to an https server, through a proxy that is itself reached by https.

ssl.SSLContext.wrap_socket can't be used on an SSLSocket: it would read the descriptor, which has
the outer TLS's encrypted bytes. So the inner TLS reads and writes buffers in memory
(ssl.MemoryBIO), whose bytes are sent and received by the outer socket.
"""

import io
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

_PIECE = 1 << 16
_Result = TypeVar("_Result")


class TlsInTls:
    """A socket, as far as http.client and `Stop` need one, which speaks TLS over `outer`.

    It owns `outer` from then on. Raises OSError as a socket does.
    """

    def __init__(self, context: ssl.SSLContext, outer: socket.socket, host: str) -> None:
        self._outer = outer
        self._coming, self._going = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._coming, self._going, server_hostname=host)
        self._users = 1
        self._through(self._tls.do_handshake)

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        rest = memoryview(data)
        while rest:
            rest = rest[self._through(lambda part=rest: self._tls.write(part)) :]  # type: ignore[misc]

    def read_into(self, buffer: bytearray) -> int:
        """Return how many bytes were read; 0 at the end, also one without TLS's close_notify."""
        try:
            return self._through(lambda: self._tls.read(len(buffer), buffer))  # type: ignore[return-value]
        except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return 0

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a reader, which can be used after `close` too."""
        assert mode == "rb"
        self._users += 1
        return io.BufferedReader(_Raw(self))

    def settimeout(self, seconds: float | None) -> None:
        """Set the seconds for each read and write of the outer socket."""
        self._outer.settimeout(seconds)

    def shutdown(self, how: int) -> None:
        """End all reading and writing, from whichever thread."""
        self._outer.shutdown(how)

    def close(self) -> None:
        """Close; the outer socket is closed when this and all readers are."""
        self._users -= 1
        if self._users == 0:
            self._outer.close()

    def _through(self, act: Callable[[], _Result]) -> _Result:
        """Call `act` of the inner TLS until it has what it needs; send and receive its bytes."""
        while True:
            try:
                found = act()
            except ssl.SSLWantReadError:
                self._flush()
                data = self._outer.recv(_PIECE)
                if data:
                    self._coming.write(data)
                else:
                    self._coming.write_eof()
            else:
                self._flush()
                return found

    def _flush(self) -> None:
        if self._going.pending:
            self._outer.sendall(self._going.read())


class _Raw(io.RawIOBase):
    def __init__(self, tls: TlsInTls) -> None:
        self._tls = tls

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._tls.read_into(buffer)

    def close(self) -> None:
        if not self.closed:
            super().close()
            self._tls.close()
