"""udi push: to Debian's docker-registry, which has no referrers API, and to one that has it."""

import importlib
import json
import os
import subprocess
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base import windows as lists
from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import parse
from rootless_udi.pull.artifact import FACTS, SQUASHFS, TYPE, WINDOWS
from rootless_udi.pull.claims import Believed
from rootless_udi.pull.content import ImageContent
from rootless_udi.pull.credentials import Credentials
from rootless_udi.pull.http import Transport
from rootless_udi.pull.push import Pushed, push
from rootless_udi.pull.registry import Endpoint
from rootless_udi.pull.upload import Uploading
from rootless_udi.store.find import StoredImage
from rootless_udi.store.store import Store
from tests.conftest import User
from tests.kit import images
from tests.kit.artifacts import Pusher, digest_of
from tests.kit.pulling import QUICK, Sink, pull
from tests.kit.registry import Registry, basic_registry, token_registry
from tests.kit.smallregistry import SmallRegistry, small_registry

pytest_plugins = ["tests.kit.pulling"]
pytestmark = pytest.mark.needs("registry", "skopeo", "mksquashfs")


@pytest.fixture(scope="module")
def image(opened: Registry, tmp_path_factory: pytest.TempPathFactory) -> StoredImage:
    return pull(Store(str(tmp_path_factory.mktemp("pushed"))), f"{opened.host}/a:1")


def facts_of(image: StoredImage) -> dict[str, Any]:
    return Store(image.store).facts(image)


def pushed(
    image: StoredImage,
    target: str,
    notes: list[str] | None = None,
    lookup: Any = lambda registry, repository="": None,
    beside: str = "",
    facts: dict[str, Any] | None = None,
    path: str = "",
) -> Pushed:
    """Push as `udi push` does."""
    reference = parse(target)
    transport = Transport()
    said: list[str] = [] if notes is None else notes
    note = said.append
    where = reference.registry, reference.repository
    there = Uploading(*where, transport, QUICK, note=note, lookup=lookup, beside=beside)
    origin = Endpoint(where[0], beside, transport, QUICK, lookup=lookup) if beside else None
    with open(path or image.squashfs, "rb") as file:
        content = ImageContent(file.fileno(), "the image")
        known = facts_of(image) if facts is None else facts
        try:
            return push(reference, there, origin, content, known, lambda done: None, note)
        finally:
            content.end()
            transport.close()


def put_image(small: SmallRegistry, image: StoredImage, source: Pusher, name: str) -> None:
    """Put the image's own manifest, with its blobs, into the small registry."""
    request = urllib.request.Request(
        f"{source.url}/manifests/{image.digest}",
        headers={"Accept": "application/vnd.oci.image.manifest.v1+json"},
    )
    with urllib.request.urlopen(request) as reply:
        body, media = reply.read(), reply.headers["Content-Type"]
    assert digest_of(body) == image.digest
    document = json.loads(body)
    for one in (document["config"], *document["layers"]):
        with urllib.request.urlopen(f"{source.url}/blobs/{one['digest']}") as reply:
            small.blobs[name, one["digest"]] = reply.read()
    for key in (image.digest, "1"):
        small.manifests[name, key] = body, media


@pytest.mark.parametrize("api", [True, False])
def test_beside_the_image(opened: Registry, image: StoredImage, store: Store, api: bool) -> None:
    with small_registry(referrers=api) as small:
        put_image(small, image, Pusher(opened.host, "a"), "team/app")
        notes: list[str] = []
        done = pushed(image, f"{small.host}/team/app:1", notes)
        assert done.subject == image.digest
        tag = image.digest.replace(":", "-")
        assert (("team/app", tag) in small.manifests) is not api
        assert any(tag in note for note in notes) is not api
        # Again: nothing is sent, and nothing is there twice.
        before = len(small.chunks)
        assert pushed(image, f"{small.host}/team/app:1") == done
        assert len(small.chunks) == before
        sink = Sink()
        found = pull(store, f"{small.host}/team/app:1", sink, believed=Believed((small.host,)))
        assert sink.stages == ["resolve", "pushed", "store", "done"]
        assert found.digest == image.digest
        assert Path(found.squashfs).read_bytes() == Path(image.squashfs).read_bytes()
        index = pull_referrers(small, "team/app", image.digest)
        assert [(one["digest"], one["artifactType"]) for one in index] == [(done.digest, TYPE)]


