"""Signatures and policies: openssl signs by cosign's specification, and skopeo reads ours."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import parse
from rootless_udi.pull import identity, policy
from rootless_udi.pull.claims import Believed
from rootless_udi.store.store import Store
from tests.conftest import User
from tests.kit import images
from tests.kit.artifacts import Pusher, artifact, digest_of
from tests.kit.pulling import Sink, inside, pull
from tests.kit.registry import Registry
from tests.kit.signatures import ANNOTATION, Key, attach, payload

pytest_plugins = ["tests.kit.pulling"]
pytestmark = pytest.mark.needs("registry", "skopeo", "mksquashfs")


@pytest.fixture(scope="module")
def key(place: Path) -> Key:
    return Key(place, "right")


@pytest.fixture(scope="module")
def other(place: Path) -> Key:
    return Key(place, "wrong")


def write(path: Path, requirement: dict[str, Any], scope: str = "") -> Path:
    """Write a policy that rejects all but what falls under `scope`."""
    document = {
        "default": [{"type": "reject"}],
        "transports": {"docker": {scope: [requirement]}},
    }
    path.write_text(json.dumps(document))
    return path


def signed_by(key: Key, **more: Any) -> dict[str, Any]:
    """A requirement: signed for the repository, as cosign does."""
    fits = {"signedIdentity": {"type": "matchRepository"}}
    return {"type": "sigstoreSigned", "keyPath": str(key.public), **fits, **more}


@pytest.fixture
def believed(tmp_path: Path, key: Key) -> Believed:
    return Believed((), policy.read(str(write(tmp_path / "policy.json", signed_by(key)))))


class Pushed:
    """An image in a repository of its own."""

    def __init__(self, opened: Registry, layout: images.Layout, name: str) -> None:
        opened.push(layout.path, "1", f"{name}:1")
        self.name = f"{opened.host}/{name}"
        self.pusher = Pusher(opened.host, name)
        document = opened_bytes(self.pusher, "1")
        self.digest = digest_of(document)

    def sign(self, key: Key, **changed: Any) -> None:
        digest = changed.pop("digest", self.digest)
        data = payload(digest, changed.pop("named", self.name), **changed)
        attach(self.pusher, self.digest, (data, key.sign(data)))


def opened_bytes(pusher: Pusher, tag: str) -> bytes:
    argv = ["skopeo", "inspect", "--raw", "--tls-verify=false"]
    name = pusher.url.removeprefix("http://").replace("/v2/", "/")
    return subprocess.run([*argv, f"docker://{name}:{tag}"], check=True, capture_output=True).stdout


def test_a_signed_image(
    opened: Registry, layout: images.Layout, store: Store, key: Key, believed: Believed
) -> None:
    one = Pushed(opened, layout, "signed/app")
    one.sign(key)
    image = pull(store, f"{one.name}:1", believed=believed)
    assert store.facts(image)["signed"] == [f"signed by {key.public} for {one.name}"]
    # By its digest, and once more, when it is there.
    assert pull(store, f"{one.name}@{image.digest}", believed=believed).digest == image.digest


class TestRefused:
    """Nothing of an image is fetched that the policy refuses, and nothing is named."""

    def refused(self, one: Pushed, store: Store, believed: Believed) -> str:
        sink = Sink()
        with pytest.raises(UdiError) as error:
            pull(store, f"{one.name}:1", sink, believed=believed)
        assert sink.stages == ["resolve"]
        assert store.images() == []
        assert f"image {one.name}:1 is refused by the policy" in error.value.message
        return error.value.message

    def test_unsigned(
        self, opened: Registry, layout: images.Layout, store: Store, believed: Believed
    ) -> None:
        one = Pushed(opened, layout, "unsigned/app")
        assert self.refused(one, store, believed).endswith("it is not signed")
        # Nor by what is no signature.
        attach(one.pusher, one.digest)
        assert self.refused(one, store, believed).endswith("it is not signed")

    def test_another_key(
        self,
        opened: Registry,
        layout: images.Layout,
        store: Store,
        other: Key,
        believed: Believed,
    ) -> None:
        one = Pushed(opened, layout, "otherkey/app")
        one.sign(other)
        assert "a signature is by another key" in self.refused(one, store, believed)
        data = payload(one.digest, one.name)
        for text in ("", "no base64!", base64.b64encode(b"x").decode()):
            attach(one.pusher, one.digest, (data, text))
            assert "a signature is by another key" in self.refused(one, store, believed)

    def test_another_digest(
        self, opened: Registry, layout: images.Layout, store: Store, key: Key, believed: Believed
    ) -> None:
        """Replayed: a signature of another image of the repository, under this one's tag."""
        one = Pushed(opened, layout, "replay/app")
        one.sign(key, digest=digest_of(b"another"))
        said = self.refused(one, store, believed)
        assert f"a signature is for {digest_of(b'another')}" in said

    @pytest.mark.parametrize("named", ["elsewhere.example/x", "{host}/replayed/prod", "alpine"])
    def test_another_name(
        self,
        opened: Registry,
        layout: images.Layout,
        store: Store,
        key: Key,
        believed: Believed,
        named: str,
    ) -> None:
        """The same image, signed for another repository: for tests, say, and not for production."""
        one = Pushed(opened, layout, "replayed/app")
        one.sign(key, named=named.format(host=opened.host))
        assert "(matchRepository)" in self.refused(one, store, believed)

    @pytest.mark.parametrize(
        "changed",
        [
            {"critical": None},
            {"more": 1},
            {"critical": {"type": "cosign container image signature"}},
        ],
    )
    def test_another_form(
        self,
        opened: Registry,
        layout: images.Layout,
        store: Store,
        key: Key,
        believed: Believed,
        changed: dict[str, Any],
    ) -> None:
        one = Pushed(opened, layout, "form/app")
        one.sign(key, **changed)
        assert "is not as specified" in self.refused(one, store, believed)

    def test_a_member_twice(
        self, opened: Registry, layout: images.Layout, store: Store, key: Key, believed: Believed
    ) -> None:
        one = Pushed(opened, layout, "twice/app")
        data = payload(one.digest, one.name)
        data = (
            data[:-1] + b', "critical": ' + json.dumps(json.loads(data)["critical"]).encode() + b"}"
        )
        attach(one.pusher, one.digest, (data, key.sign(data)))
        assert "a member is there twice" in self.refused(one, store, believed)

    def test_rejected(
        self, opened: Registry, layout: images.Layout, store: Store, tmp_path: Path
    ) -> None:
        one = Pushed(opened, layout, "rejected/app")
        path = write(tmp_path / "p", {"type": "insecureAcceptAnything"}, "elsewhere.example")
        said = self.refused(one, store, Believed((), policy.read(str(path))))
        assert said.endswith("(default): it rejects all")

    @pytest.mark.parametrize(
        ("requirement", "said"),
        [
            ({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}, "signedBy (GPG)"),
            (
                {"type": "sigstoreSigned", "fulcio": {}, "rekorPublicKeyPath": "/x"},
                "sigstoreSigned with fulcio is not understood",
            ),
            (
                {"type": "sigstoreSigned", "keyPath": "/x", "rekorPublicKeyPath": "/x"},
                "sigstoreSigned with rekorPublicKeyPath is not understood",
            ),
        ],
    )
    def test_what_is_not_understood(
        self,
        opened: Registry,
        layout: images.Layout,
        store: Store,
        tmp_path: Path,
        key: Key,
        requirement: dict[str, Any],
        said: str,
    ) -> None:
        """A policy never means less than it says."""
        one = Pushed(opened, layout, "strange/app")
        one.sign(key)
        path = write(tmp_path / "p", requirement)
        assert said in self.refused(one, store, Believed((), policy.read(str(path))))

    def test_two_keys_are_needed(
        self,
        opened: Registry,
        layout: images.Layout,
        store: Store,
        key: Key,
        other: Key,
        tmp_path: Path,
    ) -> None:
        one = Pushed(opened, layout, "both/app")
        one.sign(key)
        needed = {"default": [signed_by(key), signed_by(other)]}
        (tmp_path / "p").write_text(json.dumps(needed))
        believed = Believed((), policy.read(str(tmp_path / "p")))
        self.refused(one, store, believed)
        data = payload(one.digest, one.name)
        attach(one.pusher, one.digest, (data, key.sign(data)), (data, other.sign(data)))
        assert len(store.facts(pull(store, f"{one.name}:1", believed=believed))["signed"]) == 2

    def test_what_has_no_signatures(
        self, layout: images.Layout, store: Store, key: Key, tmp_path: Path
    ) -> None:
        (tmp_path / "p").write_text(json.dumps({"default": [signed_by(key)]}))
        believed = Believed((), policy.read(str(tmp_path / "p")))
        with pytest.raises(UdiError, match="only registries have signatures"):
            pull(store, f"oci:{layout.path}:1", believed=believed)
        allowed = {"oci": {str(layout.path): [{"type": "insecureAcceptAnything"}]}}
        document = {"default": [{"type": "reject"}], "transports": allowed}
        (tmp_path / "p").write_text(json.dumps(document))
        believed = Believed((), policy.read(str(tmp_path / "p")))
        assert "/top" in inside(pull(store, f"oci:{layout.path}:1", believed=believed))


