"""Serve the gateway's application with hypercorn on trio, until SIGTERM or SIGINT.

hypercorn's own loop does not tell an application who is at the other end of a Unix socket, so
connections are accepted here; each one's handler is hypercorn's.
"""

import functools
import os
import resource
import signal
import socket
from collections.abc import Callable
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from rootless_udi.base.process import complain
from rootless_udi.gateway import people
from rootless_udi.gateway.service import PEER, Service

CONNECTIONS = 2000
"""Most connections at once; further ones wait in the kernel's queue."""
HEAD_MAX = 32 << 10
"""Most bytes of a request's head: a munge credential with several registries' passwords fits."""
_HEAD_SECONDS = 5
"""How long a client may take to send a request's head, and how long a connection may idle."""
_SEND_SECONDS = 60
"""How long a client may take to read what fits into its socket's buffer."""
_GRACE_SECONDS = 2
_PIECE = 256 << 10


class _Stream:
    """A connection on which a client that reads nothing is given up.

    hypercorn answers what is no HTTP while the answer to what came before it is still being sent:
    the two take turns.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._turn = trio.Lock()
        self.socket = stream.socket
        self.receive_some = stream.receive_some
        self.send_eof = stream.send_eof
        self.aclose = stream.aclose

    async def send_all(self, data: bytes) -> None:
        view = memoryview(data)
        async with self._turn:
            for at in range(0, len(view), _PIECE):
                # hypercorn shields this from cancellation; a deadline within is not affected.
                with trio.move_on_after(_SEND_SECONDS) as scope:
                    await self._stream.send_all(view[at : at + _PIECE])
                if scope.cancelled_caught:
                    raise trio.BrokenResourceError("the client does not read")


def config() -> Config:
    """Return hypercorn's configuration: bounds on heads and on idle connections."""
    found = Config()
    found.accesslog = None
    found.errorlog = "-"
    found.h11_max_incomplete_size = HEAD_MAX
    found.keep_alive_timeout = _HEAD_SECONDS
    found.keep_alive_max_requests = 1_000_000
    found.include_server_header = False
    return found


async def serve(
    app: Callable[..., Any],
    service: Service,
    sockets: list[socket.socket],
    ready: Callable[[], None],
) -> None:
    """Serve `app` on listening sockets; call `ready` once clients are answered."""
    _more_descriptors()
    context, settings = WorkerContext(None), config()
    limit = trio.CapacityLimiter(CONNECTIONS)

    async def handle(stream: trio.SocketStream) -> None:
        wrapped = ASGIWrapper(functools.partial(_with_peer, app, people.peer(stream.socket)))
        await TCPServer(wrapped, settings, context, ConnectionState({}), _Stream(stream))  # type: ignore[arg-type]

    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run)
            for one in sockets:
                one.setblocking(False)
                nursery.start_soon(_accept, trio.socket.from_stdlib_socket(one), handle, limit)
            ready()
            async for _ in signals:
                break
            await context.terminated.set()
            await service.write_counts()
            nursery.cancel_scope.cancel()


async def _accept(listener: Any, handle: Callable[..., Any], limit: trio.CapacityLimiter) -> None:
    """Accept connections, as many at once as `limit` allows; handle each in a task of its own."""

    async def one(sock: Any) -> None:
        try:
            await handle(trio.SocketStream(sock))
        except Exception as error:
            # One client's connection: hypercorn lets through what it did not expect.
            complain("udi gateway", f"a connection failed: {error!r}")
        finally:
            sock.close()
            limit.release_on_behalf_of(sock)

    async with trio.open_nursery() as nursery:
        while True:
            try:
                sock, _ = await listener.accept()
            except OSError as error:
                # Descriptors or memory ran out, or the client has gone: others may be served.
                complain("udi gateway", f"accepting a connection failed: {error.strerror}")
                await trio.sleep(0.1)
                continue
            await limit.acquire_on_behalf_of(sock)
            nursery.start_soon(one, sock)


async def _with_peer(
    app: Callable[..., Any], peer: int | None, scope: Any, receive: Any, send: Any
) -> None:
    names = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" in names and b"content-length" in names:
        # h11 knows which of the two counts. What stands in front of us may think otherwise, and
        # take the rest for another request (RFC 9112, 6.1).
        head = [(b"content-length", b"0"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 400, "headers": head})
        await send({"type": "http.response.body"})
        return
    scope[PEER] = peer
    await app(scope, receive, send)


def _more_descriptors() -> None:
    """Raise the limit of open files as far as it goes: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(
    app: Callable[..., Any],
    service: Service,
    sockets: list[socket.socket],
    ready: Callable[[], None],
) -> None:
    """Do `serve`; return when a signal has ended it."""
    os.umask(0o022)
    trio.run(serve, app, service, sockets, ready)
