"""A connection as hypercorn gets it: who does not read is given up, files go past it (`sending`),
and what can be answered from memory never reaches it (`quick`).

hypercorn and h11 are asked for what they are in the midst of, by attributes that are none of their
interface (hypercorn 0.17 and 0.18 have them): where these are others, all goes the usual way.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import h11
import trio
from hypercorn.events import Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.tcp_server import TCPServer

from rootless_udi.gateway.sending import send_file

SEND_SECONDS = 60
"""How long a client may take to read what fits into its socket's buffer."""
_PIECE = 256 << 10
_TOLD_SECONDS = 1.0
"""So often hypercorn, which closes idle connections, is told that this one is none."""

Quick = Callable[[bytes, int | None], Awaitable[bytes | None]]
"""Returns the answer to a whole request of a Unix socket's peer, or None where hypercorn is to
have it."""


class _FileBytes:
    """So many bytes of a file: h11 counts them and passes them through (its documentation)."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


class ClientStream:
    """A stream on which a client that reads nothing is given up.

    hypercorn answers what is no HTTP while the answer to what came before it is still being sent:
    the two take turns. `server` is what serves it, once there is one;
    `peer` the uid at the other end of a Unix socket.
    """

    def __init__(
        self, stream: trio.SocketStream, peer: int | None = None, quick: Quick | None = None
    ) -> None:
        self.socket = stream.socket
        self.server: TCPServer | None = None
        self._stream: Any = stream
        self.peer = peer
        self._quick = quick
        self._turn = trio.Lock()
        self._told = trio.current_time()
        self._eof = stream.send_eof
        self.aclose = stream.aclose

    async def send_all(self, data: bytes) -> None:
        view = memoryview(data)
        async with self._turn:
            for at in range(0, len(view), _PIECE):
                # hypercorn shields this from cancellation; a deadline within is not affected.
                with trio.move_on_after(SEND_SECONDS) as scope:
                    await self._stream.send_all(view[at : at + _PIECE])
                if scope.cancelled_caught:
                    raise trio.BrokenResourceError("the client does not read")

    async def send_eof(self) -> None:
        """End what is sent. Raises BusyResourceError, as hypercorn expects, while something is."""
        try:
            self._turn.acquire_nowait()
        except trio.WouldBlock:
            raise trio.BusyResourceError("an answer is being sent") from None
        try:
            # Not the other one's error: whose answer this cuts off has a connection that is closed.
            await self._eof()
        finally:
            self._turn.release()

    async def receive_some(self, most: int | None = None) -> bytes | bytearray:
        """Return what comes, but for requests that `quick` answers."""
        while True:
            data: bytes | bytearray = await self._stream.receive_some(most)
            if self._quick is None or not data or self._idle() is None:
                return data
            answer = await self._quick(bytes(data), self.peer)
            if answer is None:
                return data
            await self.send_all(answer)
            if self.server is not None and trio.current_time() - self._told > _TOLD_SECONDS:
                self._told = trio.current_time()
                await self.server.protocol_send(Updated(idle=True))

    def _http1(self) -> h11.Connection | None:
        """Return the state of HTTP/1.1 here; None for HTTP/2, WebSockets, another hypercorn."""
        protocol = getattr(getattr(self.server, "protocol", None), "protocol", None)
        found = getattr(protocol, "connection", None)
        fits = isinstance(protocol, H11Protocol) and isinstance(found, h11.Connection)
        return found if fits else None

    def _idle(self) -> h11.Connection | None:
        """Return the state where no request, nor a part of one, is with hypercorn."""
        found = self._http1()
        if found is None or found.our_state is not h11.IDLE or found.their_state is not h11.IDLE:
            return None
        return None if found.trailing_data[0] else found

    def sends_files(self) -> bool:
        """Tell whether `send_file` works here."""
        return self._http1() is not None

    async def send_file(self, fd: int, at: int, count: int) -> bool:
        """Send `count` bytes of the file `fd`, from `at` on, as a part of the body whose head is
        sent. Where that fails, the connection is closed, and the answer is False.
        """
        state = self._http1()
        assert state is not None
        try:
            async with self._turn:
                # What an answer with a length is: bytes as they are.
                data: Any = _FileBytes(count)
                passed = state.send_with_data_passthrough(h11.Data(data=data))
                if passed is None or len(passed) != 1:
                    raise trio.BrokenResourceError("the body is not as it is")
                await send_file(self.socket, fd, at, count, SEND_SECONDS)
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.LocalProtocolError):
            # Its client would take what comes next for the rest of the file.
            await self.aclose()
            return False
        return True


class SecureStream(ClientStream):
    """The same with TLS, as hypercorn asks it: files are encrypted, and so go the usual way."""

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self.transport_stream = stream.transport_stream
        super().__init__(stream.transport_stream)
        self._stream = stream
        self.aclose = stream.aclose
        self.do_handshake = stream.do_handshake

    def selected_alpn_protocol(self) -> str | None:
        """Return what both sides agreed on."""
        found = self._stream.selected_alpn_protocol()
        return None if found is None else str(found)

    def sends_files(self) -> bool:
        return False