@pytest.mark.parametrize(
    ("pem", "said"),
    [
        ("", "No such file or directory"),
        ("no key", "it is no public key"),
        ("rsa", "it is not one of ECDSA"),
    ],
)
def test_keys_that_are_none(
    opened: Registry,
    layout: images.Layout,
    store: Store,
    tmp_path: Path,
    key: Key,
    pem: str,
    said: str,
) -> None:
    path = tmp_path / "key.pub"
    if pem == "rsa":
        argv = ["openssl", "genrsa", "-out", f"{tmp_path}/rsa", "2048"]
        subprocess.run(argv, check=True, capture_output=True)
        argv = ["openssl", "rsa", "-in", f"{tmp_path}/rsa", "-pubout", "-out", str(path)]
        subprocess.run(argv, check=True, capture_output=True)
    elif pem:
        path.write_text(pem)
    one = Pushed(opened, layout, "keys/app")
    one.sign(key)
    found = policy.read(
        str(write(tmp_path / "p", {"type": "sigstoreSigned", "keyPath": str(path)}))
    )
    with pytest.raises(UdiError, match=said):
        pull(store, f"{one.name}:1", believed=Believed((), found))


def test_a_key_that_others_may_write(tmp_path: Path, key: Key) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(key.public.read_bytes())
    path.chmod(0o666)
    found = policy.read(str(write(tmp_path / "p", signed_by(key, keyPath=str(path)))))
    with pytest.raises(UdiError, match="the key"):
        found.check(parse("x.example/a:1"), ["sha256:" + "0" * 64], lambda digest: [])
    (tmp_path / "p").chmod(0o666)
    with pytest.raises(UdiError, match="the policy"):
        policy.read(str(tmp_path / "p"))


