"""The gateway as Shifter's clients see it: a real registry, a real store, the kernel's own word."""

import json
import os
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import User
from tests.gateway.conftest import CONFIG
from tests.kit.gateway import SYSTEM, Gateway, credential, gateway, munged
from tests.kit.places import TREE
from tests.kit.registry import PASSWORD, USER, Registry, flaky

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")

FIELDS = {
    *("id", "system", "itype", "tag", "status", "userACL", "groupACL", "ENV", "ENTRY"),
    *("WORKDIR", "LABELS", "last_pull", "status_message"),
}
"""The fields of create_response in Shifter's api.py."""


@pytest.fixture
def served(user: User, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(user, tmp_path / "site") as one:
        yield one


def test_an_image_is_pulled_looked_up_listed_and_expired(
    served: Gateway, registry: Registry
) -> None:
    tag = f"{registry.host}/site/box:1"
    assert served.get(f"/api/lookup/{SYSTEM}/docker/{tag}/").status == 404
    first = served.pull(tag).body
    assert first["status"] == "INIT" and first["tag"] == [tag] and first["id"] == "MISSING"
    ready = served.pulled(tag)
    assert ready.keys() >= FIELDS and ready["status"] == "READY", ready
    assert ready["ENV"] == ["PATH=/bin", "A=1"] and ready["ENTRY"] == ["/bin/echo"]
    assert ready["WORKDIR"] == "/usr" and ready["LABELS"] == CONFIG["Labels"]
    assert isinstance(ready["last_pull"], float) and ready["itype"] == "docker"
    # With and without the slash at the end; by the digest too.
    for path in (f"docker/{tag}/", f"docker/{tag}", f"id/{ready['id']}/"):
        found = served.get(f"/api/lookup/{SYSTEM}/{path}")
        assert found.status == 200 and found.body["id"] == ready["id"], found
    listed = served.get(f"/api/list/{SYSTEM}/").body["list"]
    assert [one["id"] for one in listed] == [ready["id"]]
    assert served.get(f"/api/queue/{SYSTEM}/").body == {"list": []}
    image = served.store / f"images/sha256-{ready['id']}.sqfs"
    assert image.stat().st_mode & 0o777 == 0o644
    assert image.with_suffix(".json").stat().st_mode & 0o777 == 0o644
    rows = served.get(f"/api/metrics/{SYSTEM}/?limit=2").body
    assert [(one["uid"], one["id"]) for one in rows] == [(os.getuid(), ready["id"])] * 2
    assert served.get(f"/api/expire/{SYSTEM}/docker/{tag}/").body == {"status": True}
    assert served.get(f"/api/lookup/{SYSTEM}/docker/{tag}/").status == 404
    assert not image.exists()
    assert served.get(f"/api/autoexpire/{SYSTEM}/").body["status"] is True


@pytest.mark.needs("userns", "fuse")
def test_what_is_pulled_is_run_from_the_sites_store(
    served: Gateway, registry: Registry, user: User
) -> None:
    tag = f"{registry.host}/site/box:1"
    served.pulled(tag)
    folder = user.home / "etc"
    folder.mkdir()
    (folder / "udi.toml").write_text(f'[store]\nsite = ["{served.store}"]\n')
    site = {"UDI_SITE_DIR": str(folder)}
    done = user.run("udi-run", "--pull=never", tag, "echo", "hello", env=site)
    assert done.stdout == "hello\n", done.stderr


def test_names_of_one_digest_are_one_image(served: Gateway, registry: Registry) -> None:
    one = served.pulled(f"{registry.host}/site/box:1")
    two = served.pulled(f"{registry.host}/site/same:2")
    assert one["id"] == two["id"] and len(two["tag"]) == 2
    served.get(f"/api/expire/{SYSTEM}/docker/{registry.host}/site/same:2/")
    assert served.get(f"/api/lookup/{SYSTEM}/id/{one['id']}/").body["tag"] == one["tag"]


def test_many_who_ask_for_one_image_cause_one_download(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    with flaky(registry.host) as proxy, gateway(user, tmp_path / "site") as one:
        found: list[dict[str, Any]] = []
        threads = [
            threading.Thread(target=lambda: found.append(one.pulled(f"{proxy.host}/site/big:1")))
            for _ in range(20)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [record["status"] for record in found] == ["READY"] * 20
        blobs = proxy.paths("/blobs/")
        assert len(blobs) == len(set(blobs))


def test_progress_is_told_in_bytes(user: User, tmp_path: Path, registry: Registry) -> None:
    with flaky(registry.host) as proxy, gateway(user, tmp_path / "site") as one:
        tag, go = f"{proxy.host}/site/big:1", threading.Event()

        def hold(path: str, sent: int) -> None:
            if sent > 1 << 20:
                go.wait(60)

        proxy.at_bytes = hold
        half = one.pulled(tag, "PULLING")
        while not 0 < half["done"] < half["total"]:
            half = one.pulled(tag, "PULLING")
        assert half["total"] > 9 << 20
        queued = one.get(f"/api/queue/{SYSTEM}/").body["list"]
        assert [row["image"] for row in queued] == [tag]
        assert queued[0]["status"] == "PULLING" and queued[0]["total"] == half["total"]
        go.set()
        assert one.pulled(tag)["status"] == "READY"


def test_a_gateway_that_was_killed_goes_on_where_it_was(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    """Also by its worker: the pull of the killed one ends with it, and its bytes are not lost."""
    with flaky(registry.host) as proxy, gateway(user, tmp_path / "site") as one:
        tag, go, cut = f"{proxy.host}/site/big:1", threading.Event(), threading.Event()

        def hold(path: str, sent: int) -> None:
            if sent > 2 << 20 and not go.is_set():
                cut.set()
                go.wait(60)

        proxy.at_bytes = hold
        one.pull(tag)
        assert cut.wait(60)
        one.kill()
        go.set()
        assert not list((one.store / "images").glob("*.sqfs"))
        one.start()
        assert one.get(f"/api/queue/{SYSTEM}/").body["list"][0]["image"] == tag
        assert one.pulled(tag)["status"] == "READY"
        assert any(asked for _, asked, _ in proxy.log), "nothing was resumed by a Range"


def test_a_killed_worker_is_started_again(user: User, tmp_path: Path, registry: Registry) -> None:
    """The pause is 5 seconds: the row says so, and a new gateway does not wait."""
    with flaky(registry.host) as proxy, gateway(user, tmp_path / "site") as one:
        tag, go, cut = f"{proxy.host}/site/big:1", threading.Event(), threading.Event()

        def hold(path: str, sent: int) -> None:
            cut.set()
            go.wait(60)

        proxy.at_bytes = hold
        one.pull(tag)
        assert cut.wait(60)
        assert one.process is not None
        tasks = Path(f"/proc/{one.process.pid}/task").glob("*/children")
        os.kill(int("".join(path.read_text() for path in tasks).split()[0]), 9)
        go.set()
        waiting = one.pulled(tag, "PENDING")
        while not waiting["status_message"]:
            waiting = one.pulled(tag, "PENDING")
        assert (
            "attempt 1 of 5 failed: the pull's process ended with status -9"
            in (waiting["status_message"])
        )
        proxy.at_bytes = None
        one.stop()
        one.start()
        assert one.pulled(tag)["status"] == "READY"


def test_what_the_registry_has_not_is_a_failure_at_once(
    served: Gateway, registry: Registry
) -> None:
    found = served.pulled(f"{registry.host}/site/none:1")
    assert found["status"] == "FAILURE" and "site/none" in found["status_message"]
    queued = served.get(f"/api/queue/{SYSTEM}/").body["list"]
    assert [row["status"] for row in queued] == ["FAILURE"]


def test_a_pull_with_credentials_is_the_askers_alone(
    user: User, tmp_path: Path, closed: Registry
) -> None:
    tag = f"{closed.host}/site/box:1"
    with gateway(user, tmp_path / "site") as one:
        assert one.pulled(tag)["status"] == "FAILURE"
        wrong = one.pulled(tag, authorized_locations={closed.host: f"{USER}:wrong"})
        assert wrong["status"] == "FAILURE" and "wrong" not in wrong["status_message"]
        given = {closed.host: f"{USER}:{PASSWORD}"}
        ready = one.pulled(tag, authorized_locations=given)
        assert ready["userACL"] == [os.getuid()]
        image = one.store / f"images/sha256-{ready['id']}.sqfs"
        for path in (image, image.with_suffix(".json")):
            assert not path.stat().st_mode & 0o007
            assert b"\x00" in os.getxattr(path, "system.posix_acl_access")
        everything = b"".join(
            path.read_bytes() for path in (one.store / "gateway").iterdir() if path.is_file()
        )
        assert f"{USER}:{PASSWORD}".encode() not in everything
        assert PASSWORD not in one.log.read_text()


@pytest.mark.needs("munge")
def test_munge_says_who_asks_on_loopback(user: User, tmp_path: Path, registry: Registry) -> None:
    tag = f"{registry.host}/site/box:1"
    where = tmp_path / "munge"
    options = (f"--munge={where}/socket",)
    with munged(where) as socket, gateway(user, tmp_path / "site", *options) as one:
        path = f"/api/list/{SYSTEM}/"
        assert one.ask("GET", path, loopback=True).status == 401
        good = credential(socket)
        assert one.ask("GET", path, loopback=True, authentication=good).status == 200
        again = one.ask("GET", path, loopback=True, authentication=good)
        assert again.status == 401 and "used before" in again.body["message"]
        bent = good[:40] + ("A" if good[40] != "A" else "B") + good[41:]
        for wrong in (bent, "MUNGE:", "good:user:group", "MUNGE:AAAA:"):
            assert one.ask("GET", path, loopback=True, authentication=wrong).status == 401
        text = json.dumps({"authorized_locations": {"default": "u:p"}})
        found = one.ask(
            "POST",
            f"/api/pull/{SYSTEM}/docker/{tag}/",
            loopback=True,
            authentication=credential(socket, text),
        )
        assert found.status == 200 and found.body["status"] == "INIT"
        assert one.pulled(tag)["status"] == "READY"


@pytest.mark.needs("munge")
def test_without_munged_the_gateway_says_so(user: User, tmp_path: Path) -> None:
    """At once, and who sends a credential; it goes on, since munged may come later."""
    with munged(tmp_path / "munge") as socket:
        good = credential(socket)
        with gateway(user, tmp_path / "site", f"--munge={socket}") as one:
            assert one.complaints == ""
    with gateway(user, tmp_path / "site", f"--munge={socket}", name="2") as one:
        assert one.complaints == (
            f'udi gateway: --munge: unmunge failed: Failed to access "{socket}": No such file or '
            "directory (Did you start munged?): who proves himself by munge is answered 503 until "
            "it works\nudi gateway: hint: munged must run on the gateway's host\n"
        )
        path = f"/api/list/{SYSTEM}/"
        found = one.ask("GET", path, loopback=True, authentication=good)
        assert found.status == 503 and "unmunge failed" in found.body["message"]
        assert one.get(path).status == 200


@pytest.mark.needs("munge")
def test_a_missing_munged_is_not_taken_for_a_wrong_credential(user: User, tmp_path: Path) -> None:
    """Whatever the name of its socket."""
    with munged(tmp_path / "munge") as socket:
        good = credential(socket)
    with gateway(user, tmp_path / "site", f"--munge={tmp_path}/none") as one:
        path = f"/api/list/{SYSTEM}/"
        found = one.ask("GET", path, loopback=True, authentication=good)
        assert found.status == 503 and f'"{tmp_path}/none"' in found.body["message"]


def test_without_unmunge_the_gateway_says_so(user: User, tmp_path: Path) -> None:
    ours = f"{TREE}/bin:{Path(sys.executable).parent}"
    with gateway(user, tmp_path / "site", "--munge", PATH=ours) as one:
        assert "--munge: starting unmunge failed: No such file or directory: " in one.complaints
        assert "\nudi gateway: hint: install munge\n" in one.complaints


def test_a_second_gateway_of_a_store_is_refused(served: Gateway, user: User) -> None:
    done = user.run("udi", "gateway", "serve", f"--store={served.store}")
    assert done.returncode == 125 and "another gateway has this store: " in done.stderr
    assert f"process {served.process.pid}" in done.stderr if served.process else False


def test_a_database_of_a_later_version_is_refused_by_name(user: User, tmp_path: Path) -> None:
    with gateway(user, tmp_path / "site") as one:
        pass
    with sqlite3.connect(one.store / "gateway/gateway.sqlite") as database:
        database.execute("UPDATE alembic_version SET version_num = '99'")
    done = user.run("udi", "gateway", "serve", f"--store={one.store}")
    assert done.returncode == 125
    assert "the gateway's database has schema 99, and this version" in done.stderr
    (one.store / "gateway/gateway.sqlite").write_bytes(b"no database" * 1000)
    done = user.run("udi", "gateway", "serve", f"--store={one.store}")
    assert "the gateway's database failed on" in done.stderr and "docs/gateway.md" in done.stderr


def test_what_udi_pull_and_rm_do_to_the_store_is_seen(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    tag, store = f"{registry.host}/site/box:1", tmp_path / "site"
    store.mkdir(mode=0o755)
    user.run("udi", "pull", tag, env={"UDI_STORE": str(store)}, check=True)
    with gateway(user, store) as one:
        listed = one.get(f"/api/list/{SYSTEM}/").body["list"]
        assert [record["tag"] for record in listed] == [[tag]]
    user.run("udi", "rm", tag, env={"UDI_STORE": str(store)}, check=True)
    with gateway(user, store) as one:
        assert one.get(f"/api/list/{SYSTEM}/").body == {"list": []}


def test_it_ends_by_sigterm_in_the_middle_of_a_pull(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    with flaky(registry.host) as proxy, gateway(user, tmp_path / "site") as one:
        go, cut = threading.Event(), threading.Event()

        def hold(path: str, sent: int) -> None:
            cut.set()
            go.wait(60)

        proxy.at_bytes = hold
        one.pull(f"{proxy.host}/site/big:1")
        assert cut.wait(60)
        assert one.stop() == 0
        go.set()
