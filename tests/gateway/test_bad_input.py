"""What clients, tokens, clocks and disks do to the gateway, and what it answers."""

import contextlib
import json
import os
import re
import socket
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from tests.conftest import User
from tests.kit.gateway import SYSTEM, Gateway, gateway
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("gateway")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One for all of these: whatever it is sent, it must answer the next."""
    home = tmp_path_factory.mktemp("bad")
    with gateway(User(home), home / "site", "--rate=1000000") as one:
        yield one


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"[]",
        b"nul",
        b'"text"',
        b"[" * 5000,
        b"\xff\xfe",
        b'{"allowed_uids": "a"}',
        b'{"allowed_uids": {"a": 1}}',
        b'{"allowed_uids": "-1"}',
        b'{"allowed_gids": "4294967295"}',
        b'{"allowed_gids": "1e3"}',
        b'{"authorized_locations": "u:p"}',
        b'{"authorized_locations": {"docker.io": "no-colon"}}',
        b'{"authorized_locations": {"docker.io": 1}}',
        b'{"allowed_uids": [1], "more": "\\ud800"}',
        b'{"more": ["\\u0000"]}',
        b'{"platform": 1}',
        b'{"platform": "windows/amd64"}',
        b'{"platform": "linux/.."}',
        b'{"platform": "linux/../../x"}',
        b'{"platform": "linux/a%2fb"}',
    ],
)
def test_a_wrong_body_is_said_to_be_wrong(served: Gateway, body: bytes) -> None:
    found = served.ask("POST", f"/api/pull/{SYSTEM}/docker/x:1/", body)
    assert found.status == 400, found
    assert served.get(f"/api/queue/{SYSTEM}/").body == {"list": []}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        (f"/api/pull/{SYSTEM}/docker/../../etc/passwd/", 400),
        (f"/api/pull/{SYSTEM}/docker/%2e%2e%2f%2e%2e%2fetc%2fpasswd/", 400),
        (f"/api/pull/{SYSTEM}/docker/a%00b/", 400),
        (f"/api/pull/{SYSTEM}/docker//", 400),
        (f"/api/pull/{SYSTEM}/docker/{'a' * 10240}/", 413),
        (f"/api/pull/{SYSTEM}/docker/{'a' * 130}/{'b' * 100}/", 413),
        (f"/api/pull/{SYSTEM}/custom/x/", 400),
        (f"/api/pull/{SYSTEM}/id/{'0' * 64}/", 400),
        ("/api/pull/elsewhere/docker/x/", 404),
        (f"/api/pull/{SYSTEM}/docker/oci:%2fetc:1/", 400),
        ("/api/pull/", 404),
        (f"/api/list/{SYSTEM}/", 405),
    ],
)
def test_a_wrong_path_is_said_to_be_wrong(served: Gateway, path: str, status: int) -> None:
    assert served.ask("POST", path, b"").status == status
    assert served.get(f"/api/queue/{SYSTEM}/").body == {"list": []}


def test_other_wrong_requests(served: Gateway) -> None:
    assert served.ask("POST", f"/api/pull/{SYSTEM}/docker/x/", b" " * (65 << 10)).status == 413
    assert served.get(f"/api/metrics/{SYSTEM}/?limit=x").status == 400
    assert served.get(f"/api/metrics/{SYSTEM}/?limit=%D9%A3").status == 400
    assert served.ask("POST", f"/api/doimport/{SYSTEM}/docker/x/", b"{}").status == 403
    for path in ("/api/lookup/other/docker/x:1/", "/api/v1/access/other/docker/x:1/"):
        assert f"known: {SYSTEM}; `site.name` says" in str(served.get(path).body)
    found = served.ask("GET", f"/api/list/{SYSTEM}/", authentication="MUNGE:x")
    assert found.status == 401 and "does not take munge" in found.body["message"]


@pytest.mark.parametrize("number", [0, -1, True, 2**31, 10**30, 1.5, "1", None])
def test_what_is_no_number_of_a_token(served: Gateway, number: object) -> None:
    found = served.ask("POST", "/api/v1/tokens/", {"revoke": number})
    assert found.status == 400 and "no number of a token" in found.body["message"], found


def raw(served: Gateway, data: bytes) -> bytes:
    """Send bytes, and return all that comes until the gateway closes the connection."""
    with socket.socket(socket.AF_UNIX) as one:
        one.settimeout(30)
        one.connect(str(served.socket))
        found = b""
        # It closes without reading what it refuses: the kernel says so to who sends it.
        with contextlib.suppress(ConnectionResetError, BrokenPipeError):
            one.sendall(data)
            while part := one.recv(1 << 16):
                found += part
    return found


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (100 << 10) + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /\x00 HTTP/1.1\r\n\r\n",
    ],
)
def test_no_request_hides_in_another(served: Gateway, head: bytes) -> None:
    """Each gets one answer at most, an error unless h11 knows one meaning of it, and no second."""
    follow = b"GET /api/list/hidden/ HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    found = raw(served, head + follow)
    assert b"hidden" not in found
    assert served.get("/").status == 200


def test_slow_clients_are_given_up_and_others_are_served(served: Gateway) -> None:
    """Slowly sent heads, for which hypercorn has a deadline; 300 at once."""
    slow = []
    for _ in range(300):
        one = socket.socket(socket.AF_UNIX)
        one.connect(str(served.socket))
        one.sendall(b"GET / HTTP/1.1\r\nX: ")
        slow.append(one)
    # While they are all there: none has been given up before it is looked at below.
    assert served.get("/").status == 200
    slow[0].settimeout(60)
    assert slow[0].recv(1) == b""
    for one in slow:
        one.close()


def test_a_user_who_asks_too_often_is_told_so(user: User, tmp_path: Path) -> None:
    """The gateway's own account is an administrator, who may: so by the module."""
    from rootless_udi.gateway.limits import Busy, Limits
    from rootless_udi.gateway.people import Asker

    limits = Limits(rate=5.0)
    one = Asker(1000, "one", frozenset(), False, "socket")
    for _ in range(10):
        limits.spend(one)
    with pytest.raises(Busy, match="more than 5 requests a second"):
        limits.spend(one)
    limits.spend(one.replace(uid=1001))
    for _ in range(100):
        limits.spend(one.replace(admin=True))


