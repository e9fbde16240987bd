"""Pulls that meet wrong content, each other, SIGKILL, SIGINT and full disks."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import parse
from rootless_udi.pull.manifest import OCI_MANIFEST
from rootless_udi.store import find
from rootless_udi.store.find import StoredImage
from rootless_udi.store.locks import Lock
from rootless_udi.store.store import Store
from tests.kit import images
from tests.kit.places import TREE
from tests.kit.pulling import HERE, SIZE, Sink, config_of, content, inside, leftovers, pull
from tests.kit.registry import Flaky, Quiet, Registry

pytest_plugins = ["tests.kit.pulling"]
pytestmark = pytest.mark.needs("registry", "skopeo", "mksquashfs")


@pytest.mark.parametrize("what", ["layer", "config", "manifest"])
def test_corrupt_content(proxy: Flaky, store: Store, what: str) -> None:
    digest = pull(Store(f"{store.root}-other"), f"{proxy.host}/a:1").digest
    body = json.loads(
        subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{proxy.host}/a:1"],
            capture_output=True,
            check=True,
        ).stdout
    )
    wrong = {
        "layer": body["layers"][0]["digest"],
        "config": body["config"]["digest"],
        "manifest": digest,
    }[what]

    def alter(path: str, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if path.endswith(wrong) else data

    proxy.alter = alter
    with pytest.raises(UdiError, match=f"its digest is sha256:[0-9a-f]+, wanted is {wrong}"):
        pull(store, f"{proxy.host}/a@{digest}")
    assert content(store) == []
    proxy.alter = None
    assert pull(store, f"{proxy.host}/a@{digest}").digest == digest


def test_a_layer_that_is_not_what_its_config_says(store: Store, tmp_path: Path) -> None:
    one = images.Layout(tmp_path / "l")
    found = one.image("1", [images.tar([("x", b"1", {})])], arch=HERE.architecture)
    blobs = one.path / "blobs/sha256"
    body = json.loads((blobs / found["digest"][7:]).read_bytes())
    evil = gzip.compress(images.tar([("x", b"2", {})]))
    body["layers"] = [one.blob(evil, body["layers"][0]["mediaType"])]
    one.tag("2", one.blob(json.dumps(body).encode(), OCI_MANIFEST))
    with pytest.raises(UdiError, match="sha256:"):
        pull(store, f"oci:{one.path}:2")
    assert content(store) == []


def test_a_broken_pull_is_gone_on_with_by_the_next(proxy: Flaky, store: Store) -> None:
    proxy.cut, proxy.cuts = 500_000, 1

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        # After the break the registry is gone.
        if proxy.cut and not proxy.cuts:
            request.answer(503)
            return True
        return False

    proxy.rule = rule
    config = json.loads(
        subprocess.run(
            ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{proxy.target}/a:2"],
            capture_output=True,
            check=True,
        ).stdout
    )["config"]["digest"]
    proxy.alter = None
    proxy.cuts = 2  # the config, which is shorter, and a layer
    with pytest.raises(UdiError, match=r"answers 503 \(3 attempts\)"):
        pull(store, f"{proxy.host}/a:2")
    assert content(store) and all(name.endswith(".part") for name in content(store))
    proxy.rule, proxy.cut, proxy.cuts = None, 0, 0
    proxy.log.clear()
    pull(store, f"{proxy.host}/a:2")
    ranges = [asked for path, asked, _ in proxy.log if "/blobs/" in path and config not in path]
    assert "bytes=500000-" in ranges
    assert leftovers(store) == []


def test_two_pulls_of_one_digest_download_once(proxy: Flaky, store: Store) -> None:
    both = threading.Barrier(2, timeout=120)

    def act(*event: object) -> None:
        # Neither may begin with the digest before both know it.
        if event == ("stage", "resolve"):
            both.wait()

    waiting = threading.Event()

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        if "/blobs/" in path and path not in configs:
            waiting.wait(120)
        return False

    configs = {f"/v2/a/blobs/{config_of(proxy, 'a:1')}"}
    proxy.rule = rule
    sinks = [Sink(act), Sink(act)]

    def waits(*event: object) -> None:
        act(*event)
        if event[1] == "wait":
            waiting.set()

    for sink in sinks:
        sink.act = waits
    results: list[StoredImage] = []
    threads = [
        threading.Thread(target=lambda s=sink: results.append(pull(store, f"{proxy.host}/a:1", s)))
        for sink in sinks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert len(results) == 2 and results[0] == results[1]
    assert len([p for p in proxy.paths("/blobs/") if p not in configs]) == 2
    assert sorted(sink.stages[1] for sink in sinks) == ["fetch", "wait"]
    assert leftovers(store) == []


def test_a_layer_of_two_images_is_downloaded_once(proxy: Flaky, store: Store) -> None:
    configs = {f"/v2/a/blobs/{config_of(proxy, name)}" for name in ("a:1", "a:2")}
    both = threading.Barrier(2, timeout=120)

    def act(*event: object) -> None:
        # Neither converts, and so removes its blobs, before the other has its own.
        if event in (("stage", "resolve"), ("stage", "convert")):
            both.wait()

    results: list[StoredImage] = []
    threads = [
        threading.Thread(
            target=lambda n=name: results.append(pull(store, f"{proxy.host}/{n}", Sink(act)))
        )
        for name in ("a:1", "a:2")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(240)
    assert len(results) == 2
    assert len([p for p in proxy.paths("/blobs/") if p not in configs]) == 3
    assert leftovers(store) == []


def test_without_locks_each_pull_is_alone(opened: Registry, tmp_path: Path) -> None:
    def refuse(fd: int, shared: bool, wait: bool) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    class Lockless(Store):
        def lock(self, digest: str) -> Lock:
            return Lock(super().lock(digest).path, (refuse,))

    one = Lockless(str(tmp_path / "store"))
    sink = Sink()
    image = pull(one, f"{opened.host}/a:1", sink)
    assert "/top" in inside(image)
    assert any("has no file locks" in note for note in sink.notes)
    assert [name for name in leftovers(one) if "locks" not in name] == []


# Full disks, killed and interrupted pulls: in a process of their own

CHILD = """
import json, os, signal, sys
sys.path[:0] = [sys.argv[1]]
from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import parse
from rootless_udi.pull.retry import Patience
from rootless_udi.pull.pipeline import Options, Silent, pull_sync
from rootless_udi.store.store import Store
text, root, point = sys.argv[2:5]

