"""udi push is killed in the middle of an upload: the next one goes on, where the registry does."""

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.store.store import Store
from tests.conftest import User
from tests.kit.fuseimages import noise
from tests.kit.registry import Registry, open_registry
from tests.kit.relay import Relay, relay
from tests.kit.smallregistry import small_registry

pytestmark = pytest.mark.needs("registry", "mksquashfs")
CHUNK = 64 << 20
SLACK = 1 << 20
"""Bytes of all other requests of a push."""


def squashed(folder: Path, size: int) -> Path:
    """A squashfs file of `size` bytes of noise."""
    (folder / "tree/bin").mkdir(parents=True)
    piece = noise(4 << 20)
    with open(folder / "tree/noise", "wb") as file:
        for number in range(size >> 22):
            file.write(number.to_bytes(8, "little") + piece[8:])
    path = folder / "big.sqfs"
    words = "mksquashfs", folder / "tree", path, "-noI", "-noD", "-noF", "-quiet", "-no-progress"
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    return path


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    place = tmp_path_factory.mktemp("killed")
    with open_registry(place / "open", place / "data") as one:
        yield one


@pytest.fixture
def kept(user: User) -> Path:
    """Where notes of uploads are, in the user's store, which is there."""
    store = Store(user.env["UDI_STORE"])
    store.create()
    return Path(store.path("blobs"))


def killed(user: User, front: Relay, path: Path, target: str) -> None:
    """Push until the relay holds what is sent; kill it then."""
    one = user.popen("udi", "push", "-q", path, target)
    assert front.held.wait(60)
    os.kill(one.pid, signal.SIGKILL)
    one.wait()
    front.open()


def test_it_goes_on_where_the_registry_is(user: User, kept: Path, tmp_path: Path) -> None:
    """In the middle of a chunk, at a registry that keeps what came: no byte goes twice."""
    path = squashed(tmp_path, 24 << 20)
    with small_registry() as small, relay(small.host) as front:
        front.bytes = 9 << 20
        killed(user, front, path, f"{front.host}/x:1")
        (note,) = kept.glob("*.upload")
        assert note.stat().st_mode & 0o777 == 0o600
        small.settled()
        came = max(len(held) for held in small.uploads.values())
        assert came > 8 << 20
        done = user.run("udi", "push", "-q", path, f"{front.host}/x:1")
        assert done.returncode == 0, done.stderr
        assert front.sent < path.stat().st_size - came + SLACK
        assert ("x", done.stdout.strip()) in small.manifests
        assert not list(kept.glob("*.upload"))


@pytest.mark.parametrize("moment", ["between two chunks", "in a chunk"])
def test_dockers_registry(
    moment: str, user: User, kept: Path, opened: Registry, tmp_path: Path
) -> None:
    """It gives up an upload of which a chunk broke off: then all is sent anew."""
    path = squashed(tmp_path, 72 << 20)
    size = path.stat().st_size
    with relay(opened.host) as front:
        target = f"{front.host}/killed/{len(moment)}:1"
        if moment == "in a chunk":
            front.bytes = 20 << 20
        else:
            # Of the upload, and of its first chunk.
            front.answers = 2
        killed(user, front, path, target)
        assert list(kept.glob("*.upload"))
        done = user.run("udi", "push", "-q", path, target)
        assert done.returncode == 0, done.stderr
        left = size if moment == "in a chunk" else size - CHUNK
        assert left < front.sent < left + SLACK
        done = user.run("udi", "pull", "-q", target)
        assert done.returncode == 0, done.stderr
        assert not list(kept.glob("*.upload"))


def test_a_note_that_leads_nowhere(user: User, kept: Path, tmp_path: Path) -> None:
    """Of another one's upload, of one that the registry has forgotten, or no note at all."""
    path = squashed(tmp_path, 4 << 20)
    with small_registry() as small, relay(small.host) as front:
        front.bytes = 1 << 20
        killed(user, front, path, f"{front.host}/x:1")
        (note,) = kept.glob("*.upload")
        small.settled()
        text = note.read_text()
        small.uploads["9"] = bytearray(b"something else")
        place = text.partition("\n")[2].rpartition("/")[0]
        for number, wrong in enumerate(
            (f"0\n{place}/9\n", f"0\n{place}/none\n", "0\nftp://x/\n", "x", "0\nhttp://[::1/\n")
        ):
            note.write_text(wrong)
            # Its blob is there otherwise, and nothing is sent.
            small.blobs.clear()
            done = user.run("udi", "push", "-q", path, f"{front.host}/x:{number}")
            assert done.returncode == 0, done.stderr
            assert ("x", str(number)) in small.manifests and not list(kept.glob("*.upload"))
