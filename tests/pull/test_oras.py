"""A SIF file in a real registry, as `apptainer push` leaves it: udi pull oras://HOST/NAME:TAG."""

import hashlib
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.commands.pull_oras import TYPE
from tests.commands.test_sif import ENV, squashfs
from tests.conftest import User
from tests.kit import sifs
from tests.kit.registry import Registry, open_registry

pytestmark = pytest.mark.needs("registry", "userns", "fuse", "mksquashfs", "busybox")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    with open_registry(tmp_path / "registry", tmp_path / "registry-data") as one:
        yield one


def blob(registry: Registry, name: str, data: bytes, media: str) -> dict[str, object]:
    """Put a blob into a repository (distribution-spec, "Pushing a blob"); return its descriptor."""
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    start = f"http://{registry.host}/v2/{name}/blobs/uploads/"
    ask = urllib.request.Request(start, method="POST")
    with urllib.request.urlopen(ask) as answer:
        place = answer.headers["Location"]
    place += f"{'&' if '?' in place else '?'}digest={digest}"
    put = urllib.request.Request(
        place, data, {"Content-Type": "application/octet-stream"}, method="PUT"
    )
    urllib.request.urlopen(put).close()
    return {"mediaType": media, "digest": digest, "size": len(data)}


def pushed(registry: Registry, tag: str, *layers: dict[str, object]) -> None:
    config = blob(registry, "app", b"{}", "application/vnd.sylabs.sif.config.v1+json")
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": [*layers]}
    registry.put_manifest("app", tag, json.dumps(document).encode(), MANIFEST)


def test_a_file_of_a_registry(user: User, registry: Registry) -> None:
    data = sifs.sif(squashfs(user.home, ENV))
    pushed(registry, "1", blob(registry, "app", data, TYPE))
    name = f"oras://{registry.host}/app:1"
    done = user.run("udi", "pull", name, "my/app:1")
    assert done.returncode == 0 and done.stdout.startswith("sha256:"), done.stderr
    assert user.run("udi-run", "my/app:1", "sh", "-c", "echo $A").stdout == "from the image\n"
    again = user.run("udi", "pull", "--quiet", name)
    assert again.stdout == done.stdout
    found = user.run("udi-run", "--entrypoint", f"{registry.host}/app:1", "a")
    assert found.stdout == "run a\n", found.stderr
    assert not list((user.home / "store/blobs").iterdir())


def test_what_is_no_such_file(user: User, registry: Registry) -> None:
    whole = squashfs(user.home, {})
    fine = blob(registry, "app", sifs.sif(whole), TYPE)
    pushed(registry, "two", fine, fine)
    pushed(registry, "none")
    pushed(registry, "tar", blob(registry, "app", whole, "application/vnd.oci.image.layer.v1.tar"))
    pushed(registry, "bad", blob(registry, "app", b"no SIF" * 100, TYPE))
    pushed(registry, "ext3", blob(registry, "app", sifs.sif(whole, sifs.partition(2)), TYPE))
    for tag, words in (
        ("two", "it is no SIF file: application/vnd.sylabs"),
        ("none", "it is no SIF file: nothing"),
        ("tar", "it is no SIF file: application/vnd.oci.image.layer.v1.tar"),
        ("bad", "is no squashfs file"),
        ("ext3", "its root file system is ext3"),
        ("missing", "not found: manifest unknown"),
    ):
        done = user.run("udi", "pull", f"oras://{registry.host}/app:{tag}", "x:1")
        assert done.returncode == 125 and words in done.stderr, (tag, done.stderr)
        assert "Traceback" not in done.stderr
    done = user.run("udi", "pull", "oras://app")
    assert "it names no registry" in done.stderr
    assert not list((user.home / "store/images").iterdir())