def test_a_user_has_so_many_pulls_in_the_queue(user: User, tmp_path: Path) -> None:
    options = ("--pulls=2", "--workers=1")
    with gateway(user, tmp_path / "site", *options) as one, socket.socket() as silent:
        # A registry that never answers: the kernel takes the connections, nobody reads.
        silent.bind(("127.0.0.1", 0))
        silent.listen(16)
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        assert [one.pull(f"{host}/a:{n}").status for n in (1, 2, 1)] == [200] * 3
        found = one.pull(f"{host}/a:3")
        assert found.status == 429 and "2 pulls of yours" in found.body["message"]
        assert one.get("/").status == 200


def test_a_locked_database_is_waited_for_and_then_said_to_be(user: User, tmp_path: Path) -> None:
    with gateway(user, tmp_path / "site") as one:
        with sqlite3.connect(one.store / "gateway/gateway.sqlite", isolation_level=None) as other:
            other.execute("BEGIN IMMEDIATE")
            found = one.pull("127.0.0.1:1/a:1")
            assert found.status == 503 and "database is locked" in found.body["message"]
            assert "backup" in found.body["hint"]
            # Who only reads is served meanwhile.
            assert one.get(f"/api/list/{SYSTEM}/").status == 200
            other.execute("ROLLBACK")
        assert one.pull("127.0.0.1:1/a:1").status == 200
        other.close()


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--listen=0.0.0.0:1"], "others could read what is sent there"),
        (["--listen=[::]:1"], "others could read what is sent there"),
        (["--listen=192.0.2.1:1"], "others could read what is sent there"),
        (["--listen=host:1"], "'host' is no IP address"),
        (["--listen=127.0.0.1"], "is no address"),
        (["--listen=127.0.0.1:99999"], "is no address"),
        (["--listen=unix:relative"], "is no absolute path of at most 107 bytes"),
        ([f"--listen=/{'x' * 107}"], "is no absolute path of at most 107 bytes"),
        (["--listen=/proc/none/socket"], "listening on unix:/proc/none/socket failed"),
        (["--workers=0"], "--workers, --pulls and --rate are numbers above 0"),
        (["--room=lots"], "--room=lots: not a size"),
        (["--import=lots"], "--import=lots: not a size"),
        (["--user-room=ada=lots"], "--user-room=lots: not a size"),
        (["--store=/usr/none"], "--store is a folder of the account that the gateway runs as"),
    ],
)
def test_options_that_are_refused(user: User, tmp_path: Path, words: list[str], why: str) -> None:
    done = user.run("udi", "gateway", "serve", f"--store={tmp_path}/site", *words)
    assert done.returncode == 125 and why in done.stderr, done.stderr


def test_what_may_be_meant_otherwise_is_told(user: User, tmp_path: Path) -> None:
    """It serves all the same: the folder may be opened, and the user may come."""
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o700)
    with gateway(user, shut / "site", "--admin=no-such-user", "--admin=root") as one:
        found = one.log.read_text()
    closed = re.search("udi gateway: (.*) is closed to others, who so can't run images", found)
    assert closed and shut.is_relative_to(closed[1]), found
    assert f"udi gateway: hint: chmod a+x {closed[1]}\n" in found
    assert not os.stat(closed[1]).st_mode & 0o011
    assert "udi gateway: --admin=no-such-user: there is no such user now\n" in found
    assert "--admin=root" not in found


