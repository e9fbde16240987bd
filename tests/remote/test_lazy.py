"""Images that start before the store has them, and fill it meanwhile: image.pull = lazy."""

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.windows import WINDOW, count, place
from rootless_udi.serve import distant
from rootless_udi.store import filling
from rootless_udi.store.store import Store
from tests.conftest import User
from tests.kit import fuseimages, images
from tests.kit.artifacts import Pusher, artifact
from tests.kit.devlog import devlog
from tests.kit.listed import listed, used
from tests.kit.nodes import Leftovers, counted
from tests.kit.pulling import HERE
from tests.kit.rangeserver import serving
from tests.kit.registry import Flaky, Quiet, Registry, flaky, open_registry

pytestmark = pytest.mark.needs("userns", "fuse", "busybox")
LAZY = "--pull=lazy"


@pytest.fixture
def exported(user: User, tmp_path: Path) -> Path:
    """A file of several windows that `udi export` wrote."""
    return fuseimages.exported(user, tmp_path, 12 << 20)


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
        # By the first one both commands learn which image it is.
        later = [number for number in asked if number]
        assert len(later) == len(set(later))
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

    def blobs(self) -> dict[str, str]:
        """The digests of what was pushed, by its kind: squashfs, windows, facts."""
        pusher = Pusher(self.front.target, "app")
        index = pusher.read(f"manifests/{self.digest.replace(':', '-')}")
        claim = pusher.read(f"manifests/{index['manifests'][0]['digest']}")
        return dict(
            zip(
                ("squashfs", "windows", "facts"),
                (x["digest"] for x in claim["layers"]),
                strict=True,
            )
        )

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
        config.write_text(f'[registry."{front.host}"]\ntrusted = true\n[image]\ntimeout = 20\n')
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
    # By the first one both commands learn what its superblock says.
    later = [number for number in shop.windows() if number]
    assert len(later) == len(set(later))
    shop.front.log.clear()
    done = user.run("udi-run", LAZY, shop.name, "md5sum", "/noise")
    assert done.returncode == 0 and not shop.front.log, done.stderr


def test_who_is_not_trusted_is_not_asked(user: User, shop: Shop, store: Store) -> None:
    """The image is pulled, also by `udi fetch`; `--verbose` says why. In a job of several ranks
    that is an error."""
    config = user.home / "other.toml"
    config.write_text("[image]\ntimeout = 20\n")
    env = {"UDI_CONFIG": str(config)}
    ranks = {**env, "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_PROCID": "0"}
    done = user.run("udi-run", LAZY, shop.name, "true", env=ranks)
    assert done.returncode == 125 and "a job of several ranks never pulls" in done.stderr
    done = user.run("udi-run", LAZY, "--verbose", shop.name, "sh", "-c", "echo $FROM", env=env)
    assert (done.returncode, done.stdout) == (0, "afar\n"), done.stderr
    assert f"{shop.name} is pulled first: no registry is trusted" in done.stderr
    assert not [path for path, *_ in shop.front.log if "referrers" in path]
    assert "pushed" not in store.facts(store.images()[0].image)
    assert user.run("udi", "rm", shop.name).returncode == 0
    for words in ((), ("--quiet", "--insecure", f"--platform={HERE}")):
        done = user.run("udi", "fetch", *words, shop.name, env=env)
        assert (done.returncode, done.stdout) == (0, f"{shop.digest}\n"), done.stderr
        assert user.run("udi", "rm", shop.name).returncode == 0


def test_what_is_damaged_beside_an_image(user: User, shop: Shop, store: Store) -> None:
    """The start says so in one line, and the pull that it makes does not ask for it again; nor does
    `udi fetch`."""
    facts = shop.blobs()["facts"]
    shop.front.alter = lambda path, body: body[::-1] if path.endswith(facts) else body
    done = user.run("udi-run", LAZY, shop.name, "sh", "-c", "echo $FROM")
    assert (done.returncode, done.stdout) == (0, "afar\n"), done.stderr
    assert f"{shop.name} is pulled first: pulling facts of" in done.stderr, done.stderr
    assert len(shop.front.paths(facts)) == 1
    assert "pushed" not in store.facts(store.images()[0].image)
    assert user.run("udi", "rm", shop.name).returncode == 0
    done = user.run("udi", "fetch", shop.name)
    assert (done.returncode, done.stdout) == (0, f"{shop.digest}\n"), done.stderr
    assert f"{shop.name} is pulled: pulling facts of" in done.stderr, done.stderr


