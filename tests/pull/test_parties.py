"""Who is sent which secret, whatever anybody answers: every party, every answer.

The kind of CVE-2020-15157. What may be is written here once more, by hand, from SECURITY.md.
"""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.pull import parties
from rootless_udi.pull.http import Transport
from rootless_udi.pull.manifest import Descriptor
from rootless_udi.pull.registry import Endpoint
from rootless_udi.pull.retry import Patience
from rootless_udi.pull.stop import Stop
from tests.kit.parties import CONFIG, LAYER, PROXY_USER, Answer, Seen, World, basic, digest
from tests.kit.registry import Quiet, serve

SCOPE = "repository:app:pull"
QUICK = Patience(attempts=3, first=0.001, longest=0.002)
ANYTHING = "Basic realm=x, Digest realm=x"


def redirect(status: int) -> Answer:
    return lambda world, request: request.answer(
        status, b"", Location=world.url("thief", "/v2/there")
    )


def back_and_forth(world: World, request: Quiet) -> None:
    """To the registry, with a path of the redirect's own choice: it may not use our right there."""
    request.answer(307, b"", Location=world.url("registry", "/v2/secret/blobs/chosen"))


def asking(status: int, bearer: bool) -> Answer:
    def answer(world: World, request: Quiet) -> None:
        realm = f'Bearer realm="{world.url("thief", "/token")}",service="s",scope="a:b:c"'
        value = realm if bearer else ANYTHING
        request.answer(status, b"", WWW_Authenticate=value, Proxy_Authenticate=value)

    return answer


ANSWERS: dict[str, Answer] = {
    "200": lambda world, request: request.answer(200, b"{}"),
    **{str(status): redirect(status) for status in (300, 301, 302, 303, 304, 305, 307, 308)},
    "back": back_and_forth,
    **{f"{s}-basic": asking(s, False) for s in (400, 401, 403, 404, 407, 429, 500)},
    **{f"{s}-bearer": asking(s, True) for s in (400, 401, 403, 404, 407, 429, 500)},
}


def drive(world: World, identity: bool) -> None:
    """Do what a pull does, at the mirror and then at the registry, as far as it goes."""
    transport = Transport(Stop())
    for party in ("mirror", "registry"):
        one = Endpoint(
            world.url(party),
            "app",
            transport,
            QUICK,
            lookup=lambda host, _: world.credentials(host, identity),
        )
        for ask in (
            lambda: one.manifest("1"),  # noqa: B023
            lambda: one.document(Descriptor("", digest(CONFIG), len(CONFIG)), "config"),  # noqa: B023
            lambda: one.blob(  # noqa: B023
                Descriptor("", digest(LAYER), len(LAYER)), 0, lambda *_: None, lambda: None
            ),
        ):
            try:
                ask()
            except UdiError:
                pass
    transport.close()


def allowed(world: World, one: Seen, evil: str, answer: str) -> set[str]:
    """Return the values of Authorization that this request may have."""
    found = {""}
    for owner in ("registry", "mirror"):
        password = basic(f"user-of-{owner}:password-of-{owner}")
        if one.party == owner:
            found.add(f"Bearer token-of-{owner}")
            # What a token server gives is the registry's; "stolen" is the thief's own word.
            found.add("Bearer stolen")
            if world.scheme == "basic" or (evil == owner and answer == "401-basic"):
                found.add(password)
        if one.party == "realm" and one.path.startswith(f"/{owner}?") and world.scheme != "basic":
            found.add(password)
        # A registry may name any token server for its own users: it has their passwords anyway.
        named = evil == owner and answer == "401-bearer"
        if named and one.party == "thief" and one.path.startswith("/token?"):
            found.add(password)
    return found


