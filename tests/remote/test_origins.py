"""Blobs of real registries as remote files: tokens, redirects, mirrors, proxies; nginx by https."""

import hashlib
import os
import shutil
import socket
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.base.windows import WINDOW
from rootless_udi.pull.credentials import Credentials
from rootless_udi.pull.http import Transport
from rootless_udi.pull.registry import Endpoint
from rootless_udi.remote.origins import Blob, Web
from rootless_udi.remote.ranges import Ranges
from tests.kit import fuseimages
from tests.kit.proxies import proxy
from tests.kit.rangeserver import serving
from tests.kit.registry import (
    PASSWORD,
    USER,
    Flaky,
    Quiet,
    Registry,
    Rule,
    TokenServer,
    basic_registry,
    certificate,
    closed_port,
    flaky,
    open_registry,
    token_registry,
)

DATA = fuseimages.noise(3 * WINDOW + 1000)
pytestmark = pytest.mark.needs("registry")


def put_blob(host: str, name: str, data: bytes) -> str:
    """Put a blob into the repository `name`; return its digest."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    begun = urllib.request.Request(f"http://{host}/v2/{name}/blobs/uploads/", b"", method="POST")
    with urllib.request.urlopen(begun) as reply:
        where = reply.headers["Location"]
    mark = "&" if "?" in where else "?"
    headers = {"Content-Type": "application/octet-stream"}
    whole = urllib.request.Request(f"{where}{mark}digest={digest}", data, headers, method="PUT")
    urllib.request.urlopen(whole).close()
    return digest


def always(status: int, retry: str = "0") -> Rule:
    """Return a rule that gives this answer for each blob."""

    def rule(_: Flaky, request: Quiet, path: str) -> bool:
        if "/blobs/" in path:
            request.answer(status, Retry_After=retry)
        return "/blobs/" in path

    return rule


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Registry, str]]:
    """A registry and the digest of DATA, in its repository public/a."""
    place = tmp_path_factory.mktemp("origins")
    with open_registry(place / "open", place / "data") as one:
        yield one, put_blob(one.host, "public/a", DATA)


def source(digest: str, *hosts: str, known: bool = False, timeout: float = 20) -> Ranges:
    """Return the blob at mirrors and, last, its registry; with `known` by name and password."""
    transport = Transport(answer=timeout)
    given = Credentials(USER, PASSWORD, "", "the test") if known else None
    places = [
        Endpoint(host, "public/a", transport, lookup=lambda *_: given, insecure=True)
        for host in hosts
    ]
    return Ranges(Blob(places, transport, digest, len(DATA)), timeout)


def read(one: Ranges, at: int, size: int) -> bytes:
    room = memoryview(bytearray(size))
    one.read(at, size, lambda there: room[there:])
    return bytes(room[: one.size - at])


def whole(one: Ranges) -> bool:
    """Read in windows, and compare."""
    return all(
        read(one, at, WINDOW) == DATA[at : at + WINDOW] for at in range(0, len(DATA), WINDOW)
    )


def test_an_open_registry(opened: tuple[Registry, str]) -> None:
    registry, digest = opened
    one = source(digest, registry.host)
    assert whole(one) and one.requests == 4
    with pytest.raises(UdiError, match="it answers 404"):
        read(source("sha256:" + "0" * 64, registry.host), 0, 10)


def test_a_registry_with_passwords(tmp_path: Path, opened: tuple[Registry, str]) -> None:
    _, digest = opened
    with basic_registry(tmp_path / "basic", data_of(opened)) as registry:
        assert whole(source(digest, registry.host, known=True))
        with pytest.raises(UdiError, match="access denied"):
            read(source(digest, registry.host), 0, 10)


def data_of(opened: tuple[Registry, str]) -> Path:
    config = Path(opened[0]._log.name).with_name("config.yml").read_text()
    return Path(config.partition("rootdirectory: ")[2].partition("}")[0])


@pytest.fixture
def tokens(
    tmp_path: Path, opened: tuple[Registry, str]
) -> Iterator[tuple[Flaky, TokenServer, str]]:
    """A registry that wants tokens, behind a proxy that may refuse them; the token server."""
    with (
        token_registry(tmp_path / "token", data_of(opened)) as (registry, server),
        flaky(registry.host) as one,
    ):
        yield one, server, opened[1]


def test_a_token_is_fetched_once(tokens: tuple[Flaky, TokenServer, str]) -> None:
    one, server, digest = tokens
    assert whole(source(digest, one.host)) and len(server.asked) == 1


@pytest.mark.parametrize("status", (401, 403))
def test_a_token_that_dies_early_is_renewed(
    tokens: tuple[Flaky, TokenServer, str], status: int
) -> None:
    """After one window the registry takes that token no more."""
    one, server, digest = tokens
    dead: set[str] = set()

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        given = request.headers.get("Authorization", "")
        if "/blobs/" not in path or not given:
            return False
        if given in dead:
            request.answer(status)
            return True
        dead.add(given)
        return False

    one.rule = rule
    assert whole(source(digest, one.host))
    assert len(server.asked) == 4


def test_signed_urls(tokens: tuple[Flaky, TokenServer, str]) -> None:
    """The object store is sent no token, is asked directly while its signature holds, and the
    registry again when it has expired."""
    one, _, digest = tokens
    with serving(DATA) as store:
        host = store.url.rpartition("/")[0]

        def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
            if "/blobs/" not in path or not request.headers.get("Authorization"):
                return False
            request.answer(307, Location=f"{host}/signed?by={len(proxy.log)}")
            return True

        one.rule = rule
        # The second signature expires after two windows.
        store.fault = lambda number, *_: "expired" if number == 3 else ""
        assert whole(source(digest, one.host))
        assert len([path for path, _, given in one.log if "/blobs/" in path and given]) == 2
        assert [at for at, _ in store.asked] == [0, WINDOW, 2 * WINDOW, 2 * WINDOW, 3 * WINDOW]
        assert all("Authorization" not in headers for headers in store.headers)


def test_what_one_mirror_lacks_another_has(opened: tuple[Registry, str]) -> None:
    registry, digest = opened
    with flaky(registry.host) as lying, closed_port() as port:
        lying.rule = always(404)
        assert whole(source(digest, f"127.0.0.1:{port}", lying.host, registry.host))


def test_a_mirror_that_dies(opened: tuple[Registry, str]) -> None:
    registry, digest = opened
    with flaky(registry.host) as mirror:
        one = source(digest, mirror.host, registry.host)
        assert read(one, 0, 10) == DATA[:10]
        mirror.rule = always(503)
        assert whole(one)


@pytest.mark.parametrize("shown", ("3600", "Fri, 31 Dec 2199 23:59:59 GMT"))
def test_who_asks_to_come_back_much_later_is_given_up(
    opened: tuple[Registry, str], shown: str
) -> None:
    """At once: the site's time would be over."""
    registry, digest = opened
    with flaky(registry.host) as one:
        one.rule = always(429, shown)
        with pytest.raises(UdiError, match=r"it answers 429 \(600 s\)"):
            read(source(digest, one.host, timeout=600), 0, 10)


