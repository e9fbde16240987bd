"""Starts are counted by datagrams: from udi-run itself, lost, repeated, wrong, many at once."""

import json
import random
import socket
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.gateway import starts
from rootless_udi.launch import counted
from tests.conftest import User
from tests.gateway.test_clients import configured
from tests.kit.gateway import SYSTEM, Gateway, gateway
from tests.kit.registry import Registry

pytestmark = pytest.mark.needs("gateway")


@pytest.fixture
def grams(tmp_path: Path) -> Iterator[socket.socket]:
    """What gets a start's datagrams in the gateway's place."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("127.0.0.1", 0))
        one.settimeout(60)
        yield one


def told(user: User, address: str, more: str = "", store: Path | None = None) -> None:
    configured(user, "unix:/none", f'starts = "{address}"\n{more}', store)


@pytest.mark.needs("userns", "fuse", "registry", "skopeo")
def test_a_start_is_counted_and_its_image_is_used(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    tag = f"{registry.host}/site/box:1"
    path = tmp_path / "grams"
    with gateway(user, tmp_path / "site", f"--starts=unix:{path}") as one:
        told(user, f"unix:{path}", store=one.store)
        ready = one.pulled(tag)
        before = used(one)
        done = user.run("udi-run", "--pull=never", tag, "echo", "hello")
        assert done.stdout == "hello\n", done.stderr
        (day,) = one.get("/api/v1/stats/").body["days"]
        assert (day["starts"], day["lookups"]) == (1, 0)
        (row,) = rows(one)
        assert row[0] == str(user.uid) and row[1] == f"sha256:{ready['id']}"
        assert used(one) > before


def rows(one: Gateway) -> list[Any]:
    with sqlite3.connect(one.store / "gateway/gateway.sqlite") as database:
        found = database.execute('SELECT "user", digest FROM starts').fetchall()
    database.close()
    return found


def used(one: Gateway) -> float:
    with sqlite3.connect(one.store / "gateway/gateway.sqlite") as database:
        (found,) = database.execute("SELECT used FROM images").fetchone()
    database.close()
    return float(found)


@pytest.mark.needs("userns", "fuse")
def test_who_builds_sends_one_and_who_joins_none(
    user: User, grams: socket.socket, box: Path
) -> None:
    told(user, f"127.0.0.1:{grams.getsockname()[1]}", "starts_user = false\n")
    for _ in range(3):
        done = user.run("udi-run", "--keep=600", box, "true")
        assert done.returncode == 0, done.stderr
    user.run("udi", "stop", "--all")
    user.run("udi-run", box, "true", check=True)
    found = [grams.recv(2000).decode().split(" ") for _ in range(2)]
    assert [words[0] for words in found] == [counted.WORD] * 2
    assert found[0][1] != found[1][1] and [words[2] for words in found] == ["-", "-"]
    assert found[0][4].endswith(box.name)
    grams.setblocking(False)
    with pytest.raises(BlockingIOError):
        grams.recv(2000)


@pytest.mark.needs("userns", "fuse")
@pytest.mark.parametrize("address", ["127.0.0.1:1", "192.0.2.1:7", "[::1]:1", "unix:/none/grams"])
def test_a_start_does_not_care_whether_somebody_counts(user: User, box: Path, address: str) -> None:
    told(user, address)
    done = user.run("udi-run", box, "echo", "hello")
    assert (done.stdout, done.stderr) == ("hello\n", "")


def test_an_address_that_is_none_is_refused(user: User) -> None:
    for address in ("host:7", "127.0.0.1", "127.0.0.1:0", "unix:relative", "127.0.0.1:99999"):
        told(user, address)
        done = user.run("udi", "config", "show")
        assert done.returncode == 1 and "is no address for datagrams" in done.stderr, address


@pytest.mark.parametrize(
    "text", ["host:7", "192.0.2.1:7", "127.0.0.1", "unix:/none/x", "0.0.0.0:-1"]
)
def test_where_no_datagrams_can_come_it_says_so(text: str) -> None:
    with pytest.raises(UdiError, match="no datagrams can come there"):
        starts.opened(text)


def test_200_at_once_are_each_counted_once(user: User, tmp_path: Path) -> None:
    """Twice each, in any order, with rubbish between: the gateway answers meanwhile."""
    with gateway(user, tmp_path / "site", "--starts=127.0.0.1:0", "--hash-users") as one:
        where = ("127.0.0.1", int(one.said[2].rpartition(":")[2]))
        good = [f"{counted.WORD} id{n} {1000 + n % 7} sha256:{n:064x} x" for n in range(200)]
        bad = ["", "udi-start/9 a b c d", f"{counted.WORD} ../x 1 - x", f"{counted.WORD} a x - x"]
        bad += [f"{counted.WORD} {'a' * 33} 1 - x", f"{counted.WORD} a 1 {'b' * 136} x"]
        bad += [f"{counted.WORD} a 99999999999 - x", "x" * 60000, f"{counted.WORD} \xe4 1 - x"]
        data = good * 2 + bad
        random.Random(1).shuffle(data)

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                for text in data:
                    out.sendto(text.encode("latin1"), where)

        thread = threading.Thread(target=send)
        thread.start()
        for _ in range(20):
            assert one.get(f"/api/list/{SYSTEM}/").status == 200
        thread.join()
        # What the kernel had no room for is lost; what it kept is counted once.
        for text in good:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as out:
                out.sendto(text.encode(), where)
            one.get("/")
        (day,) = one.get("/api/v1/stats/").body["days"]
        assert day["starts"] == 200
        users = {user for user, _ in rows(one)}
        assert len(users) == 7 and all(name[0] == "h" and len(name) == 25 for name in users)
        assert {digest for _, digest in rows(one)} == {""}
        assert "starts" in json.dumps(day)


def test_both_ends_mean_the_same() -> None:
    assert starts._WORD.decode() == counted.WORD
