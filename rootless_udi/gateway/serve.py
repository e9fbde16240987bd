"""Serve the gateway's application with hypercorn on trio, until SIGTERM or SIGINT.

hypercorn's own loop does not tell an application who is at the other end of a Unix socket, so
connections are accepted here; each one's handler is hypercorn's.
"""

import functools
import os
import resource
import signal
import ssl
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState

from rootless_udi.base.process import complain
from rootless_udi.gateway import people
from rootless_udi.gateway.connection import ClientStream, Quick, SecureStream
from rootless_udi.gateway.image_file import ZERO_COPY
from rootless_udi.gateway.listen import Listener
from rootless_udi.gateway.service import PEER, Service

CONNECTIONS = 2000
"""Most connections at once; further ones wait in the kernel's queue."""
OF_ONE_USER = 1500
"""Most of them that are one user's on Unix sockets: the others' are there whatever he does."""
HEAD_MAX = 32 << 10
"""Most bytes of a request's head: a munge credential with several registries' passwords fits."""
_HEAD_SECONDS = 5
"""How long a client may take to send a request's head, and how long a connection may idle."""
_ENDS = (signal.SIGTERM, signal.SIGINT)
_WHY = (
    b'{"status": 503, "message": "you have %d connections to this gateway already"}' % OF_ONE_USER
)
_TOO_MANY = (
    b"HTTP/1.1 503 \r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s" % (len(_WHY), _WHY)
)


def config() -> Config:
    """Return hypercorn's configuration: bounds on heads and on idle connections."""
    found = Config()
    found.accesslog = None
    found.errorlog = "-"
    found.h11_max_incomplete_size = HEAD_MAX
    found.keep_alive_timeout = _HEAD_SECONDS
    found.keep_alive_max_requests = 1_000_000
    found.include_server_header = False
    found.ssl_handshake_timeout = _HEAD_SECONDS
    return found


async def serve(
    app: Callable[..., Any],
    service: Service,
    listeners: Sequence[Listener],
    ready: Callable[[], None],
    quick: Quick | None = None,
) -> None:
    """Serve `app` on `listeners`; call `ready` once clients are answered.

    `quick` answers what it can before `app` is asked (`connection`).
    """
    _more_descriptors()
    context, settings = WorkerContext(None), config()
    limit = trio.CapacityLimiter(CONNECTIONS)

    async def handle(secure: ssl.SSLContext | None, stream: trio.SocketStream) -> None:
        if secure is not None:
            encrypted = trio.SSLStream(stream, secure, server_side=True, https_compatible=True)
            one: ClientStream = SecureStream(encrypted)
        else:
            one = ClientStream(stream, people.peer(stream.socket), quick)
        wrapped = ASGIWrapper(functools.partial(_through, app, one))
        state: Any = ConnectionState({})
        server = one.server = TCPServer(wrapped, settings, context, state, one)  # type: ignore[arg-type]
        await server

    # Without certificates a terminal that closes ends it, as it does other programs.
    again = [signal.SIGHUP] if any(one.secure for one in listeners) else []
    with trio.open_signal_receiver(*_ENDS, *again) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run)
            for listener in listeners:
                listener.socket.setblocking(False)
                sock = trio.socket.from_stdlib_socket(listener.socket)
                each = functools.partial(handle, listener.secure)
                nursery.start_soon(_accept, sock, each, limit)
            ready()
            async for number in signals:
                if number in _ENDS:
                    break
                for listener in listeners:
                    listener.load_again()
            await context.terminated.set()
            await service.write_counts()
            nursery.cancel_scope.cancel()


async def _accept(listener: Any, handle: Callable[..., Any], limit: trio.CapacityLimiter) -> None:
    """Accept connections, as many at once as `limit` allows; handle each in a task of its own."""

    here: Counter[int | None] = Counter()

    async def one(sock: Any) -> None:
        peer = people.peer(sock)
        here[peer] += 1
        try:
            if peer is not None and here[peer] > OF_ONE_USER:
                await trio.SocketStream(sock).send_all(_TOO_MANY)
            else:
                await handle(trio.SocketStream(sock))
        except Exception as error:
            # One client's connection: hypercorn lets through what it did not expect.
            complain("udi gateway", f"a connection failed: {error!r}")
        finally:
            here[peer] -= 1
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


async def _through(
    app: Callable[..., Any], one: ClientStream, scope: Any, receive: Any, send: Any
) -> None:
    """Have `app` answer a request, with what it can't know from hypercorn: who is at the other end,
    and that files may be sent past it (ASGI's "Zero Copy Send")."""
    names = [name for name, _ in scope["headers"]]
    unclear = b"content-length" in names or scope["http_version"] == "1.0"
    if b"transfer-encoding" in names and unclear:
        # h11 knows where it ends. What stands in front of us may think otherwise, and take the
        # rest for another request (RFC 9112, 6.1).
        head = [(b"content-length", b"0"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 400, "headers": head})
        await send({"type": "http.response.body"})
        return
    scope[PEER] = one.peer
    if scope["type"] == "http" and one.sends_files():
        scope["extensions"][ZERO_COPY] = {}

    async def sent(message: Any) -> None:
        if message["type"] != ZERO_COPY:
            await send(message)
        elif await one.send_file(message["file"], message["offset"], message["count"]):
            await send({"type": "http.response.body"})

    await app(scope, receive, sent)


def _more_descriptors() -> None:
    """Raise the limit of open files as far as it goes: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 65536) if hard != resource.RLIM_INFINITY else 65536
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(
    app: Callable[..., Any],
    service: Service,
    listeners: Sequence[Listener],
    ready: Callable[[], None],
    quick: Quick | None = None,
) -> None:
    """Do `serve`; return when a signal has ended it."""
    os.umask(0o022)
    trio.run(serve, app, service, listeners, ready, quick)