def pull_referrers(small: SmallRegistry, name: str, digest: str) -> list[dict[str, Any]]:
    path = f"referrers/{digest}" if small.referrers else f"manifests/{digest.replace(':', '-')}"
    with urllib.request.urlopen(f"http://{small.host}/v2/{name}/{path}") as reply:
        found: list[dict[str, Any]] = json.load(reply)["manifests"]
    return found


def test_to_dockers_registry(
    opened: Registry, image: StoredImage, store: Store, layout: images.Layout
) -> None:
    opened.push(layout.path, "1", "docker/app:1")
    done = pushed(image, f"{opened.host}/docker/app:1")
    assert done.subject == image.digest
    pusher = Pusher(opened.host, "docker/app")
    document = pusher.read(f"manifests/{done.digest}")
    assert document["artifactType"] == TYPE
    assert document["subject"]["digest"] == image.digest
    assert [one["mediaType"] for one in document["layers"]] == [SQUASHFS, WINDOWS, FACTS]
    with open(image.squashfs, "rb") as file:
        data = file.read()
    assert document["layers"][0]["digest"] == digest_of(data)
    used = int.from_bytes(data[40:48], "little")
    with urllib.request.urlopen(f"{pusher.url}/blobs/{document['layers'][1]['digest']}") as reply:
        listed = reply.read()
    assert data[lists.place(used) :][: len(listed)] == listed
    with urllib.request.urlopen(f"{pusher.url}/blobs/{document['layers'][2]['digest']}") as reply:
        assert json.load(reply) == {**facts_of(image)}
    found = pull(store, f"{opened.host}/docker/app:1", believed=Believed((opened.host,)))
    assert found.digest == image.digest
    # docker, podman and skopeo still see the image.
    argv = ["skopeo", "inspect", "--tls-verify=false", f"docker://{opened.host}/docker/app:1"]
    out = subprocess.run(argv, capture_output=True, check=True, text=True).stdout
    assert json.loads(out)["Digest"] == image.digest


def test_a_free_tag_becomes_the_images(
    opened: Registry, image: StoredImage, layout: images.Layout
) -> None:
    opened.push(layout.path, "1", "free/app:other")
    pushed(image, f"{opened.host}/free/app:new")
    body = Pusher(opened.host, "free/app").read("manifests/new")
    assert "subject" not in body and "artifactType" not in body
    # One that means another image is not taken.
    opened.push(layout.path, "2", "free/app:taken")
    with pytest.raises(UdiError, match="that tag is another image there"):
        pushed(image, f"{opened.host}/free/app:taken")
    with pytest.raises(UdiError, match="has not the image sha256:"):
        pushed(image, f"{opened.host}/free/app@{digest_of(b'x')}")
    # Without a tag, by the digest alone.
    assert pushed(image, f"{opened.host}/free/app@{image.digest}").subject == image.digest


def test_layers_are_mounted_from_where_the_image_is_from(
    opened: Registry, image: StoredImage, layout: images.Layout, store: Store
) -> None:
    done = pushed(image, f"{opened.host}/promoted/app:7", beside="a")
    assert done.subject == image.digest
    document = Pusher(opened.host, "promoted/app").read("manifests/7")
    assert len(document["layers"]) == 2
    # And so is the squashfs, where it is in the other repository.
    with small_registry() as small:
        put_image(small, image, Pusher(opened.host, "a"), "one")
        pushed(image, f"{small.host}/one:1")
        sent = len(small.chunks)
        pushed(image, f"{small.host}/two:1", beside="one")
        assert max(small.chunks[sent:], default=0) < os.stat(image.squashfs).st_size
        assert ("two", "1") in small.manifests


