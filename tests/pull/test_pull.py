"""Pulls from real registries into stores."""

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import parse, parse_platform
from rootless_udi.pull.manifest import OCI_INDEX
from rootless_udi.store import find
from rootless_udi.store.store import Store
from tests.kit import images
from tests.kit.pulling import HERE, Sink, config_of, content, inside, leftovers, noise, pull
from tests.kit.registry import Flaky, Quiet, Registry, flaky

pytest_plugins = ["tests.kit.pulling"]
pytestmark = pytest.mark.needs("registry", "skopeo", "mksquashfs")


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
    assert find.find((store.root,), parse(f"{proxy.host}/a:1"), HERE) == image

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
        image_ = find.find((store.root,), reference, parse_platform(arch))
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

        def fails(proxy: Flaky, request: Quiet, path: str) -> bool:
            request.answer(500)
            return True

        broken.rule = fails
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


def test_a_mirror_that_has_it_not_is_told_where_the_registry_fails(
    opened: Registry, store: Store
) -> None:
    """Else a wrong tag behind a mirror looks like a broken network."""
    with flaky(opened.host) as mirror:
        nobody = "127.0.0.1:1"
        with pytest.raises(UdiError) as caught:
            pull(store, f"{nobody}/a:nosuch", mirrors={nobody: [f"http://{mirror.host}/"]})
        assert nobody in caught.value.message
        assert f"mirror {mirror.host} does not have it" in caught.value.hint


def test_what_is_no_image_to_pull(store: Store, tmp_path: Path) -> None:
    for text in ("./dir", "x.sqfs", "sha256:" + "a" * 64):
        with pytest.raises(UdiError, match="there is nothing to pull"):
            pull(store, text)


def test_a_store_that_cannot_be_written(opened: Registry, tmp_path: Path) -> None:
    (tmp_path / "ro").mkdir(mode=0o555)
    with pytest.raises(UdiError, match=r"making the image store failed on .*: Permission denied"):
        pull(Store(str(tmp_path / "ro/store")), f"{opened.host}/a:1")
