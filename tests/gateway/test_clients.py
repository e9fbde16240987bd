"""shifterimg and udi as clients of a gateway: its socket, munge on loopback, what goes wrong."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.config import schema
from rootless_udi.pull.gateway import GatewayClient
from tests.conftest import User
from tests.kit.gateway import SYSTEM, Gateway, gateway, munged
from tests.kit.places import TREE
from tests.kit.registry import PASSWORD, USER, Quiet, Registry, serve

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")

SHIFTERIMG = f"{TREE}/bin/shifterimg"
WHEN = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d"


def configured(user: User, address: str, more: str = "", store: Path | None = None) -> None:
    """Write a configuration that names a gateway."""
    folder = user.home / ".config/rootless_udi"
    folder.mkdir(parents=True, exist_ok=True)
    text = f'[site]\nname = "{SYSTEM}"\n[gateway]\naddress = "{address}"\n{more}'
    text += f'[store]\nsite = ["{store}"]\n' if store else ""
    (folder / "config.toml").write_text(text)


@pytest.fixture
def served(user: User, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(user, tmp_path / "site") as one:
        configured(user, f"unix:{one.socket}", store=one.store)
        yield one


def test_shifterimg_over_the_gateway(served: Gateway, user: User, registry: Registry) -> None:
    tag = f"{registry.host}/site/box:1"
    done = user.run(SHIFTERIMG, "pull", tag, check=True)
    lines = done.stdout.splitlines()
    for line in lines:
        assert re.fullmatch(rf"{WHEN} Pulling Image: docker:{tag}, status: [A-Z]+", line)
    states = [line.rpartition(" ")[2] for line in lines]
    assert states[0] == "INIT" and states[-1] == "READY"
    digest = user.run(SHIFTERIMG, "lookup", tag, check=True).stdout.strip()
    assert (served.store / f"images/sha256-{digest}.sqfs").exists()
    assert not (user.home / "store/images").exists()
    (line,) = user.run(SHIFTERIMG, "images", check=True).stdout.splitlines()
    system, kind, status, short, _, name = line.split()
    assert (system, kind, status, short, name) == (SYSTEM, "docker", "READY", digest[:10], tag)
    done = user.run(SHIFTERIMG, "pullnb", f"{registry.host}/site/same:2", check=True)
    assert done.stdout.endswith("status: INIT\n")
    assert user.run(SHIFTERIMG, "lookup", f"id:{digest}", check=True).stdout.strip() == digest
    done = user.run(SHIFTERIMG, "expire", tag, check=True)
    assert done.stdout == f"{tag} EXPIRED\n"
    assert user.run(SHIFTERIMG, "autoexpire").returncode == 0
    done = user.run(SHIFTERIMG, "lookup", tag)
    assert done.returncode == 1 and "says: image not found" in done.stderr
    assert "there is none that you may read; `udi pull --site` has" in done.stderr
    done = user.run(SHIFTERIMG, "pull", f"{registry.host}/site/none:1")
    assert done.returncode == 1 and done.stdout.endswith("status: FAILURE\n")
    none = f"{registry.host}/site/none:1"
    # Once, and no "pulling" once more.
    assert f"the gateway could not pull {none}: not found: " in done.stderr


def test_shifterimg_gives_an_image_to_users_and_groups(
    served: Gateway, user: User, registry: Registry
) -> None:
    tag = f"{registry.host}/site/box:1"
    words = ["--user=nobody,4711", "--group=daemon", "pull", tag]
    user.run(SHIFTERIMG, *words, check=True)
    record = served.get(f"/api/lookup/{SYSTEM}/docker/{tag}/").body
    assert record["userACL"] == sorted([os.getuid(), 4711, 65534])
    assert record["groupACL"] == [1]
    image = served.store / f"images/sha256-{record['id']}.sqfs"
    assert image.stat().st_mode & 0o777 == 0o640
    done = user.run(SHIFTERIMG, "--user=no-such-user", "pull", tag)
    assert done.returncode == 1 and "no-such-user is no user or group" in done.stderr


def test_what_is_empty_is_one_line(served: Gateway, user: User) -> None:
    for words, line in (
        (
            ("images", "--site"),
            "the site's gateway has no image that you may read: udi pull --site IMAGE brings one\n",
        ),
        (("images", "--site", "--names"), ""),
        (("gateway", "token", "--list"), "you have no token: udi gateway token makes one\n"),
        (
            ("stats", "--days=7"),
            "nothing was asked for in 7 days\n0 images, 0 B, 0 private\n",
        ),
    ):
        done = user.run("udi", *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", line)


def test_udi_with_site(served: Gateway, user: User, registry: Registry) -> None:
    tag = f"{registry.host}/site/box:1"
    done = user.run("udi", "pull", "--site", tag, check=True)
    digest = done.stdout.strip()
    assert "by the gateway at unix:" in done.stderr
    assert (served.store / f"images/{digest.replace(':', '-')}.sqfs").exists()
    (row,) = json.loads(user.run("udi", "images", "--site", "--json", check=True).stdout)
    assert (row["name"], row["digest"]) == (tag, digest) and row["size"] > 0
    shown = user.run("udi", "images", "--site", check=True).stdout
    assert tag in shown and digest[7:19] in shown
    assert user.run("udi", "images", "--site", "--names", check=True).stdout == f"{tag}\n"
    # What starts read is the store itself: the gateway is not asked.
    served.stop()
    assert user.run("udi", "inspect", tag).returncode == 0
    for words, why in (
        (["pull", "--site", "--force", tag], "--site and force"),
        (["images", "--site", "--filter=older=1d"], "the gateway's list is not filtered"),
        (["pull", "--site", tag], "can't be asked: "),
        (["pull", "--site", f"oci:{user.home}"], "is not in a registry"),
    ):
        done = user.run("udi", *words)
        assert done.returncode == 125 and why in done.stderr, done.stderr


def test_without_a_gateway_site_says_so(user: User) -> None:
    for words in (["pull", "--site", "x"], ["images", "--site"]):
        done = user.run("udi", *words)
        assert done.returncode == 125 and "names no image gateway" in done.stderr


@pytest.mark.needs("munge")
def test_munge_on_loopback_and_a_registrys_password(
    user: User, tmp_path: Path, closed: Registry
) -> None:
    """The password of `udi login` goes along inside the munge credential, and nowhere else."""
    tag, where = f"{closed.host}/site/box:1", tmp_path / "munge"
    words = (f"--munge={where}/socket",)
    with munged(where), gateway(user, tmp_path / "site", *words) as one:
        address = f"http://127.0.0.1:{one.port}"
        configured(user, address, f'munge_socket = "{where}/socket"\n')
        done = user.run("udi", "pull", "--site", tag)
        assert done.returncode == 125 and "the gateway could not pull" in done.stderr
        user.run(SHIFTERIMG, "login", closed.host, input=f"{USER}\n{PASSWORD}\n", check=True)
        done = user.run("udi", "pull", "--site", tag)
        assert done.returncode == 0, done.stderr
        record = one.get(f"/api/lookup/{SYSTEM}/docker/{tag}/").body
        assert record["userACL"] == [os.getuid()]
        configured(user, address, f'munge_socket = "{where}/none"\n')
        done = user.run("udi", "images", "--site")
        assert done.returncode == 125 and "making a munge credential failed" in done.stderr


@pytest.mark.needs("munge")
def test_a_credential_is_not_sent_again_where_a_connection_breaks(
    user: User, tmp_path: Path
) -> None:
    """The gateway may have taken it, and would say that it was used before."""
    where = tmp_path / "munge"
    asked: list[int] = []

    class Breaks(Quiet):
        """What stands before the gateway: the second answer of a connection is lost."""

        answers = 0

        def do_GET(self) -> None:
            proof = self.headers["authentication"]
            found = one.ask("GET", self.path, loopback=True, authentication=proof)
            asked.append(found.status)
            self.answers += 1
            if self.answers == 2:
                self.close_connection = True
                return
            body = json.dumps(found.body).encode()
            self.answer(found.status, body, Content_Type="application/json")

    with munged(where) as path, gateway(user, tmp_path / "site", f"--munge={path}") as one:
        server = serve(Breaks)
        try:
            client = GatewayClient(f"http://127.0.0.1:{server.server_port}", SYSTEM, str(path))
            assert client.images() == client.images() == client.images() == []
        finally:
            server.shutdown()
            server.server_close()
    assert asked == [200, 200, 200, 200, 200]


def test_what_is_no_gateway(user: User) -> None:
    class Page(Quiet):
        def do_GET(self) -> None:
            self.answer(200, b"<html>hello</html>")

    configured(user, "unix:/nowhere/socket")
    done = user.run(SHIFTERIMG, "images")
    assert done.returncode == 1
    assert "the image gateway at unix:/nowhere/socket can't be asked: No such" in done.stderr
    server = serve(Page)
    # In place of munge, which a machine may not have: it says what any proof would.
    (user.home / "bin").mkdir()
    (user.home / "bin/munge").write_text("#!/bin/sh\necho MUNGE:x:\n")
    (user.home / "bin/munge").chmod(0o755)
    env = {"PATH": f"{user.home}/bin:{user.env['PATH']}"}
    configured(user, f"http://127.0.0.1:{server.server_port}")
    done = user.run("udi", "images", "--site", env=env)
    server.shutdown()
    server.server_close()
    assert done.returncode == 125 and "is no image gateway: status 200, and no JSON" in done.stderr


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ("unix:/run/x", "unix:/run/x"),
        ("https://gateway.example", "https://gateway.example"),
        ("https://gateway.example/", "https://gateway.example"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("http://[::1]:5000", "http://[::1]:5000"),
        ("unix:run", ""),
        ("unix:/", ""),
        ("http://", ""),
        ("ftp://host", ""),
        ("http://host:port", ""),
        ("http://host/path", ""),
        ("http://user:word@host", ""),
        ("host:5000", ""),
    ],
)
def test_addresses(value: str, kept: str) -> None:
    if kept:
        assert schema.gateway(value) == kept
        return
    with pytest.raises(schema.Wrong, match="is no gateway's address"):
        schema.gateway(value)