def test_alone(opened: Registry, image: StoredImage, store: Store, tmp_path: Path) -> None:
    """A registry that has not the image's own manifest: the artifact is the image."""
    notes: list[str] = []
    done = pushed(image, f"{opened.host}/alone/app:1", notes)
    assert done.subject == ""
    assert "it is an image of its own there" in notes[0]
    found = pull(store, f"{opened.host}/alone/app:1")
    assert found.digest == done.digest
    assert Path(found.squashfs).read_bytes() == Path(image.squashfs).read_bytes()
    # What came so is pushed on as it is.
    again = pushed(found, f"{opened.host}/alone/again:1", facts=store.facts(found))
    assert again.subject == ""
    # Replaced by another artifact, but never in place of an image for docker.
    plain = tmp_path / "plain.sqfs"
    data = Path(image.squashfs).read_bytes()
    plain.write_bytes(data[: int.from_bytes(data[40:48], "little")])
    other = pushed(image, f"{opened.host}/alone/app:1", facts={}, path=str(plain))
    assert pull(store, f"{opened.host}/alone/app:1").digest == other.digest
    with pytest.raises(UdiError, match="that tag is another image there"):
        pushed(image, f"{opened.host}/a:2", facts={})


def test_a_damaged_image_is_pushed_nowhere(
    opened: Registry, image: StoredImage, tmp_path: Path
) -> None:
    data = bytearray(Path(image.squashfs).read_bytes())
    data[2 << 20] ^= 1
    path = tmp_path / "damaged.sqfs"
    path.write_bytes(data)
    with pytest.raises(UdiError, match=r"1 of \d+ windows of 1 MiB is damaged"):
        pushed(image, f"{opened.host}/damaged/app:1", path=str(path))
    path.write_bytes(data[: 1 << 20])
    with pytest.raises(UdiError, match="it is no whole squashfs file"):
        pushed(image, f"{opened.host}/damaged/app:1", path=str(path))
    assert Pusher(opened.host, "damaged/app").read("manifests/1") is None


class TestCuts:
    @pytest.mark.parametrize("lose", [False, True])
    def test_goes_on_where_it_was(self, image: StoredImage, lose: bool) -> None:
        with small_registry() as small:
            small.cut, small.cuts, small.lose = 1 << 20, 2, lose
            done = pushed(image, f"{small.host}/x:1")
            size = os.stat(image.squashfs).st_size
            kept = 0 if lose else 1 << 20
            assert small.chunks[:3] == [size, size - kept, size - 2 * kept]
            assert ("x", done.digest) in small.manifests

    def test_gives_up(self, image: StoredImage) -> None:
        with small_registry() as small:
            small.cut, small.cuts, small.lose = 1 << 20, 99, True
            with pytest.raises(UdiError, match=r"pushing a blob to .*\(3 attempts\)"):
                pushed(image, f"{small.host}/x:1")

    def test_the_registry_has_forgotten_it(self, image: StoredImage) -> None:
        with small_registry() as small:
            small.forget = 1
            pushed(image, f"{small.host}/x:1")
            assert ("x", "1") in small.manifests
            small.forget = 99
            with pytest.raises(UdiError, match="the registry has forgotten the upload"):
                pushed(image, f"{small.host}/y:1")

    def test_busy(self, image: StoredImage) -> None:
        with small_registry() as small:
            small.answers = [("PATCH", 503, b""), ("POST", 429, b""), ("PUT", 502, b"")]
            pushed(image, f"{small.host}/x:1")
            assert ("x", "1") in small.manifests

    def test_the_last_answer_was_lost(self, image: StoredImage) -> None:
        """The registry has the blob, and says 404 to the second try of the last request."""
        with small_registry() as small:
            small.lost = 1
            pushed(image, f"{small.host}/x:1")
            assert ("x", "1") in small.manifests
            # The squashfs, in one chunk.
            assert small.chunks.count(os.stat(image.squashfs).st_size) == 1


def test_chunks_are_as_large_as_the_registry_wants(image: StoredImage) -> None:
    with small_registry() as small:
        small.least = 1 << 30
        pushed(image, f"{small.host}/x:1")
        assert os.stat(image.squashfs).st_size in small.chunks


def known(registry: str, repository: str = "") -> Credentials:
    return Credentials("udi", "secret", "", "the test")


def test_with_a_password(place: Path, image: StoredImage, tmp_path: Path) -> None:
    with basic_registry(tmp_path / "basic", tmp_path / "data") as one:
        done = pushed(image, f"{one.host}/mine/app:1", lookup=known)
        assert pull(Store(str(tmp_path / "s")), f"{one.host}/mine/app:1", lookup=known).digest == (
            done.digest
        )
        with pytest.raises(UdiError, match="access denied"):
            pushed(image, f"{one.host}/mine/app:2")


