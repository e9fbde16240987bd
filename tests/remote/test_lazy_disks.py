"""Stores that fill on file systems of other kinds: without sparse files, with a quota."""

import sys
from pathlib import Path

import pytest

from rootless_udi.base.windows import count
from rootless_udi.store.store import Store
from tests.conftest import User
from tests.kit.places import TREE
from tests.remote.test_lazy import LAZY, Shop, opened, shop, store, used_in

pytestmark = pytest.mark.needs("userns", "fuse", "busybox", "registry")
__all__ = ["opened", "shop", "store"]


def behind(user: User, point: Path, *words: str) -> tuple[object, ...]:
    """Return the beginning of a command line that sees the user's store at `point`, through a file
    system of the options `words`."""
    real = Path(user.env["UDI_STORE"])
    real.mkdir(mode=0o700, exist_ok=True)
    point.mkdir(exist_ok=True)
    serve = sys.executable, TREE / "bench/slowfs.py", "--ms=0", *words, real, point
    return *serve, "env", f"UDI_STORE={point}"


def test_no_sparse_files(user: User, shop: Shop, tmp_path: Path) -> None:
    """The first start would write all bytes of the image there: it doesn't, and says why."""
    inside = behind(user, tmp_path / "m", "--no-sparse")
    done = user.run(*inside, "udi-run", LAZY, shop.name, "sh", "-c", "echo $FROM; md5sum /noise")
    assert done.returncode == 0 and done.stdout.startswith("afar\n"), done.stderr
    done = user.run(*inside, "udi", "fetch", shop.name)
    assert done.returncode == 125, done.stdout
    assert "the store can't be filled: its file system has no sparse files" in done.stderr
    kept = list(Path(user.env["UDI_STORE"], "blobs").glob("*.windows"))
    assert [one.stat().st_size for one in kept] in ([], [0])


def test_a_quota(user: User, shop: Shop, store: Store, tmp_path: Path) -> None:
    """What is read comes all the same; `udi fetch` says why it ended, and goes on with more."""
    inside = behind(user, tmp_path / "m", f"--quota={5 << 20}")
    done = user.run(*inside, "udi-run", LAZY, shop.name, "md5sum", "/noise")
    assert done.returncode == 0 and "/noise" in done.stdout, done.stderr
    done = user.run(*inside, "udi", "fetch", shop.name)
    assert done.returncode == 125, done.stdout
    assert "a window can't be kept: Disk quota exceeded" in done.stderr, done.stderr
    shop.front.log.clear()
    done = user.run("udi", "fetch", "-q", shop.name)
    assert done.returncode == 0, done.stderr
    assert len(shop.windows()) < count(used_in(shop))
    assert Path(store.images()[0].image.squashfs).read_bytes() == shop.data
