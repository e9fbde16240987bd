"""Several gateways of one store and one PostgreSQL, each as if on a node of its own."""

import os
import socket
import threading
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from tests.conftest import User
from tests.kit.gateway import (
    SYSTEM,
    Answer,
    Gateway,
    credential,
    gateway,
    munged,
    status,
    until,
)
from tests.kit.postgres import Cluster
from tests.kit.registry import PASSWORD, USER, Registry, flaky

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway", "postgresql")


def test_texts_that_postgresql_takes_not(user: User, tmp_path: Path, url: str) -> None:
    """Whoever reaches the datagrams' port may send some; the others' are counted."""
    path = tmp_path / "grams"
    options = (f"--database={url}", f"--starts=unix:{path}")
    with (
        gateway(user, tmp_path / "site", *options) as one,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender,
    ):
        for number, digest in enumerate((b"sha256:\0", b"-", b"sha256:0\0", b"x" * 99, b"-")):
            sender.sendto(b"udi-start/1 %d 1000 %s box" % (number, digest), str(path))
        until(
            lambda: sum(d["starts"] for d in one.get("/api/v1/stats/").body["days"]) == 2, one.log
        )
        note = {"scope": "read", "days": 1, "note": "a\0b"}
        assert one.ask("POST", "/api/v1/tokens/", note).status == 400
        assert one.get("/page/images?q=%00a%00").status == 200
        assert one.get(f"/api/lookup/{SYSTEM}/docker/a%00b/").status == 400
        assert one.get("/page/image?id=sha256:%00").status == 400
        assert one.complaints == ""


def test_what_one_gateway_does_the_other_knows(
    two: tuple[Gateway, Gateway], registry: Registry
) -> None:
    one, other = two
    tag = f"{registry.host}/site/box:1"
    assert one.pulled(tag)["status"] == "READY"
    assert status(other, tag) == 200
    # Answered from memory now, and not after it is gone.
    assert status(other, tag) == 200
    token = other.ask("POST", "/api/v1/tokens/", {"scope": "read", "days": 1}).body
    bearer = f"Bearer {token['token']}"
    path = f"/api/list/{SYSTEM}/"
    assert one.ask("GET", path, loopback=True, authorization=bearer).status == 200
    assert other.ask("POST", "/api/v1/tokens/", {"revoke": token["id"]}).status == 200
    until(lambda: one.ask("GET", path, loopback=True, authorization=bearer).status == 401, one.log)
    assert one.get(f"/api/expire/{SYSTEM}/docker/{tag}/").status == 200
    until(lambda: status(other, tag) == 404, other.log)
    rows = other.get(f"/api/metrics/{SYSTEM}/?limit=9").body
    assert len(rows) >= 2 and {row["tag"] for row in rows} == {tag}


def test_many_who_ask_both_for_one_image_cause_one_download(
    two: tuple[Gateway, Gateway], registry: Registry
) -> None:
    with flaky(registry.host) as proxy:
        found: list[str] = []

        def ask(number: int) -> None:
            name = ("big:1", "box:1", "same:2")[number % 3]
            found.append(two[number % 2].pulled(f"{proxy.host}/site/{name}")["status"])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == ["READY"] * 24
        blobs = proxy.paths("/blobs/")
        assert len(blobs) == len(set(blobs))


def test_a_database_whose_transactions_see_what_was_before_them(
    user: User, tmp_path: Path, url: str, postgres: Cluster
) -> None:
    """As a site may have set it: who waits to write would not see what was written meanwhile."""
    name, store = url.removeprefix("postgresql:///").partition("?")[0], tmp_path / "site"
    postgres.sql(f"ALTER DATABASE {name} SET default_transaction_isolation = 'repeatable read'")
    option = f"--database={url}"
    with gateway(user, store, option) as one, gateway(user, store, option, name="2") as other:
        found: list[int] = []

        def ask(number: int) -> None:
            for _ in range(20):
                found.append((one, other)[number % 2].pull("127.0.0.1:1/a:1").status)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == [200] * 160
        assert one.complaints == other.complaints == ""