def test_with_a_token(image: StoredImage, tmp_path: Path) -> None:
    with token_registry(tmp_path / "token", tmp_path / "data") as (one, tokens):
        pushed(image, f"{one.host}/mine/app:1", lookup=known, beside="other/app")
        assert tokens.asked[-1][1]["scope"] == [
            "repository:mine/app:pull,push",
            "repository:other/app:pull",
        ]
        with pytest.raises(UdiError, match="access denied"):
            pushed(image, f"{one.host}/public/app:1")


@pytest.mark.parametrize("digest", [True, False])
def test_errors_name_what_was_tried(image: StoredImage, digest: bool) -> None:
    """A push reads what is there first: that is no pull, and a mirror is of no use."""
    facts = {"digest": image.digest} if digest else {}
    with small_registry() as small:
        read = f"reading {small.host}/x{'@' + image.digest if digest else ':1'}"
        small.answers = [("GET", 429, b"")] * 4
        with pytest.raises(UdiError, match=f"^{read}: .* answers 429") as caught:
            pushed(image, f"{small.host}/x:1", facts=facts)
        assert caught.value.hint == f"its limit is reached: `udi login {small.host}`"
        small.answers = [("GET", 503, b"")] * 4
        with pytest.raises(UdiError, match=f"^{read}: .* answers 503") as caught:
            pushed(image, f"{small.host}/x:1", facts=facts)
        assert caught.value.hint == "try again later"
        small.answers = [("GET", 403, b"")] * 4
        with pytest.raises(UdiError, match=f"^{read}: access denied"):
            pushed(image, f"{small.host}/x:1", facts=facts)


class TestElsewhere:
    """A Location that leads to another host: nothing secret goes there."""

    def test_gets_no_credentials(self, image: StoredImage) -> None:
        with small_registry() as small, small_registry() as other:
            small.elsewhere = other.host
            other.uploads = small.uploads
            other.blobs = small.blobs
            # It asks for a password at once.
            ping = ("GET", 401, b"")
            small.answers = [ping]
            pushed(image, f"{small.host}/x:1", lookup=known)
            assert {given for _, path, given in other.log} == {""}
            assert other.paths("PATCH") or other.paths("PUT")

    def test_and_its_demands_are_not_answered(self, image: StoredImage) -> None:
        with small_registry() as small, small_registry() as other:
            small.elsewhere = other.host
            other.answers = [("PATCH", 401, b"")]
            with pytest.raises(UdiError, match=f"sends it to {other.host}, which answers 401"):
                pushed(image, f"{small.host}/x:1", lookup=known)
            assert {given for _, _, given in other.log} == {""}

    def test_no_place(self, image: StoredImage) -> None:
        with small_registry() as small:
            small.scheme = "ftp"
            with pytest.raises(UdiError, match="is no http or https URL"):
                pushed(image, f"{small.host}/x:1")


def test_another_ones_index_took_ours_away(opened: Registry, image: StoredImage) -> None:
    """Two push at once to a registry without the API: the index of who writes first is lost."""
    with small_registry(referrers=False) as small:
        put_image(small, image, Pusher(opened.host, "a"), "x")
        tag = image.digest.replace(":", "-")
        other = {"mediaType": "x/y", "digest": digest_of(b"other"), "size": 5}
        small.replace[tag] = [other]
        done = pushed(image, f"{small.host}/x:1")
        found = pull_referrers(small, "x", image.digest)
        assert [one["digest"] for one in found] == [other["digest"], done.digest]
        # Somebody who does so for ever.
        small.replace[tag] = [other] * 99
        facts = {**facts_of(image), "labels": {"a": "b"}}
        with pytest.raises(UdiError, match=r"take it out of .* again and again"):
            pushed(image, f"{small.host}/x:1", facts=facts)
        small.manifests["x", tag] = b"[]", "x/y"
        small.replace.clear()
        with pytest.raises(UdiError, match="is no index of referrers"):
            pushed(image, f"{small.host}/x:1", facts=facts)


