"""Access lists, tokens, the log, images by digest; as root, another user who tries to read."""

import json
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.gateway import tokens
from tests.conftest import User
from tests.gateway.test_clients import configured
from tests.kit.gateway import SYSTEM, Gateway, gateway
from tests.kit.registry import PASSWORD, USER, Registry

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")


@pytest.fixture
def served(user: User, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(user, tmp_path / "site") as one:
        configured(user, f"unix:{one.socket}", store=one.store)
        yield one


def private(one: Gateway, closed: Registry) -> tuple[str, Path]:
    """Pull an image that is for who has a password; return its tag and its file."""
    tag = f"{closed.host}/site/box:1"
    given = {closed.host: f"{USER}:{PASSWORD}"}
    record = one.pulled(tag, authorized_locations=given)
    assert record["status"] == "READY", record
    return tag, one.store / f"images/sha256-{record['id']}.sqfs"


def test_an_owner_shares_and_takes_back(served: Gateway, user: User, closed: Registry) -> None:
    tag, image = private(served, closed)
    mine = f"user {user.name} (owner)\n"
    assert user.run("udi", "share", tag, check=True).stdout == mine
    words = ["--user=nobody", "--user=4711", "--group=daemon"]
    done = user.run("udi", "share", tag, *words, check=True)
    assert done.stdout == f"{mine}user 4711\nuser nobody\ngroup daemon\n"
    assert image.stat().st_mode & 0o777 == 0o640
    done = user.run("udi", "share", tag, "--remove", f"--user={user.name},4711", check=True)
    # The owner stays.
    assert done.stdout == f"{mine}user nobody\ngroup daemon\n"
    user.run("udi", "share", tag, "--remove", "--user=nobody", "--group=daemon", check=True)
    acl = os.getxattr(image, "system.posix_acl_access")
    assert (65534).to_bytes(4, "little") not in acl
    log = user.run("udi", "gateway", "audit", check=True).stdout
    assert f"{user.name} pull {tag} sha256:" in log
    assert f"{user.name} share sha256:" in log and "user nobody (65534), group daemon (1)" in log
    assert f"{user.name} unshare sha256:" in log
    for words, why in (
        (["--remove"], "--remove: nobody is named"),
        (["--user=no-such-user"], "no-such-user is no user or group"),
    ):
        done = user.run("udi", "share", tag, *words)
        assert done.returncode == 125 and why in done.stderr


def test_what_is_everybodys_is_not_shared(served: Gateway, user: User, registry: Registry) -> None:
    tag = f"{registry.host}/site/box:1"
    served.pulled(tag)
    assert user.run("udi", "share", tag, check=True).stdout == "everybody\n"
    done = user.run("udi", "share", tag, "--user=nobody")
    assert done.returncode == 125 and "everybody may read this image already" in done.stderr
    path = f"/api/v1/access/{SYSTEM}/docker/{tag}/"
    assert served.ask("POST", path, b"{}").status == 400
    assert (
        served.ask("POST", f"/api/v1/access/{SYSTEM}/docker/none/", b'{"users": [1]}').status == 404
    )


def test_the_kernels_lists_follow_the_database(
    user: User, tmp_path: Path, closed: Registry
) -> None:
    """As a gateway leaves them that was killed between the two."""
    with gateway(user, tmp_path / "site") as one:
        _, image = private(one, closed)
        good = os.getxattr(image, "system.posix_acl_access")
    image.chmod(0o644)
    with gateway(user, tmp_path / "site"):
        assert os.getxattr(image, "system.posix_acl_access") == good
        assert not image.stat().st_mode & 0o007


def test_a_token_proves_its_user_within_its_scope(
    served: Gateway, user: User, registry: Registry
) -> None:
    tag = f"{registry.host}/site/box:1"
    served.pulled(tag)
    done = user.run("udi", "gateway", "token", "--note=laptop", check=True)
    token = done.stdout.strip()
    assert token.startswith("udi_") and "to read, until" in done.stderr
    bearer = f"Bearer {token}"
    lookup = f"/api/lookup/{SYSTEM}/docker/{tag}/"
    assert served.ask("GET", lookup, loopback=True).status == 401
    assert served.ask("GET", lookup, loopback=True, Authorization=bearer).status == 200
    assert served.ask("GET", lookup, loopback=True, authentication=token).status == 200
    # It is no administrator's, whoever made it; and it makes no tokens.
    path = f"/api/expire/{SYSTEM}/docker/{tag}/"
    found = served.ask("GET", path, loopback=True, Authorization=bearer)
    assert found.status == 403 and "good to read" in found.body["message"]
    path = f"/api/pull/{SYSTEM}/docker/{tag}/"
    assert served.ask("POST", path, b"", loopback=True, Authorization=bearer).status == 403
    whole = user.run("udi", "gateway", "token", "--scope=all", check=True).stdout.strip()
    asked = {"scope": "all", "days": 1}
    found = served.ask(
        "POST", "/api/v1/tokens/", asked, loopback=True, Authorization=f"Bearer {whole}"
    )
    assert found.status == 403 and "a token makes no tokens" in found.body["message"]
    # No scope would make it good for these.
    for one in (token, whole):
        proof = {"Authorization": f"Bearer {one}"}
        for method, path in (
            ("GET", "/api/v1/audit/"),
            ("GET", "/api/v1/stats/"),
            ("POST", "/api/v1/expire/"),
            ("GET", f"/api/autoexpire/{SYSTEM}/"),
        ):
            found = served.ask(method, path, None, True, **proof)
            assert found.status == 403 and "no token makes one" in found.body["hint"], path
        found = served.ask("POST", "/api/v1/tokens/", asked, True, **proof)
        assert found.status == 403 and "a token makes no tokens" in found.body["message"]
    for wrong in (f"{bearer[:-1]}", "Bearer udi_", "Bearer " + "x" * 5000, "Basic dTpw"):
        assert served.ask("GET", lookup, loopback=True, Authorization=wrong).status == 401
    # udi itself uses it, on an address that is no socket.
    configured(user, f"http://127.0.0.1:{served.port}")
    done = user.run("udi", "images", "--site", "--names", env={"UDI_GATEWAY_TOKEN": whole})
    assert done.stdout == f"{tag}\n", done.stderr
    done = user.run("udi", "images", "--site", env={"UDI_GATEWAY_TOKEN": whole[:-1]})
    assert "hint: it is that of $UDI_GATEWAY_TOKEN; `udi gateway token` prints" in done.stderr
    done = user.run("udi", "images", "--site")
    assert "or $UDI_GATEWAY_TOKEN have a token (udi gateway token)" in done.stderr
    configured(user, "http://gateway.invalid:80")
    done = user.run("udi", "images", "--site", env={"UDI_GATEWAY_TOKEN": whole})
    assert done.returncode == 125 and "others could read it on its way" in done.stderr
    configured(user, f"unix:{served.socket}")
    listed = user.run("udi", "gateway", "token", "--list", check=True).stdout
    assert "laptop" in listed and token not in listed
    number = listed.splitlines()[1].split()[0]
    user.run("udi", "gateway", "token", f"--revoke={number}", check=True)
    assert served.ask("GET", lookup, loopback=True, Authorization=bearer).status == 401
    done = user.run("udi", "gateway", "token", f"--revoke={number}")
    assert done.returncode == 125 and "you have no token" in done.stderr
    kept = b"".join(p.read_bytes() for p in (served.store / "gateway").iterdir())
    assert token.encode() not in kept and whole.encode() not in kept


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"scope": "root", "days": 1},
        {"scope": "read", "days": 0},
        {"scope": "read", "days": 1e9},
        {"scope": "read", "days": True},
        {"scope": "read", "days": 1, "note": "x" * 201},
        {"scope": "read", "days": 1, "note": 5},
        {"revoke": "1"},
    ],
)
def test_wrong_wishes_for_tokens(one_gateway: Gateway, body: dict[str, object]) -> None:
    assert one_gateway.ask("POST", "/api/v1/tokens/", body).status == 400