def test_a_pull_of_a_gateway_that_was_killed_is_done_by_the_other(
    two: tuple[Gateway, Gateway], registry: Registry, closed: Registry
) -> None:
    """Its progress is told by the other too; its credentials died with it."""
    one, other = two
    with flaky(registry.host) as proxy:
        # Both are kept busy by a pull each: who has which is seen by the worker's parent.
        tag, go, cut = f"{proxy.host}/site/big:1", threading.Event(), threading.Event()

        def hold(path: str, sent: int) -> None:
            if sent > 1 << 20:
                cut.set()
                go.wait(60)

        proxy.at_bytes = hold
        one.pull(tag)
        assert cut.wait(60)
        until(lambda: other.pulled(tag, "PULLING")["done"] > 0, other.log)
        killed, left = (one, other) if one.children() else (other, one)
        # Its other worker is held too, so that this one waits there.
        killed.pull(f"{proxy.host}/site/big:2")
        secret = {closed.host: f"{USER}:{PASSWORD}"}
        private = f"{closed.host}/site/box:1"
        killed.pull(private, authorized_locations=secret)
        killed.kill()
        go.set()
        assert left.pulled(tag)["status"] == "READY"
        assert "another gateway has died: its pulls are done here" in left.log.read_text()
        # It was ended before the kill, or failed with who had the credentials.
        rows = left.get(f"/api/queue/{SYSTEM}/").body["list"]
        found = [row["status_message"] for row in rows if row["image"] == private]
        assert all("keeps no credentials" in text for text in found)


def test_access_lists_are_in_force_whoever_changes_them(
    two: tuple[Gateway, Gateway], closed: Registry
) -> None:
    one, other = two
    tag = f"{closed.host}/site/box:1"
    given = {closed.host: f"{USER}:{PASSWORD}"}
    ready = one.pulled(tag, authorized_locations=given)
    path = f"/api/v1/access/{SYSTEM}/docker/{tag}/"
    assert other.ask("POST", path, {"users": [4_000_000_000]}).status == 200
    until(lambda: 4_000_000_000 in [u["id"] for u in one.get(path).body["users"]], one.log)
    image = one.store / f"images/sha256-{ready['id']}.sqfs"
    data = os.getxattr(image, "system.posix_acl_access")
    assert (4_000_000_000).to_bytes(4, "little") in data


@pytest.mark.needs("munge")
def test_a_credential_that_one_has_taken_is_no_proof_to_another(
    user: User, tmp_path: Path, url: str
) -> None:
    """Each with a munged of its own, as on nodes of their own, which have one key."""
    path = f"/api/list/{SYSTEM}/"
    store, option = tmp_path / "site", f"--database={url}"
    with munged(tmp_path / "m1") as first:
        key = (tmp_path / "m1/key").read_bytes()
        with (
            munged(tmp_path / "m2", key) as second,
            gateway(user, store, option, f"--munge={first}") as one,
            gateway(user, store, option, f"--munge={second}", name="2") as other,
        ):

            def asked(where: Gateway, text: str) -> Answer:
                return where.ask("GET", path, loopback=True, authentication=text)

            for a, b, socket in ((one, other, first), (other, one, second)):
                text = credential(socket)
                assert asked(a, text).status == 200
                found = asked(b, text)
                assert found.status == 401, found
                assert "it was used before, at another gateway" in found.body["message"]
                assert asked(b, credential(socket)).status == 200
            # What base64 leaves free makes no other credential of it.
            text = credential(first)
            assert asked(one, text).status == 200
            body = text.removeprefix("MUNGE:").removesuffix(":")
            for more in (f"MUNGE:{body[:8]} {body[8:]}:", f"MUNGE:{body}=:", f"MUNGE:{body}:x"):
                assert asked(other, more).status == 401, more


