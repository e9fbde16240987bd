"""A policy's corners, without a registry: which requirements count for an image, and what meets
them."""

import base64
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import parse
from rootless_udi.pull import policy
from rootless_udi.pull.signature import Signature
from tests.kit.signatures import Key, payload

DIGEST = "sha256:" + "5" * 64
ANY, REJECT = {"type": "insecureAcceptAnything"}, {"type": "reject"}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key(tmp_path_factory.mktemp("keys"), "right")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Key:
    return Key(tmp_path_factory.mktemp("keys"), "other")


Checked = Callable[..., tuple[str, ...]]


@pytest.fixture
def checked(tmp_path: Path) -> Checked:
    """Return what checks an image by a policy; `signed` is what lies beside the image."""

    def check(
        name: str, document: dict[str, Any], signed: Sequence[Signature] = ()
    ) -> tuple[str, ...]:
        path = tmp_path / "policy.json"
        path.write_text(json.dumps(document))
        return policy.read(str(path)).check(parse(name), [DIGEST], lambda digest: signed)

    return check


def by(key: Key, name: str) -> Signature:
    data = payload(DIGEST, name)
    return Signature(data, key.sign(data))


def refused(checked: Checked, *given: Any) -> str:
    with pytest.raises(UdiError) as error:
        checked(*given)
    return error.value.message


@pytest.mark.parametrize("member", ("keyPath", "keyPaths", "keyData", "keyDatas"))
def test_keys_in_each_form(member: str, key: Key, other: Key, checked: Checked) -> None:
    """Of several keys each counts."""
    paths = [str(one.public) for one in (other, key)]
    if "Data" in member:
        paths = [base64.b64encode(Path(path).read_bytes()).decode() for path in paths]
    value = paths if member.endswith("s") else paths[1]
    document = {"default": [{"type": "sigstoreSigned", member: value}]}
    ours = by(key, "h.example/a:1")
    (said,) = checked("h.example/a:1", document, [ours])
    assert said.startswith("signed by ") and said.endswith(" for h.example/a:1")
    theirs = by(other, "h.example/a:1")
    if member.endswith("s"):
        assert checked("h.example/a:1", document, [theirs])
    else:
        said = refused(checked, "h.example/a:1", document, [theirs])
        assert "a signature is by another key" in said
    # By default the tag must be signed, too; where a digest was asked for, the repository.
    said = refused(checked, "h.example/a:2", document, [ours])
    assert "is for h.example/a:1 (matchRepoDigestOrExact)" in said
    assert checked(f"h.example/a@{DIGEST}", document, [ours])


def test_all_requirements_of_the_scope_count(key: Key, checked: Checked) -> None:
    """Whatever their order; those of wider scopes and the default don't."""
    signed = {"type": "sigstoreSigned", "keyPath": str(key.public)}
    gpg = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}
    ours = by(key, "h.example/a:1")
    for needed, said in (
        ([ANY, REJECT], "it rejects all"),
        ([signed, REJECT], "it rejects all"),
        ([ANY, signed], "it is not signed"),
        ([signed, gpg], "signedBy (GPG) is not understood here"),
        ([ANY, gpg], "signedBy (GPG) is not understood here"),
    ):
        for order in (needed, needed[::-1]):
            given = [] if said == "it is not signed" else [ours]
            document = {"default": [ANY], "transports": {"docker": {"h.example": order}}}
            assert said in refused(checked, "h.example/a:1", document, given)
            # Another one's scope.
            assert checked("g.example/a:1", document) == ()
    inner = {"docker": {"h.example": [REJECT], "h.example/a": [ANY], "": [REJECT]}}
    assert checked("h.example/a:1", {"default": [REJECT], "transports": inner}) == ()


@pytest.mark.parametrize(
    ("scope", "name", "falls"),
    (
        ("docker.io/library/busybox", "busybox:1", True),
        ("busybox", "busybox:1", False),
        ("h.example/a", "h.example/ab:1", False),
        ("h.example/a:1", "h.example/a:1", True),
        ("h.example/a:1", "h.example/a:2", False),
        (f"h.example/a@{DIGEST}", f"h.example/a@{DIGEST}", True),
        ("h.example:5000", "h.example:5000/a:1", True),
        ("h.example", "h.example:5000/a:1", False),
        ("*.example", "h.example:5000/a:1", True),
        ("*.h.example", "h.example/a:1", False),
        ("*.example", "a.h.example/a:1", True),
        ("h.example", "H.EXAMPLE/a:1", True),
    ),
)
def test_what_falls_under_a_scope(scope: str, name: str, falls: bool, checked: Checked) -> None:
    document = {"default": [ANY], "transports": {"docker": {scope: [REJECT]}}}
    if falls:
        assert f"(docker {scope}): it rejects all" in refused(checked, name, document)
    else:
        assert checked(name, document) == ()


def test_layouts_by_their_real_path(
    tmp_path: Path, checked: Checked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tag, a folder, one above it; also by a relative path or a link."""
    layout = tmp_path / "top/layout"
    layout.mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "top")
    monkeypatch.chdir(tmp_path)
    document: dict[str, Any] = {}
    for scope in (f"{layout}:bad", str(layout), str(tmp_path)):
        document = {"default": [ANY], "transports": {"oci": {scope: [REJECT]}}}
        for path in (layout, "link/layout", "top/../top/layout"):
            refused(checked, f"oci:{path}:bad", document)
    document["transports"]["oci"] = {f"{layout}:bad": [REJECT], str(layout): [ANY]}
    assert checked(f"oci:{layout}:good", {**document, "default": [REJECT]}) == ()


@pytest.mark.parametrize("storage", ("docker-daemon", "containers-storage"))
def test_what_other_tools_have(storage: str, checked: Checked) -> None:
    """Its default counts. Scopes are theirs alone: what falls under such is refused."""
    document: dict[str, Any]
    for given, said in (
        ({"": [REJECT]}, "it rejects all"),
        ({"": [ANY], "docker.io/library/a": [REJECT]}, "scopes of"),
        ({"docker.io/library/a": [ANY]}, f"scopes of {storage} are not understood here"),
    ):
        document = {"default": [ANY], "transports": {storage: given}}
        assert said in refused(checked, f"{storage}:busybox", document)
    document = {"default": [REJECT], "transports": {storage: {"": [ANY]}}}
    assert checked(f"{storage}:busybox", document) == ()
    document["transports"] = {"docker-archive": {"": [ANY]}}
    refused(checked, f"{storage}:busybox", document)


@pytest.mark.parametrize("prefix", ("", "busybox", "h.example/", "h.example/a:1", "A b"))
def test_prefixes_that_nothing_begins_with(prefix: str, key: Key, checked: Checked) -> None:
    fits = {"type": "remapIdentity", "prefix": prefix, "signedPrefix": "h.example"}
    document = {"type": "sigstoreSigned", "keyPath": str(key.public), "signedIdentity": fits}
    said = refused(checked, "h.example/a:1", {"default": [document]})
    assert f"signedIdentity remapIdentity: {prefix!r} is no host or repository" in said


def test_a_mirror_of_what_is_signed(key: Key, checked: Checked) -> None:
    fits = {"type": "remapIdentity", "prefix": "m.site:5000/hub", "signedPrefix": "docker.io"}
    one = {"type": "sigstoreSigned", "keyPath": str(key.public), "signedIdentity": fits}
    ours = by(key, "docker.io/library/busybox:1")
    assert checked("m.site:5000/hub/library/busybox:1", {"default": [one]}, [ours])
    refused(checked, "m.site:5000/other/busybox:1", {"default": [one]}, [ours])