@pytest.fixture(scope="module")
def one_gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    home = tmp_path_factory.mktemp("tokens")
    with gateway(User(home), home / "site") as one:
        yield one


def test_a_user_has_so_many_tokens(one_gateway: Gateway) -> None:
    wish = {"scope": "read", "days": 1}
    answers = [one_gateway.ask("POST", "/api/v1/tokens/", wish) for _ in range(21)]
    assert [one.status for one in answers] == [200] * 20 + [400]
    assert "you have 20 tokens" in answers[-1].body["message"]


def test_a_token_ends_whatever_the_clock_does(tmp_path: Path) -> None:
    """A clock that was set back by more than a day gives no token its time again."""
    from rootless_udi.gateway.database import Database

    one = Database(str(tmp_path))
    made = one.write_now(tokens.make, 5, "read", 1.0, "")["token"]
    assert one.write_now(tokens.find, made)
    for change in ("expires = 1", "created = 9e9, expires = 9.1e9"):
        with sqlite3.connect(one.where) as database:
            database.execute(f"UPDATE tokens SET {change}")
        database.close()
        assert one.write_now(tokens.find, made) is None
    one.close()


def test_an_image_by_its_digest_whole_and_in_parts(served: Gateway, registry: Registry) -> None:
    record = served.pulled(f"{registry.host}/site/box:1")
    data = (served.store / f"images/sha256-{record['id']}.sqfs").read_bytes()
    path, address = f"/api/v1/images/sha256:{record['id']}", served.socket

    def curl(*words: str) -> bytes:
        argv = ["curl", "-sS", "--unix-socket", str(address), *words, f"http://gateway{path}"]
        return subprocess.run(argv, capture_output=True, check=True).stdout

    assert curl() == data
    assert curl("-r", "100-199") == data[100:200]
    assert curl("-r", "-16") == data[-16:]
    head = curl("-I").decode().lower()
    assert f'etag: "sha256:{record["id"]}"' in head and f"content-length: {len(data)}" in head
    status = ["-o", "/dev/null", "-w", "%{http_code}"]
    same = f'If-None-Match: "sha256:{record["id"]}"'
    assert curl(*status, "-H", same) == b"304"
    assert curl(*status, "-r", f"{len(data) + 1}-") == b"416"
    assert served.get(f"/api/v1/images/sha256:{'0' * 64}").status == 404
    assert served.get("/api/v1/images/..%2fgateway%2fgateway.sqlite").status in (400, 404)