ANY = [{"type": "insecureAcceptAnything"}]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("{", "Expecting"),
        ("[]", "the policy is no object"),
        ("{}", "the policy has no default"),
        ('{"default": [], "default": []}', "'default' is there twice"),
        ({"default": []}, "default is no list of requirements"),
        ({"default": ANY, "more": 1}, "the policy has the unknown member 'more'"),
        ({"default": [1]}, "default: a requirement is no object"),
        ({"default": [{"type": "trust"}]}, "a requirement of type 'trust'"),
        ({"default": [{"type": "reject", "x": 1}]}, "unknown member 'x'"),
        ({"default": ANY, "transports": []}, "list"),
        ({"default": ANY, "transports": {"docker": {"": []}}}, "docker '' is no list"),
        ({"default": [{"type": "sigstoreSigned"}]}, "sigstoreSigned has one of keyPath"),
        (
            {"default": [{"type": "sigstoreSigned", "keyPath": "/a", "keyData": "b"}]},
            "sigstoreSigned has one of keyPath",
        ),
        ({"default": [{"type": "sigstoreSigned", "keyPath": "a"}]}, "no absolute path"),
        ({"default": [{"type": "sigstoreSigned", "keyPath": 1}]}, "keyPath is no text"),
        ({"default": [{"type": "sigstoreSigned", "keyPaths": []}]}, "keyPaths is no list of texts"),
        ({"default": [{"type": "sigstoreSigned", "keyData": "?"}]}, "keyData is no base64"),
        *(
            (
                {"default": [{"type": "sigstoreSigned", "keyPath": "/a", "signedIdentity": one}]},
                said,
            )
            for one, said in (
                ({"type": "matchSomething"}, "signedIdentity of type 'matchSomething'"),
                ({"type": "matchExact", "x": ""}, "signedIdentity matchExact has no members"),
                ({"type": "exactReference"}, "signedIdentity exactReference has dockerReference"),
                ({"type": "exactReference", "dockerReference": "a b"}, "signedIdentity: "),
                ({"type": "exactReference", "dockerReference": "a"}, "exactReference: 'a'"),
                ({"type": "exactRepository", "dockerRepository": "a:1"}, "exactRepository: 'a:1'"),
            )
        ),
    ],
)
def test_malformed_policies(tmp_path: Path, document: Any, said: str) -> None:
    path = tmp_path / "policy.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    with pytest.raises(UdiError) as error:
        policy.read(str(path))
    assert error.value.message.startswith(f"reading the policy failed on {path}: ")
    assert said in error.value.message


