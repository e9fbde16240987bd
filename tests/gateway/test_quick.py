"""What is answered before hypercorn has it is answered as by hypercorn, and no more than that."""

import contextlib
import fcntl
import os
import re
import socket
import struct
import termios
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import User
from tests.gateway.conftest import CONFIG
from tests.kit.gateway import SYSTEM, Gateway, gateway
from tests.kit.registry import Registry

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")

END = b"GET /api/list/%s/ HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n" % SYSTEM.encode()
QUICK = re.compile(rb"HTTP/1.1 200 \r\ncontent-type: [^\r]*\r\ncontent-length")
"""The order in which headers are written where hypercorn does not do it."""


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, registry: Registry
) -> Iterator[tuple[Gateway, bytes]]:
    """A gateway, and the name of an image there."""
    home = tmp_path_factory.mktemp("quick")
    with gateway(User(home), home / "site", "--rate=1e9") as one:
        tag = f"{registry.host}/site/box:1"
        one.pulled(tag)
        yield one, tag.encode()


def told(one: Gateway, pieces: list[bytes]) -> bytes:
    """All that comes after these pieces, each of which the gateway has read before the next."""
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(60)
        plain.connect(str(one.socket))
        # It closes without reading what comes after what it refuses: that is said once, to what
        # is done next, and its answer is still there.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                plain.sendall(piece)
                while struct.unpack("i", fcntl.ioctl(plain, termios.TIOCOUTQ, bytes(4)))[0]:
                    os.sched_yield()
        found, part = b"", b"x"
        while part:
            with contextlib.suppress(ConnectionResetError):
                found += (part := plain.recv(1 << 16))
    return found


def meant(data: bytes) -> list[tuple[bytes, frozenset[bytes], bytes]]:
    """Answers, whatever the order of their headers and the time."""
    found = []
    while data:
        head, _, rest = data.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        lines = [line for line in lines if not line.startswith(b"date: ")]
        size = next((int(x[16:]) for x in lines if x.startswith(b"content-length: ")), 0)
        found.append((first, frozenset(lines), rest[:size]))
        data = rest[size:]
    return found


def request(path: str = "/api/lookup/{system}/docker/{tag}/", *rows: str, start: str = "") -> str:
    rows = rows or ("Host: g",)
    return (start or f"GET {path} HTTP/1.1") + "\r\n" + "\r\n".join(rows) + "\r\n\r\n"


