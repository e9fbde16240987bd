"""Backup and restore while gateways run; from SQLite to PostgreSQL and back."""

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.gateway.test_clients import configured
from tests.kit.gateway import SYSTEM, Gateway, gateway, until
from tests.kit.registry import PASSWORD, USER, Registry

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")

PLACE = f"/api/list/{SYSTEM}/"


@pytest.fixture
def served(user: User, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(user, tmp_path / "site") as one:
        configured(user, f"unix:{one.socket}")
        yield one


def did(user: User, one: Gateway, what: str, *words: str) -> str:
    done = user.run("udi", "gateway", what, f"--store={one.store}", *words)
    assert done.returncode == 0, done.stderr
    return done.stderr


def readers(one: Gateway, tag: str) -> set[tuple[int, bool]]:
    found = one.get(f"/api/v1/access/{SYSTEM}/docker/{tag}/")
    assert found.status == 200, found
    return {(row["id"], row["owner"]) for row in found.body["users"]}


def shared(one: Gateway, tag: str, **body: object) -> None:
    found = one.ask("POST", f"/api/v1/access/{SYSTEM}/docker/{tag}/", body)
    assert found.status == 200, found


def file_of(one: Gateway, tag: str) -> Path:
    found = one.get(f"/api/lookup/{SYSTEM}/docker/{tag}/").body
    return one.store / f"images/sha256-{found['id']}.sqfs"


def test_what_a_copy_has_is_put_back_while_it_runs(
    served: Gateway, user: User, tmp_path: Path, registry: Registry, closed: Registry
) -> None:
    """Lists, the kernel's too; what came later stays, and what was taken back does."""
    one, copy, me = served, tmp_path / "copy#1?.sqlite", os.getuid()
    public, private = f"{registry.host}/site/box:1", f"{closed.host}/site/big:1"
    given = {closed.host: f"{USER}:{PASSWORD}"}
    one.pulled(public)
    one.pulled(private, authorized_locations=given)
    shared(one, private, users=[4711])
    held, back = (
        one.ask("POST", "/api/v1/tokens/", {"scope": "read", "days": 1}).body for _ in range(2)
    )
    assert one.get(f"/api/lookup/{SYSTEM}/docker/{public}/").status == 200
    said = did(user, one, "backup", str(copy))
    assert "2 images, 2 rights, 2 tokens, " in said
    assert copy.stat().st_mode & 0o777 == 0o600 and [p.name for p in tmp_path.glob("copy*")] == [
        copy.name
    ]
    shared(one, private, users=[4711], remove=True)
    shared(one, private, users=[4712])
    assert one.ask("POST", "/api/v1/tokens/", {"revoke": back["id"]}).status == 200
    new = one.ask("POST", "/api/v1/tokens/", {"scope": "read", "days": 1}).body
    one.pulled(f"{registry.host}/site/same:3-none", "FAILURE")
    rows = len(one.get("/api/v1/audit/").body["list"])
    lookups = len(one.get(f"/api/metrics/{SYSTEM}/?limit=99").body)
    assert "2 images, 2 rights, 1 token, " in did(user, one, "restore", str(copy))
    until(lambda: readers(one, private) == {(4711, False), (me, True)}, one.log)
    acl = os.getxattr(file_of(one, private), "system.posix_acl_access")
    assert (4711).to_bytes(4, "little") in acl and (4712).to_bytes(4, "little") not in acl
    for token, status in ((held, 200), (back, 401), (new, 200)):
        proof = f"Bearer {token['token']}"
        assert one.ask("GET", PLACE, loopback=True, authorization=proof).status == status
    # A row for each lookup that was made to look at the files.
    assert len(one.get("/api/v1/audit/").body["list"]) == rows
    assert len(one.get(f"/api/metrics/{SYSTEM}/?limit=99").body) == lookups + 1
    assert one.pulled(public)["status"] == "READY"
    assert "Traceback" not in one.log.read_text()


@pytest.mark.needs("postgresql")
def test_from_sqlite_to_postgresql_and_back(
    user: User,
    tmp_path: Path,
    closed: Registry,
    url: str,
) -> None:
    store, copy, me = tmp_path / "site", tmp_path / "copy", os.getuid()
    tag = f"{closed.host}/site/box:1"
    with gateway(user, store) as one:
        one.pulled(tag, authorized_locations={closed.host: f"{USER}:{PASSWORD}"})
        shared(one, tag, users=[4711])
        token = one.ask("POST", "/api/v1/tokens/", {"scope": "read", "days": 1}).body["token"]
        did(user, one, "backup", str(copy))
    address = f"--database={url}"
    assert "1 image, 2 rights, 1 token" in did(user, one, "restore", address, str(copy))
    with gateway(user, store, address, name="2") as two:
        assert readers(two, tag) == {(4711, False), (me, True)}
        assert two.ask("GET", PLACE, loopback=True, authorization=f"Bearer {token}").status == 200
        # Numbers go on where the copy's ended.
        two.ask("POST", "/api/v1/tokens/", {"scope": "read", "days": 1})
        shared(two, tag, users=[4712])
        done = user.run("udi", "gateway", "serve", f"--store={store}")
        assert done.returncode == 125 and "another gateway has this store" in done.stderr
        did(user, two, "backup", address, f"{copy}2")
    done = user.run("udi", "gateway", "serve", f"--store={store}")
    assert done.returncode == 125, done.stderr
    assert "this store's gateways share a PostgreSQL database" in done.stderr
    did(user, one, "restore", f"{copy}2")
    with gateway(user, store, name="3") as three:
        assert {uid for uid, _ in readers(three, tag)} == {4711, 4712, me}
        rows = [row["action"] for row in three.get("/api/v1/audit/").body["list"]]
        assert rows == ["pull", "share", "token", "token", "share"]


def test_jobs_of_a_copy_are_done_and_those_under_way_stay(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    store, copy = tmp_path / "site", tmp_path / "copy"
    done, waits, secret = (f"{registry.host}/site/{name}" for name in ("box:1", "same:2", "big:1"))
    with gateway(user, store) as one:
        one.pulled(done)
        did(user, one, "backup", str(copy))
        with sqlite3.connect(copy) as base:
            row = (
                "key, platform, name, uid, message, digest, attempts, due, created, changed, access"
            )
            for name, hidden in ((waits, 0), (secret, 1)):
                base.execute(
                    f"INSERT INTO jobs ({row}, state, secret) SELECT replace(key, ?, ?), platform, "
                    "replace(name, ?, ?), uid, '', '', 5, 1e12, created, changed, access, "
                    "'PULLING', ? FROM jobs WHERE id = 1",
                    (done, name, done, name, hidden),
                )
        base.close()
        did(user, one, "restore", str(copy))
        path = f"/api/lookup/{SYSTEM}/docker/{waits}/"
        until(lambda: one.get(path).status == 200, one.log)
        rows = one.get(f"/api/queue/{SYSTEM}/").body["list"]
        found = [(row["image"], row["status"]) for row in rows]
        assert (secret, "FAILURE") in found, rows
        assert "keeps no credentials" in rows[0]["status_message"]


def test_what_is_no_copy(served: Gateway, user: User, tmp_path: Path) -> None:
    before = served.get("/api/v1/audit/").body
    text, later, copy = tmp_path / "text", tmp_path / "later", tmp_path / "copy"
    text.write_text("no database" * 100)
    did(user, served, "backup", str(copy))
    later.write_bytes(copy.read_bytes())
    with sqlite3.connect(later) as base:
        base.execute("UPDATE alembic_version SET version_num = '99'")
    base.close()
    for what, file, why in (
        ("restore", text, "file is not a database"),
        ("restore", tmp_path / "none", "none failed: No such file or directory"),
        ("restore", tmp_path, "failed: "),
        ("restore", later, "has schema 99, and this version"),
        ("backup", copy, "it is there already"),
        ("backup", tmp_path / "none/copy", "No such file or directory"),
    ):
        done = user.run("udi", "gateway", what, f"--store={served.store}", str(file))
        assert done.returncode == 125 and why in done.stderr, done.stderr
        assert "Traceback" not in done.stderr
    done = user.run("udi", "gateway", "backup", f"--store={tmp_path}/other", f"{tmp_path}/x")
    assert done.returncode == 125 and "has no database of a gateway" in done.stderr
    other = tmp_path / "closed/gateway"
    other.mkdir(parents=True)
    other.chmod(0)
    done = user.run("udi", "gateway", "backup", f"--store={other.parent}", f"{tmp_path}/x")
    other.chmod(0o700)
    assert "is not yours to read\nudi: hint: only its own account may" in done.stderr
    assert not (tmp_path / "other").exists() and not list(tmp_path.glob("*.part*"))
    assert served.get("/api/v1/audit/").body == before
    # A gateway of an earlier version has it in use.
    with sqlite3.connect(served.store / "gateway/gateway.sqlite") as base:
        base.execute("UPDATE alembic_version SET version_num = '5'")
    base.close()
    done = user.run("udi", "gateway", "backup", f"--store={served.store}", f"{tmp_path}/x")
    assert done.returncode == 125 and "start it anew with this version first" in done.stderr