def test_a_missing_policy(tmp_path: Path) -> None:
    with pytest.raises(UdiError, match="No such file or directory"):
        policy.read(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("one", "wanted", "signed", "fits"),
    [
        ("matchRepository", "h.example/a:1", "h.example/a", True),
        ("matchRepository", "h.example/a:1", "h.example/a:2", True),
        ("matchRepository", "h.example/a:1", "h.example/b:1", False),
        ("matchExact", "h.example/a:1", "h.example/a:1", True),
        ("matchExact", "h.example/a:1", "h.example/a:2", False),
        ("matchExact", "h.example/a:1", "h.example/a", False),
        ("matchExact", "h.example/a@{}", "h.example/a:1", False),
        ("matchRepoDigestOrExact", "h.example/a:1", "h.example/a:1", True),
        ("matchRepoDigestOrExact", "h.example/a:1", "h.example/a", False),
        ("matchRepoDigestOrExact", "h.example/a@{}", "h.example/a", True),
        ("matchRepoDigestOrExact", "h.example/a@{}", "h.example/b", False),
        ("matchRepository", "alpine:3", "index.docker.io/library/alpine", True),
        (("exactReference", "dockerReference", "h.example/x:1"), "m/x:1", "h.example/x:1", True),
        (("exactReference", "dockerReference", "h.example/x:1"), "m/x:1", "h.example/x:2", False),
        (("exactRepository", "dockerRepository", "h.example/x"), "m/x:1", "h.example/x:2", True),
        (("exactRepository", "dockerRepository", "h.example/x"), "m/x:1", "h.example/y:2", False),
        (("remapIdentity", "m.site/hub", "docker.io"), "m.site/hub/me/a:1", "me/a:1", True),
        (("remapIdentity", "m.site/hub", "docker.io"), "m.site/hubs/a:1", "docker.io/s/a:1", False),
        (("remapIdentity", "m.site/hub", "docker.io"), "m.site/x/a:1", "m.site/x/a:1", True),
    ],
)
def test_names_that_fit(one: Any, wanted: str, signed: str, fits: bool) -> None:
    document = {"type": one}
    if isinstance(one, tuple):
        kind, first, second = one
        document = {"type": kind, first: second}
        if kind == "remapIdentity":
            document = {"type": kind, "prefix": first, "signedPrefix": second}
    found = identity.parsed(document)
    reference = parse(wanted.format("sha256:" + "0" * 64))
    assert found.fits(identity.of(reference), identity.name(signed)) is fits


