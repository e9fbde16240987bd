"""Images that start before the store has them, and fill it meanwhile: image.pull = lazy."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.windows import WINDOW, place
from rootless_udi.store.store import Store
from tests.conftest import User
from tests.kit import fuseimages, images
from tests.kit.artifacts import Pusher, artifact
from tests.kit.listed import listed, used
from tests.kit.nodes import Leftovers, counted
from tests.kit.rangeserver import serving
from tests.kit.registry import Flaky, Registry, flaky, open_registry

pytestmark = pytest.mark.needs("userns", "fuse", "busybox")
LAZY = "--pull=lazy"


@pytest.fixture
def exported(user: User, tmp_path: Path) -> Path:
    """A file of several windows that `udi export` wrote."""
    layout = images.Layout(tmp_path / "layout")
    entries = [*images.busybox_entries(), ("noise", fuseimages.noise(12 << 20), {})]
    layout.image("1", [images.tar(entries)], {"Env": ["FROM=afar", "PATH=/bin"]})
    name, path = f"oci:{layout.path}:1", user.home / "app.sqfs"
    for words in (("pull", "-q", name), ("export", name, path), ("rm", name)):
        done = user.run("udi", *words)
        assert done.returncode == 0, done.stderr
    return path


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    """What starts leave behind, which is nothing."""
    with counted(user) as found:
        yield found


@pytest.fixture
def store(user: User) -> Store:
    return Store(user.env["UDI_STORE"])


def fetched(user: User, url: str) -> None:
    """Wait until the store has the image."""
    done = user.run("udi", "fetch", url)
    assert done.returncode == 0, done.stderr


def test_a_start_by_url_fills_the_store(
    user: User, exported: Path, left: Leftovers, store: Store
) -> None:
    data = exported.read_bytes()
    with serving(data) as server:
        done = user.run("udi-run", LAZY, server.url, "sh", "-c", "echo $FROM")
        assert (done.returncode, done.stdout) == (0, "afar\n"), done.stderr
        fetched(user, server.url)
        asked = [at // WINDOW for at, stop in server.asked if stop <= place(used(exported))]
        assert len(asked) == len(set(asked))
        only = store.images()[0]
        assert only.image.digest == listed(exported).digest and only.names[0][1] == server.url
        assert Path(only.image.squashfs).read_bytes() == data
        assert not os.listdir(store.path("blobs"))
        server.asked.clear()
        for words in ((LAZY,), (LAZY, "--pull=never")):
            done = user.run("udi-run", *words, server.url, "sh", "-c", "echo $FROM")
            assert (done.returncode, done.stdout) == (0, "afar\n"), done.stderr
        digest = f"{server.url}#{listed(exported).digest}"
        assert user.run("udi-run", LAZY, digest, "true").returncode == 0
        assert not server.asked
    for words in (("verify", server.url), ("rm", server.url)):
        done = user.run("udi", *words)
        assert done.returncode == 0, done.stderr
    assert not store.images()


class Shop:
    """A registry that has the image whole and, beside it, its squashfs; `front` is before it."""

    def __init__(self, front: Flaky, digest: str, data: bytes) -> None:
        self.front, self.digest, self.data = front, digest, data
        self.name = f"{front.host}/app:1"

    def windows(self) -> list[int]:
        """The windows of the squashfs that were asked for, in turn."""
        found: list[int] = []
        for path, span, _ in self.front.log:
            if "/blobs/" in path and span:
                first, _, last = span.removeprefix("bytes=").partition("-")
                found += range(int(first) // WINDOW, int(last) // WINDOW + 1)
        return found


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    place = tmp_path_factory.mktemp("lazy")
    with open_registry(place / "open", place / "data") as one:
        yield one


@pytest.fixture
def shop(opened: Registry, user: User, tmp_path: Path, store: Store) -> Iterator[Shop]:
    """The site trusts it. The user's store is empty."""
    layout = images.Layout(tmp_path / "layout")
    entries = [*images.busybox_entries(), ("noise", fuseimages.noise(12 << 20), {})]
    subject = layout.image("1", [images.tar(entries)], {"Env": ["FROM=afar", "PATH=/bin"]})
    opened.push(layout.path, "1", "app:1")
    name = f"{opened.host}/app:1"
    done = user.run("udi", "pull", "-q", name)
    assert done.returncode == 0, done.stderr
    digest, only = done.stdout.strip(), store.images()[0].image
    pusher = Pusher(opened.host, "app")
    assert digest == subject["digest"]
    subject = {key: subject[key] for key in ("mediaType", "digest", "size")}
    entry = artifact(pusher, Path(only.squashfs), store.facts(only), subject)
    pusher.referrer(entry, digest)
    data = Path(only.squashfs).read_bytes()
    assert user.run("udi", "rm", name).returncode == 0
    with flaky(opened.host) as front:
        config = user.home / "c.toml"
        config.write_text(f'[registry."{front.host}"]\ntrusted = true\n[image]\ntimeout = 5\n')
        user.env["UDI_CONFIG"] = str(config)
        yield Shop(front, digest, data)


def test_an_image_of_a_registry(user: User, shop: Shop, left: Leftovers, store: Store) -> None:
    done = user.run("udi-run", LAZY, shop.name, "sh", "-c", "echo $FROM")
    assert (done.returncode, done.stdout) == (0, "afar\n"), done.stderr
    done = user.run("udi", "fetch", shop.name)
    assert (done.returncode, done.stdout) == (0, f"{shop.digest}\n"), done.stderr
    only = store.images()[0].image
    assert Path(only.squashfs).read_bytes() == shop.data
    facts = store.facts(only)
    assert facts["digest"] == shop.digest and facts["pushed"]["registry"] == shop.front.host
    assert len(shop.windows()) == len(set(shop.windows()))
    shop.front.log.clear()
    done = user.run("udi-run", LAZY, shop.name, "md5sum", "/noise")
    assert done.returncode == 0 and not shop.front.log, done.stderr
