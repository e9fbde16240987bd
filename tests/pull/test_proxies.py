"""Pulls through real proxies of each kind, to a registry by http and by https."""

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.pull.http import Transport
from rootless_udi.pull.stop import Stop, Stopped
from tests.kit import images
from tests.kit.proxies import Proxy, proxy
from tests.kit.registry import Registry, open_registry, tls_registry
from tests.pull.test_registry import BIG, endpoint, whole

pytestmark = pytest.mark.needs("registry", "skopeo")

KINDS = ("http", "https", "socks5h")
NAME = "registry.invalid"
"""Which no resolver knows (RFC 2606): what answers came through the proxy."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("proxies")
    images.Layout(folder / "layout").image("1", [images.tar([("big", BIG, {})])])
    return folder


@pytest.fixture(scope="module")
def plain(place: Path) -> Iterator[Registry]:
    with open_registry(place / "plain", place / "data") as one:
        one.push(place / "layout", "1", "public/big:1")
        yield one


@pytest.fixture(scope="module")
def tls(plain: Registry, place: Path) -> Iterator[tuple[Registry, Path]]:
    with tls_registry(place / "tls", place / "data") as found:
        yield found


def trusted(one: Proxy, *more: Path) -> str:
    """Return a file with the certificates of a proxy and of others."""
    own = getattr(one, "cert", None)
    found = [path for path in (own, *more) if path is not None]
    target = Path(more[0].parent if more else own.parent, "trusted.pem")  # type: ignore[union-attr]
    target.write_text("".join(path.read_text() for path in found))
    return str(target)


@pytest.mark.parametrize("user", ["", "udi@site:a:b"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_registry_by_https(
    kind: str,
    user: str,
    tls: tuple[Registry, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    registry, cert = tls
    with proxy(kind, registry.host, tmp_path / "proxy", user) as one:
        url = one.url.replace("udi@site", "udi%40site")
        monkeypatch.setenv("https_proxy", url)
        monkeypatch.setenv("SSL_CERT_FILE", trusted(one, cert))
        whole(endpoint(NAME))
        assert set(one.asked) == {f"{NAME}:443"}
        assert set(one.given) == ({user} if user else set())


@pytest.mark.parametrize("kind", KINDS)
def test_a_registry_by_http(
    kind: str, plain: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy(kind, plain.host, tmp_path / "proxy", "udi:secret") as one:
        monkeypatch.setenv("http_proxy", one.url)
        if kind == "https":
            monkeypatch.setenv("SSL_CERT_FILE", str(one.cert))
        whole(endpoint(f"http://{NAME}"))
        tunnel, request = f"{NAME}:80", f"http://{NAME}/v2/"
        assert one.asked[0] == (tunnel if kind == "socks5h" else request)
        assert set(one.given) == {"udi:secret"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_password_is_the_proxys_refusal(
    kind: str, tls: tuple[Registry, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, cert = tls
    with proxy(kind, registry.host, tmp_path / "proxy", "udi:secret") as one:
        monkeypatch.setenv("https_proxy", one.url.replace("secret", "wrong"))
        monkeypatch.setenv("SSL_CERT_FILE", trusted(one, cert))
        with pytest.raises(UdiError, match="the proxy refused: Tunnel connection") as caught:
            endpoint(NAME).manifest("1")
        assert "wrong" not in str(caught.value)
        monkeypatch.setenv("https_proxy", one.url.replace("udi:secret@", ""))
        with pytest.raises(UdiError, match="the proxy refused: Tunnel connection"):
            endpoint(NAME).manifest("1")


def test_what_a_socks_proxy_forbids(
    plain: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy("socks5h", plain.host, tmp_path) as one:
        monkeypatch.setenv("all_proxy", one.url)
        with pytest.raises(UdiError, match="its rules forbid it"):
            endpoint("http://forbidden.invalid").manifest("1")
        # Addresses go as such.
        whole(endpoint("http://192.0.2.1"))
        whole(endpoint("http://[2001:db8::1]"))
        assert set(one.asked) == {"forbidden.invalid:80", "192.0.2.1:80", "2001:db8::1:80"}


def test_an_https_proxy_that_is_not_trusted(
    tls: tuple[Registry, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with --insecure, which is said of the registry."""
    registry, cert = tls
    with proxy("https", registry.host, tmp_path / "proxy") as one:
        monkeypatch.setenv("https_proxy", one.url)
        monkeypatch.setenv("SSL_CERT_FILE", str(cert))
        for insecure in (False, True):
            with pytest.raises(UdiError, match="certificate is not trusted"):
                endpoint(f"https://{NAME}", insecure=insecure).manifest("1")
        assert not one.asked


def test_no_proxy_with_a_wildcard_leaves_it_aside(
    plain: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy("http", plain.host, tmp_path) as one:
        monkeypatch.setenv("http_proxy", one.url)
        monkeypatch.setenv("no_proxy", "other.example,*.invalid")
        with pytest.raises(UdiError, match="the host name is not known"):
            endpoint(f"http://{NAME}").manifest("1")
        assert not one.asked
        monkeypatch.setenv("no_proxy", "*.example")
        whole(endpoint(f"http://{NAME}"))
        assert one.asked


@pytest.mark.parametrize("kind", ["", *KINDS])
def test_what_is_silent_can_be_stopped(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by Control-C: while a proxy's first answer is awaited, or the server's own (no kind)."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        at = f"127.0.0.1:{server.getsockname()[1]}"
        if kind:
            monkeypatch.setenv("https_proxy", f"{kind}://{at}")
        stop = Stop()
        found: list[BaseException] = []

        def get() -> None:
            try:
                Transport(stop).get(f"https://{NAME if kind else at}/", {})
            except BaseException as error:
                found.append(error)

        thread = threading.Thread(target=get)
        thread.start()
        waiting, _ = server.accept()
        with waiting:
            assert waiting.recv(1)  # it has asked, and waits
            stop.set()
            thread.join(60)
        assert not thread.is_alive()
        assert isinstance(found[0], Stopped)