PATH = "/api/lookup/{system}/docker/{tag}/"
PLAIN = [
    request(),
    request(PATH.rstrip("/")),
    request(PATH.replace("docker/", "docker///") + "//"),
    request(PATH, "hOsT: localhost:80", "USER-AGENT: x", "accept: */*"),
    request(PATH, "Host: [::1]:80", "Connection: Keep-Alive"),
    request(PATH, "Host: g   ", "Accept-Encoding: gzip  "),
]
OTHERS = [
    # The head is none, or another one's.
    *(request(PATH, *rows) for rows in (("User-Agent: x",), ("Host: g", "Host: g"), ("Host:g",))),
    *(
        request(PATH, f"Host: {name}")
        for name in ("", "[", "[::1", "[g].evil.example", "e.example")
    ),
    *(request(PATH, "Host: g", f"Origin: {name}") for name in ("http://[", "http://g", "null")),
    request(PATH, "Host: g", "Sec-Fetch-Site: cross-site"),
    request(PATH, "Host : g"),
    request(PATH, "Host: g\r\n X-Folded: x"),
    request(PATH, "Host: g", "X: a\rb"),
    request(PATH, "Host: g", "X: a\0b"),
    request(PATH, "Host: g", "User-Agent: \xe9"),
    request(PATH, "Host: g", "Accept:\t*/*"),
    request(PATH, "Host: g", f"User-Agent: {'x' * 3000}"),
    request().replace("\r\n", "\n"),
    "\r\n" + request(),
    # Where the request ends.
    *(
        request(PATH, "Host: g", *rows) + body
        for rows, body in (
            (("Content-Length: 0",), ""),
            (("Content-Length: 5",), "abcde"),
            (("Content-Length: +5",), "abcde"),
            (("content-length: 5", "CONTENT-LENGTH: 6"), "abcdef"),
            (("Transfer-Encoding: chunked",), "0\r\n\r\n"),
            (("Transfer-Encoding: xchunked",), "0\r\n\r\n"),
            (("Transfer-Encoding:\r\n chunked",), "0\r\n\r\n"),
            (("Transfer-Encoding: chunked", "Content-Length: 5"), "0\r\n\r\n"),
            (("Expect: 100-continue",), ""),
            (("Connection: close",), ""),
            (("Connection: close, keep-alive",), ""),
        )
    ),
    request(PATH, "Host: g", "Transfer-Encoding: chunked", start=f"GET {PATH} HTTP/1.0")
    + "0\r\n\r\n",
    request() + "GET /hidden HTTP/1.1\r\nX: ",
    request() + request(),
    # The first line.
    *(request(start=f"GET {PATH} {version}") for version in ("HTTP/1.0", "HTTP/1.2", "http/1.1")),
    *(request(start=f"{method} {PATH} HTTP/1.1") for method in ("get", "HEAD", "POST", "DELETE")),
    request(start=f"GET http://evil.example{PATH} HTTP/1.1"),
    request(start=f"GET  {PATH} HTTP/1.1"),
    request(start=f"GET {PATH} x HTTP/1.1"),
    request(start=f"GET {PATH}\0 HTTP/1.1"),
    *(
        request(PATH.replace("{tag}", name))
        for name in (
            "none:1",
            "%2e%2e",
            "../../x",
            "{tag}%2f",
            "a\xff",
            "a" * 250,
            "@",
            ":",
            "a" * 1990,
        )
    ),
    request(PATH + "?platform=linux/arm64"),
    request(PATH + "#x"),
    request(PATH.replace("docker", "custom")),
    request(PATH.replace("{system}", "elsewhere")),
    # Who asks.
    request(PATH, "Host: g", "aUTHENTICATION: MUNGE:x"),
    request(PATH, "Host: g", "authentication: MUNGE:x", "Authentication: MUNGE:y"),
    request(PATH, "Host: g", "Authorization: Bearer udi_x", "authorization: Bearer udi_y"),
    request(PATH, "Host: g", "Cookie: udi=x"),
]


@pytest.mark.parametrize(("texts", "quick"), [(PLAIN, True), (OTHERS, False)])
def test_both_answer_alike(served: tuple[Gateway, bytes], texts: list[str], quick: bool) -> None:
    """What comes in two pieces is hypercorn's; so is what follows, whatever that is taken for."""
    one, tag = served
    for text in texts:
        data = text.encode("latin-1").replace(b"{tag}", tag).replace(b"{system}", SYSTEM.encode())
        # Nothing may follow the last request of a connection: h11 makes an error of it at once.
        more = [] if "close" in text or "HTTP/1.0" in text else [END]
        whole, pieces = told(one, [data, *more]), told(one, [data[:1], data[1:], *more])
        # On a busy machine hypercorn may read that what follows is no chunk before it has answered.
        early = b"chunked" in data and whole.startswith(b"HTTP/1.1 400") and not pieces
        assert early or meant(whole) == meant(pieces), (data, whole, pieces)
        assert bool(QUICK.match(whole)) is quick and not QUICK.search(pieces), (data, whole)
        assert b"hidden" not in whole and len(meant(whole)) <= 3
        assert b"HTTP/1.1 500" not in whole, (data, whole)
    assert one.complaints == ""


def test_two_proofs_in_one_request_are_none(served: tuple[Gateway, bytes]) -> None:
    """What stands in front may have looked at the other one."""
    one, _ = served
    for name in ("authentication", "authorization"):
        rows = (f"{name}: udi_a", f"{name.title()}: udi_b", "Connection: close", "Host: g")
        found = told(one, [request("/api/list/{system}/", *rows).encode()])
        assert found.startswith(b"HTTP/1.1 400") and b"more than one header " in found, found


