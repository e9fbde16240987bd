"""A gateway that is killed at random moments of its day loses nothing and shows nothing half done.

What a client was told stays so. What it was not told has happened or not; a new gateway settles it.
"""

import http.client
import os
import random
import struct
import threading
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.gateway import SYSTEM, Gateway, gateway
from tests.kit.registry import PASSWORD, USER, Registry

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")

STRANGERS = (4001, 4002, 4003)
_BROKEN = (OSError, http.client.HTTPException, ValueError)


class Day:
    """Pulls, shares and expires at random, and remembers what was answered.

    `names` and `readers` say what must be: True, False, or None where no answer came.
    """

    def __init__(self, one: Gateway, public: list[str], private: str, seed: int) -> None:
        self.one, self.public, self.private = one, public, private
        self.random = random.Random(seed)
        self.names: dict[str, bool | None] = dict.fromkeys([*public, private], False)
        self.readers: dict[int, bool | None] = dict.fromkeys(STRANGERS, False)
        self.secret = {"authorized_locations": {private.split("/")[0]: f"{USER}:{PASSWORD}"}}

    def work(self) -> None:
        """Do one thing after the other until the gateway is gone."""
        while True:
            tag = self.random.choice([*self.names, self.private])
            try:
                self.random.choice((self.pull, self.pull, self.share, self.share, self.expire))(tag)
            except _BROKEN:
                return

    def pull(self, tag: str) -> None:
        before, self.names[tag] = self.names[tag], None
        found = self.one.pulled(tag, **(self.secret if tag == self.private else {}))
        # A pull that began before the kill, with credentials, has failed by it.
        self.names[tag] = True if found["status"] == "READY" else before

    def expire(self, tag: str) -> None:
        before, self.names[tag] = self.names[tag], None
        if tag == self.private:
            self.readers = dict.fromkeys(STRANGERS, None)
        status = self.one.get(f"/api/expire/{SYSTEM}/docker/{tag}/").status
        assert status in (200, 404)
        assert before is None or (status == 200) is before, (tag, before, status)
        self.names[tag] = False
        if tag == self.private:
            self.readers = dict.fromkeys(STRANGERS, False)

    def share(self, tag: str) -> None:
        who, remove = self.random.choice(STRANGERS), self.random.random() < 0.5
        before, self.readers[who] = self.readers[who], None
        path = f"/api/v1/access/{SYSTEM}/docker/{self.private}/"
        status = self.one.ask("POST", path, {"users": [who], "remove": remove}).status
        self.readers[who] = not remove if status == 200 else before

    def look_at_files(self) -> None:
        """Right after the kill, before anybody has put anything right."""
        for path in (self.one.store / "names").rglob("*"):
            if path.is_symlink() and not path.name.startswith("."):
                base = self.one.store / "images" / os.readlink(path)
                assert base.with_name(base.name + ".sqfs").stat().st_size > 4096, path
                assert base.with_name(base.name + ".json").exists(), path
        assert not (self.one.store / "gateway").stat().st_mode & 0o077
        for path in (self.one.store / "blobs").rglob("*"):
            assert not path.stat().st_mode & 0o077, path
        self.look_at_readers()

    def look_at_readers(self, settled: bool = False) -> None:
        big = [p for p in (self.one.store / "images").iterdir() if p.stat().st_size > 5 << 20]
        for path in big:
            assert not path.stat().st_mode & 0o007, path
            for who, may in self.readers.items():
                reads = who in listed(path)
                assert not (reads and may is False), (who, path)
                assert not (settled and may and not reads), (who, path)

    def settle(self) -> None:
        """Wait for what goes on; then all that was told must be so, and the rest is as it is."""
        while rows := self.one.get(f"/api/queue/{SYSTEM}/").body["list"]:
            if all(row["status"] in ("FAILURE", "READY") for row in rows):
                break
        for tag, there in self.names.items():
            status = self.one.get(f"/api/lookup/{SYSTEM}/docker/{tag}/").status
            assert there is None or (status == 200) is there, (tag, there, status)
            self.names[tag] = status == 200
        self.look_at_readers(settled=bool(self.names[self.private]))
        images = (self.one.store / "images").iterdir()
        big = [path for path in images if path.stat().st_size > 5 << 20]
        for who, may in self.readers.items():
            if may is None:
                self.readers[who] = any(who in listed(path) for path in big)


def listed(path: Path) -> set[int]:
    """The users of a file's access list."""
    try:
        data = os.getxattr(path, "system.posix_acl_access")
    except OSError:
        return set()
    return {who for tag, _, who in struct.iter_unpack("<HHI", data[4:]) if tag == 2}


@pytest.mark.parametrize(
    "kills", [pytest.param(4, id="few"), pytest.param(50, id="many", marks=pytest.mark.slow)]
)
def test_kills_at_random_moments(
    user: User, tmp_path: Path, registry: Registry, closed: Registry, kills: int
) -> None:
    public = [f"{registry.host}/site/{name}" for name in ("box:1", "same:2")]
    moments = random.Random(kills)
    with gateway(user, tmp_path / "site", "--rate=1e9") as one:
        day = Day(one, public, f"{closed.host}/site/big:1", seed=kills)
        for _ in range(kills):
            killer = threading.Timer(moments.uniform(0.05, 3.0), one.kill)
            killer.start()
            day.work()
            killer.join()
            day.look_at_files()
            one.start()
            day.settle()
        # And all of it still works.
        found = one.pulled(day.private, **day.secret)
        assert (found["status"], found["status_message"]) == ("READY", "")
