"""The gateway on file systems that are full or have no access lists."""

import contextlib
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.gateway import access, importing
from tests.conftest import User
from tests.gateway.test_clients import configured
from tests.gateway.test_import import imported
from tests.kit.gateway import SYSTEM, Gateway, gateway
from tests.kit.places import TREE
from tests.kit.registry import Registry

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway", "userns")


def mounted(folder: Path, kind: str, options: str) -> tuple[str, ...]:
    """Words that start a program as its caller, in namespaces in which `folder` is a mount."""
    folder.mkdir()
    back = f"unshare --user --map-user={os.getuid()} --map-group={os.getgid()}"
    script = f'mount -t {kind} -o {options} none "{folder}" && exec {back} "$@"'
    return ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")


def inside(one: Gateway) -> Path:
    """The gateway's store, as it sees it."""
    assert one.process is not None
    return Path(f"/proc/{one.process.pid}/root{one.store}")


def test_without_access_lists_an_image_is_for_one_group(
    user: User, tmp_path: Path, box: Path
) -> None:
    """ramfs has none, and tells nobody of its room, so that an import is what works there."""
    mine = str(os.getgid())
    before = mounted(tmp_path / "site", "ramfs", "mode=755")
    file = tmp_path / "file"
    file.write_bytes(box.read_bytes())
    with gateway(user, tmp_path / "site", "--import=1G", before=before) as one:
        assert "its file system has no access lists" in one.log.read_text()
        wrong: tuple[dict[str, str], ...]
        wrong = ({"allowed_gids": "4"}, {"allowed_uids": "5"}, {"allowed_gids": f"{mine},4"})
        for lists in wrong:
            found = one.pull("127.0.0.1:1/a:1", **lists)
            assert found.status == 403 and "one group" in found.body["message"], found
        ready = imported(one, "box", file, allowed_gids=mine)
        assert ready["status"] == "READY" and ready["groupACL"] == [os.getgid()], ready
        image = inside(one) / f"images/sha256-{ready['id']}.sqfs"
        for path in (image, image.with_suffix(".json")):
            assert path.stat().st_mode & 0o777 == 0o640 and path.stat().st_gid == os.getgid()
        name = f"docker/{importing.HOST}/{user.name}/box"
        one.get(f"/api/expire/{SYSTEM}/{name}/")
        # His alone: no group has it.
        own = imported(one, "own", file, allowed_uids=str(os.getuid()))
        assert own["status"] == "READY" and image.stat().st_mode & 0o777 == 0o600
        # Everybody's now, and readable by all.
        assert imported(one, "all", file)["status"] == "READY"
        assert image.stat().st_mode & 0o777 == 0o644


def test_a_group_stands_for_its_members_alone() -> None:
    mine = os.getgid()
    assert access.group_for([], []) == access.group_for([os.getuid()], []) == -1
    assert access.group_for([os.getuid()], [mine]) == mine
    for users, groups in (([1], []), ([1], [mine]), ([], [mine, 1]), ([], [65533])):
        with pytest.raises(UdiError, match="has no access lists"):
            access.group_for(users, groups)