def asked(folder: Path, call: Callable[[Any, Any], Awaitable[None]]) -> None:
    """Have `call` ask the quick answers of a service with two images in its database."""
    import trio

    from rootless_udi.gateway import app, catalogue
    from rootless_udi.gateway.database import Database
    from rootless_udi.gateway.limits import Limits
    from rootless_udi.gateway.people import People
    from rootless_udi.gateway.service import Service
    from rootless_udi.gateway.tables import GRANTS, IMAGES
    from rootless_udi.plan.reference import parse, platform_of
    from rootless_udi.plan.site import Site
    from rootless_udi.store import find
    from rootless_udi.store.store import Store

    store, base = Store(str(folder)), Database(str(folder))
    limits = Limits(rate=30_000.0)
    service = Service(store, base, Site(), (SYSTEM,), People(), 1, limits)

    def fill(connection: Any) -> None:
        key = platform_of(os.uname().machine).key()
        for number, labels in enumerate(({}, {"big": "x" * 60_000})):
            digest = f"sha256:{number:064}"
            facts = catalogue.summary({"labels": labels})
            row = {"digest": digest, "size": 1, "pulled": 1.0, "used": 1.0, "facts": facts}
            connection.execute(IMAGES.insert().values(**row, public=number == 1))
            name = find.name_of(parse(f"{'ab'[number]}:1"))
            catalogue.set_name(connection, key, name, digest, 1.0)
        row = {"digest": f"sha256:{0:064}", "kind": "user", "id": 5001, "owner": True}
        connection.execute(GRANTS.insert().values(**row))

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(service.run)
            await call(service, app.quick(service))
            nursery.cancel_scope.cancel()

    try:
        base.write_now(fill)
        trio.run(run)
    finally:
        base.close()


def lookup(name: str) -> bytes:
    return f"GET /api/lookup/{SYSTEM}/docker/{name} HTTP/1.1\r\nHost: g\r\n\r\n".encode()


def test_who_is_answered(tmp_path: Path) -> None:
    """Who is known, may read it, and has not asked too often; each is counted."""
    from rootless_udi.gateway.tables import GRANTS

    async def ask(service: Any, quick: Any) -> None:
        people = service._people
        # Nobody is known yet; an unmapped id is nobody's, whoever else has proved to be 65534.
        assert await quick(lookup("a:1"), 5001) is None
        for uid, how in ((5001, "socket"), (5002, "socket"), (65534, "munge")):
            await people.known(uid, how)
        for other in (None, -1, 5002, 5003, 65534):
            assert await quick(lookup("a:1"), other) is None, other
        assert await quick(lookup("b:1"), 65534) is None
        assert (await quick(lookup("a:1"), 5001) or b"").startswith(b"HTTP/1.1 200 ")
        # Remembered for one, and not for another.
        assert await quick(lookup("a:1"), 5002) is None
        assert len(service._counted) == 1 and service._counted[0]["uid"] == 5001
        # The list has changed.
        await service.database.write(lambda c: c.execute(GRANTS.delete()).rowcount and None)
        service.queue.published += 1
        assert await quick(lookup("a:1"), 5001) is None
        # As often as the site says.
        asked = 0
        while await quick(lookup("b:1"), 5002) is not None:
            asked += 1
        assert 60_000 <= asked < 1_000_000
        assert await quick(lookup("b:1"), 5001) is not None

    asked(tmp_path, ask)


def test_what_is_remembered_has_a_bound(tmp_path: Path) -> None:
    """An image with many labels, by thousands of ways to write its name."""

    async def ask(service: Any, quick: Any) -> None:
        answers = quick.__self__
        await service._people.known(5001, "socket")
        for n in range(2000):
            name = "/" * (n % 100) + "b:1" + "/" * (n // 100)
            assert len(await quick(lookup(name), 5001) or b"") > 60_000
            held = sum(len(one.body) for one in answers._known.values())
            assert held <= answers._bytes <= 32 << 20
        assert len(answers._known) > 100

    asked(tmp_path, ask)


def test_labels_are_told_as_they_are(served: tuple[Gateway, bytes]) -> None:
    one, tag = served
    path = f"/api/lookup/{SYSTEM}/docker/{tag.decode()}/"
    assert one.get(path).body["LABELS"] == CONFIG["Labels"]
