"""The registry client against real registries: authentication, TLS, proxies, breaks, redirects."""

import contextlib
import json
import random
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.pull import http
from rootless_udi.pull import registry as client
from rootless_udi.pull.credentials import Credentials
from rootless_udi.pull.http import Transport
from rootless_udi.pull.manifest import OCI_MANIFEST, Descriptor
from rootless_udi.pull.proxies import Proxies
from rootless_udi.pull.registry import Endpoint, Missing, WrongContent
from rootless_udi.pull.retry import Patience, retry_after
from rootless_udi.pull.stop import Stop, Stopped
from tests.kit import images
from tests.kit.registry import (
    PASSWORD,
    USER,
    Flaky,
    Quiet,
    Registry,
    TokenServer,
    basic_registry,
    closed_port,
    flaky,
    open_registry,
    tls_registry,
    token_registry,
)

pytestmark = pytest.mark.needs("registry", "skopeo")

QUICK = Patience(attempts=3, first=0.01, longest=0.02)
BIG = random.Random(1).randbytes(2 << 20)
"""Many pieces of what is read at once, and no smaller when skopeo compresses it."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("registry")


@pytest.fixture(scope="module")
def opened(place: Path) -> Iterator[Registry]:
    with open_registry(place / "open", place / "data") as one:
        layout = images.Layout(place / "layout")
        layer = images.tar([("big", BIG, {})])
        layout.image("latest", [layer], compress=lambda data: data, suffix="")
        one.push(place / "layout", "latest", "public/big:1")
        one.push(place / "layout", "latest", "private/big:1")
        yield one


@pytest.fixture
def proxy(opened: Registry) -> Iterator[Flaky]:
    with flaky(opened.host) as one:
        yield one


def endpoint(
    host: str,
    name: str = "public/big",
    credentials: Credentials | None = None,
    insecure: bool = False,
    notes: list[str] | None = None,
) -> Endpoint:
    note = (lambda text: None) if notes is None else notes.append
    transport = Transport(Stop())
    return Endpoint(host, name, transport, QUICK, insecure, note, lambda *_: credentials)


def layer_of(one: Endpoint, tag: str = "1") -> Descriptor:
    body, media = one.manifest(tag)
    assert media == OCI_MANIFEST
    found = json.loads(body)["layers"][0]
    return Descriptor(found["mediaType"], found["digest"], found["size"])


class Body:
    """Takes a blob."""

    def __init__(self, have: bytes = b"") -> None:
        self.data = bytearray(have)
        self.restarts = 0

    def write(self, data: bytes, offset: int) -> None:
        assert offset == len(self.data)
        self.data += data

    def restart(self) -> None:
        self.restarts += 1
        self.data.clear()

    def take(self, one: Endpoint, layer: Descriptor) -> bytes:
        one.blob(layer, len(self.data), self.write, self.restart)
        return bytes(self.data)


def whole(one: Endpoint) -> None:
    layer = layer_of(one)
    client.check(Body().take(one, layer), layer.digest, "it")


def test_open_registry(opened: Registry) -> None:
    one = endpoint(opened.host)
    whole(one)
    body, _ = one.manifest("1")
    config = json.loads(body)["config"]
    document = one.document(Descriptor("", config["digest"], config["size"]), "config")
    assert json.loads(document)["architecture"] == "amd64"


def test_what_is_not_there(opened: Registry) -> None:
    with pytest.raises(Missing) as caught:
        endpoint(opened.host).manifest("2")
    assert caught.value.message == (
        f"pulling {opened.host}/public/big:2: not found: manifest unknown (MANIFEST_UNKNOWN)"
    )
    with pytest.raises(Missing, match="not found"):
        endpoint(opened.host, "public/none").manifest("1")
    with pytest.raises(Missing, match="BLOB_UNKNOWN"):
        digest = "sha256:" + "0" * 64
        Body().take(endpoint(opened.host), Descriptor("", digest, 5))


def test_basic_authentication(opened: Registry, place: Path) -> None:
    with basic_registry(place / "basic", place / "data") as one:
        whole(endpoint(one.host, credentials=Credentials(USER, PASSWORD, "", "here")))
        with pytest.raises(UdiError, match="access denied") as caught:
            endpoint(one.host).manifest("1")
        assert f"`udi login {one.host}`" in caught.value.hint
        wrong = Credentials(USER, "wrong", "", "/some/file")
        with pytest.raises(UdiError, match="access denied to udi") as caught:
            endpoint(one.host, credentials=wrong).manifest("1")
        assert "/some/file" in caught.value.hint


@pytest.fixture(scope="module")
def tokens(opened: Registry, place: Path) -> Iterator[tuple[Registry, TokenServer]]:
    with token_registry(place / "token", place / "data") as pair:
        yield pair


def test_tokens(tokens: tuple[Registry, TokenServer]) -> None:
    one, server = tokens
    whole(endpoint(one.host))
    whole(endpoint(one.host, "private/big", Credentials(USER, PASSWORD, "", "here")))
    whole(endpoint(one.host, "private/big", Credentials("", "", server.identity, "here")))
    asked = server.asked[-1][1]
    assert asked["grant_type"] == ["refresh_token"]
    assert asked["scope"] == ["repository:private/big:pull"]
    with pytest.raises(UdiError, match="access denied: authentication required"):
        endpoint(one.host, "private/big").manifest("1")
    with pytest.raises(UdiError, match="access denied to udi"):
        endpoint(one.host, "private/big", Credentials(USER, "wrong", "", "here")).manifest("1")


@pytest.mark.parametrize(
    "scope",
    ["repository:user/image:pull", "repository::pull", "", "registry:catalog:*", "a b c", '\\"'],
)
def test_a_scope_of_the_ping_is_not_the_images(
    tokens: tuple[Registry, TokenServer], scope: str
) -> None:
    """GHCR and zot name a placeholder there; the server gives a token that is good for nothing."""
    one, server = tokens
    with flaky(one.host) as proxy:

        def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
            if path != "/v2/":
                return False
            challenge = f'Bearer realm="{server.realm}",service="udi-registry",scope="{scope}"'
            request.answer(401, b"", WWW_Authenticate=challenge)
            return True

        proxy.rule = rule
        before = len(server.asked)
        whole(endpoint(proxy.host))
        whole(endpoint(proxy.host, "private/big", Credentials(USER, PASSWORD, "", "here")))
        asked = [query["scope"] for _, query in server.asked[before:]]
        assert asked == [["repository:public/big:pull"], ["repository:private/big:pull"]]


def test_no_more_is_asked_for_than_to_pull_the_repository(
    tokens: tuple[Registry, TokenServer],
) -> None:
    """Whatever the answer to a request names as its scope, which a redirect may have chosen."""
    one, server = tokens
    more = "repository:public/big:pull,push repository:public/base:pull,delete registry:catalog:*"
    with flaky(one.host) as proxy:
        first = True

        def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
            nonlocal first
            if path == "/v2/":
                request.answer(200)
                return True
            if first:
                first = False
                challenge = f'Bearer realm="{server.realm}",service="udi-registry",scope="{more}"'
                request.answer(401, b"", WWW_Authenticate=challenge)
                return True
            return False

        proxy.rule = rule
        whole(endpoint(proxy.host))
        assert server.asked[-1][1]["scope"] == ["repository:public/big:pull"]


def test_a_token_that_runs_out_in_mid_pull(tokens: tuple[Registry, TokenServer]) -> None:
    one, server = tokens
    with flaky(one.host) as proxy:
        end = endpoint(proxy.host)
        layer = layer_of(end)
        before = len(server.asked)
        stale = True

        def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
            nonlocal stale
            if "/blobs/" not in path or not stale:
                return False
            stale = False
            challenge = (
                f'Bearer realm="{server.realm}",service="udi-registry",error="invalid_token"'
            )
            request.answer(401, b"", WWW_Authenticate=challenge)
            return True

        proxy.rule = rule
        Body().take(end, layer)
        assert len(server.asked) == before + 1
        used = [given for path, _, given in proxy.log if "/blobs/" in path]
        assert used[0] != used[1]


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_token_that_dies_before_its_time(
    tokens: tuple[Registry, TokenServer], status: int
) -> None:
    """The registry may say so by another status, and name another token server by then."""
    one, server = tokens
    with flaky(one.host) as proxy:
        end = endpoint(proxy.host, "private/big", Credentials(USER, PASSWORD, "", "here"))
        layer = layer_of(end)
        before = len(server.asked)
        old = proxy.log[-1][2]
        elsewhere = f'Bearer realm="http://{proxy.host}/elsewhere",service="other"'

        def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
            if request.headers["Authorization"] != old:
                return False
            request.answer(status, b"", WWW_Authenticate=elsewhere)
            return True

        proxy.rule = rule
        Body().take(end, layer)
        assert len(server.asked) == before + 1
        assert not proxy.paths("/elsewhere")

        def never(proxy: Flaky, request: Quiet, path: str) -> bool:
            request.answer(status, b"", WWW_Authenticate=elsewhere)
            return True

        # One that is refused at once has not run out.
        proxy.rule = never
        with pytest.raises(UdiError):
            Body().take(end, layer)
        assert len(server.asked) <= before + 3
        assert not proxy.paths("/elsewhere")


def test_tokens_that_are_refused_always_end(tokens: tuple[Registry, TokenServer]) -> None:
    one, server = tokens
    server.lifetime = 0
    try:
        with pytest.raises(UdiError, match="access denied"):
            endpoint(one.host).manifest("1")
    finally:
        server.lifetime = 60


def test_tls(opened: Registry, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_registry(place / "tls", place / "data") as (one, cert):
        # Loopback is tried in plain first; the registry says that it wants TLS.
        with pytest.raises(UdiError, match="certificate is not trusted: self") as caught:
            endpoint(one.host).manifest("1")
        assert "SSL_CERT_FILE" in caught.value.hint
        whole(endpoint(one.host, insecure=True))
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        whole(endpoint(one.host))
        monkeypatch.delenv("SSL_CERT_FILE")
        folder = place / "home/.config/containers/certs.d" / one.host
        folder.mkdir(parents=True)
        (folder / "site.crt").write_bytes(cert.read_bytes())
        transport = Transport(Stop(), {"HOME": str(place / "home")})
        Endpoint(one.host, "public/big", transport, QUICK).manifest("1")
        (folder / "site.crt").write_text("nonsense")
        transport = Transport(Stop(), {"HOME": str(place / "home")})
        with pytest.raises(UdiError, match=r"loading certificates failed on .*certs\.d"):
            Endpoint(one.host, "public/big", transport, QUICK).manifest("1")


def test_a_proxy_and_its_exceptions(proxy: Flaky, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", f"http://u%40x:p@{proxy.host}")
    host = "registry.invalid"
    given = []

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        given.append((request.path, request.headers["Proxy-Authorization"]))
        return False

    proxy.rule = rule
    whole(endpoint(f"http://{host}"))
    assert given[0] == (f"http://{host}/v2/", "Basic dUB4OnA=")
    # insecure: TLS first, by CONNECT, which this proxy refuses; there is no other way than plain.
    monkeypatch.setenv("https_proxy", f"http://{proxy.host}")
    whole(endpoint(host, insecure=True))
    assert f"CONNECT {host}:443" in [path for path, _, _ in proxy.log]
    with pytest.raises(UdiError, match=r"the proxy refused: .*403") as caught:
        endpoint(host).manifest("1")
    assert "no_proxy" in caught.value.hint
    monkeypatch.setenv("no_proxy", "other,.invalid")
    with pytest.raises(UdiError, match="the host name is not known"):
        endpoint(f"http://{host}").manifest("1")


@pytest.mark.parametrize(
    ("words", "direct", "proxied"),
    [
        ("*.site.edu", "r.site.edu a.b.site.edu R.SITE.EDU", "site.education xsite.edu other"),
        (".site.edu", "r.site.edu", "xsite.edu"),
        ("site.edu", "site.edu r.site.edu r.site.edu.", "r.site.edu.evil"),
        ("a.example, *.site.edu ,b.example", "a.example x.site.edu b.example", "c.example"),
        ("a.example b.example", "a.example b.example", "c.example"),
        ("*", "anything.example 192.0.2.1", ""),
        ("r.site.edu:8443", "", "r.site.edu"),
        ("*.site.edu:443,[2001:db8::1]:443", "r.site.edu 2001:db8::1", "2001:db8::2"),
        ("2001:db8::/32", "2001:db8::7", "2001:db9::1"),
        ("192.0.2.0/24,10.0.0.1", "192.0.2.9 10.0.0.1", "192.0.3.1 10.0.0.11"),
        (",, ., .,:443", "", "a.example"),
    ],
)
def test_whom_no_proxy_names(
    words: str, direct: str, proxied: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", words)
    one = Proxies()
    assert [host for host in direct.split() if one.of("https", host, 443)] == []
    assert [host for host in proxied.split() if not one.of("https", host, 443)] == []


def test_no_proxy_by_network(opened: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "192.0.2.0/24")
    one = Proxies()
    assert one.of("http", "192.0.2.7", 80) == ""
    assert one.of("http", "198.51.100.7", 80) == "http://127.0.0.1:1"
    # This machine is never asked through a proxy.
    whole(endpoint(opened.host))


@pytest.mark.parametrize(
    "url",
    [
        "socks5://proxy.invalid:1080",
        "ftp://u:p@proxy.invalid",
        "https://u:p@proxy.invalid:0",
        "http://u:p@proxy.invalid:port",
        "http://proxy.invalid:99999999",
        "http://[::1",
        "http://",
    ],
)
def test_other_proxies_are_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", url)
    with pytest.raises(UdiError, match="cannot use the proxy") as caught:
        endpoint("registry.invalid").manifest("1")
    assert "u:p" not in caught.value.message
    assert "http://, https:// and socks5h:// proxies" in caught.value.hint


def test_plain_http_elsewhere_wants_insecure(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UdiError, match="the host name is not known"):
        endpoint("registry.invalid").manifest("1")
    with closed_port() as port, pytest.raises(UdiError, match="Connection refused") as caught:
        endpoint(f"127.0.0.1:{port}").manifest("1")
    assert "check the host, the port" in caught.value.hint


def test_a_broken_connection_is_gone_on_with(proxy: Flaky) -> None:
    notes: list[str] = []
    one = endpoint(proxy.host, notes=notes)
    layer = layer_of(one)
    # More breaks than attempts: each brings the download forward.
    proxy.cut, proxy.cuts = 300_000, 6
    client.check(Body().take(one, layer), layer.digest, "it")
    ranges = [asked for path, asked, _ in proxy.log if "/blobs/" in path]
    assert ranges == ["", *(f"bytes={300_000 * n}-" for n in range(1, 7))]
    assert len(notes) == 6
    assert "the connection broke after 300.0 kB of" in notes[0]


def test_a_connection_that_always_breaks_half_way(proxy: Flaky) -> None:
    """Each brings half of what is missing: that ends, however little the last halves are."""
    one = endpoint(proxy.host)
    layer = layer_of(one)
    data = Body().take(one, layer)

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        start = int((request.headers["Range"] or "bytes=0-")[6:-1])
        request.send_response(206 if start else 200)
        request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(data[start : start + (len(data) - start + 1) // 2])
        request.close_connection = True
        return True

    proxy.rule = rule
    assert Body().take(one, layer) == data


def test_a_connection_that_always_breaks_ends(proxy: Flaky) -> None:
    one = endpoint(proxy.host)
    layer = layer_of(one)
    proxy.cut, proxy.cuts = 0, 100
    with pytest.raises(UdiError, match=r"broke after 0 B of \S+ MB \(3 attempts\)"):
        Body().take(one, layer)


@pytest.mark.parametrize("manner", ["ignored", "416", "206 from 0", "a byte each"])
def test_breaks_without_progress_end(proxy: Flaky, manner: str) -> None:
    """Bytes that were there before are no progress, whatever the registry makes of Range."""
    one = endpoint(proxy.host)
    layer = layer_of(one)
    data = Body().take(one, layer)
    proxy.log.clear()
    notes: list[str] = []
    one.note = notes.append
    asked = 0

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        nonlocal asked
        if "/blobs/" not in path:
            return False
        asked += 1
        start = int((request.headers["Range"] or "bytes=0-")[6:-1])
        if start and manner == "416":
            request.answer(416)
            return True
        sent = data[start : start + 1] if manner == "a byte each" else data[: len(data) // 2]
        partial = start and manner in ("206 from 0", "a byte each")
        request.send_response(206 if partial else 200)
        if partial:
            begin = start if manner == "a byte each" else 0
            request.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        request.send_header("Connection", "close")
        request.end_headers()
        request.wfile.write(sent)
        request.close_connection = True
        return True

    proxy.rule = rule
    with pytest.raises(UdiError, match=r"the connection broke after \S+ \w+ of \S+ MB \("):
        Body().take(one, layer)
    assert asked <= 10 and len(notes) <= 5


def test_going_on_where_an_earlier_pull_was_killed(proxy: Flaky) -> None:
    one = endpoint(proxy.host)
    layer = layer_of(one)
    data = Body().take(one, layer)
    body = Body(data[:1000])
    assert body.take(one, layer) == data
    assert proxy.log[-1][1] == "bytes=1000-"
    # A registry without Range sends all of it again.
    proxy.ranges = False
    body = Body(data[:1000])
    assert body.take(one, layer) == data
    assert body.restarts == 1
    proxy.ranges = True
    body = Body(data + b"more than there is")
    assert body.take(one, layer) == data + b"more than there is"


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (429, {"Retry_After": "0"}),
        (503, {}),
        (500, {"Retry_After": "Thu, 01 Jan 1970 00:00:00 GMT"}),
        (502, {"Retry_After": "soon"}),
        (504, {}),
    ],
)
def test_a_busy_registry_is_asked_again(proxy: Flaky, status: int, headers: dict[str, str]) -> None:
    failures = 2

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        nonlocal failures
        if path == "/v2/" or not failures:
            return False
        failures -= 1
        request.answer(status, b"busy", **headers)
        return True

    proxy.rule = rule
    notes: list[str] = []
    whole(endpoint(proxy.host, notes=notes))
    assert len(notes) == 2
    assert f"answers {status}" in notes[0]


def test_a_limit_that_stays_is_told(proxy: Flaky) -> None:
    body = b'{"errors": [{"code": "TOOMANYREQUESTS", "message": "you have reached your limit"}]}'

    after = "0"

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        request.answer(429, body, Retry_After=after)
        return True

    proxy.rule = rule
    match = r"answers 429: you have reached your limit \(TOOMANYREQUESTS\)"
    with pytest.raises(UdiError, match=match + r" \(3 attempts\)") as caught:
        endpoint(proxy.host).manifest("1")
    assert "udi login" in caught.value.hint
    after = "7200"
    with pytest.raises(UdiError, match=match + "; it asks to come back in 7200 s"):
        endpoint(proxy.host).manifest("1")


def test_retry_after() -> None:
    assert retry_after("12") == 12
    assert retry_after("Thu, 01 Jan 1970 00:02:00 GMT", now=60) == 60
    assert retry_after("Thu, 01 Jan 1970 00:00:00 GMT", now=60) == 0
    assert retry_after(None) is None
    assert retry_after("-1") is None
    for text in (
        "Mon, 01 Jan 0001 00:00:00 -0000",
        "Mon, 01 Jan 2030 00:00:00 +99999999999",
        "Mon, 01 Jan 9999 00:00:00 -2359",
        "Mon, 99 Jan 2030 99:99:99 GMT",
        ",",
        "9" * 5000,
    ):
        assert (retry_after(text, now=0) or 0.0) >= 0


def test_no_password_for_another_host(opened: Registry, place: Path) -> None:
    basic = basic_registry(place / "basic2", place / "data")
    with basic as one, flaky(one.host) as here, flaky(opened.host) as there:

        def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
            if "/blobs/" in path and "moved" not in path:
                request.answer(307, b"gone", Location=f"http://{there.host}{path}?moved=1")
                return True
            return False

        here.rule = rule
        whole(endpoint(here.host, credentials=Credentials(USER, PASSWORD, "", "here")))
        assert all(given for path, _, given in here.log if path != "/v2/")
        assert there.log and not any(given for _, _, given in there.log)


def test_a_redirect_to_the_same_host_keeps_it(opened: Registry, place: Path) -> None:
    with basic_registry(place / "basic3", place / "data") as one, flaky(one.host) as here:

        def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
            if "/blobs/" in path and "moved" not in path:
                request.answer(302, b"", Location=f"{path}?moved=1")
                return True
            return False

        here.rule = rule
        whole(endpoint(here.host, credentials=Credentials(USER, PASSWORD, "", "here")))
        assert here.log[-1][0].endswith("?moved=1") and here.log[-1][2]


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("", "redirects to nowhere"),
        ("ftp://x/y", "is no http or https URL"),
        ("http://[x/", "failed: "),
        ("/v2/", "more than 10 redirects"),
    ],
)
def test_bad_redirects(proxy: Flaky, location: str, message: str) -> None:
    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        request.answer(307, b"", Location=location)
        return True

    proxy.rule = rule
    with pytest.raises(UdiError, match=message):
        endpoint(proxy.host).manifest("1")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[:-1], r"announced with \d+ bytes, its descriptor says"),
        (lambda b: b + b"x", r"announced with \d+ bytes, its descriptor says"),
        (lambda b: b"x", "announced with 1 byte, its descriptor says"),
    ],
)
def test_blobs_of_another_size(proxy: Flaky, change: object, message: str) -> None:
    one = endpoint(proxy.host)
    layer = layer_of(one)
    proxy.alter = lambda path, body: change(body) if "/blobs/" in path else body  # type: ignore[operator]
    with pytest.raises(WrongContent, match=message):
        Body().take(one, layer)


@pytest.mark.parametrize("small", [False, True])
def test_never_more_than_the_descriptor_says(proxy: Flaky, small: bool) -> None:
    one = endpoint(proxy.host)
    layer = layer_of(one)
    layer = layer.replace(size=1) if small else layer
    most = "1 byte" if small else f"{layer.size} bytes"

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        if "/blobs/" not in path:
            return False
        request.send_response(200)
        request.send_header("Connection", "close")
        request.end_headers()
        # Without an end: the client must be the one who stops.
        for _ in range(10_000):
            request.wfile.write(BIG)
        return True

    proxy.rule = rule
    with pytest.raises(WrongContent, match=f"is longer than {most}$"):
        Body().take(one, layer)


def test_documents_are_bounded_and_checked(proxy: Flaky) -> None:
    proxy.alter = lambda path, body: b" " * (5 << 20)
    with pytest.raises(UdiError, match=r"the answer has more than 4\.2 MB"):
        endpoint(proxy.host).manifest("1")
    proxy.alter = lambda path, body: b"{}"
    digest = "sha256:" + "0" * 64
    with pytest.raises(WrongContent, match=f"its digest is sha256:44136.*, wanted is {digest}"):
        one = endpoint(proxy.host)

        def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
            request.answer(200, b"{}")
            return True

        proxy.rule = rule
        one.manifest(digest)
    with pytest.raises(WrongContent, match="has 2 bytes, its descriptor says 5"):
        endpoint(proxy.host).document(Descriptor("", digest, 5), "config")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((401, b"", {"WWW_Authenticate": "Negotiate"}), "authentication by negotiate is not"),
        ((401, b"", {}), "access denied"),
        ((403, b"{}", {}), "access denied"),
        ((418, b'{"errors": [{"message": "no\\ncoffee"}]}', {}), "answers 418: no coffee"),
        ((400, b"\xff", {}), "answers 400"),
    ],
)
def test_other_refusals(
    proxy: Flaky, answer: tuple[int, bytes, dict[str, str]], message: str
) -> None:
    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        if path == "/v2/" and answer[0] != 401:
            return False
        request.answer(answer[0], answer[1], **answer[2])
        return True

    proxy.rule = rule
    with pytest.raises(UdiError, match=message):
        endpoint(f"http://{proxy.host}").manifest("1")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((200, b"nonsense"), "is no token"),
        ((200, b"[]"), "is no token"),
        ((200, b'{"token": 5}'), "is no token"),
        ((200, b'{"token": "a\\nb"}'), "is no token"),
        ((200, b'{"token": "a b"}'), "is no token"),
        ((200, b'{"token": "a\\u0100b"}'), "is no token"),
        ((200, b'{"token": "a\\u00e9b"}'), "is no token"),
        ((200, b'{"token": "a\\ud800"}'), "is no token"),
        ((200, b'{"token": ""}'), "is no token"),
        ((200, b'{"token": "a", "expires_in": 1%s}' % (b"0" * 400)), "is no token"),
        ((200, b'{"token": "a", "expires_in": [1]}'), "is no token"),
        ((200, b"[" * 500_000), "is no token"),
        ((307, b""), "redirects to nowhere"),
        ((404, b""), "answers 404"),
        ((403, b""), "access denied"),
        ((503, b""), r"the token server answers 503 \(3 attempts\)"),
    ],
)
def test_token_servers_that_answer_nonsense(
    proxy: Flaky, answer: tuple[int, bytes], message: str
) -> None:
    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        if path.startswith("/token"):
            request.answer(*answer)
        else:
            realm = f'Bearer realm="http://{proxy.host}/token"'
            request.answer(401, b"", WWW_Authenticate=realm)
        return True

    proxy.rule = rule
    with pytest.raises(UdiError, match=message):
        endpoint(proxy.host).manifest("1")


@pytest.mark.parametrize("manner", ["100 for ever", "a header for ever", "a document for ever"])
def test_an_answer_that_never_ends(
    proxy: Flaky, manner: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then keeps a socket's own timeout from ever being reached."""

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        head, again = {
            "100 for ever": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            "a header for ever": (b"HTTP/1.1 200 OK\r\nA: ", b"b"),
            "a document for ever": (b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n", b" "),
        }[manner]
        request.connection.sendall(head)
        with contextlib.suppress(OSError):
            while True:
                request.connection.sendall(again)
                # Not to be read as fast as it is sent: the client's side of it is what is tried.
                select.select([request.connection], [], [], 0.005)
        request.close_connection = True
        return True

    one = endpoint(proxy.host)
    one.verify("it")
    monkeypatch.setattr(http, "ANSWER_SECONDS", 0.2)
    proxy.rule = rule
    with pytest.raises(UdiError, match=r"no answer in time \(3 attempts\)"):
        one.manifest("1")


def test_a_blob_that_comes_too_slowly_is_given_up(
    proxy: Flaky, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = endpoint(proxy.host)
    layer = layer_of(one)
    # So short that whatever arrives is too slow.
    monkeypatch.setattr(client, "ANSWER_SECONDS", -1.0)
    with pytest.raises(UdiError, match=r"comes too slowly: 0 B of \S+ \w+ \(3 attempts\)"):
        Body().take(one, layer)


def test_stopping_ends_a_wait_for_the_network(proxy: Flaky) -> None:
    stop = Stop()
    one = Endpoint(proxy.host, "public/big", Transport(stop), QUICK, lookup=lambda *_: None)
    layer = layer_of(one)

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        # The answer never comes; the pull is given up meanwhile.
        stop.set()
        request.rfile.read(1)
        return True

    proxy.rule = rule
    with pytest.raises(Stopped):
        Body().take(one, layer)


def test_stopping_while_a_connection_is_made() -> None:
    """There is no socket yet that could be shut; the connection must not be waited on after."""
    stop = Stop()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            connection, _ = server.accept()
            stop.set()
            connection.recv(1 << 16)
            connection.recv(1)  # until the other side goes away
            connection.close()

        thread = threading.Thread(target=accept)
        thread.start()
        with pytest.raises(Stopped):
            Transport(stop).get(f"http://127.0.0.1:{server.getsockname()[1]}/", {})
        thread.join(60)
        assert not thread.is_alive()


def test_stopping_ends_a_body_that_ends_with_its_connection() -> None:
    """http.client forgets the socket of such a reply."""
    stop = Stop()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            connection.recv(1 << 16)
            connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nsome")
            stop.set()
            connection.recv(1)
            connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        with pytest.raises(Stopped):
            reply = Transport(stop).get(f"http://127.0.0.1:{server.getsockname()[1]}/", {})
            while reply.read_some(4):
                pass
            stop.check()
        thread.join(60)
        assert not thread.is_alive()
