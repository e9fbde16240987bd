"""How the gateway sends: images by sendfile(2), lookups from memory, past hypercorn; by TLS."""

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import User
from tests.gateway.test_clients import configured
from tests.kit.gateway import SYSTEM, Gateway, gateway
from tests.kit.registry import Registry

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")


@pytest.fixture(scope="module")
def served(
    tmp_path_factory: pytest.TempPathFactory, registry: Registry
) -> Iterator[tuple[Gateway, str, bytes]]:
    """A gateway, the path of an image's file there, and what is in it."""
    home = tmp_path_factory.mktemp("sending")
    with gateway(User(home), home / "site") as one:
        ready = one.pulled(f"{registry.host}/site/big:1")
        data = (one.store / f"images/sha256-{ready['id']}.sqfs").read_bytes()
        yield one, f"/api/v1/images/sha256:{ready['id']}", data


def client(one: Gateway) -> HTTPConnection:
    """A connection that is kept, to a gateway's Unix socket."""
    found = HTTPConnection("gateway", timeout=120)
    found.sock = socket.socket(socket.AF_UNIX)
    found.sock.settimeout(120)
    found.sock.connect(str(one.socket))
    return found


def answered(one: HTTPConnection, path: str, method: str = "GET", **headers: str) -> Any:
    one.request(method, path, headers={k.replace("_", "-"): v for k, v in headers.items()})
    found: HTTPResponse = one.getresponse()
    return found.status, found.read(), found.headers


def test_parts_of_a_file_and_other_requests_take_turns_on_one_connection(
    served: tuple[Gateway, str, bytes],
) -> None:
    one, path, data = served
    size, tag = len(data), f'"{path.rpartition("/")[2]}"'
    connection = client(one)
    for wanted, status, start, end in (
        ("bytes=0-0", 206, 0, 1),
        ("bytes=100-4999999", 206, 100, 5_000_000),
        ("bytes=5-99999999999", 206, 5, size),
        ("bytes=7000000-", 206, 7_000_000, size),
        ("bytes=-70", 206, size - 70, size),
        ("bytes=-99999999999", 206, 0, size),
    ):
        found = answered(connection, path, Range=wanted)
        assert found[:2] == (status, data[start:end]), wanted
        assert found[2]["Content-Range"] == f"bytes {start}-{end - 1}/{size}"
        assert found[2]["ETag"] == tag
    assert answered(connection, path)[:2] == (200, data)
    # Of another version the whole is wanted.
    assert answered(connection, path, Range="bytes=1-2", If_Range=tag)[:2] == (206, data[1:3])
    assert answered(connection, path, Range="bytes=1-2", If_Range='"x"')[:2] == (200, data)
    found = answered(connection, path, "HEAD")
    assert found[:2] == (200, b"") and found[2]["Content-Length"] == str(size)
    assert answered(connection, path, If_None_Match=tag)[:2] == (304, b"")
    for wrong in (f"bytes={size}-", "bytes=5-2", "lines=1-2", "bytes=-0"):
        assert answered(connection, path, Range=wrong)[0] in (400, 416), wrong
    found = answered(connection, path, Range="bytes=0-1,5-6")
    assert found[0] == 206 and found[2]["Content-Type"].startswith("multipart/byteranges")
    listed = answered(connection, f"/api/list/{SYSTEM}/")
    assert listed[0] == 200 and len(json.loads(listed[1])["list"]) == 1
    assert answered(connection, path)[:2] == (200, data)
    connection.close()


def test_requests_at_once_are_answered_in_turn(served: tuple[Gateway, str, bytes]) -> None:
    """A file's bytes end where its answer says, whatever is asked for meanwhile."""
    one, path, data = served
    heads = [f"GET {path} HTTP/1.1\r\nHost: g\r\n\r\n"] * 2
    heads.append(f"GET /api/list/{SYSTEM}/ HTTP/1.1\r\nHost: g\r\nConnection: close\r\n\r\n")
    with socket.socket(socket.AF_UNIX) as plain:
        plain.settimeout(120)
        plain.connect(str(one.socket))
        plain.sendall("".join(heads).encode())
        found = b""
        while part := plain.recv(1 << 20):
            found += part
    for _ in range(2):
        head, _, found = found.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200") and found[: len(data)] == data
        found = found[len(data) :]
    assert found.startswith(b"HTTP/1.1 200") and b'{"list": [' in found


def test_clients_that_go_in_the_middle_leave_nothing(served: tuple[Gateway, str, bytes]) -> None:
    one, path, data = served
    assert one.process is not None
    folder = Path(f"/proc/{one.process.pid}/fd")
    for _ in range(50):
        with client(one).sock as plain:
            plain.sendall(f"GET {path} HTTP/1.1\r\nHost: g\r\n\r\n".encode())
            assert plain.recv(12) == b"HTTP/1.1 200"
    connection = client(one)
    assert answered(connection, path)[:2] == (200, data)
    while any(
        os.readlink(name).endswith(".sqfs") for name in folder.iterdir() if name.is_symlink()
    ):
        assert answered(connection, f"/api/list/{SYSTEM}/")[0] == 200