@pytest.mark.parametrize("option", ["--listen=", "--starts=unix:"])
def test_a_file_at_a_sockets_place_is_not_removed(user: User, tmp_path: Path, option: str) -> None:
    (tmp_path / "socket").write_text("mine")
    words = [f"--store={tmp_path}/site", f"{option}{tmp_path}/socket"]
    done = user.run("udi", "gateway", "serve", *words)
    assert done.returncode == 125 and "File exists" in done.stderr
    assert (tmp_path / "socket").read_text() == "mine"


def test_without_the_extra_it_says_which(user: User, tmp_path: Path) -> None:
    """A Python without site-packages has none of them."""
    code = f"import sys; sys.path.insert(0, {str(TREE)!r})\n"
    code += "from rootless_udi.commands.udi import main; main()"
    words = ["gateway", "serve", f"--store={tmp_path}/site"]
    done = user.run("/usr/bin/python3", "-I", "-S", "-c", code, *words)
    assert done.returncode == 125 and "udi gateway needs the Python modules" in done.stderr
    assert "pip install 'rootless_udi[gateway]'" in done.stderr


def test_a_store_that_cannot_be_written(user: User, tmp_path: Path) -> None:
    store = tmp_path / "site"
    with gateway(user, store):
        pass
    (store / "gateway").chmod(0o500)
    (store / "gateway/lock").chmod(0o400)
    done = user.run("udi", "gateway", "serve", f"--store={store}")
    assert done.returncode == 125 and "opening the gateway's database failed on" in done.stderr
    assert "Permission denied" in done.stderr
    (store / "gateway").chmod(0o700)


@given(st.binary(max_size=300))
def test_any_payload_of_munge_gives_credentials_or_none(payload: bytes) -> None:
    from rootless_udi.gateway import munge

    assert isinstance(munge.locations(payload), dict)


def test_shifters_payload() -> None:
    from rootless_udi.gateway import munge

    good = {"authorized_locations": {"default": "u:p", "a": "b:c:d", "no": "colon"}}
    assert munge.locations(json.dumps(good).encode()) == {"default": "u:p", "a": "b:c:d"}


def test_default_credentials_go_to_the_sites_registry_alone() -> None:
    from rootless_udi.gateway.worker import secret_for
    from rootless_udi.plan.reference import parse
    from rootless_udi.plan.site import Site

    given = {"default": "u:p", "other.example": "v:q"}
    found = [secret_for(given, parse(name), Site()) for name in ("a/b", "other.example/a")]
    assert [one and one.username for one in found] == ["u", "v"]
    assert secret_for(given, parse("third.example/a"), Site()) is None


def test_an_access_list_is_what_getfacl_would_show(tmp_path: Path) -> None:
    from rootless_udi.gateway import access
    from rootless_udi.store.store import Store

    store, digest = Store(str(tmp_path)), f"sha256:{'0' * 64}"
    (tmp_path / "images").mkdir()
    file = tmp_path / f"images/sha256-{'0' * 64}.sqfs"
    file.write_text("x")
    access.allow(store, digest, False, [5, 3], [7])
    assert file.stat().st_mode & 0o777 == 0o640
    data = os.getxattr(file, "system.posix_acl_access")
    rows = [
        (int.from_bytes(data[at : at + 2], "little"), data[at + 2], data[at + 4])
        for at in range(4, len(data), 8)
    ]
    assert [(tag, rights, who) for tag, rights, who in rows if tag in (2, 8)] == [
        (2, 4, 3),
        (2, 4, 5),
        (8, 4, 7),
    ]
    access.allow(store, digest, False, [], [])
    assert file.stat().st_mode & 0o777 == 0o600
    access.allow(store, digest, True, [], [])
    assert file.stat().st_mode & 0o777 == 0o644
    with pytest.raises(OSError, match="No data"):
        os.getxattr(file, "system.posix_acl_access")


def test_the_migrations_make_the_tables(tmp_path: Path) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from rootless_udi.gateway.database import Database
    from rootless_udi.gateway.tables import METADATA

    one = Database(str(tmp_path))
    try:
        difference = one.write_now(
            lambda connection: compare_metadata(MigrationContext.configure(connection), METADATA)
        )
        assert not difference
    finally:
        one.close()
    with pytest.raises(UdiError, match="opening the gateway's database failed"):
        Database("/proc/none")


def test_a_pause_is_never_longer_than_the_longest(tmp_path: Path) -> None:
    """Whatever the clock did since: set back by a year, a waiting job is due at once."""
    from rootless_udi.gateway import jobs
    from rootless_udi.gateway.catalogue import Wanted
    from rootless_udi.gateway.database import Database

    one = Database(str(tmp_path))
    try:
        job, new = one.write_now(jobs.ask, "amd64", "docker.io/library/a:1", 5, Wanted(), False, 9)
        assert new
        for due, taken in ((time.time() + 100, False), (time.time() + 365 * 86400, True)):
            one.write_now(lambda c, due=due: jobs.change(c, job.id, "PENDING", due=due))
            assert (one.write_now(jobs.take, frozenset()) is not None) is taken
    finally:
        one.close()
