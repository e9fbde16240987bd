"""Files of users become images of the site, where it lets them; and how much a user may bring."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.gateway import expiry, importing
from rootless_udi.gateway.expiry import Rules
from tests.conftest import User
from tests.gateway.test_clients import configured
from tests.kit.gateway import SYSTEM, Answer, Gateway, gateway
from tests.kit.registry import Registry

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")


@pytest.fixture
def served(user: User, tmp_path: Path) -> Iterator[Gateway]:
    with gateway(user, tmp_path / "site", "--import=50M") as one:
        configured(user, f"unix:{one.socket}", store=one.store)
        yield one


def ask(one: Gateway, name: str, path: object, **body: object) -> Answer:
    return one.ask(
        "POST", f"/api/doimport/{SYSTEM}/docker/{name}/", {"filepath": str(path), **body}
    )


def imported(one: Gateway, name: str, path: object, **body: object) -> dict[str, object]:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        found = ask(one, name, path, **body)
        assert found.status == 200, found
        if found.body["status"] in ("READY", "FAILURE"):
            return dict(found.body)
    raise AssertionError(one.log.read_text())


@pytest.mark.needs("userns", "fuse")
def test_a_file_of_the_askers_is_an_image_of_the_site(
    served: Gateway, user: User, box: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.sqfs"
    path.write_bytes(box.read_bytes())
    ready = imported(served, "mine:1", path)
    tag = f"{importing.HOST}/{user.name}/mine:1"
    assert ready["status"] == "READY" and ready["tag"] == [tag], ready
    done = user.run("udi-run", "--pull=never", tag, "echo", "hello")
    assert done.stdout == "hello\n", done.stderr
    image = served.store / f"images/sha256-{ready['id']}.sqfs"
    assert image.stat().st_mode & 0o777 == 0o644
    # What nobody has looked at is not said to be nothing.
    page = served.get(f"/page/image?id=sha256:{ready['id']}").body
    assert page.count("<dd>not known</dd>") == 2 and " files</span>" not in page
    # The file may go, or change: the site has its own. What it has become is another image.
    subprocess.run(["mksquashfs", "/usr/bin/env", path, "-noappend", "-quiet"], check=True)
    second = imported(served, "mine:1", path)
    assert second["status"] == "READY" and second["id"] != ready["id"]
    log = served.get("/api/v1/audit/").body["list"]
    assert [row["action"] for row in log] == ["import", "import"]
    private = imported(served, "closed", path, allowed_uids=str(os.getuid()))
    assert private["status"] == "READY"


def test_what_is_not_imported(served: Gateway, user: User, tmp_path: Path, box: Path) -> None:
    mine, link, pipe = tmp_path / "mine", tmp_path / "link", tmp_path / "pipe"
    mine.write_bytes(b"no squashfs" * 1000)
    link.symlink_to(mine)
    os.mkfifo(pipe)
    big = tmp_path / "big"
    big.touch()
    os.truncate(big, 51 << 20)
    for name, path, status, why in (
        ("x", "/etc/passwd", 400, "it is not yours"),
        ("x", link, 400, "opening"),
        ("x", pipe, 400, "it is no regular file"),
        ("x", tmp_path, 400, "it is no regular file"),
        ("x", tmp_path / "none", 400, "No such file"),
        ("x", big, 400, "the site takes 52.4 MB at most"),
        ("x", "relative", 400, "is no absolute path"),
        ("docker.io/library/alpine:1", mine, 400, "is no name for an imported image"),
        ("../x", mine, 400, "is no name"),
    ):
        found = ask(served, name, path)
        assert found.status == status and why in found.body["message"], (found, why)
    assert "squashfs" in str(imported(served, "x", mine)["status_message"])
    assert ask(served, "x", mine, format="ext4").status == 400
    found = served.pull(f"{importing.HOST}/{user.name}/x")
    assert found.status == 404 and "is no registry" in found.body["message"]


def test_the_files_owner_is_asked_of_what_was_opened(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(UdiError, match="it is not yours"):
        importing.opened(str(path), os.getuid() + 1, 100)
    fd, _ = importing.opened(str(path), os.getuid(), 100)
    os.close(fd)


def test_rules_for_users(user: User, tmp_path: Path, registry: Registry) -> None:
    """Unused for too long, and more than a user may bring: the longest unused go first."""
    from rootless_udi.gateway.database import Database
    from rootless_udi.store.store import Store

    box, big = (f"{registry.host}/site/{name}:1" for name in ("box", "big"))
    with gateway(user, tmp_path / "site") as one:
        first, second = one.pulled(big), one.pulled(box)
    database = Database(str(one.store))
    try:
        known = database.write_now(expiry.looked_up)
        assert database.write_now(expiry.brought, os.getuid()) > 9 << 20
    finally:
        database.close()
    store, now = Store(str(one.store)), time.time()

    def gone(rules: Rules, when: float = now) -> list[str]:
        return [use.entry.image.digest for use in expiry.chosen(store, known, rules, when)]

    both = [f"sha256:{first['id']}", f"sha256:{second['id']}"]
    later = now + 40 * 86400
    name = user.name
    assert gone(Rules()) == gone(Rules(user_room={"": 1 << 40, "other": 1})) == []
    assert gone(Rules(user_room={"": 5 << 20})) == both[:1]
    assert gone(Rules(user_room={"": 1 << 40, name: 5 << 20})) == both[:1]
    assert gone(Rules(user_room={"": 5 << 20, name: 0})) == []
    assert gone(Rules(user_keep={"": 30 * 86400.0}), later) == both
    assert gone(Rules(keep=30 * 86400.0, user_keep={name: 90 * 86400.0}), later) == both
    assert gone(Rules(keep=90 * 86400.0, user_keep={name: 30 * 86400.0}), later) == both
    assert gone(Rules(user_keep={name: 0.0, "": 1.0}), later) == []


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("--user-keep=x", "--user-keep=x: is no [USER=]DAYS"),
        ("--user-keep=a=-1", "--user-keep=a=-1: is no [USER=]DAYS"),
        ("--user-room=a=1Q", "1Q"),
        ("--import=lots", "lots"),
    ],
)
def test_rules_that_are_refused(user: User, tmp_path: Path, word: str, why: str) -> None:
    done = user.run("udi", "gateway", "serve", f"--store={tmp_path}/site", word)
    assert done.returncode == 125 and why in done.stderr, done.stderr


@pytest.mark.root
def test_a_user_who_has_brought_enough_brings_no_more(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    """As another account than the gateway's, which may bring as much as it likes."""

    def pull(name: str) -> tuple[int, str]:
        path = f"http://gateway/api/pull/{SYSTEM}/docker/{registry.host}/site/{name}/"
        argv = ["setpriv", "--reuid=bin", "--regid=bin", "--clear-groups", "curl", "-sS", "-X"]
        argv += ["POST", "--unix-socket", str(one.socket), "-w", "\n%{http_code}", path]
        text = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
        body, _, status = text.rpartition("\n")
        return int(status), body

    with gateway(user, tmp_path / "site", "--user-room=bin=1M", "--user-room=1T") as one:
        for name in ("big:1", "box:1"):
            while (found := pull(name))[0] == 200 and '"status":"READY"' not in found[1].replace(
                " ", ""
            ):
                pass
            if name == "big:1":
                assert found[0] == 200
        assert found[0] == 403 and "brought take 9.4 MB, and you may have 1.0 MB" in found[1]
        # Who has room may.
        assert one.pulled(f"{registry.host}/site/box:1")["status"] == "READY"