def test_a_sqlite_and_a_shared_one_do_not_mix(
    two: tuple[Gateway, Gateway], user: User, tmp_path: Path, postgres: Cluster
) -> None:
    store = two[0].store
    done = user.run("udi", "gateway", "serve", f"--store={store}")
    assert done.returncode == 125 and "another gateway has this store: " in done.stderr
    assert "share a PostgreSQL database, all by --database" in done.stderr
    empty = postgres.database("elsewhere")
    with gateway(user, tmp_path / "b", f"--database={empty}", name="3"):
        pass
    words = [f"--store={store}", f"--database={empty}"]
    done = user.run("udi", "gateway", "serve", *words)
    assert done.returncode == 125 and "the database belongs to another store: " in done.stderr
    with gateway(user, tmp_path / "c", name="4"):
        words = [f"--store={tmp_path}/c", f"--database={empty}"]
        done = user.run("udi", "gateway", "serve", *words)
        assert done.returncode == 125 and "another gateway has this store: " in done.stderr


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("postgresql://host/name?host=/none", "the gateway's database failed on postgresql://"),
        ("postgresql:///none?host={folder}", 'database "none" does not exist'),
        ("mysql://host/name", "mysql://host/name is no address of a PostgreSQL database"),
        ("postgresql://host", "postgresql://host is no address of a PostgreSQL database"),
        ("nonsense", "nonsense is no address of a database"),
        ("postgresql://u:secret@host/name", "the database's address has a password"),
        ("mysql://u:secret@host/name", "that is no address of a PostgreSQL database"),
    ],
)
def test_addresses_that_are_refused(
    user: User, tmp_path: Path, postgres: Cluster, address: str, why: str
) -> None:
    words = [f"--store={tmp_path}/site", f"--database={address.format(folder=postgres.folder)}"]
    done = user.run("udi", "gateway", "serve", *words)
    assert done.returncode == 125 and why in done.stderr, done.stderr
    assert "secret" not in done.stderr and "Traceback" not in done.stderr


def test_without_the_driver_it_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    from rootless_udi.gateway import postgres

    monkeypatch.setattr(postgres, "find_spec", lambda name: None)
    with pytest.raises(UdiError, match="PostgreSQL needs the Python module psycopg") as found:
        postgres.parsed("postgresql://host/name")
    assert "pip install 'rootless_udi[gateway,postgresql]'" in found.value.hint


def test_the_schema_is_the_same_and_a_later_one_is_refused(
    user: User, tmp_path: Path, url: str
) -> None:
    from alembic.autogenerate import compare_metadata
    from alembic.runtime.migration import MigrationContext

    from rootless_udi.gateway.database import Database
    from rootless_udi.gateway.tables import METADATA

    if os.getuid() == 0:
        pytest.fail("this test is the ordinary user's")
    one = Database(str(tmp_path), url)
    try:
        assert not one.write_now(
            lambda connection: compare_metadata(MigrationContext.configure(connection), METADATA)
        )
        one.write_now(
            lambda c: c.exec_driver_sql("UPDATE alembic_version SET version_num = '99'") and None
        )
    finally:
        one.close()
    with pytest.raises(UdiError, match="the gateway's database has schema 99"):
        Database(str(tmp_path), url)


def test_an_older_database_of_sqlite_is_brought_to_the_schema(tmp_path: Path) -> None:
    """As it was before several gateways could share one; its rows stay."""
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from sqlalchemy import create_engine, select

    from rootless_udi.gateway.database import Database
    from rootless_udi.gateway.migrations import first, second
    from rootless_udi.gateway.tables import JOBS

    one = Database(str(tmp_path))
    one.close()
    os.unlink(one.where)
    with create_engine(f"sqlite:///{one.where}").begin() as old:
        context = MigrationContext.configure(old)
        with Operations.context(context):
            for step in (first, second):
                step.upgrade()
        context._ensure_version_table()
        old.exec_driver_sql("INSERT INTO alembic_version VALUES ('2')")
        old.exec_driver_sql(
            "INSERT INTO jobs VALUES (1, 'k', 'amd64', 'n', 5, 'READY', '', 'd', 1, 0, 0, 0, 0, '')"
        )
    again = Database(str(tmp_path))
    row = again.write_now(lambda connection: connection.execute(select(JOBS)).one())
    assert (row.name, row.uid, row.gateway, row.done) == ("n", 5, 0, 0)
    again.close()