def test_an_image_that_goes_meanwhile_is_not_found(
    served: tuple[Gateway, str, bytes], registry: Registry
) -> None:
    one, _, _ = served
    ready = one.pulled(f"{registry.host}/site/box:1")
    (one.store / f"images/sha256-{ready['id']}.sqfs").unlink()
    assert one.get(f"/api/v1/images/sha256:{ready['id']}").status == 404


@pytest.mark.needs("strace")
def test_files_are_sent_by_sendfile(user: User, tmp_path: Path, registry: Registry) -> None:
    """With the hypercorn that is installed: what it is asked for is none of its interface."""
    trace = tmp_path / "trace"
    before = ("strace", "-D", "-f", "-qq", "-e", "trace=sendfile", "-o", str(trace))
    with gateway(user, tmp_path / "site", before=before) as one:
        ready = one.pulled(f"{registry.host}/site/big:1")
        path = f"/api/v1/images/sha256:{ready['id']}"
        argv = ["curl", "-sSf", "-o", f"{tmp_path}/got", "--unix-socket", str(one.socket)]
        subprocess.run([*argv, f"http://g{path}"], check=True)
        assert "sendfile(" in trace.read_text()
        image = one.store / f"images/sha256-{ready['id']}.sqfs"
        assert (tmp_path / "got").read_bytes() == image.read_bytes()
        # HTTP/2 has frames: the same file, read in pieces.
        known = trace.read_text().count("sendfile(")
        subprocess.run([*argv, "--http2-prior-knowledge", f"http://g{path}"], check=True)
        assert (tmp_path / "got").read_bytes() == image.read_bytes()
        assert trace.read_text().count("sendfile(") == known


def test_plain_requests_are_answered_before_hypercorn_has_them() -> None:
    """Only whole ones, and where none is being answered."""
    import trio.testing
    from hypercorn.app_wrappers import ASGIWrapper
    from hypercorn.trio.tcp_server import TCPServer
    from hypercorn.trio.worker_context import WorkerContext

    from rootless_udi.gateway.connection import ClientStream
    from rootless_udi.gateway.serve import config

    asked: list[bytes] = []

    async def quick(data: bytes, peer: int | None) -> bytes | None:
        asked.append(data)
        ours = data.startswith(b"GET /quick")
        return b"HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\nquick" if ours else None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        head = [(b"content-length", b"4")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"slow"})

    async def run() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        one = ClientStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)), 5, quick)
        words: Any = (ASGIWrapper(app), config(), WorkerContext(None), {}, one)
        one.server = TCPServer(*words)
        peer = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        theirs.setblocking(False)

        async def ask(data: bytes, until: bytes) -> None:
            await peer.send_all(data)
            found = b""
            while not found.endswith(until):
                part = await peer.receive_some()
                assert part
                found += part

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.server.run)
            rest = b" HTTP/1.1\r\nHost: g\r\n\r\n"
            for path, until in ((b"quick", b"quick"), (b"a", b"slow"), (b"quick", b"quick")):
                await ask(b"GET /" + path + rest, until)
                # hypercorn has an answer behind it a little later than its client has.
                await trio.testing.wait_all_tasks_blocked()
            assert len(asked) == 3
            # The rest of what hypercorn has begun to read is hypercorn's.
            await peer.send_all(b"GET /b HTTP/1.1\r\n")
            await trio.testing.wait_all_tasks_blocked()
            await ask(b"Host: g\r\nX: \r\n\r\n", b"slow")
            assert len(asked) == 4
            await peer.aclose()

    trio.run(run)


