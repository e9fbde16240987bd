"""Pulls, from real registries, layouts and archives into stores, and all that can go wrong."""

import errno
import gzip
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rootless_udi import store_find
from rootless_udi.errors import UdiError
from rootless_udi.locks import Lock
from rootless_udi.manifest import OCI_INDEX, OCI_MANIFEST
from rootless_udi.oci import parse, parse_platform, platform_of
from rootless_udi.patience import Patience
from rootless_udi.pull import Options, Silent, pull_sync
from rootless_udi.store import Store
from rootless_udi.store_find import Image
from tests import images
from tests.registry import Flaky, Quiet, Registry, flaky, open_registry

pytestmark = pytest.mark.needs("registry", "skopeo", "mksquashfs")

HERE = platform_of(os.uname().machine)
QUICK = Patience(attempts=3, first=0.01, longest=0.02)
TREE = str(Path(__file__).parent.parent)
SIZE = 3 << 20


def noise(seed: int, size: int = SIZE) -> bytes:
    """Bytes that no compressor makes smaller."""
    return random.Random(seed).randbytes(size)


class Sink(Silent):
    """Remembers what it hears; `act` is called with each event."""

    def __init__(self, act: Callable[..., object] = lambda *event: None) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.states: dict[str, list[str]] = {}
        self.act = act

    def stage(self, stage: str, text: str) -> None:
        self.stages.append(stage)
        self.act("stage", stage)

    def blob(self, digest: str, done: int, total: int, state: str) -> None:
        seen = self.states.setdefault(digest, [])
        if state not in seen[-1:]:
            seen.append(state)
        self.act("blob", state, done, total)

    def convert(self, done: int) -> None:
        self.act("convert", done)

    def note(self, text: str) -> None:
        self.notes.append(text)


def pull(store: Store, text: str, sink: Sink | None = None, **options: object) -> Image:
    chosen = Options(**{"patience": QUICK, **options})
    return pull_sync(parse(text), store, chosen, sink or Sink())


def inside(image: Image) -> list[str]:
    argv = ["unsquashfs", "-l", "-d", "", image.squashfs]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if line.startswith("/")]


def leftovers(store: Store) -> list[str]:
    """Every file that is not a whole image, its facts or a name."""
    found = [p for p in Path(store.root).rglob("*") if not p.is_dir() or p.is_symlink()]
    return sorted(
        str(p.relative_to(store.root))
        for p in found
        if p.name.startswith(".") or p.parts[-2] in ("blobs", "locks", "dirs")
    )


def content(store: Store) -> list[str]:
    return sorted(p.name for p in Path(store.root).rglob("*") if p.is_file() or p.is_symlink())


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pull")


@pytest.fixture(scope="module")
def layout(place: Path) -> images.Layout:
    one = images.Layout(place / "layout")
    base = images.tar([("etc", None, {}), ("etc/base", noise(1), {})])
    config = {"Env": ["A=1"], "Cmd": ["/x"], "WorkingDir": "/etc", "Labels": {"l": "v"}}
    arch = HERE.architecture
    one.image("1", [base, images.tar([("top", noise(2, 1000), {})])], config, arch)
    one.image("2", [base, images.tar([("other", noise(3), {})])], config, arch)
    one.image("twice", [base, base], config, arch)
    return one


@pytest.fixture(scope="module")
def opened(place: Path, layout: images.Layout) -> Iterator[Registry]:
    with open_registry(place / "open", place / "data") as one:
        for tag in ("1", "2", "twice"):
            one.push(layout.path, tag, f"a:{tag}")
        yield one


