"""What gateways of a PostgreSQL do where it fails them: stopped, read-only, full."""

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import User
from tests.kit.forwarding import forwarded
from tests.kit.gateway import SYSTEM, Gateway, gateway, status, until
from tests.kit.postgres import Cluster
from tests.kit.registry import PASSWORD, USER, Registry

if TYPE_CHECKING:
    from tests.kit.browser import Browser

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway", "postgresql")

LOST = "its session with the database is lost: the gateway's database failed on"
NO_END = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE 'no room for the log' USING ERRCODE = 'disk_full'; END $$;
CREATE CONSTRAINT TRIGGER no_end AFTER {what} ON jobs DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION refuse();
"""
"""Has transactions that do `what` fail where they end, as where the disk is full then."""


@pytest.mark.parametrize("number", [0, 99])
def test_a_job_whose_taking_was_not_written_is_taken_again(
    user: User, tmp_path: Path, url: str, registry: Registry, postgres: Cluster, number: int
) -> None:
    """Also one that a gateway asked for which has entered anew since, by the number before."""
    tag = f"{registry.host}/site/box:1"
    name = url.removeprefix("postgresql:///").partition("?")[0]
    with gateway(user, tmp_path / "site", f"--database={url}", "--workers=1") as one:
        postgres.sql(NO_END.format(what="UPDATE OF attempts"), name)
        assert one.pull(tag).status == 200
        until(lambda: "no room for the log" in one.log.read_text(), one.log)
        postgres.sql(f"UPDATE jobs SET gateway = {number}", name)
        postgres.sql("DROP FUNCTION refuse() CASCADE", name)
        assert one.pulled(tag)["status"] == "READY"


def test_credentials_of_a_request_that_was_not_written_are_nobodys(
    user: User, tmp_path: Path, url: str, closed: Registry, postgres: Cluster
) -> None:
    """The next job may have the number of the one that was not written, and is another's."""
    name, tag = url.removeprefix("postgresql:///").partition("?")[0], f"{closed.host}/site/box:1"
    given = {closed.host: f"{USER}:{PASSWORD}"}
    with gateway(user, tmp_path / "site", f"--database={url}") as one:
        postgres.sql(NO_END.format(what="INSERT"), name)
        assert one.pull(tag, authorized_locations=given).status == 503
        postgres.sql("DROP FUNCTION refuse() CASCADE", name)
        postgres.sql("ALTER SEQUENCE jobs_id_seq RESTART", name)
        found = one.pulled(tag)
        assert found["status"] == "FAILURE" and "access denied" in found["status_message"]
        assert status(one, tag) == 404


def test_gateways_go_on_when_the_database_is_there_again(
    two: tuple[Gateway, Gateway], registry: Registry, postgres: Cluster
) -> None:
    tag = f"{registry.host}/site/box:1"
    assert two[0].pulled(tag)["status"] == "READY" and status(two[1], tag) == 200
    postgres.stop()
    try:
        for one in two:
            until(lambda one=one: status(one, tag) == 503, one.log)  # type: ignore[misc]
            found = one.pull(tag)
            assert found.status == 503 and "is PostgreSQL up" in found.body["hint"]
            until(lambda one=one: LOST in one.log.read_text(), one.log)  # type: ignore[misc]
    finally:
        postgres.start()
    for one in two:
        until(lambda one=one: status(one, tag) == 200, one.log)  # type: ignore[misc]
    assert two[0].pulled(f"{registry.host}/site/same:2")["status"] == "READY"
    until(lambda: status(two[1], f"{registry.host}/site/same:2") == 200, two[1].log)


def test_who_follows_the_queue_does_so_again_when_the_database_is_there_again(
    user: User, tmp_path: Path, url: str, postgres: Cluster
) -> None:
    """The stream has its end, the next one is refused meanwhile, and the log has no traceback."""
    with gateway(user, tmp_path / "site", f"--database={url}") as one:
        connection = one.connect()
        connection.request("GET", "/page/events")
        answer = connection.getresponse()
        assert answer.read1().startswith(b"retry: ")
        postgres.stop()
        try:
            # Whole: a connection that broke would raise IncompleteRead.
            answer.read()
            assert one.get("/page/events").status == 503
        finally:
            postgres.start()
        connection.close()
        until(lambda: followed(one) == 200, one.log)


def followed(one: Gateway) -> int:
    """The status of a stream of the queue, whose end nobody waits for."""
    connection = one.connect()
    connection.request("GET", "/page/events")
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.needs("chromium")
def test_the_page_follows_the_queue_again_when_the_database_is_there_again(
    browser: "Browser", user: User, tmp_path: Path, url: str, postgres: Cluster
) -> None:
    with (
        gateway(user, tmp_path / "site", f"--database={url}") as one,
        forwarded(one.socket) as port,
    ):
        browser.open(f"http://localhost:{port}/page/queue")
        browser.until(lambda: browser.one("#live").text == "Live")
        postgres.stop()
        try:
            browser.until(lambda: browser.one("#live").text == "Connecting again…")
            browser.until(lambda: any("503" in text for text in browser.complaints()))
        finally:
            postgres.start()
        browser.until(lambda: browser.one("#live").text == "Live")


def test_a_database_that_becomes_read_only(
    user: User, tmp_path: Path, url: str, postgres: Cluster
) -> None:
    with gateway(user, tmp_path / "site", f"--database={url}") as one:
        try:
            postgres.sql("ALTER SYSTEM SET default_transaction_read_only = on")
            postgres.sql("SELECT pg_reload_conf()")
            until(lambda: one.pull("127.0.0.1:1/a:1").status == 503, one.log)
            found = one.pull("127.0.0.1:1/a:2")
            assert "read-only transaction" in found.body["message"]
            assert found.body["hint"] == "is it a standby? the gateway must write"
            assert one.get(f"/api/list/{SYSTEM}/").status == 200
        finally:
            postgres.sql("ALTER SYSTEM RESET ALL")
            postgres.sql("SELECT pg_reload_conf()")
        until(lambda: one.pull("127.0.0.1:1/a:2").status == 200, one.log)