def test_a_disk_that_gets_full_while_it_runs(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    before = mounted(tmp_path / "site", "tmpfs", "size=12m,mode=755")
    tag = f"{registry.host}/site/box:1"
    with gateway(user, tmp_path / "site", before=before) as one:
        assert one.pulled(tag)["status"] == "READY"
        fill = inside(one) / "fill"
        with open(fill, "wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 12)):
                    pass
            except OSError:
                pass
        found = one.pull("127.0.0.1:1/none:1")
        assert found.status == 503 and "is full" in found.body["message"], found
        assert found.body["hint"] == "make room on its file system"
        # Who only reads is served; what is counted waits.
        for _ in range(3):
            assert one.get(f"/api/lookup/{SYSTEM}/docker/{tag}/").status == 200
        fill.unlink()
        rows = one.get(f"/api/metrics/{SYSTEM}/?limit=10").body
        assert [row["tag"] for row in rows] == [tag] * 3
        failed = one.pulled(f"{registry.host}/site/big:1")
        assert failed["status"] == "READY" or "free" in failed["status_message"]


@contextlib.contextmanager
def ext4(folder: Path) -> Iterator[Path]:
    """An ext4 at `folder`; yields the file by which the kernel makes it as a broken disk is."""
    image = folder.with_suffix(".ext4")
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    folder.mkdir()
    subprocess.run(["mount", "-o", "loop,errors=remount-ro", str(image), str(folder)], check=True)
    try:
        words = ["findmnt", "-no", "SOURCE", str(folder)]
        device = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
        yield Path("/sys/fs/ext4") / Path(device).name / "trigger_fs_error"
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.root
@pytest.mark.needs("loop")
def test_a_disk_that_becomes_read_only_while_it_runs(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    """What can't be written is said to be so, and the gateway ends as always."""
    tag = f"{registry.host}/site/box:1"
    folder = tmp_path / "disk"
    with ext4(folder) as broken:
        os.chown(folder, user.uid, -1)
        with gateway(user, folder / "site") as one:
            ready = one.pulled(tag)
            assert ready["status"] == "READY"
            broken.write_text("1")
            found = one.pull("127.0.0.1:1/none:1")
            assert found.status == 503 and "disk I/O error" in found.body["message"], found
            assert found.body["hint"].startswith("is its file system read-only now")


@pytest.mark.needs("fuse")
def test_a_disk_that_is_read_only_for_a_while(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    """As one of a network whose server exports it so: what is counted is written afterwards."""
    tag, real, frozen = f"{registry.host}/site/box:1", tmp_path / "real", tmp_path / "frozen"
    for folder in (real, tmp_path / "site"):
        folder.mkdir(mode=0o755)
    before = [sys.executable, TREE / "bench/slowfs.py", "--ms=0", f"--read-only-while={frozen}"]
    before += [real, tmp_path / "site"]
    with gateway(user, tmp_path / "site", before=tuple(map(str, before))) as one:
        ready = one.pulled(tag)
        assert ready["status"] == "READY", ready
        path = f"/api/lookup/{SYSTEM}/docker/{tag}/"
        for number, written in enumerate((False, True, False)):
            frozen.unlink() if written else frozen.touch()
            assert one.get(path).status == 200
            found = one.pull(f"127.0.0.1:1/none:{number}")
            assert found.status == (200 if written else 503), found
            if not written:
                assert found.body["hint"].startswith("is its file system read-only now"), found
                assert [row["tag"] for row in one.get(f"/api/metrics/{SYSTEM}/").body] == []
        frozen.unlink()
        rows = one.get(f"/api/metrics/{SYSTEM}/").body
        assert [row["tag"] for row in rows] == [tag] * 3
    with sqlite3.connect(real / "gateway/gateway.sqlite") as base:
        (used,) = base.execute("SELECT used FROM images").fetchone()
    base.close()
    assert used == rows[-1]["time"]


def test_an_id_that_is_none_in_a_container(user: User, tmp_path: Path, box: Path) -> None:
    """There only the caller's own ids are mapped: others are refused, and nothing else changes."""
    mine = ("unshare", "--user", f"--map-user={os.getuid()}", f"--map-group={os.getgid()}")
    file = tmp_path / "file"
    file.write_bytes(box.read_bytes())
    with gateway(user, tmp_path / "site", "--import=1G", before=mine) as one:
        configured(user, f"unix:{one.socket}")
        ready = imported(one, "box", file, allowed_uids=str(os.getuid()))
        name = f"{importing.HOST}/{user.name}/box"
        path = f"/api/v1/access/{SYSTEM}/docker/{name}/"
        before = one.get(path).body
        assert [row["id"] for row in before["users"]] == [os.getuid()], (ready, before)
        for given, kind in (({"users": [4711]}, "user"), ({"groups": [4711]}, "group")):
            found = one.ask("POST", path, given)
            assert found.status == 400, found
            assert f"{kind} 4711 has no id in the user namespace" in found.body["message"]
        assert one.get(path).body == before
        found = one.pull("127.0.0.1:1/a:1", allowed_uids="4711")
        assert found.status == 400 and "user 4711 has no id" in found.body["message"], found
        done = user.run("udi", "share", name, "--user=4711")
        assert done.returncode == 125 and "name others, or run the gateway outside" in done.stderr