@pytest.fixture
def proxy(opened: Registry) -> Iterator[Flaky]:
    with flaky(opened.host) as one:
        yield one


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_pull_and_pull_again(proxy: Flaky, store: Store) -> None:
    sink = Sink()
    image = pull(store, f"{proxy.host}/a:1", sink)
    assert sink.stages == ["resolve", "fetch", "convert", "store", "done"]
    assert all(states == ["waiting", "running", "done"] for states in sink.states.values())
    assert {"/etc/base", "/top", "/proc", "/etc/passwd"} <= set(inside(image))
    facts = store.facts(image)
    assert facts["digest"] == image.digest
    assert facts["reference"] == f"{proxy.host}/a:1"
    assert (facts["env"], facts["cmd"], facts["workdir"]) == (["A=1"], ["/x"], "/etc")
    assert (facts["labels"], facts["mount_points"]) == ({"l": "v"}, True)
    assert len(facts["layers"]) == 2
    assert "libc" in facts["elf"]
    assert leftovers(store) == []
    assert store_find.find((store.root,), parse(f"{proxy.host}/a:1"), HERE) == image

    asked = len(proxy.paths("/blobs/"))
    sink = Sink()
    assert pull(store, f"{proxy.host}/a:1", sink) == image
    assert sink.stages == ["resolve", "present"]
    # The config, which tells whether it is for this machine.
    assert len(proxy.paths("/blobs/")) == asked + 1
    digest = f"{proxy.host}/a@{image.digest}"
    assert pull(store, digest).digest == image.digest
    names = {name for entry in store.images() for _, name in entry.names}
    assert names == {f"{proxy.host}/a:1", digest}


def test_the_same_digest_gives_the_same_bytes(opened: Registry, tmp_path: Path) -> None:
    sums = set()
    for name in ("x", "y"):
        image = pull(Store(str(tmp_path / name)), f"{opened.host}/a:1")
        sums.add(hashlib.sha256(Path(image.squashfs).read_bytes()).hexdigest())
    assert len(sums) == 1


@pytest.mark.parametrize("compression", ["gzip", "lz4", "xz", "none", "zstd:1"])
def test_other_compressions(opened: Registry, store: Store, compression: str) -> None:
    # unsquashfs cannot read the lz4 of squashfs-tools-ng 1.2.
    writer = "mksquashfs" if compression == "lz4" else ""
    image = pull(store, f"{opened.host}/a:1", compression=compression, writer=writer)
    assert "/top" in inside(image)
    assert store.facts(image)["compression"] == compression


def test_what_cannot_be_written_is_said_before_any_download(proxy: Flaky, store: Store) -> None:
    with pytest.raises(UdiError, match="unknown compression 'bzip2'"):
        pull(store, f"{proxy.host}/a:1", compression="bzip2")
    assert proxy.log == []
    with pytest.raises(UdiError, match="no-such-writer"):
        pull(store, f"{proxy.host}/a:1", writer="no-such-writer")
    assert content(store) == []


@pytest.mark.needs("zstd")
@pytest.mark.parametrize("kind", ["zstd", "none", "docker"])
def test_other_layers(opened: Registry, store: Store, tmp_path: Path, kind: str) -> None:
    one = images.Layout(tmp_path / "l")
    layer = images.tar([("x", noise(4, 5000), {})])
    arch = HERE.architecture
    if kind == "zstd":

        def zstd(data: bytes) -> bytes:
            return subprocess.run(
                ["zstd", "-q", "-c"], input=data, capture_output=True, check=True
            ).stdout

        one.image("1", [layer], arch=arch, compress=zstd, suffix="+zstd")
    elif kind == "none":
        one.image("1", [layer], arch=arch, compress=None)
    else:
        one.image("1", [layer], arch=arch)
    options = ["--format=v2s2"] if kind == "docker" else ["--preserve-digests"]
    opened.push(one.path, "1", f"kinds:{kind}", *options)
    assert "/x" in inside(pull(store, f"{opened.host}/kinds:{kind}"))


def test_a_layer_that_is_there_twice(proxy: Flaky, store: Store) -> None:
    image = pull(store, f"{proxy.host}/a:twice")
    assert len(proxy.paths("/blobs/")) == 2
    assert "/etc/base" in inside(image)