def test_the_command(user: User, opened: Registry, layout: images.Layout) -> None:
    opened.push(layout.path, "1", "cmd/app:1")
    name = f"{opened.host}/cmd/app:1"
    digest = user.run("udi", "pull", "-q", name, check=True).stdout.strip()
    done = user.run("udi", "push", name, check=True)
    assert done.stdout.startswith("sha256:") and done.stdout.count("\n") == 1
    assert f"{opened.host}/cmd/app@{digest}" in done.stderr
    assert "squashfs: " in done.stderr
    user.run("udi", "rm", name, check=True)
    config = user.home / "config.toml"
    config.write_text(f'[registry."{opened.host}"]\ntrusted = true\n')
    env = {"UDI_CONFIG": str(config)}
    again = user.run("udi", "pull", "-v", name, env=env, check=True)
    assert again.stdout.strip() == digest
    assert "fetching the squashfs file that was pushed for it" in again.stderr
    assert f"{opened.host} is trusted" in again.stderr
    facts = json.loads(user.run("udi", "inspect", name, check=True).stdout)
    assert facts["pushed"]["artifact"] == done.stdout.strip()
    converted = user.run("udi", "pull", "--force", "--convert", name, env=env, check=True)
    assert "merging the layers" in converted.stderr
    # A squashfs file, to a name of its own.
    squashfs = Path(facts["squashfs"]).read_bytes()
    (user.home / "x.sqfs").write_bytes(squashfs[: int.from_bytes(squashfs[40:48], "little")])
    alone = user.run("udi", "push", "-q", "./x.sqfs", f"{opened.host}/cmd/file:1", check=True)
    assert alone.stderr == ""
    found = user.run("udi", "pull", "-q", f"{opened.host}/cmd/file:1", check=True)
    assert found.stdout == alone.stdout
    nowhere = user.run("udi", "push", "./x.sqfs")
    assert "does not say where it is from" in nowhere.stderr
    bare = user.run("udi", "push", "./none.sqfs")
    assert "none.sqfs" in bare.stderr and bare.returncode
    wrong = user.run("udi", "push", name, "oci:x")
    assert "is not in a registry" in wrong.stderr


class TestForeignReaders:
    """Other tools read what we push: skopeo (containers/image), and oras-py."""

    def test_skopeo(self, opened: Registry, image: StoredImage, tmp_path: Path) -> None:
        done = pushed(image, f"{opened.host}/foreign/app:1", facts={})
        name = f"docker://{opened.host}/foreign/app:1"
        argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", name]
        raw = subprocess.run(argv, capture_output=True, check=True).stdout
        assert digest_of(raw) == done.digest
        layout = tmp_path / "layout"
        argv = ["skopeo", "copy", "-q", "--preserve-digests", "--src-tls-verify=false", name]
        subprocess.run([*argv, f"oci:{layout}:1"], check=True, stdin=subprocess.DEVNULL)
        index = json.loads((layout / "index.json").read_text())
        assert index["manifests"][0]["digest"] == done.digest
        # And we read what skopeo made of it.
        found = pull(Store(str(tmp_path / "store")), f"oci:{layout}:1")
        assert found.digest == done.digest
        assert Path(found.squashfs).read_bytes() == Path(image.squashfs).read_bytes()

    def test_oras(self, opened: Registry, image: StoredImage, tmp_path: Path) -> None:
        oras = importlib.import_module("oras.client")
        done = pushed(image, f"{opened.host}/foreign/oras:1", facts={"version": 1, "env": ["A=1"]})
        client = oras.OrasClient(hostname=opened.host, insecure=True, tls_verify=False)
        assert client.get_manifest(f"{opened.host}/foreign/oras:1")["artifactType"] == TYPE
        files = client.pull(target=f"{opened.host}/foreign/oras:1", outdir=str(tmp_path))
        names = sorted(Path(one).name for one in files)
        assert names == ["image.json", "image.sqfs", "image.windows"]
        assert (tmp_path / "image.sqfs").read_bytes() == Path(image.squashfs).read_bytes()
        # The three files are an image: its facts lie beside it.
        assert json.loads((tmp_path / "image.json").read_text())["env"] == ["A=1"]
        assert done.digest
