"""The gateway on file systems that are full or have no access lists."""

import os
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.gateway import access, importing
from tests.conftest import User
from tests.gateway.test_import import imported
from tests.kit.gateway import SYSTEM, Gateway, gateway
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