def test_a_blob_that_has_another_size(opened: tuple[Registry, str]) -> None:
    registry, digest = opened
    one = source(digest, registry.host)
    one.size -= 1
    with pytest.raises(UdiError, match="the file there has changed"):
        read(one, 0, 10)


def test_a_registry_that_is_started_anew(tmp_path: Path, opened: tuple[Registry, str]) -> None:
    """Connections that were kept are of the old one."""
    _, digest = opened
    with open_registry(tmp_path / "first", data_of(opened)) as first, flaky(first.host) as front:
        one = source(digest, front.host)
        assert read(one, 0, WINDOW) == DATA[:WINDOW]
        first.close()
        with open_registry(tmp_path / "second", data_of(opened)) as second:
            front.target = second.host
            assert whole(one)


def test_https_proxy_and_no_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cert, key = certificate(tmp_path, "site")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with serving(DATA, (cert, key)) as server:
        target = urllib.parse.urlsplit(server.url).netloc
        with proxy("http", target, tmp_path) as one:
            monkeypatch.setenv("https_proxy", one.url)
            url = server.url.replace("127.0.0.1", "registry.invalid")
            assert whole(Ranges(Web(url, 20), 20))
            assert set(one.asked) == {urllib.parse.urlsplit(url).netloc}
            one.asked.clear()
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            assert whole(Ranges(Web(server.url, 20), 20)) and not one.asked


@contextmanager
def nginx(folder: Path, root: Path, cert: Path, key: Path) -> Iterator[str]:
    """nginx as an ordinary user, with TLS; yield its URL. It ends with the block."""
    temporary = "".join(
        f"{kind}_temp_path {folder}/{kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        config.write_text(
            f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;"
            f"events {{}} http {{ {temporary} access_log off; server {{ "
            f"listen 127.0.0.1:{port} ssl; ssl_certificate {cert}; ssl_certificate_key {key}; "
            f"root {root}; }} }}"
        )
        path = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
        argv = [str(path), "-c", str(config), "-e", str(folder / "early.log")]
        # As in its own upgrades: it takes the socket, on which clients may wait already.
        env = {**os.environ, "NGINX": f"{sock.fileno()};"}
        process = subprocess.Popen(argv, env=env, pass_fds=[sock.fileno()])
    try:
        yield f"https://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


@pytest.mark.needs("nginx")
def test_nginx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain https with ranges, and a file that is exchanged meanwhile."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.sqfs").write_bytes(DATA)
    cert, key = certificate(tmp_path, "site")
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    with nginx(tmp_path, root, cert, key) as url:
        one = Ranges(Web(f"{url}/a.sqfs", 60), 60)
        assert whole(one)
        (root / "new").write_bytes(DATA[::-1])
        os.utime(root / "new", (1, 1))  # nginx's ETag is made of time and size
        os.replace(root / "new", root / "a.sqfs")
        with pytest.raises(UdiError, match="the file there has changed"):
            read(one, 0, 10)