def test_the_most_specific_scope_counts() -> None:
    def rule(why: str) -> tuple[policy.Requirement, ...]:
        return (policy.Requirement("unsupported", why=why),)

    scopes = ["h.example/a/b:1", "h.example/a/b", "h.example/a", "h.example", "*.example", ""]
    asked = parse("h.example/a/b:1")
    for number in range(len(scopes)):
        known = {scope: rule(scope) for scope in scopes[number:]}
        found = policy.Policy("p", rule("default"), {"docker": known}).requirements(asked)[1]
        assert found[0].why == scopes[number]
    assert policy.Policy("p", rule("default"), {}).requirements(asked)[1][0].why == "default"
    # What an archive is, only its content says: what is said of either sort counts.
    both = {"docker-archive": {"": rule("one")}, "oci-archive": {"/x": rule("two")}}
    found = policy.Policy("p", rule("default"), both).requirements(parse("docker-archive:/x/y"))[1]
    assert [one.why for one in found] == ["one", "two"]


def test_an_index_that_is_signed(
    opened: Registry, layout: images.Layout, store: Store, key: Key, believed: Believed
) -> None:
    one = Pushed(opened, layout, "index/app")
    document = json.loads(opened_bytes(one.pusher, "1"))
    entry = {"mediaType": document["mediaType"], "digest": one.digest}
    entry["size"] = len(opened_bytes(one.pusher, "1"))
    media = "application/vnd.oci.image.index.v1+json"
    index = {"schemaVersion": 2, "mediaType": media, "manifests": [entry]}
    digest = one.pusher.manifest("all", index)["digest"]
    data = payload(digest, one.name)
    attach(one.pusher, digest, (data, key.sign(data)))
    assert pull(store, f"{one.name}:all", believed=believed).digest == one.digest
    with pytest.raises(UdiError, match="it is not signed"):
        pull(store, f"{one.name}:1", believed=believed)


class TestSquashfs:
    """A squashfs beside an image: whose key the policy names is believed."""

    def beside(self, one: Pushed, tmp_path: Path) -> str:
        made = Store(str(tmp_path / "made"))
        image = pull(made, f"{one.name}:1")
        body = opened_bytes(one.pusher, "1")
        media = json.loads(body)["mediaType"]
        subject = {"mediaType": media, "digest": one.digest, "size": len(body)}
        entry = artifact(one.pusher, Path(image.squashfs), made.facts(image), subject)
        one.pusher.referrer(entry, one.digest)
        return str(entry["digest"])

    def test_signed(
        self,
        opened: Registry,
        layout: images.Layout,
        store: Store,
        key: Key,
        other: Key,
        believed: Believed,
        tmp_path: Path,
    ) -> None:
        one = Pushed(opened, layout, "claims/app")
        one.sign(key)
        claim = self.beside(one, tmp_path)
        # The image is signed, and that says nothing of what lies beside it.
        image = pull(store, f"{one.name}:1", believed=believed)
        assert "pushed" not in store.facts(image)
        for wrong, named, digest in (
            (other, one.name, claim),
            (key, f"{one.name}-test", claim),
            (key, one.name, one.digest),
        ):
            data = payload(digest, named)
            attach(one.pusher, claim, (data, wrong.sign(data)))
            image = pull(store, f"{one.name}:1", believed=believed, force=True)
            assert "pushed" not in store.facts(image)
        data = payload(claim, one.name)
        attach(one.pusher, claim, (data, key.sign(data)))
        image = pull(store, f"{one.name}:1", believed=believed, force=True)
        facts = store.facts(image)
        assert facts["pushed"]["believed"] == f"signed by {key.public} for {one.name}"
        assert image.digest == one.digest
        # A policy that accepts anything names nobody who could be believed.
        path = write(tmp_path / "any", {"type": "insecureAcceptAnything"})
        accepts = Believed((), policy.read(str(path)))
        image = pull(store, f"{one.name}:1", believed=accepts, force=True)
        assert "pushed" not in store.facts(image)


