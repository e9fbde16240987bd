"""Expiry by the site's rules, and what the gateway counts."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from tests.conftest import User
from tests.gateway.test_clients import configured
from tests.kit.gateway import SYSTEM, Gateway, gateway
from tests.kit.registry import Registry

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")

MONTHS = 90 * 86400


@pytest.fixture
def served(user: User, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(user, tmp_path / "site", "--keep=30") as one:
        configured(user, f"unix:{one.socket}")
        yield one


def unused(one: Gateway, record: dict[str, object]) -> Path:
    """Give an image's files, and its row, the times of one that nobody used for months."""
    image = one.store / f"images/sha256-{record['id']}.sqfs"
    then = time.time() - MONTHS
    os.utime(image, (then, then))
    return image


def test_without_rules_nothing_can_expire(user: User, tmp_path: Path) -> None:
    with gateway(user, tmp_path / "site") as one:
        configured(user, f"unix:{one.socket}")
        done = user.run("udi", "gateway", "expire", "--dry-run")
        assert done.returncode == 125 and "has no rules by which images expire" in done.stderr
        assert "hint: udi gateway serve --keep=DAYS or --room=SIZE gives it some" in done.stderr
        assert one.get(f"/api/autoexpire/{SYSTEM}/").status == 200


def test_what_nobody_used_for_long_goes(served: Gateway, user: User, registry: Registry) -> None:
    import sqlite3

    box, big = (f"{registry.host}/site/{name}:1" for name in ("box", "big"))
    old, new = unused(served, served.pulled(box)), unused(served, served.pulled(big))
    done = user.run("udi", "gateway", "expire", check=True)
    # Both were pulled just now, whatever their files' times say.
    assert done.stdout == "" and old.exists() and new.exists()
    served.stop()
    database = sqlite3.connect(served.store / "gateway/gateway.sqlite")
    database.execute("UPDATE images SET used = 1, pulled = 1")
    database.commit()
    database.close()
    served.start()
    assert served.get(f"/api/lookup/{SYSTEM}/docker/{big}/").status == 200
    held = old.open("rb")
    done = user.run("udi", "gateway", "expire", "--dry-run", check=True)
    assert done.stdout.startswith(f"{box}: ") and done.stdout.count("\n") == 1
    assert "1 image, " in done.stderr and done.stderr.endswith(" would go\n") and old.exists()
    done = user.run("udi", "gateway", "expire", check=True)
    assert done.stdout.startswith(f"{box}: ") and not old.exists() and new.exists()
    assert done.stderr.startswith("1 image, ") and done.stderr.endswith(" went\n")
    # Who has it open goes on reading it.
    assert held.read(4) == b"hsqs"
    held.close()
    assert served.get(f"/api/lookup/{SYSTEM}/docker/{box}/").status == 404
    log = user.run("udi", "gateway", "audit", check=True).stdout
    assert f"{user.name} expire sha256:" in log and box in log


def test_what_does_not_fit_goes_the_longest_unused_first(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    box, big = (f"{registry.host}/site/{name}:1" for name in ("box", "big"))
    with gateway(user, tmp_path / "site", "--room=5M") as one:
        configured(user, f"unix:{one.socket}")
        first, second = one.pulled(big), one.pulled(box)
        assert one.get(f"/api/autoexpire/{SYSTEM}/").status == 200
        assert not (one.store / f"images/sha256-{first['id']}.sqfs").exists()
        assert (one.store / f"images/sha256-{second['id']}.sqfs").exists()


def test_a_clock_that_jumped_expires_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from rootless_udi.gateway.expiry import Clock

    clock, now = Clock(), time.time()
    assert abs(clock.now() - now) < 60
    for jump in (-MONTHS, MONTHS):
        monkeypatch.setattr(time, "time", lambda jump=jump: now + jump)
        with pytest.raises(UdiError, match="the clock has jumped by"):
            clock.now()


def test_what_is_counted(served: Gateway, user: User, registry: Registry) -> None:
    tag = f"{registry.host}/site/box:1"
    served.pulled(tag)
    served.pulled(f"{registry.host}/site/none:1")
    for _ in range(3):
        served.get(f"/api/lookup/{SYSTEM}/docker/{tag}/")
    found = json.loads(user.run("udi", "stats", "--json", check=True).stdout)
    (day,) = found["days"]
    assert day["lookups"] == 3 and day["users"] == 1 and day["images"] == 1
    assert day["pulls"] == 1 and day["failures"] == 1
    assert found["top"] == [{"tag": tag, "lookups": 3}]
    assert found["images"] == 1 and found["private"] == 0 and found["bytes"] > 1000
    done = user.run("udi", "stats", check=True)
    assert done.stdout.startswith("DAY ") and f"{tag}: 3 lookups\n" in done.stdout
    assert "1 image, " in done.stderr
    text = served.get("/metrics").body
    assert "udi_gateway_lookups_total 3.0" in text and "udi_gateway_images 1.0" in text
    assert 'udi_gateway_pulls_total{state="READY"} 1.0' in text
    assert 'udi_gateway_pulls_total{state="FAILURE"} 1.0' in text and tag not in text
    assert served.ask("GET", "/metrics", loopback=True).status == 401