@pytest.mark.root
def test_the_kernel_keeps_others_out(user: User, tmp_path: Path, closed: Registry) -> None:
    """As another account: it can't read before, can while it is on the list, and not after."""

    def reads(path: Path) -> bool:
        argv = ["setpriv", "--reuid=bin", "--regid=nogroup", "--clear-groups", "head", "-c1"]
        return subprocess.run([*argv, path], capture_output=True).returncode == 0

    def looks_up(tag: str) -> int:
        path = f"http://gateway/api/lookup/{SYSTEM}/docker/{tag}/"
        argv = ["setpriv", "--reuid=bin", "--regid=nogroup", "--clear-groups", "curl", "-sS"]
        argv += ["--unix-socket", str(one.socket), "-o", "/dev/null", "-w", "%{http_code}", path]
        return int(subprocess.run(argv, capture_output=True, check=True).stdout)

    with gateway(user, tmp_path / "site") as one:
        configured(user, f"unix:{one.socket}")
        (user.home / ".config").chmod(0o755)
        for path in (user.home / ".config").rglob("*"):
            os.chown(path, user.uid, user.gid)
        os.chown(user.home / ".config", user.uid, user.gid)
        auth = user.home / "auth.json"
        text = {"auths": {closed.host: {"username": USER, "password": PASSWORD}}}
        auth.write_text(json.dumps(text))
        os.chown(auth, user.uid, user.gid)
        auth.chmod(0o600)
        tag = f"{closed.host}/site/box:1"
        env = {"REGISTRY_AUTH_FILE": str(auth)}
        done = user.run("udi", "pull", "--site", tag, env=env)
        assert done.returncode == 0, done.stderr
        image = one.store / f"images/{done.stdout.strip().replace(':', '-')}.sqfs"
        files = (image, image.with_suffix(".json"))
        assert not any(map(reads, files)) and looks_up(tag) == 404
        user.run("udi", "share", tag, "--user=bin", check=True)
        assert all(map(reads, files)) and looks_up(tag) == 200
        user.run("udi", "share", tag, "--remove", "--user=bin", check=True)
        assert not any(map(reads, files)) and looks_up(tag) == 404