class TestSign:
    """udi sign."""

    @pytest.fixture
    def env(self, user: User, key: Key) -> dict[str, str]:
        write(user.home / "policy.json", signed_by(key, signedIdentity={"type": "matchExact"}))
        (user.home / "config.toml").write_text(f'image.policy = "{user.home}/policy.json"\n')
        return {"UDI_CONFIG": str(user.home / "config.toml")}

    def test_and_pull(
        self,
        user: User,
        opened: Registry,
        layout: images.Layout,
        key: Key,
        env: dict[str, str],
        tmp_path: Path,
    ) -> None:
        one = Pushed(opened, layout, "sign/app")
        data = payload(one.digest, "someone.example/else")
        attach(one.pusher, one.digest, (data, "AAAA"))
        name = f"{one.name}:1"
        refused = user.run("udi", "pull", "-q", name, env=env)
        assert "is refused by the policy" in refused.stderr
        done = user.run("udi", "sign", "--key", key.private, name, check=True)
        assert done.stdout == f"{one.digest}\n"
        document = one.pusher.read(f"manifests/{one.digest.replace(':', '-')}.sig")
        assert len(document["layers"]) == 2
        layer = document["layers"][1]
        body = one.pusher.read(f"blobs/{layer['digest']}")
        assert body["critical"]["identity"]["docker-reference"] == name
        raw = json.dumps(body, separators=(",", ":")).encode()
        assert key.verified(raw, layer["annotations"][ANNOTATION], tmp_path)
        again = user.run("udi", "sign", "--key", key.private, name, check=True)
        assert "signed by this key already" in again.stderr
        assert user.run("udi", "pull", "-q", name, env=env, check=True).stdout == done.stdout
        facts = json.loads(user.run("udi", "inspect", name, check=True).stdout)
        assert facts["signed"] == [f"signed by {key.public} for {name}"]
        told = user.run("udi-run", "--explain", name, "true", check=True).stdout
        assert f"the image is signed by {key.public} for {name}" in told

    def test_skopeo_reads_it(
        self, user: User, opened: Registry, layout: images.Layout, key: Key, other: Key
    ) -> None:
        one = Pushed(opened, layout, "skopeo/app")
        (user.home / "registries.d").mkdir()
        (user.home / "registries.d/x.yaml").write_text(
            "default-docker:\n  use-sigstore-attachments: true\n"
        )
        path = write(user.home / "p", {"type": "sigstoreSigned", "keyPath": str(key.public)})
        argv = ["skopeo", "--policy", path, "--registries.d", user.home / "registries.d"]
        argv += ["copy", "--src-tls-verify=false", f"docker://{one.name}:1", f"dir:{user.home}/d"]
        assert "A signature was required, but no signature exists" in user.run(*argv).stderr
        user.run("udi", "sign", "--key", other.private, f"{one.name}:1", check=True)
        assert user.run(*argv).returncode
        user.run("udi", "sign", "--key", key.private, f"{one.name}:1", check=True)
        done = user.run(*argv)
        # Debian's reads both signatures, and is built without what would verify them.
        disabled = "Debian-local change: sigstore disabled"
        assert done.returncode == 0 or done.stderr.count(disabled) == 2, done.stderr

    def test_with_what_is_pushed(
        self, user: User, opened: Registry, layout: images.Layout, key: Key
    ) -> None:
        one = Pushed(opened, layout, "pushsign/app")
        name = f"{one.name}:1"
        user.run("udi", "pull", "-q", name, check=True)
        user.run("udi", "sign", "--key", key.private, name, check=True)
        done = user.run("udi", "push", "-q", "--key", key.private, name, check=True)
        write(user.home / "policy.json", signed_by(key))
        (user.home / "config.toml").write_text(f'image.policy = "{user.home}/policy.json"\n')
        env = {"UDI_CONFIG": str(user.home / "config.toml")}
        user.run("udi", "rm", name, check=True)
        again = user.run("udi", "pull", "-v", name, env=env, check=True)
        assert "fetching the squashfs file that was pushed for it" in again.stderr
        facts = json.loads(user.run("udi", "inspect", name, check=True).stdout)
        assert facts["pushed"]["artifact"] == done.stdout.strip()
        assert "signed by" in facts["pushed"]["believed"]
        told = user.run("udi-run", "--explain", name, "true", check=True).stdout
        assert f"its squashfs was pushed to {opened.host} as {done.stdout.strip()}: signed" in told

    def test_every_image_of_an_index(
        self, user: User, opened: Registry, layout: images.Layout, key: Key
    ) -> None:
        one = Pushed(opened, layout, "recursive/app")
        body = opened_bytes(one.pusher, "1")
        media = "application/vnd.oci.image.index.v1+json"
        entry = {
            "mediaType": json.loads(body)["mediaType"],
            "digest": one.digest,
            "size": len(body),
        }
        index = {"schemaVersion": 2, "mediaType": media, "manifests": [entry]}
        digest = one.pusher.manifest("all", index)["digest"]
        argv = ["udi", "sign", "--recursive", "--key", key.private, f"{one.name}:all"]
        assert user.run(*argv, check=True).stdout.split() == [digest, one.digest]

    def test_keys(self, user: User, opened: Registry, layout: images.Layout, key: Key) -> None:
        one = Pushed(opened, layout, "badkeys/app")

        def said(path: object, **env: str) -> str:
            return user.run("udi", "sign", "--key", path, f"{one.name}:1", env=env).stderr

        assert "No such file or directory" in said("none")
        assert "reading key" in said(key.public)
        (user.home / "cosign.key").write_text(
            "-----BEGIN ENCRYPTED SIGSTORE PRIVATE KEY-----\n"
            "-----END ENCRYPTED SIGSTORE PRIVATE KEY-----\n"
        )
        assert "it is encrypted in cosign's own way" in said("cosign.key")
        argv = ["openssl", "pkcs8", "-topk8", "-in", str(key.private), "-passout", "pass:secret"]
        subprocess.run([*argv, "-out", user.home / "e.key"], check=True, capture_output=True)
        assert "COSIGN_PASSWORD" in said("e.key")
        assert "COSIGN_PASSWORD" in said("e.key", COSIGN_PASSWORD="wrong")
        env = {"COSIGN_PASSWORD": "secret"}
        argv = ["udi", "sign", "--key", "e.key", f"{one.name}:1"]
        assert user.run(*argv, env=env).stdout == f"{one.digest}\n"
        assert "is not in a registry" in user.run(*argv[:-1], "oci:x").stderr