def test_an_image_of_its_own(user: User, shop: Shop, opened: Registry, store: Store) -> None:
    """The name means the artifact: nobody needs to be believed."""
    source = user.home / "source.sqfs"
    source.write_bytes(shop.data)
    facts = {"version": 1, "env": ["FROM=alone", "PATH=/bin"], "digest": shop.digest}
    entry = artifact(Pusher(opened.host, "alone"), source, facts, tag="1")
    (user.home / "c.toml").write_text('[image]\npull = "lazy"\n')
    name = f"{opened.host}/alone:1"
    done = user.run("udi-run", name, "sh", "-c", "echo $FROM")
    assert (done.returncode, done.stdout) == (0, "alone\n"), done.stderr
    done = user.run("udi", "fetch", "-q", name)
    assert (done.returncode, done.stdout) == (0, f"{entry['digest']}\n"), done.stderr
    # Another name of it is only a name.
    artifact(Pusher(opened.host, "alone"), source, facts, tag="2")
    assert user.run("udi-run", "--pull=lazy", f"{opened.host}/alone:2", "true").returncode == 0
    assert {one for _, one in store.images()[0].names} == {name, f"{opened.host}/alone:2"}


HELD = range(5, 11)
"""Windows of /noise, which no start reads."""


def hold(shop: Shop) -> threading.Event:
    """Answer 503 for these windows; the event is set once one was asked for."""
    asked = threading.Event()

    def rule(_: Flaky, request: Quiet, path: str) -> bool:
        span = request.headers.get("Range", "")
        if "/blobs/" not in path or not span:
            return False
        first, last = span.removeprefix("bytes=").split("-")
        held = int(last) // WINDOW >= HELD[0] and int(first) // WINDOW <= HELD[-1]
        if held:
            request.answer(503)
            asked.set()
        return held

    shop.front.rule = rule
    return asked


def test_killed_while_it_fills(user: User, shop: Shop, left: Leftovers, store: Store) -> None:
    """`udi images` shows how far it is; the next start, or `udi fetch`, goes on from there."""
    there, whole = half(user, shop, left, store), count(used_in(shop))
    done = user.run("udi", "images")
    assert f"{100 * there // whole} % there" in done.stdout and 1 < there < whole, done.stdout
    shop.front.rule = None
    shop.front.log.clear()
    done = user.run("udi-run", LAZY, shop.name, "md5sum", "/noise")
    assert done.returncode == 0, done.stderr
    assert user.run("udi", "fetch", shop.name).returncode == 0
    came = shop.windows()
    # `udi fetch` looks at the first, where the image is not there yet.
    once = sorted(number for number in came if number)
    assert once == sorted(set(once)) and set(HELD) <= set(once) and 1 <= came.count(0) <= 2
    assert len(once) == whole - there
    assert Path(store.images()[0].image.squashfs).read_bytes() == shop.data


def half(user: User, shop: Shop, left: Leftovers, store: Store) -> int:
    """Have some windows in the store, and who fills it killed; return how many."""
    asked = hold(shop)
    done = user.run("udi-run", LAZY, shop.name, "true")
    assert done.returncode == 0, done.stderr
    assert asked.wait(60)
    (filler,) = (pid for pid, words in left.processes().items() if words == distant.NAME)
    os.kill(filler, signal.SIGKILL)
    left.check_processes()
    return filling.listed(store)[0].there


def used_in(shop: Shop) -> int:
    return int.from_bytes(shop.data[40:48], "little")


@pytest.mark.needs("strace")
@pytest.mark.parametrize("call", ("rename", "unlink", "fsync", "symlink"))
def test_killed_at_each_step_of_becoming_an_image(
    call: str, user: User, shop: Shop, store: Store
) -> None:
    """kill -9 at each such call in turn, until one `udi fetch` makes none that is killed."""
    killed = 0
    for number in range(1, 20):
        words = "-f", "-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={number}"
        done = user.run("strace", *words, "udi", "fetch", "-q", shop.name)
        if done.returncode == 0:
            break
        killed += 1
        # Whatever is there can be used.
        done = user.run("udi-run", "--pull=never", shop.name, "sh", "-c", "echo $FROM")
        assert (done.returncode, done.stdout) in ((0, "afar\n"), (125, "")), done.stderr
    assert killed >= 1
    only = store.images()[0].image
    assert Path(only.squashfs).read_bytes() == shop.data
    assert store.facts(only)["digest"] == shop.digest
    assert user.run("udi", "verify", shop.name).returncode == 0