def test_an_answer_to_who_goes_meets_a_connection_that_is_closed() -> None:
    """hypercorn ends what is sent while an application sends: that one has done nothing wrong."""
    import trio.testing

    from rootless_udi.gateway.connection import ClientStream

    async def run() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        one = ClientStream(trio.SocketStream(trio.socket.from_stdlib_socket(ours)))
        ended, failed = [], []

        async def answer() -> None:
            try:
                await one.send_all(b"x" * (4 << 20))
            except (trio.ClosedResourceError, trio.BrokenResourceError) as error:
                failed.append(error)

        async def end() -> None:
            try:
                await one.send_eof()
            except trio.BusyResourceError as error:
                ended.append(error)

        for first, second in ((answer, end), (end, answer)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(first)
                await trio.lowlevel.checkpoint()
                nursery.start_soon(second)
                await trio.testing.wait_all_tasks_blocked()
                theirs.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    while theirs.recv(1 << 20):
                        await trio.testing.wait_all_tasks_blocked()
        assert len(ended) == 1 and len(failed) == 1
        theirs.close()

    trio.run(run)


@pytest.mark.parametrize(
    ("head", "quick"),
    [
        ("Host: g\r\nUser-Agent: curl/8\r\nAccept: */*\r\n", True),
        ("Host: localhost:80\r\nConnection: keep-alive\r\n", True),
        ("Host: g\r\nConnection: close\r\n", False),
        ("Host: g\r\nHost: h\r\n", False),
        ("User-Agent: x\r\n", False),
        ("Host: evil.example\r\n", False),
        ("Host: g\r\nauthentication: MUNGE:x\r\n", False),
        ("Host: g\r\nAuthorization: Bearer udi_x\r\n", False),
        ("Host: g\r\nSec-Fetch-Site: cross-site\r\n", False),
        ("Host: g\r\nOrigin: http://g\r\n", False),
        ("Host: g\r\nContent-Length: 5\r\n", False),
        ("Host: g\r\nTransfer-Encoding: chunked\r\n", False),
    ],
)
def test_headers_that_change_an_answer_are_the_applications(head: str, quick: bool) -> None:
    from rootless_udi.gateway.quick import _is_plain

    assert _is_plain(head.encode()) is quick


def certificate(folder: Path, name: str) -> tuple[Path, Path]:
    """A new certificate of 127.0.0.1's, by itself, and its key."""
    paths = (folder / f"{name}.pem", folder / f"{name}.key")
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    words += ["-nodes", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1"]
    words += ["-days", "2", "-out", str(paths[0]), "-keyout", str(paths[1])]
    subprocess.run(words, check=True, capture_output=True)
    return paths


def test_by_tls(user: User, tmp_path: Path, registry: Registry) -> None:
    """With a certificate of its own, that can be replaced while it runs."""
    chain, key = certificate(tmp_path, "first")
    options = ("--listen=https://127.0.0.1:0", f"--certificate={chain}", f"--key={key}")
    with gateway(user, tmp_path / "site", *options) as one:
        ready = one.pulled(f"{registry.host}/site/big:1")
        address = one.said[2].removeprefix("listening on ")
        assert address.startswith("https://127.0.0.1:")
        configured(user, f"unix:{one.socket}")
        token = user.run("udi", "gateway", "token").stdout.strip()
        env = {"UDI_GATEWAY_TOKEN": token, "SSL_CERT_FILE": str(chain)}
        configured(user, address)
        done = user.run("udi", "images", "--site", "--names", env=env)
        assert done.stdout == f"{registry.host}/site/big:1\n", done.stderr
        where = f"gateway:///{registry.host}/site/big:1"
        done = user.run("udi", "pull", where, env=env)
        assert done.stdout == f"sha256:{ready['id']}\n", done.stderr
        image = (one.store / f"images/sha256-{ready['id']}.sqfs").read_bytes()
        argv = ["curl", "-sS", "--cacert", str(chain), "-o", f"{tmp_path}/got"]
        argv += ["-H", f"Authorization: Bearer {token}", "-w", "%{http_version} %{http_code}"]
        path = f"{address}/api/v1/images/sha256:{ready['id']}"
        for wanted, part in (([], image), (["-r", "5-4000000"], image[5:4_000_001])):
            done = subprocess.run([*argv, *wanted, path], capture_output=True, text=True)
            assert done.stdout == f"1.1 {206 if wanted else 200}", done.stderr
            assert (tmp_path / "got").read_bytes() == part
        assert subprocess.run([*argv[:2], path], capture_output=True).returncode == 60
        # What is no TLS is given up, and who comes after it is served.
        plain = address.replace("https://", "http://")
        assert subprocess.run([*argv[:2], plain], capture_output=True).returncode != 0
        shown = served_by(address, chain)
        assert one.process is not None
        chain.write_text("half")
        one.process.send_signal(signal.SIGHUP)
        while "the one before is still used" not in one.log.read_text():
            assert served_by(address, None) == shown
        for old, new in zip((chain, key), certificate(tmp_path, "second"), strict=True):
            new.rename(old)
        one.process.send_signal(signal.SIGHUP)
        while served_by(address, None) == shown:
            pass
        assert served_by(address, chain) != shown


def served_by(address: str, chain: Path | None) -> bytes:
    """The certificate that a client is shown; with `chain` one that it leads to."""
    context = ssl.create_default_context(cafile=chain)
    if chain is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host, _, port = address.removeprefix("https://").rpartition(":")
    with (
        socket.create_connection((host, int(port)), 60) as plain,
        context.wrap_socket(plain, server_hostname=host) as one,
    ):
        return one.getpeercert(True) or b""


def test_certificates_that_are_refused(user: User, tmp_path: Path) -> None:
    chain, _ = certificate(tmp_path, "one")
    _, other = certificate(tmp_path, "two")
    words = ["udi", "gateway", "serve", f"--store={tmp_path}/site", "--listen=https://0.0.0.0:0"]
    for more, why in (
        ([], "--listen=https://0.0.0.0:0: there is no certificate for it"),
        ([f"--certificate={chain}"], "can't be used: "),
        ([f"--certificate={chain}", f"--key={other}"], "can't be used: "),
        ([f"--certificate={tmp_path}/none"], "none: No such file or directory"),
    ):
        done = user.run(*words, *more)
        assert done.returncode == 125 and why in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