def test_without_the_library(key: Key) -> None:
    """The extra [sign] is not installed: a clear error, and only where a key is needed."""
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from rootless_udi.base.errors import UdiError\n"
        "from rootless_udi.pull import policy, signature\n"
        "try: signature.PublicKey(b'', 'k')\n"
        "except UdiError as error: print(error.message, error.hint)\n"
    )
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(os.getcwd())
    )
    assert "needs the Python module cryptography" in out.stdout, out.stderr
    assert "rootless_udi[sign]" in out.stdout


def test_what_a_file_says_of_itself_is_no_signature(user: User, box: Path) -> None:
    """Facts of a file are its author's: nobody is told that it is signed."""
    facts = json.loads(box.with_suffix(".json").read_text())
    copy = user.home / "x.sqfs"
    copy.write_bytes(box.read_bytes())
    lies = {"signed": ["signed by root"], "pushed": {"believed": "by all"}}
    copy.with_suffix(".json").write_text(json.dumps({**facts, **lies}))
    told = user.run("udi-run", "--explain", "./x.sqfs", "true", check=True).stdout
    assert "signed" not in told and "pushed" not in told
    digest = user.run("udi", "import", "./x.sqfs", "x:1", check=True).stdout.strip()
    known = json.loads(user.run("udi", "inspect", digest, check=True).stdout)
    assert "signed" not in known and "pushed" not in known
