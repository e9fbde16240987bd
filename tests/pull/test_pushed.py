"""Pulls of a squashfs that lies in a registry: beside an image, and as an image of its own.

The artifacts here are pushed by other code than ours (tests/kit/artifacts.py).
"""

import re
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.pull.claims import Believed
from rootless_udi.store import windows
from rootless_udi.store.store import Store
from tests.kit.artifacts import Pusher, artifact, digest_of
from tests.kit.pulling import Sink, inside, leftovers, pull
from tests.kit.registry import Flaky, Registry

pytest_plugins = ["tests.kit.pulling"]
pytestmark = pytest.mark.needs("registry", "skopeo", "mksquashfs")


class Told(Sink):
    """Remembers also why a squashfs is used or not."""

    def __init__(self) -> None:
        super().__init__()
        self.details: list[str] = []

    def detail(self, text: str) -> None:
        self.details.append(text)


@pytest.fixture(scope="module")
def made(opened: Registry, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An image's file and its facts, as a pull makes them."""
    store = Store(str(tmp_path_factory.mktemp("made")))
    image = pull(store, f"{opened.host}/a:1")
    return Path(image.squashfs), store.facts(image)


def subject_of(pusher: Pusher, tag: str) -> dict[str, Any]:
    document = pusher.read(f"manifests/{tag}")
    # skopeo pushes what we made: the digest is that of the bytes, which only the registry has.
    import urllib.request

    url = f"{pusher.url}/manifests/{tag}"
    head = {"Accept": document["mediaType"]}
    with urllib.request.urlopen(urllib.request.Request(url, headers=head)) as reply:
        body = reply.read()
    return {"mediaType": document["mediaType"], "digest": digest_of(body), "size": len(body)}


def beside(opened: Registry, name: str, made: tuple[Path, dict[str, Any]], layout: Any) -> Pusher:
    """Push the image to the repository `name`, and beside it the squashfs that was made of it."""
    opened.push(layout.path, "1", f"{name}:1")
    pusher = Pusher(opened.host, name)
    subject = subject_of(pusher, "1")
    assert subject["digest"] == made[1]["digest"]
    entry = artifact(pusher, made[0], made[1], subject)
    pusher.referrer(entry, subject["digest"])
    return pusher


def test_a_trusted_registrys_squashfs_is_the_image(
    opened: Registry, proxy: Flaky, made: tuple[Path, dict[str, Any]], layout: Any, store: Store
) -> None:
    beside(opened, "beside", made, layout)
    sink = Told()
    image = pull(store, f"{proxy.host}/beside:1", sink, believed=Believed((proxy.host,)))
    assert image.digest == made[1]["digest"]
    assert sink.stages == ["resolve", "pushed", "store", "done"]
    assert Path(image.squashfs).read_bytes() == made[0].read_bytes()
    facts = store.facts(image)
    pushed = facts.pop("pushed")
    assert pushed["registry"] == proxy.host
    assert pushed["believed"] == f"{proxy.host} is trusted (registry.{proxy.host}.trusted)"
    assert any(pushed["artifact"] in line for line in sink.details)
    assert {**facts, "reference": ""} == {**made[1], "reference": ""}
    assert leftovers(store) == []
    # The layers were not asked for, nor what is in the list of windows twice.
    assert len(proxy.paths("/blobs/")) == 3


def test_nobody_elses_word_is_taken(
    opened: Registry, proxy: Flaky, made: tuple[Path, dict[str, Any]], layout: Any, store: Store
) -> None:
    beside(opened, "unbelieved", made, layout)
    sink = Told()
    image = pull(store, f"{proxy.host}/unbelieved:1", sink)
    assert "convert" in sink.stages
    assert "pushed" not in store.facts(image)
    assert not [path for path in proxy.paths("/") if "referrers" in path]
    assert "no registry is trusted" in sink.details[0]
    # A mirror is believed by its own name, and not for its registry's.
    sink = Told()
    options = {"believed": Believed(("another.example",)), "force": True}
    pull(store, f"{proxy.host}/unbelieved:1", sink, **options)
    assert "convert" in sink.stages


def test_a_trusted_mirror_of_a_registry_that_is_not(
    opened: Registry, proxy: Flaky, made: tuple[Path, dict[str, Any]], layout: Any, store: Store
) -> None:
    beside(opened, "mirrored", made, layout)
    believed = Believed((opened.host,))
    sink = Told()
    mirrors = {proxy.host: [opened.host]}
    pull(store, f"{proxy.host}/mirrored:1", sink, believed=believed, mirrors=mirrors)
    assert "pushed" in sink.stages
    # The other way round: the registry is trusted, and a mirror answers first.
    sink = Told()
    mirrors = {opened.host: [proxy.host]}
    text = f"{opened.host}/mirrored:1"
    pull(store, text, sink, believed=believed, mirrors=mirrors, force=True)
    assert "pushed" in sink.stages
    assert f"{proxy.host} is not trusted for this" in " ".join(sink.details)


def test_what_is_no_claim_about_this_image(
    opened: Registry, made: tuple[Path, dict[str, Any]], layout: Any, store: Store
) -> None:
    opened.push(layout.path, "1", "odd:1")
    opened.push(layout.path, "2", "odd:2")
    pusher = Pusher(opened.host, "odd")
    one, two = subject_of(pusher, "1"), subject_of(pusher, "2")
    # Another image's, one without a subject, another sort, one that is gone, one without a list.
    entries = [
        artifact(pusher, *made, two),
        artifact(pusher, *made),
        artifact(pusher, *made, one, artifactType="application/vnd.example.sbom"),
        artifact(pusher, *made, one, annotations={"gone": "soon"}),
        artifact(pusher, *made, one, layers=[]),
        artifact(pusher, *made, one, annotations={}),
    ]
    for entry in entries:
        pusher.referrer(entry, one["digest"])
    pusher.delete(entries[3]["digest"])
    sink = Told()
    pull(store, f"{opened.host}/odd:1", sink, believed=Believed((opened.host,)))
    assert "convert" in sink.stages
    assert len(sink.details) >= len(entries)


def test_a_damaged_squashfs_is_refused(
    opened: Registry,
    made: tuple[Path, dict[str, Any]],
    layout: Any,
    store: Store,
    tmp_path: Path,
) -> None:
    opened.push(layout.path, "1", "damaged:1")
    pusher = Pusher(opened.host, "damaged")
    subject = subject_of(pusher, "1")
    data = bytearray(made[0].read_bytes())
    data[1 << 20] ^= 1
    (tmp_path / "wrong.sqfs").write_bytes(data)
    entry = artifact(pusher, tmp_path / "wrong.sqfs", made[1], subject)
    pusher.referrer(entry, subject["digest"])
    believed = Believed((opened.host,))
    sink = Sink()
    image = pull(store, f"{opened.host}/damaged:1", sink, believed=believed)
    assert sink.stages == ["resolve", "pushed", "fetch", "convert", "store", "done"]
    (said,) = sink.notes
    assert re.search(r"is not used: .*: 1 of \d+ windows of 1 MiB is damaged", said)
    assert said.endswith("the image is made of its layers")
    assert leftovers(store) == [] and "/top" in inside(image)
    assert "pushed" not in store.facts(image)


def test_an_image_of_its_own(
    opened: Registry, made: tuple[Path, dict[str, Any]], store: Store, proxy: Flaky
) -> None:
    entry = artifact(Pusher(opened.host, "plain"), *made, tag="1")
    image = pull(store, f"{proxy.host}/plain:1")
    # Not the digest that its facts name: anybody could make those.
    assert image.digest == entry["digest"] != made[1]["digest"]
    facts = store.facts(image)
    assert facts["digest"] == image.digest
    assert facts["reference"] == f"{proxy.host}/plain:1"
    assert facts["pushed"]["of"] == made[1]["digest"]
    assert facts["env"] == made[1]["env"]
    assert Path(image.squashfs).read_bytes() == made[0].read_bytes()
    with open(image.squashfs, "rb") as file:
        known = windows.behind(file.fileno(), windows.used(file.fileno()))
    assert known is not None and facts["windows"] == [known.digest]
    assert pull(store, f"{proxy.host}/plain@{entry['digest']}").digest == image.digest


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"version": 1, "env": 5}, "its env is not what udi pull writes"),
        ({"version": 2}, "are of a later version"),
        ({"version": 1, "architecture": "s390x"}, "is an image for linux/s390x"),
    ],
)
def test_facts_of_others(
    opened: Registry,
    made: tuple[Path, dict[str, Any]],
    store: Store,
    facts: dict[str, Any],
    said: str,
) -> None:
    artifact(Pusher(opened.host, "facts"), made[0], facts, tag="1")
    with pytest.raises(UdiError, match=said):
        pull(store, f"{opened.host}/facts:1")
    assert store.images() == []


def test_a_list_that_is_not_the_announced_one(
    opened: Registry, made: tuple[Path, dict[str, Any]], store: Store
) -> None:
    listed = {"org.rootless-udi.windows": digest_of(b"x")}
    artifact(Pusher(opened.host, "listed"), *made, tag="1", annotations=listed)
    with pytest.raises(UdiError, match="its list of windows is sha256:"):
        pull(store, f"{opened.host}/listed:1")
    large = {"mediaType": "application/vnd.rootless-udi.windows.v1", "digest": digest_of(b"y")}
    pusher = Pusher(opened.host, "listed")
    pusher.blob(b"y", "")
    document = pusher.read("manifests/1")
    document["layers"][1] = {**large, "size": 1 << 40}
    pusher.manifest("2", document)
    with pytest.raises(UdiError, match=r"has 1\.1 TB; at most \S+ kB are read"):
        pull(store, f"{opened.host}/listed:2")