@pytest.fixture(params=["direct", "proxied"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("http_proxy", "https_proxy", "no_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield request.param


@pytest.mark.alike
@pytest.mark.parametrize("scheme", ["bearer", "identity", "basic"])
@pytest.mark.parametrize("evil", ["registry", "mirror", "realm", "cdn", "cdn2", "proxy"])
def test_every_answer_from_every_party(
    evil: str, scheme: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if evil == "proxy" and way == "direct":
        return
    world = World(way == "proxied", scheme)
    if world.proxied:
        monkeypatch.setenv("http_proxy", world.proxy)
    try:
        for answer, act in ANSWERS.items():
            for first in (1, 2, 3, 5):
                world.seen.clear()
                world.evil = evil, act, first
                drive(world, identity=scheme == "identity")
                for one in world.seen:
                    about = (answer, first, one)
                    proxy = basic(PROXY_USER) if one.party == "proxy" else ""
                    assert one.proxy_authorization == proxy, about
                    asked = parse_qs(urlsplit(one.path).query) | parse_qs(one.body)
                    assert asked.get("scope", [SCOPE]) == [SCOPE], about
                    if evil == "proxy":
                        continue  # over plain http it is whatever it says it is
                    if one.party != "proxy":
                        assert one.authorization in allowed(world, one, evil, answer), about
                    for owner in ("registry", "mirror"):
                        if f"identity-of-{owner}" in one.body:
                            named = one.party == "realm" and one.path == f"/{owner}"
                            named |= evil == owner and answer == "401-bearer"
                            assert named, about
    finally:
        world.close()


def test_the_world_works_where_nobody_is_evil(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the matrix would pass by sending nothing at all."""
    for scheme in ("bearer", "identity", "basic"):
        world = World(way == "proxied", scheme)
        if world.proxied:
            monkeypatch.setenv("http_proxy", world.proxy)
        try:
            drive(world, identity=scheme == "identity")
            assert sum(one.party == "cdn2" for one in world.seen) == 2
            secrets = [one.authorization + one.body for one in world.seen]
            wanted = {"identity": "identity-of-registry"}.get(
                scheme, basic("user-of-registry:password-of-registry")
            )
            assert any(wanted in text for text in secrets)
        finally:
            world.close()


def test_a_redirect_is_answered_by_asking_the_registry_again() -> None:
    """A signed address that has run out: the registry gives a new one, and the pull goes on."""
    world = World(False)
    try:
        refusals = 2

        def refuse_twice(world: World, request: Quiet) -> None:
            nonlocal refusals
            refusals -= 1
            if refusals < 0:
                request.answer(200, LAYER)
            else:
                asking(401, True)(world, request)

        world.evil = "cdn2", refuse_twice, 1
        one = Endpoint(
            world.host("registry"),
            "app",
            Transport(Stop()),
            QUICK,
            lookup=lambda host, _: world.credentials(host, False),
        )
        got = bytearray()
        layer = Descriptor("", digest(LAYER), len(LAYER))
        one.blob(layer, 0, lambda data, _: got.extend(data), got.clear)
        assert got == LAYER
        assert sum("/blobs/" in x.path for x in world.seen if x.party == "registry") == 3
        assert not [x for x in world.seen if x.party == "thief"]
        refusals = 100
        with pytest.raises(UdiError) as caught:
            one.blob(layer, 0, lambda *_: None, lambda: None)
        there = world.host("cdn2")
        assert f"redirects to {there}, which answers 401 (3 attempts)" in caught.value.message
    finally:
        world.close()


def test_a_detour_chooses_no_repository_for_the_token() -> None:
    """registry -> cdn -> registry: what the last one asks for is the cdn's choice."""
    world = World(False)
    try:
        secret = "repository:secret:push,delete"

        def registry(world: World, request: Quiet) -> None:
            if request.path.startswith("/v2/secret"):
                realm = f'Bearer realm="{world.url("realm", "/registry")}",scope="{secret}"'
                request.answer(401, b"", WWW_Authenticate=realm)
            elif request.path == "/v2/":
                request.answer(200)
            else:
                request.answer(307, b"", Location=world.url("cdn", "/blob"))

        world.evil = "registry", registry, 1
        world._cdn = lambda request, path, given: back_and_forth(world, request)  # type: ignore[method-assign]
        drive(world, identity=False)
        assert any(one.path.startswith("/v2/secret") for one in world.seen)
        asked = [one for one in world.seen if one.party == "realm"]
        assert not [one for one in asked if one.path.startswith("/registry")]
        assert not [one for one in world.seen if one.party == "registry" and one.authorization]
    finally:
        world.close()


@pytest.fixture
def over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a certificate that is believed for 127.0.0.1, and its key."""
    both = tmp_path / "both.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    argv += ["-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*argv, "-keyout", both, "-out", f"{both}.crt"], check=True, capture_output=True)
    both.write_bytes(both.read_bytes() + Path(f"{both}.crt").read_bytes())
    monkeypatch.setenv("SSL_CERT_FILE", f"{both}.crt")
    return both


@pytest.mark.parametrize(
    ("realm", "insecure", "reached"),
    [
        ("https://127.0.0.1", False, True),
        ("https://localhost", False, False),
        # Its certificate is no more believed because the registry's need not be.
        ("https://localhost", True, False),
        ("https://127.0.0.1 then http://localhost", False, False),
        ("HTTPS://127.0.0.1 then http://localhost", False, False),
        ("HTTPS://127.0.0.1 then http://localhost", True, False),
        ("HTTPS://127.0.0.1 then HTTP://127.0.0.1", True, True),
    ],
)
def test_insecure_is_said_of_one_host(
    over_tls: Path, realm: str, insecure: bool, reached: bool
) -> None:
    seen: list[str] = []
    token = json.dumps({"token": "good"}).encode()

    class Plain(Quiet):
        def do_GET(self) -> None:
            seen.append("plain")
            self.answer(200, token)

    class Tls(Quiet):
        def do_GET(self) -> None:
            if self.path.startswith("/token"):
                if "then" in realm:
                    self.answer(307, b"", Location=f"{second}:{plain.server_port}/t")
                else:
                    seen.append("tls")
                    self.answer(200, token)
            elif self.headers.get("Authorization"):
                self.answer(200)
            else:
                where = f'Bearer realm="{first}:{server.server_port}/token"'
                self.answer(401, b"", WWW_Authenticate=where)

    first, _, second = realm.partition(" then ")
    plain, server = serve(Plain), serve(Tls, over_tls)
    try:
        one = Endpoint(
            f"https://127.0.0.1:{server.server_port}",
            "app",
            Transport(Stop()),
            Patience(attempts=1, first=0.001, longest=0.002),
            insecure,
            lookup=lambda *_: None,
        )
        if reached:
            one.verify("it")
        else:
            with pytest.raises(UdiError):
                one.verify("it")
        assert bool(seen) == reached
    finally:
        for each in (plain, server):
            each.shutdown()
            each.server_close()


def test_a_first_ping_that_is_redirected_names_no_token_server() -> None:
    world = World(False)
    try:
        world.evil = "registry", ANSWERS["307"], 1
        drive(world, identity=False)
        assert any(one.party == "thief" for one in world.seen)
        assert not [one for one in world.seen if one.party == "thief" and one.authorization]
        assert not [one for one in world.seen if one.path.startswith("/token")]
    finally:
        world.close()


def test_a_proxy_that_refuses_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(True)
    monkeypatch.setenv("http_proxy", world.proxy)
    try:
        world.evil = "proxy", asking(407, False), 1
        with pytest.raises(UdiError, match=r"the proxy 127.0.0.1:\d+ refuses it \(407\)") as caught:
            Endpoint(world.url("registry"), "app", Transport(Stop()), QUICK).manifest("1")
        assert "http_proxy=http://USER:PASSWORD@HOST" in caught.value.hint
        assert "proxy-password" not in caught.value.message + caught.value.hint
    finally:
        world.close()


@pytest.mark.parametrize(
    ("base", "realm", "insecure", "sent"),
    [
        ("https://r.example", "https://t.example/x", False, True),
        ("https://r.example", "http://t.example/x", False, False),
        ("https://r.example", "http://t.example/x", True, False),
        ("https://r.example", "http://r.example:5001/x", True, True),
        ("https://r.example:5000", "http://R.Example/x", True, True),
        ("http://r.example", "http://t.example/x", False, True),
        ("https://r.example", "HTTP://t.example/x", False, False),
        ("https://r.example", "ftp://t.example/x", True, False),
        ("https://r.example", "/relative", True, False),
    ],
)
def test_a_password_is_not_sent_in_the_clear(
    base: str, realm: str, insecure: bool, sent: bool
) -> None:
    if sent:
        found = parties.for_token_server("Basic x", realm, base, insecure, "it")
        assert parties.sent(found, [realm]) == "Basic x"
    else:
        with pytest.raises(UdiError):
            parties.for_token_server("Basic x", realm, base, insecure, "it")


@pytest.mark.parametrize(
    ("visited", "sent"),
    [
        (["https://r.example/v2/"], True),
        (["https://r.example/v2/", "https://R.EXAMPLE:443/other"], True),
        (["https://r.example/v2/", "https://r.example:8443/"], False),
        (["https://r.example/v2/", "http://r.example:443/"], False),
        (["https://r.example/v2/", "https://r.example.evil/"], False),
        (["https://r.example/v2/", "https://r.example@evil/"], False),
        (["https://r.example/v2/", "https://evil/", "https://r.example/v2/"], False),
    ],
)
def test_a_right_is_good_at_its_own_origin(visited: list[str], sent: bool) -> None:
    right = parties.for_registry("Bearer x", "https://r.example/v2/")
    assert (parties.sent(right, visited) == "Bearer x") is sent
    assert "Bearer" not in repr(right)