def test_a_journal_that_lies(user: User, shop: Shop, left: Leftovers, store: Store) -> None:
    """After a crash of the node it may name windows whose bytes were never written."""
    half(user, shop, left, store)
    base = next(Path(store.path("blobs")).glob("*.windows"))
    base.with_suffix(".journal").write_bytes(
        b"".join(n.to_bytes(4, "little") for n in range(count(used_in(shop)))) + b"odd"
    )
    shop.front.rule = None
    done = user.run("udi-run", LAZY, shop.name, "md5sum", "/noise")
    assert done.returncode == 0, done.stderr
    assert user.run("udi", "fetch", shop.name).returncode == 0
    assert Path(store.images()[0].image.squashfs).read_bytes() == shop.data


def test_removed_while_it_fills(user: User, shop: Shop, left: Leftovers, store: Store) -> None:
    """Who fills ends, and what runs goes on."""
    hold(shop)
    words = "sh", "-c", "echo up; read x; md5sum /noise"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    one = user.popen("udi-run", LAZY, shop.name, *words, **pipes)
    assert one.stdout is not None and one.stdout.readline() == "up\n"
    done = user.run("udi", "rm", shop.name)
    assert done.returncode == 0 and f"removed {shop.digest}" in done.stdout, done.stderr
    assert not os.listdir(store.path("blobs"))
    shop.front.rule = None
    assert one.communicate("\n", timeout=60)[0].endswith("/noise\n")
    assert user.run("udi", "rm", shop.name).returncode == 125
    left.check_processes()
    assert not store.images()


def test_many_processes_on_one_store(user: User, shop: Shop, left: Leftovers, store: Store) -> None:
    """As the ranks of a node that share no container, on nothing local: each window comes once."""
    words = "udi-run", LAZY, "--share=off", shop.name, "md5sum", "/noise"
    ranks = [user.popen(*words, stdout=subprocess.PIPE) for _ in range(8)]
    said = {one.communicate(timeout=120)[0] for one in ranks}
    assert len(said) == 1 and {one.returncode for one in ranks} == {0}
    assert user.run("udi", "fetch", shop.name).returncode == 0
    came = shop.windows()
    # The first tells each of them what it is.
    assert sorted(number for number in came if number) == list(range(1, count(used_in(shop))))
    assert Path(store.images()[0].image.squashfs).read_bytes() == shop.data


def test_a_store_that_can_not_be_written(user: User, shop: Shop) -> None:
    """The start goes on without it; `udi fetch` says why it can't."""
    user.env["UDI_STORE"] = "/proc/nowhere"
    done = user.run("udi-run", LAZY, shop.name, "sh", "-c", "echo $FROM")
    assert (done.returncode, done.stdout) == (0, "afar\n"), done.stderr
    done = user.run("udi", "fetch", shop.name)
    assert done.returncode == 125 and "the store can't be filled" in done.stderr, done.stderr


@pytest.mark.parametrize("size", (14 << 20, 6 << 20, 64 << 10))
def test_a_full_disk(size: int, user: User, shop: Shop, tmp_path: Path) -> None:
    """Of 14 MiB for 13: it fits. Of 6: what is read comes all the same, and nothing is filled. So
    where not even the first window fits."""
    inner = (
        f"mount -t tmpfs -o mode=700,size={size} none $UDI_STORE && udi-run {LAZY} {shop.name} "
        f"md5sum /noise && udi fetch {shop.name}"
    )
    with devlog(tmp_path / "log") as log:
        done = user.run(*log.words, "sh", "-c", inner)
        assert "/noise" in done.stdout, done.stderr
        if size > 13 << 20:
            assert done.returncode == 0, done.stderr
        elif size > WINDOW:
            assert done.returncode == 125 and "MiB are missing, and" in done.stderr, done.stderr
            assert "MiB are missing, and" in log.wait("filling ")
        else:
            why = "No space left on device"
            assert done.returncode == 125, done.stdout
            said = f"/app failed on {user.env['UDI_STORE']}: {why}\nudi: hint: make room on "
            assert said in done.stderr, done.stderr
            assert log.wait("the store does not get ").endswith(f"of {shop.front.host}/app: {why}")
