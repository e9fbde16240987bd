"""Pulls from OCI image layouts and from archives of `docker save`."""

import bz2
import gzip
import hashlib
import json
import lzma
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import parse, parse_platform
from rootless_udi.pull import sources
from rootless_udi.pull.registry import WrongContent
from rootless_udi.store import find
from rootless_udi.store.store import Store
from tests.kit import images
from tests.kit.places import TREE
from tests.kit.pulling import HERE, SIZE, content, inside, leftovers, noise, pull

pytest_plugins = ["tests.kit.pulling"]
pytestmark = pytest.mark.needs("registry", "skopeo", "mksquashfs")
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


def test_a_layout(layout: images.Layout, store: Store, tmp_path: Path) -> None:
    copy = tmp_path / "l"
    shutil.copytree(layout.path, copy)
    image = pull(store, f"oci:{copy}:1")
    assert "/top" in inside(image)
    assert find.find((store.root,), parse(f"oci:{copy}:1"), HERE) == image
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
    assert find.find((store.root,), parse(f"docker-archive:{path}"), HERE) == image
    assert pull(store, f"docker-archive:{path}:example/a:7").digest == image.digest
    with pytest.raises(UdiError, match="has no image 'example/a:8'") as caught:
        pull(store, f"docker-archive:{path}:example/a:8")
    assert "example/a:7" in caught.value.hint
    packed = tmp_path / "x.tar.gz"
    packed.write_bytes(gzip.compress(path.read_bytes(), 1))
    assert pull(store, f"docker-archive:{packed}", force=True).digest == image.digest
    os.utime(path, (1, 1))
    assert find.find((store.root,), parse(f"docker-archive:{path}"), HERE) is None
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


@pytest.mark.parametrize(
    ("pack", "suffix"),
    [(gzip.compress, ""), (bytes, "+gzip"), (gzip.compress, "+zstd"), (lzma.compress, "+gzip"),
     (bz2.compress, "+gzip"), (bytes, "+zstd")],
)  # fmt: skip
def test_a_layer_that_is_compressed_otherwise_than_its_type_says(
    store: Store, tmp_path: Path, pack: Callable[[bytes], bytes], suffix: str
) -> None:
    one = images.Layout(tmp_path / "l")
    layer = images.tar([("x", b"1" * 3000, {})])
    one.image("t", [layer], arch=HERE.architecture, compress=pack, suffix=suffix)
    assert "/x" in inside(pull(store, f"oci:{one.path}:t"))


OTHER = "s390x" if HERE.architecture == "amd64" else "amd64"


@pytest.fixture
def two(tmp_path: Path) -> images.Layout:
    """A layout of two images: the other machine's first."""
    one = images.Layout(tmp_path / "two")
    one.image("other", [images.tar([("other", b"", {})])], arch=OTHER)
    one.image("ours", [images.tar([("ours", b"", {})])], arch=HERE.architecture)
    return one


def described(layout: images.Layout, tags: list[str]) -> bytes:
    """What manifest.json says of a layout's images."""
    found = []
    for entry, tag in zip(layout.manifests, tags, strict=True):
        body = json.loads((layout.path / "blobs/sha256" / entry["digest"][7:]).read_bytes())
        names = [f"blobs/sha256/{x['digest'][7:]}" for x in (body["config"], *body["layers"])]
        found.append({"Config": names[0], "RepoTags": [tag], "Layers": names[1:]})
    return json.dumps(found).encode()


@pytest.mark.parametrize("layout_too", [True, False])
@pytest.mark.parametrize("names", [["a:1", "b:1"], ["b:1", "b:1"], ["a/../x", "b:1"]])
def test_an_archive_whose_other_image_is_for_another_machine(
    two: images.Layout, store: Store, tmp_path: Path, names: list[str], layout_too: bool
) -> None:
    (two.path / "manifest.json").write_bytes(described(two, names))
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        for part in ("manifest.json", "blobs", *(["index.json"] if layout_too else [])):
            tar.add(two.path / part, f"/{part}" if layout_too else f"./{part}")
    assert "/ours" in inside(pull(store, f"docker-archive:{path}:b:1"))
    if names[0] == names[1]:
        assert "/ours" in inside(pull(store, f"docker-archive:{path}"))
        image = pull(store, f"docker-archive:{path}", platform=parse_platform(OTHER))
        assert "/other" in inside(image)
        with pytest.raises(UdiError, match="has no images for linux/riscv64 of the name b:1"):
            pull(store, f"docker-archive:{path}", platform=parse_platform("riscv64"))


@pytest.mark.parametrize("where", ["index.json", "index", "config"])
def test_sizes_of_documents_are_checked(
    two: images.Layout, store: Store, tmp_path: Path, where: str
) -> None:
    """As layers' are: a wrong size means that what refers to it was made by a faulty tool."""
    entry = two.manifests.pop()
    if where == "config":
        body = json.loads((two.path / "blobs/sha256" / entry["digest"][7:]).read_bytes())
        body["config"]["size"] += 1
        wrong = two.blob(json.dumps(body).encode(), entry["mediaType"])
    else:
        wrong = {**entry, "size": entry["size"] - 1}
    if where == "index":
        index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [wrong]}
        wrong = two.blob(json.dumps(index).encode(), OCI_INDEX)
    two.tag("t", wrong)
    with pytest.raises(WrongContent, match=r"has \d+ bytes, its descriptor says"):
        pull(store, f"oci:{two.path}:t")
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(two.path, ".")
    with pytest.raises(WrongContent, match=r"has \d+ bytes, its descriptor says"):
        pull(store, f"oci-archive:{path}:t")