def test_an_index_by_platform(opened: Registry, store: Store, tmp_path: Path) -> None:
    one = images.Layout(tmp_path / "l")
    found = {}
    for arch in ("amd64", "arm64", "s390x"):
        layer = images.tar([(arch, b"", {})])
        found[arch] = one.image(arch, [layer], arch=arch) | {
            "platform": {"os": "linux", "architecture": arch}
        }
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(found.values())}
    one.tag("all", one.blob(json.dumps(index).encode(), OCI_INDEX))
    opened.push(one.path, "all", "many:1")
    for arch in ("amd64", "arm64"):
        image = pull(store, f"{opened.host}/many:1", platform=parse_platform(arch))
        assert f"/{arch}" in inside(image)
        assert image.digest == found[arch]["digest"]
        facts = store.facts(image)
        assert (facts["architecture"], facts["index"]) == (arch, one.manifests[-1]["digest"])
    # Both at once, in one store that nodes of both kinds use.
    reference = parse(f"{opened.host}/many:1")
    for arch in ("amd64", "arm64"):
        image_ = store_find.find((store.root,), reference, parse_platform(arch))
        assert image_ is not None and image_.digest == found[arch]["digest"]
    with pytest.raises(UdiError, match="has no image for linux/riscv64") as caught:
        pull(store, f"{opened.host}/many:1", platform=parse_platform("riscv64"))
    assert caught.value.hint == "it has linux/amd64, linux/arm64, linux/s390x"
    with pytest.raises(UdiError, match="is an image for linux/arm64, wanted is linux/amd64"):
        digest = found["arm64"]["digest"]
        pull(store, f"{opened.host}/many@{digest}", platform=parse_platform("amd64"))


