"""Stores that fill on file systems of every kind: without sparse files, with a quota, with locks
that hold on one node only; starts of 64 ranks; and networks that end at any moment."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rootless_udi.base.windows import count
from rootless_udi.store.store import Store
from tests.conftest import User
from tests.kit.devlog import devlog
from tests.kit.nodes import Leftovers, together
from tests.kit.places import TREE
from tests.kit.registry import Flaky, Quiet
from tests.remote.test_lazy import LAZY, Shop, hold, left, opened, shop, store, used_in

pytestmark = pytest.mark.needs("userns", "fuse", "busybox", "registry")
__all__ = ["left", "opened", "shop", "store"]


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


@pytest.mark.parametrize("room", ("4k", "1500k"))
def test_neither_the_store_nor_tmpdir_has_room(
    user: User, shop: Shop, left: Leftovers, tmp_path: Path, room: str
) -> None:
    """The windows are in memory."""
    inner = (
        'mount -t tmpfs -o mode=700,size=64k none "$UDI_STORE" && mkdir -p "$TMPDIR" && '
        f'mount -t tmpfs -o mode=700,size={room} none "$TMPDIR" && '
        f"exec udi-run {LAZY} {shop.name} md5sum /noise"
    )
    user.env["TMPDIR"] = str(tmp_path / "tmp")
    with devlog(tmp_path / "log") as log:
        done = user.run(*log.words, "sh", "-c", inner)
        assert done.returncode == 0 and "/noise" in done.stdout, done.stderr
        assert "No space left on device" in log.wait("the store does not get ")


FILLED = f"""
mount -t tmpfs -o mode=700,size=24m none "$UDI_STORE"
udi-run {LAZY} "$1" sh -c 'echo up; read x; md5sum /noise'
echo read; read x
udi fetch -q "$1"
echo fetched; read x
"""


def test_a_disk_that_others_fill_meanwhile(
    user: User, shop: Shop, left: Leftovers, tmp_path: Path
) -> None:
    """There is room when the filling begins, and none when the rest comes: what runs reads on, the
    log has a line, and `udi fetch` goes on where there is room again."""
    ready = hold(shop)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with devlog(tmp_path / "log") as log:
        one = user.popen(*log.words, "sh", "-c", FILLED, "sh", shop.name, **pipes)
        assert one.stdin is not None and one.stdout is not None
        assert one.stdout.readline() == "up\n" and ready.wait(60)
        inside = Path(f"/proc/{one.pid}/root{user.env['UDI_STORE']}")
        hog = inside / "hog"
        with hog.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(1 << 16))
        shop.front.rule = None
        print(file=one.stdin, flush=True)
        assert one.stdout.readline().endswith("/noise\n") and one.stdout.readline() == "read\n"
        line = log.wait("filling ")
        why = "a window can't be kept: No space left on device; the next start goes on"
        assert f"of {shop.front.host}/app ended: {why}" in line
        hog.unlink()
        shop.front.log.clear()
        print(file=one.stdin, flush=True)
        assert one.stdout.readline() == f"{shop.digest}\n" and one.stdout.readline() == "fetched\n"
        # What had come before the disk was full is not fetched again.
        assert 0 < len(shop.windows()) < count(used_in(shop))
        made = Store(str(inside)).path("images", f"{shop.digest.replace(':', '-')}.sqfs")
        assert Path(made).read_bytes() == shop.data
        one.communicate("\n", timeout=60)


def test_two_nodes_whose_locks_do_not_meet(
    user: User, shop: Shop, store: Store, tmp_path: Path
) -> None:
    """Both fill, one of them makes the image, and both are right."""
    ready = hold(shop)
    nodes = []
    for name in ("a", "b"):
        words = *behind(user, tmp_path / name), "udi", "fetch", "-q", shop.name
        nodes.append(user.popen(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
    assert ready.wait(60)
    shop.front.rule = None
    said = [one.communicate(timeout=120) for one in nodes]
    assert [one.returncode for one in nodes] == [0, 0], said
    assert {out for out, _ in said} == {f"{shop.digest}\n"}
    assert Path(store.images()[0].image.squashfs).read_bytes() == shop.data
    assert user.run("udi", "verify", shop.name).returncode == 0
    assert not os.listdir(store.path("blobs"))


def test_64_ranks_with_nothing_local(user: User, shop: Shop, store: Store) -> None:
    """A lazy start of a step: one server of the node, and no window comes twice."""
    together(user, 64, "udi-run", LAZY, "--share=lazy", shop.name)
    assert user.run("udi", "fetch", "-q", shop.name).returncode == 0
    came = shop.windows()
    # `udi fetch` looks at the first, where the image is not there yet.
    assert set(came) == set(range(count(used_in(shop))))
    assert len([one for one in came if one]) == len(set(came)) - 1 and came.count(0) <= 2
    assert Path(store.images()[0].image.squashfs).read_bytes() == shop.data


@pytest.mark.slow
def test_the_network_ends_at_any_moment(user: User, shop: Shop, tmp_path: Path) -> None:
    """From the first question to the last window: an end that names the registry, an I/O error of
    the program (SIGBUS where it is the program's own page), or all is there."""
    ended, config = 0, Path(user.env["UDI_CONFIG"])
    for number in range(1, 60):
        user.env["UDI_STORE"] = str(tmp_path / f"s{number}")
        shop.front.log.clear()

        def rule(front: Flaky, request: Quiet, _: str, last: int = number) -> bool:
            if len(front.log) < last:
                return False
            request.close_connection = True
            return True

        shop.front.rule = rule
        config.write_text(config.read_text().replace("timeout = 20", "timeout = 3"))
        done = user.run("udi-run", LAZY, shop.name, "md5sum", "/noise", timeout=120)
        asked = len(shop.front.log)
        if done.returncode == 125:
            assert shop.front.host in done.stderr and not done.stdout, done.stderr
        elif done.returncode not in (0, -signal.SIGBUS):
            assert "Input/output error" in done.stderr, done.stderr
        ended += bool(done.returncode)
        if not done.returncode or asked < number:
            break
    assert ended >= 6 and not done.returncode