def test_a_config_without_a_platform_is_for_what_the_index_says(
    two: images.Layout, store: Store
) -> None:
    """grafana/alloy, paketo, crane append: the list says linux/amd64, the config nothing."""
    body = json.loads((two.path / "blobs/sha256" / two.manifests[0]["digest"][7:]).read_bytes())
    path = two.path / "blobs/sha256" / body["config"]["digest"][7:]
    config = {**json.loads(path.read_bytes()), "architecture": "", "os": ""}
    body["config"] = two.blob(json.dumps(config).encode(), "application/octet-stream")
    one = two.blob(json.dumps(body).encode(), two.manifests[0]["mediaType"])
    two.tag("named", {**one, "platform": {"os": "linux", "architecture": OTHER}})
    two.tag("silent", one)
    image = pull(store, f"oci:{two.path}:named", platform=parse_platform(OTHER))
    assert store.facts(image)["architecture"] == OTHER
    with pytest.raises(UdiError, match=f"is an image for linux/{OTHER}"):
        pull(store, f"oci:{two.path}:named")
    silent = pull(store, f"oci:{two.path}:silent", force=True)
    assert store.facts(silent)["architecture"] == HERE.architecture


ODD = {
    "Env": ["PATH=/bin", "HALF=a\ud800", "WHOLE=\U0001f600", "BYTE=\udcff", "ACCENT=é"],
    "Labels": {"half": "\ud83d", "\udfff": "key"},
    "Entrypoint": ["/bin/echo", "\udc00"],
    "WorkingDir": "/\ud801",
    "Volumes": {"/\udbff": {}},
}


def test_text_that_is_none(store: Store, tmp_path: Path) -> None:
    """Halves of surrogate pairs become U+FFFD, as in Go's programs; names of files stay bytes."""
    one = images.Layout(tmp_path / "layout-\udcff")
    entries: list[images.Entry] = [
        ("opt/\udcfe-device", b"", {"type": tarfile.CHRTYPE}),
        ("opt/\udcfd-setuid", b"", {"mode": 0o4755}),
        ("opt/\udcfc-program", Path("/bin/true").read_bytes(), {"mode": 0o755}),
        ("lib/lib\udcfb.so.1", Path("/bin/true").read_bytes(), {}),
    ]
    one.image("t", [images.tar(entries)], ODD, arch=HERE.architecture)
    facts = store.facts(pull(store, f"oci:{one.path}:t"))
    assert facts["env"][1:] == ["HALF=a\ufffd", "WHOLE=\U0001f600", "BYTE=\ufffd", "ACCENT=é"]
    assert facts["labels"] == {"half": "\ufffd", "\ufffd": "key"}
    assert (facts["entrypoint"], facts["workdir"]) == (["/bin/echo", "\ufffd"], "/\ufffd")
    assert facts["left_out"]["device_paths"] == ["/opt/\udcfe-device"]
    assert facts["reference"] == f"oci:{one.path}:t"


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"a": "\\ud800"}', {"a": "\ufffd"}),
        (b'{"a": "\\uD83D\\uDE00"}', {"a": "\U0001f600"}),
        (b'["\\ude00\\ud83d", {"\\udfff": ["\\ud800"]}]', ["\ufffd\ufffd", {"\ufffd": ["\ufffd"]}]),
        (b'"Mus\xe9e"', "Mus\ufffde"),
        (b'"\xed\xa0\x80"', "\ufffd\ufffd\ufffd"),
        (b'\xef\xbb\xbf"bom"', "bom"),
        (b'"\\\\ud800"', "\\ud800"),
    ],
)
def test_texts_of_documents_are_utf8(body: bytes, found: object) -> None:
    assert sources.parse(body, "it") == found


def test_a_document_of_many_floors_is_refused() -> None:
    for body in (b"[" * 90_000, b"[" * 5000 + b'"\\ud800"' + b"]" * 5000):
        with pytest.raises(UdiError, match="it: is no JSON"):
            sources.parse(body, "it")


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


@pytest.mark.parametrize("where", ["index.json", "oci-layout", "blob", "archive"])
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path: Path, where: str) -> None:
    """Whoever made the layout could hold whoever pulls it for ever."""
    layout = tmp_path / "layout"
    images.busybox_layout(layout)
    name = f"oci:{layout}:latest"
    path = layout / where
    if where == "blob":
        path = max((layout / "blobs/sha256").iterdir(), key=lambda one: one.stat().st_size)
    elif where == "archive":
        path, name = tmp_path / "image.tar", f"docker-archive:{tmp_path}/image.tar"
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    argv = [str(TREE / "bin/udi"), "pull", "-q", name]
    env = {**os.environ, "UDI_STORE": str(tmp_path / "store")}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120)
    said = "has 0 bytes" if where == "blob" else "It is no regular file"
    assert done.returncode == 125 and said in done.stderr, done