def test_unknown_media_types_by_name(opened: Registry, store: Store, tmp_path: Path) -> None:
    one = images.Layout(tmp_path / "l")
    one.image("1", [images.tar([])], arch=HERE.architecture, suffix="+brotli")
    with pytest.raises(UdiError, match=r"'[^']*tar\+brotli' of layer 1 is unknown"):
        pull(store, f"oci:{one.path}:1")
    assert content(store) == []


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
    both = threading.Barrier(2, timeout=30)

    def act(*event: object) -> None:
        # Neither may begin with the digest before both know it.
        if event == ("stage", "resolve"):
            both.wait()

    waiting = threading.Event()

    def rule(proxy: Flaky, request: Quiet, path: str) -> bool:
        if "/blobs/" in path and path not in configs:
            waiting.wait(30)
        return False

    configs = {f"/v2/a/blobs/{config_of(proxy, 'a:1')}"}
    proxy.rule = rule
    sinks = [Sink(act), Sink(act)]
    for sink in sinks:
        sink.act = lambda *event: (act(*event), event[1] == "wait" and waiting.set())
    results: list[Image] = []
    threads = [
        threading.Thread(target=lambda s=sink: results.append(pull(store, f"{proxy.host}/a:1", s)))
        for sink in sinks
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(results) == 2 and results[0] == results[1]
    assert len([p for p in proxy.paths("/blobs/") if p not in configs]) == 2
    assert sorted(sink.stages[1] for sink in sinks) == ["fetch", "wait"]
    assert leftovers(store) == []


def config_of(proxy: Flaky, name: str) -> str:
    argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{proxy.target}/{name}"]
    body = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return str(body["config"]["digest"])


def test_a_layer_of_two_images_is_downloaded_once(proxy: Flaky, store: Store) -> None:
    configs = {f"/v2/a/blobs/{config_of(proxy, name)}" for name in ("a:1", "a:2")}
    both = threading.Barrier(2, timeout=30)

    def act(*event: object) -> None:
        # Neither converts, and so removes its blobs, before the other has its own.
        if event in (("stage", "resolve"), ("stage", "convert")):
            both.wait()

    results: list[Image] = []
    threads = [
        threading.Thread(
            target=lambda n=name: results.append(pull(store, f"{proxy.host}/{n}", Sink(act)))
        )
        for name in ("a:1", "a:2")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
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


def test_keep_blobs_and_force(proxy: Flaky, store: Store) -> None:
    configs = {f"/v2/a/blobs/{config_of(proxy, 'a:1')}"}
    image = pull(store, f"{proxy.host}/a:1", keep_blobs=True)
    kept = os.listdir(store.path("blobs"))
    assert len(kept) == 2 and all(name.startswith("sha256-") and "." not in name for name in kept)
    proxy.log.clear()
    sink = Sink()
    again = pull(store, f"{proxy.host}/a:1", sink, force=True, compression="gzip")
    assert sink.stages[-1] == "done"
    assert store.facts(again)["compression"] == "gzip"
    assert again.digest == image.digest
    assert [p for p in proxy.paths("/blobs/") if p not in configs] == []
    # A kept blob that has rotted is not used.
    for name in kept:
        path = Path(store.path("blobs", name))
        path.write_bytes(b"\0" * path.stat().st_size)
    pull(store, f"{proxy.host}/a:1", force=True)
    assert len([p for p in proxy.paths("/blobs/") if p not in configs]) == 2


def test_mirrors_come_first(opened: Registry, proxy: Flaky, store: Store) -> None:
    with flaky(opened.host) as broken, flaky(opened.host) as mirror:
        broken.rule = lambda proxy, request, path: bool(request.answer(500)) or True
        mirrors = {proxy.host: [broken.host, f"http://{mirror.host}/"]}
        sink = Sink()
        pull(store, f"{proxy.host}/a:1", sink, mirrors=mirrors)
        assert proxy.log == [] and mirror.paths("/blobs/")
        assert any(f"mirror {broken.host}: " in note for note in sink.notes)
        # What the mirror has not, or has wrong, the registry gives.
        mirror.alter = lambda path, body: b"x" + body[1:] if "/blobs/" in path else body
        pull(store, f"{proxy.host}/a:2", mirrors={proxy.host: [mirror.host]})
        assert proxy.paths("/blobs/") and not proxy.paths("/manifests/")
        assert leftovers(store) == []


def test_what_is_no_image_to_pull(store: Store, tmp_path: Path) -> None:
    for text in ("./dir", "x.sqfs", "sha256:" + "a" * 64):
        with pytest.raises(UdiError, match="there is nothing to pull"):
            pull(store, text)


def test_a_store_that_cannot_be_written(opened: Registry, tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir(mode=0o555)
    with pytest.raises(UdiError, match=r"making the image store failed on .*: Permission denied"):
        pull(Store(str(tmp_path / "ro/store")), f"{opened.host}/a:1")


# Layouts and archives


def test_a_layout(layout: images.Layout, store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "l"
    shutil.copytree(layout.path, copy)
    image = pull(store, f"oci:{copy}:1")
    assert "/top" in inside(image)
    assert store_find.find((store.root,), parse(f"oci:{copy}:1"), HERE) == image
    assert pull(store, f"oci:{copy}@{image.digest}").digest == image.digest
    with pytest.raises(UdiError, match="holds several images") as caught:
        pull(store, f"oci:{copy}")
    assert caught.value.hint == "add one of its tags: 1, 2, twice"
    with pytest.raises(UdiError, match="has no tag '3'") as caught:
        pull(store, f"oci:{copy}:3")
    assert caught.value.hint == "it has 1, 2, twice"
    assert leftovers(store) == []


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("oci-layout", None, "oci-layout: No such file"),
        ("oci-layout", "{}", "image layout version None is unknown"),
        ("oci-layout", '{"imageLayoutVersion": "2.0"}', "version '2.0' is unknown"),
        ("index.json", "{", "index.json: is no JSON"),
        ("index.json", "[" * 100_000, "index.json: is no JSON"),
        ("index.json", "{}", "index.json has no list of manifests"),
        ("index.json", " " * (5 << 20), "is larger than any document may be"),
        ("manifest", None, "No such file"),
        ("manifest", "{}", "its digest is"),
        ("config", "{}", "its digest is"),
        ("layer", None, "blob sha256:[0-9a-f]+: No such file"),
        ("layer", "short", "has 5 bytes, its descriptor says"),
    ],
)
def test_damaged_layouts(
    store: Store, tmp_path: Path, file: str, change: str | None, message: str
) -> None:
    one = images.Layout(tmp_path / "l")
    found = one.image("1", [images.tar([("x", b"1", {})])], arch=HERE.architecture)
    body = json.loads((one.path / "blobs/sha256" / found["digest"][7:]).read_bytes())
    digests = {
        "manifest": found["digest"],
        "config": body["config"]["digest"],
        "layer": body["layers"][0]["digest"],
    }
    path = one.path / file
    if file in digests:
        path = one.path / "blobs/sha256" / digests[file][7:]
    if change is None:
        path.unlink()
    else:
        path.write_text(change)
    with pytest.raises(UdiError, match=message) as caught:
        pull(store, f"oci:{one.path}:1")
    assert caught.value.message.startswith(f"reading oci:{one.path}:1")
    assert content(store) == []


def archive(layout: Path, target: Path, tag: str, name: str = "") -> Path:
    argv = ["skopeo", "copy", "-q", f"oci:{layout}:{tag}", f"docker-archive:{target}"]
    argv[-1] += f":{name}" if name else ""
    subprocess.run(argv, check=True, capture_output=True)
    return target


def test_an_archive(layout: images.Layout, store: Store, tmp_path: Path) -> None:
    path = archive(layout.path, tmp_path / "x.tar", "1", "example/a:7")
    image = pull(store, f"docker-archive:{path}")
    assert {"/top", "/etc/base"} <= set(inside(image))
    assert store.facts(image)["env"] == ["A=1"]
    assert store_find.find((store.root,), parse(f"docker-archive:{path}"), HERE) == image
    assert pull(store, f"docker-archive:{path}:example/a:7").digest == image.digest
    with pytest.raises(UdiError, match="has no image 'example/a:8'") as caught:
        pull(store, f"docker-archive:{path}:example/a:8")
    assert "example/a:7" in caught.value.hint
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    assert pull(store, f"docker-archive:{packed}", force=True).digest == image.digest
    os.utime(path, (1, 1))
    assert store_find.find((store.root,), parse(f"docker-archive:{path}"), HERE) is None
    assert leftovers(store) == []


def test_an_archive_that_is_a_layout(layout: images.Layout, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(layout.path, ".")
    assert "/top" in inside(pull(store, f"oci-archive:{path}:1"))
    with pytest.raises(UdiError, match="holds several images"):
        pull(store, f"oci-archive:{path}")


def test_an_archive_of_dockers_image_store(
    layout: images.Layout, store: Store, tmp_path: Path
) -> None:
    """Docker 25 and later: manifest.json over an OCI layout; the registry's digest is kept."""
    entry = next(m for m in layout.manifests if "1" in m["annotations"].values())
    body = json.loads((layout.path / "blobs/sha256" / entry["digest"][7:]).read_bytes())
    blob = "blobs/sha256/{}".format
    image = {
        "Config": blob(body["config"]["digest"][7:]),
        "RepoTags": ["a:1"],
        "Layers": [blob(x["digest"][7:]) for x in body["layers"]],
    }
    other = {**image, "RepoTags": ["b:1"], "Config": blob("0" * 64)}
    (tmp_path / "manifest.json").write_text(json.dumps([image, other]))
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(layout.path, ".")
        tar.add(tmp_path / "manifest.json", "manifest.json")
    assert pull(store, f"docker-archive:{path}:a:1").digest == entry["digest"]
    with pytest.raises(UdiError, match="holds 2 images") as caught:
        pull(store, f"docker-archive:{path}")
    assert "a:1, b:1" in caught.value.hint


def test_an_archive_of_old_docker(store: Store, tmp_path: Path) -> None:
    """Layers as ID/layer.tar, equal ones as symbolic links to the first."""
    layer = images.tar([("x", b"1", {})])
    diff = "sha256:" + hashlib.sha256(layer).hexdigest()
    config = {
        "os": "linux",
        "architecture": HERE.architecture,
        "rootfs": {"type": "layers", "diff_ids": [diff, diff]},
    }
    described = [{"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar", "b/layer.tar"]}]
    path = tmp_path / "x.tar"
    path.write_bytes(
        images.tar(
            [
                ("a/layer.tar", layer, {}),
                ("b/layer.tar", "../a/layer.tar", {}),
                ("c.json", json.dumps(config).encode(), {}),
                ("manifest.json", json.dumps(described).encode(), {}),
            ]
        )
    )
    assert "/x" in inside(pull(store, f"docker-archive:{path}"))


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "No such file"),
        ("empty", "is no whole tar"),
        ("text", "is no whole tar"),
        ("cut", "is no whole tar|has no |is truncated"),
        ("other", "has neither manifest.json nor index.json"),
        ("corrupt", "its digest is"),
    ],
)
def test_damaged_archives(
    layout: images.Layout, store: Store, tmp_path: Path, how: str, message: str
) -> None:
    path = archive(layout.path, tmp_path / "x.tar", "1")
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "other":
        path.write_bytes(images.tar([("etc", None, {})]))
    elif how == "corrupt":
        at = data.index(noise(1)[:64])
        path.write_bytes(data[:at] + b"X" + data[at + 1 :])
    else:
        path.write_bytes({"empty": b"", "text": b"hello" * 500, "cut": data[: SIZE // 2]}[how])
    with pytest.raises(UdiError, match=message) as caught:
        pull(store, f"docker-archive:{path}")
    assert str(path) in caught.value.message
    assert content(store) == []


# Full disks, killed and interrupted pulls: in a process of their own

CHILD = """
import json, os, signal, sys
sys.path[:0] = [sys.argv[1]]
from rootless_udi.errors import UdiError
from rootless_udi.oci import parse
from rootless_udi.patience import Patience
from rootless_udi.pull import Options, Silent, pull_sync
from rootless_udi.store import Store
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
    return [sys.executable, "-c", CHILD, TREE, text, store.root, point, how]


@pytest.mark.parametrize("point", POINTS)
def test_a_killed_pull_leaves_a_sound_store(proxy: Flaky, store: Store, point: str) -> None:
    text = f"{proxy.host}/a:2"
    reference = parse(text)
    done = subprocess.run(child(text, store, point, "kill"), capture_output=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = store_find.find((store.root,), reference, HERE)
    assert found is None
    for entry in store.images():
        # Whole, and only its name is missing.
        assert point == "stage done"
        assert "/other" in inside(entry.image)
    proxy.log.clear()
    image = pull(store, text)
    assert "/other" in inside(image)
    assert store_find.find((store.root,), reference, HERE) == image
    # The locks of dead processes go later; they are no longer held.
    assert [name for name in leftovers(store) if not name.startswith("locks/")] == []
    if point == "blob running all":
        # One layer was there, and is not asked for again.
        assert len(proxy.paths("/blobs/")) < 3


def test_a_killed_pull_is_gone_on_with(proxy: Flaky, store: Store) -> None:
    text = f"{proxy.host}/a:2"
    subprocess.run(child(text, store, "blob running some", "kill"), timeout=60)
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
    subprocess.run(child(text, store, "blob running some", "kill"), timeout=60)
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
    one = subprocess.Popen(child(f"{proxy.host}/a:2", store), stderr=subprocess.PIPE, text=True)
    assert asked.wait(60)
    one.send_signal(signal.SIGINT)
    _, said = one.communicate(timeout=30)
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
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


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