def reached(*event):
    print(*event, flush=True)
    if " ".join(map(str, event)).startswith(point):
        if sys.argv[5] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        with open(root + "/../filler", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1 << 16))
            except OSError:
                pass

class Sink(Silent):
    def stage(self, stage, text):
        reached("stage", stage)
    def blob(self, digest, done, total, state):
        part = "begun" if not done else "some" if done < total else "all"
        reached("blob", state, part)
    def convert(self, done):
        reached("convert", "some" if done < 1 << 20 else "more")

try:
    image = pull_sync(parse(text), Store(root), Options(patience=Patience(3, 0.01, 0.02)), Sink())
except UdiError as error:
    print(error.message, "HINT", error.hint)
    sys.exit(125)
print("image", image.digest)
"""
POINTS = [
    "stage resolve",
    "stage fetch",
    "blob waiting",
    "blob running begun",
    "blob running some",
    "blob running all",
    "blob done",
    "stage convert",
    "convert some",
    "convert more",
    "stage store",
    "stage done",
]


def child(text: str, store: Store, point: str = "-", how: str = "-") -> list[str]:
    return [sys.executable, "-c", CHILD, str(TREE), text, store.root, point, how]


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_pull_leaves_a_sound_store(proxy: Flaky, store: Store, point: str) -> None:
    text = f"{proxy.host}/a:2"
    reference = parse(text)
    done = subprocess.run(child(text, store, point, "kill"), capture_output=True, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = find.find((store.root,), reference, HERE)
    assert found is None
    for entry in store.images():
        # Whole, and only its name is missing.
        assert point == "stage done"
        assert "/other" in inside(entry.image)
    proxy.log.clear()
    image = pull(store, text)
    assert "/other" in inside(image)
    assert find.find((store.root,), reference, HERE) == image
    # The locks of dead processes go later; they are no longer held.
    assert [name for name in leftovers(store) if not name.startswith("locks/")] == []
    if point == "blob running all":
        # One layer was there, and is not asked for again.
        assert len(proxy.paths("/blobs/")) < 3


def test_a_killed_pull_is_gone_on_with(proxy: Flaky, store: Store) -> None:
    text = f"{proxy.host}/a:2"
    subprocess.run(child(text, store, "blob running some", "kill"), timeout=120)
    parts = [
        Path(store.path("blobs", name)).stat().st_size for name in os.listdir(store.path("blobs"))
    ]
    assert parts and 0 < max(parts) < SIZE
    proxy.log.clear()
    pull(store, text)
    asked = {given for path, given, _ in proxy.log if "/blobs/" in path}
    assert {f"bytes={size}-" for size in parts if size} <= asked


def test_damaged_leftovers_are_found_out(proxy: Flaky, store: Store) -> None:
    text = f"{proxy.host}/a:2"
    subprocess.run(child(text, store, "blob running some", "kill"), timeout=120)
    for name in os.listdir(store.path("blobs")):
        path = Path(store.path("blobs", name))
        path.write_bytes(bytes(path.stat().st_size))
    sink = Sink()
    assert "/other" in inside(pull(store, text, sink))
    assert any("is damaged: from the start" in note for note in sink.notes)


def test_an_interrupted_pull_ends_at_once(proxy: Flaky, store: Store) -> None:
    asked = threading.Event()
    configs = {f"/v2/a/blobs/{config_of(proxy, 'a:2')}"}

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        if "/blobs/" not in path or path in configs:
            return False
        asked.set()
        request.rfile.read(1)  # until the other side goes away
        return True

    proxy.rule = rule
    # A shell starts what it puts in the background with SIGINT ignored, this test perhaps too.
    argv = ["env", "--default-signal=INT", *child(f"{proxy.host}/a:2", store)]
    one = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
    assert asked.wait(60)
    one.send_signal(signal.SIGINT)
    _, said = one.communicate(timeout=120)
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert "Group" not in said
    assert [name for name in content(store) if "part" not in name] == []


def on_a_small_disk(text: str, point: str, megabytes: int) -> "subprocess.CompletedProcess[str]":
    """Pull onto a tmpfs of its own; print what is left in the store at the end."""
    script = (
        'set -e; mount -t tmpfs -o size="$1"m tmpfs /mnt; shift; rc=0; "$@" || rc=$?; '
        "find /mnt/store -type f; exit $rc"
    )
    argv = ["unshare", "-Urm", "sh", "-c", script, "sh", str(megabytes)]
    argv += child(text, Store("/mnt/store"), point, "fill")
    return subprocess.run(argv, capture_output=True, text=True, timeout=120)


@pytest.mark.needs("userns")
@pytest.mark.parametrize("point", ["blob running some", "convert some", "stage store"])
def test_a_disk_that_fills_up(opened: Registry, point: str) -> None:
    done = on_a_small_disk(f"{opened.host}/a:2", point, 40)
    assert done.returncode == 125, done.stderr
    lines = done.stdout.splitlines()
    (said,) = [line for line in lines if "HINT" in line]
    assert "No space left on device" in said
    assert "/mnt" in said and "UDI_STORE" in said
    left = [line for line in lines if line.startswith("/mnt/store")]
    assert not [path for path in left if "/images/" in path or "/names/" in path]


@pytest.mark.needs("userns")
def test_a_disk_that_is_too_small_is_seen_before(opened: Registry) -> None:
    done = on_a_small_disk(f"{opened.host}/a:2", "-", 4)
    assert done.returncode == 125, done.stderr
    assert "needs about 13 MB, 4 MB are free" in done.stdout
    assert "make room on /mnt" in done.stdout and "UDI_STORE" in done.stdout
    assert "blob" not in done.stdout
