"""Indexes, manifests and configs as data: what is chosen, what is refused and with which words."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.plan import platforms
from rootless_udi.plan.reference import Platform, parse_platform
from rootless_udi.pull import manifest

pytestmark = pytest.mark.alike

D = ["sha256:" + f"{n:x}" * 64 for n in range(16)]
LINUX = Platform("linux", "amd64")
SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+"


def entry(number: int, platform: str | None, media: str = manifest.OCI_MANIFEST) -> dict[str, Any]:
    found: dict[str, Any] = {"mediaType": media, "digest": D[number], "size": 7}
    if platform is not None:
        found["platform"] = dict(
            zip(("os", "architecture", "variant"), platform.split("/"), strict=False)
        )
    return found


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        (["linux/amd64", "linux/arm64/v8"], "linux/arm64", 1),
        (["linux/arm64"], "linux/arm64", 0),
        (["windows/amd64", "linux/amd64"], "linux/amd64", 1),
        (["unknown/unknown", "linux/amd64"], "linux/amd64", 1),
        (["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/arm/v5", "linux/arm/v7", "linux/arm/v6"], "linux/arm/v6", 2),
        (["linux/arm64/v9", "linux/arm64/v8"], "linux/arm64", 1),
        (["linux/amd64/v3", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64", "linux/amd64/v3", "linux/amd64/v2"], "linux/amd64/v3", 1),
        ([None], "linux/amd64", 0),
        ([None, "linux/amd64"], "linux/amd64", 1),
        (["linux/", "linux/amd64"], "linux/amd64", 1),
        (["linux/"], "linux/amd64", 0),
        (["windows/"], "linux/amd64", None),
        (["linux/x86_64"], "linux/amd64", 0),
        (["linux/amd64/v1", "linux/amd64/v4"], "linux/amd64", 0),
        (["linux/amd64/v4", "linux/amd64/v2"], "linux/amd64/v3", 1),
        (["linux/amd64/v2"], "linux/amd64", None),
        (["linux/amd64/v2"], "linux/amd64/v3", 0),
        (["linux/arm64/8", "linux/arm64/v8.2"], "linux/arm64/v8.2", 1),
        (["linux/arm64/v8.2", "linux/arm64"], "linux/arm64", 1),
        (["linux/arm64/v8.5", "linux/arm64/v9.0"], "linux/arm64/v9.0", 1),
        (["linux/arm64/v8.5", "linux/arm64/v9.1"], "linux/arm64/v9.0", 0),
        (["linux/arm64/v9.0"], "linux/arm64/v8.5", None),
        (["linux/arm/v8", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/armhf"], "linux/arm", 0),
        (["linux/riscv64/rva22u64", "linux/riscv64"], "linux/riscv64", 1),
        (["linux/amd64", "linux/amd64"], "linux/amd64", 0),
        (["linux/arm64", "linux/amd64"], "linux/riscv64", None),
        (["unknown/unknown"], "linux/amd64", None),
        ([], "linux/amd64", None),
    ],
)
def test_choice_by_platform(offered: list[str | None], wanted: str, chosen: int | None) -> None:
    index = {"manifests": [entry(n, platform) for n, platform in enumerate(offered)]}
    if chosen is None:
        with pytest.raises(UdiError, match=f"it: has no image for {wanted}") as caught:
            manifest.choose(index, parse_platform(wanted), "it")
        real = sorted(x for x in offered if x and "unknown" not in x and not x.endswith("/"))
        assert caught.value.hint == f"it has {', '.join(real) or 'none at all'}"
    else:
        assert manifest.choose(index, parse_platform(wanted), "it").digest == D[chosen]


@pytest.mark.parametrize(
    "other",
    [
        entry(0, "linux/amd64", "application/vnd.x"),
        {**entry(0, None), "digest": "blake3:00"},
        {**entry(0, None), "size": "7"},
        {**entry(0, None), "platform": 5},
        {"platform": {"os": "linux", "architecture": "amd64"}},
        5,
    ],
)
def test_entries_of_other_kinds_are_passed_over(other: object) -> None:
    assert (
        manifest.choose({"manifests": [other, entry(1, "linux/amd64")]}, LINUX, "it").digest == D[1]
    )
    with pytest.raises(UdiError, match="it: "):
        manifest.choose({"manifests": [other, entry(1, "linux/s390x")]}, LINUX, "it")


@pytest.mark.parametrize("media", [None, "application/json", "text/plain", ""])
def test_an_entry_whose_media_type_says_nothing(media: str | None) -> None:
    bare = {key: value for key, value in entry(0, "linux/amd64").items() if key != "mediaType"}
    one = bare if media is None else {**bare, "mediaType": media}
    assert manifest.choose({"manifests": [one]}, LINUX, "it").digest == D[0]
    both = {"manifests": [one, entry(1, "linux/amd64")]}
    assert manifest.choose(both, LINUX, "it").digest == D[1]
    other = {"manifests": [entry(0, "linux/amd64", "application/vnd.foo+json")]}
    with pytest.raises(UdiError, match="has no image for"):
        manifest.choose(other, LINUX, "it")


GOOD = {
    "schemaVersion": 2,
    "mediaType": manifest.OCI_MANIFEST,
    "config": {"mediaType": manifest.OCI_CONFIG, "digest": D[0], "size": 3},
    "layers": [{"mediaType": f"{manifest.OCI_LAYER}+gzip", "digest": D[1], "size": 4}],
}


def changed(path: str, value: object) -> dict[str, Any]:
    """GOOD with `value` at `path` (layers.0.size); None takes it away."""

    def copy(node: Any, words: list[str]) -> Any:
        if not words:
            return value
        if isinstance(node, list):
            node = list(node)
            node[int(words[0])] = copy(node[int(words[0])], words[1:])
            return node
        node = dict(node)
        node[words[0]] = copy(node.get(words[0]), words[1:])
        if node[words[0]] is None:
            del node[words[0]]
        return node

    return dict(copy(GOOD, path.split(".")))


def test_a_good_manifest() -> None:
    assert manifest.media_type(GOOD, "application/json; charset=utf-8", "it") == GOOD["mediaType"]
    assert manifest.media_type(changed("mediaType", None), "", "it") == manifest.OCI_MANIFEST
    index = {"schemaVersion": 2, "manifests": []}
    assert manifest.media_type(index, "", "it") == manifest.OCI_INDEX
    # Announcements are wrong often enough; the content says what it is.
    assert manifest.media_type(index, manifest.DOCKER_LIST, "it") == manifest.OCI_INDEX
    for told in (manifest.DOCKER_MANIFEST, manifest.OCI_INDEX, "text/plain", f"{SCHEMA1}prettyjws"):
        assert manifest.media_type(GOOD, told, "it") == manifest.OCI_MANIFEST
        bare = changed("mediaType", None)
        assert manifest.media_type(bare, told, "it") == manifest.OCI_MANIFEST
    found = manifest.manifest(GOOD, "it")
    assert found.config.digest == D[0]
    assert [layer.size for layer in found.layers] == [4]


@pytest.mark.parametrize("media", sorted(manifest.LAYERS))
def test_every_known_layer(media: str) -> None:
    manifest.manifest(changed("layers.0.mediaType", media), "it")


@pytest.mark.parametrize(
    ("path", "value", "message", "hint"),
    [
        ("config", None, "the config has no descriptor", ""),
        ("config", [], "the config has no descriptor", ""),
        ("config.mediaType", 5, "the config has no media type", ""),
        ("config.digest", "sha256:00", "the config: a sha256 digest has 64", ""),
        ("config.digest", 5, "the config: 5 is no digest", ""),
        ("config.size", -1, "size -1 of the config is no number of bytes", ""),
        ("config.size", 5 << 20, "the config has 5.2 MB; at most 4.2 MB are read", ""),
        ("config.size", "3", "size '3' of the config is no number of bytes", ""),
        ("config.size", True, "size True of the config is no number of bytes", ""),
        ("config.mediaType", "application/vnd.cncf.helm.config.v1+json", "is unknown", "Helm"),
        ("config.mediaType", "application/vnd.oci.empty.v1+json", "is unknown", "artifact"),
        ("layers", {}, "the manifest has no list of layers", ""),
        ("layers", [], "the image has no layers", ""),
        ("layers.0", 5, "layer 1 has no descriptor", ""),
        ("layers.0.digest", "md5:00", "layer 1: digest algorithm 'md5' is unknown", ""),
        ("layers.0.size", 1 << 63, "of layer 1 is no number of bytes", ""),
        (
            "layers.0.mediaType",
            "application/vnd.sylabs.sif.layer.v1.sif",
            "media type 'application/vnd.sylabs.sif.layer.v1.sif' of layer 1 is unknown",
            "Singularity",
        ),
        (
            "layers.0.mediaType",
            f"{manifest.OCI_LAYER}+gzip+encrypted",
            "layer 1 is encrypted",
            "decrypt",
        ),
    ],
)
def test_bad_manifests(path: str, value: object, message: str, hint: str) -> None:
    with pytest.raises(UdiError) as caught:
        manifest.manifest(changed(path, value), "it")
    assert caught.value.message.startswith("it: ") and message in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("document", "told", "message"),
    [
        ([], "", "is no JSON object"),
        ({"schemaVersion": 1}, "", "manifest.v1+json' of the manifest is unknown"),
        (
            {"schemaVersion": 1},
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "v1+prettyjws' of the manifest is unknown",
        ),
        (changed("mediaType", "text/plain"), "", "'text/plain' of the manifest is unknown"),
        (changed("schemaVersion", 3), "", "schema version 3 is unknown"),
        (changed("mediaType", manifest.OCI_INDEX), "", "is not what its media type says"),
        ({"schemaVersion": 2}, "", "is neither an index nor a manifest"),
        ({**GOOD, "manifests": []}, "", "is neither an index nor a manifest"),
    ],
)
def test_documents_that_are_neither(document: object, told: str, message: str) -> None:
    with pytest.raises(UdiError) as caught:
        manifest.media_type(document, told, "it")
    assert message in caught.value.message


CONFIG = {
    "os": "linux",
    "architecture": "amd64",
    "created": "2026-01-01T00:00:00Z",
    "rootfs": {"type": "layers", "diff_ids": [D[2]]},
    "config": {
        "Env": ["PATH=/bin", "EMPTY="],
        "Entrypoint": ["/e"],
        "Cmd": ["a", ""],
        "WorkingDir": "/w",
        "User": "1:2",
        "Labels": {"b": "2", "a": "1"},
        "Volumes": {"/v": {}},
    },
}


def test_a_good_config() -> None:
    found = manifest.config(CONFIG, LINUX, LINUX, 1, "it")
    assert found.env == ("PATH=/bin", "EMPTY=")
    assert (found.entrypoint, found.cmd) == (("/e",), ("a", ""))
    assert (found.workdir, found.user, found.volumes) == ("/w", "1:2", ("/v",))
    assert found.labels == (("a", "1"), ("b", "2"))
    assert found.diff_ids == (D[2],)
    bare = {key: CONFIG[key] for key in ("os", "architecture", "rootfs")}
    assert manifest.config({**bare, "config": None}, LINUX, LINUX, 1, "it").env == ()
    old = manifest.config({**bare, "config": {"Cmd": "sh", "Labels": None}}, LINUX, LINUX, 1, "it")
    assert old.cmd == ("sh",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architecture": "arm64"}, "is an image for linux/arm64, wanted is linux/amd64"),
        ({"os": "windows"}, "is an image for windows/amd64"),
        ({"os": 5}, "the platform is not text"),
        ({"architecture": "", "os": "windows"}, "an image for windows/amd64 (its config does not"),
        ({"variant": "v2"}, "is an image for linux/amd64/v2, wanted is linux/amd64"),
        ({"rootfs": None}, "the config has no list of diff_ids"),
        ({"rootfs": {"diff_ids": ["x"]}}, "diff_id 1 of the config: 'x' is no digest"),
        ({"rootfs": {"diff_ids": []}}, "has 1 layer, and its config speaks of 0"),
        ({"config": []}, "config of the config is no object"),
        ({"config": {"Env": "A=B C"}}, None),
        ({"config": {"Env": 5}}, "Env of the config is no list of words: 5"),
        ({"config": {"Cmd": [5]}}, "Cmd of the config is no text: 5"),
        ({"config": {"Cmd": ["a\0b"]}}, "Cmd of the config is no text"),
        ({"config": {"Labels": []}}, "Labels of the config is no object"),
        ({"config": {"Volumes": []}}, "Volumes of the config is no object"),
        ({"config": {"WorkingDir": 5}}, "WorkingDir of the config is no text: 5"),
        ({"created": 5}, "created of the config is no text: 5"),
    ],
)
def test_bad_configs(change: dict[str, Any], message: str | None) -> None:
    if message is None:
        manifest.config({**CONFIG, **change}, LINUX, LINUX, 1, "it")
        return
    with pytest.raises(UdiError) as caught:
        manifest.config({**CONFIG, **change}, LINUX, LINUX, 1, "it")
    assert message in caught.value.message
    with pytest.raises(UdiError, match="is no JSON object"):
        manifest.config([], LINUX, LINUX, 1, "it")


@pytest.mark.parametrize(
    "media", ["application/octet-stream", "application/json", "text/html", "", None, "text/x"]
)
def test_odd_types_of_a_config_that_is_one(media: str | None) -> None:
    """What moby's pull and skopeo take too (distribution#1621, moby#48361)."""
    found = manifest.manifest(changed("config.mediaType", media), "it").config.media_type
    assert manifest.config(CONFIG, LINUX, LINUX, 1, "it", found).env
    with pytest.raises(UdiError, match=r"it: media type .* of the config is unknown"):
        manifest.config({"a": "b"}, LINUX, LINUX, 1, "it", found)


ARM = Platform("linux", "arm64", "v8")


@pytest.mark.parametrize(
    ("said", "unnamed", "wanted", "theirs"),
    [
        ({}, LINUX, LINUX, "linux/amd64"),
        ({"os": "", "architecture": ""}, LINUX, LINUX, "linux/amd64"),
        ({"os": None, "architecture": None}, ARM, ARM, "linux/arm64/v8"),
        ({"os": "linux"}, ARM, ARM, "linux/arm64/v8"),
        ({"architecture": "arm64"}, LINUX, ARM, "linux/arm64"),
        ({"architecture": "x86_64", "os": "Linux"}, ARM, LINUX, "linux/amd64"),
        ({"architecture": "amd64", "os": "linux", "variant": "v1"}, ARM, LINUX, "linux/amd64"),
        ({"architecture": "AARCH64", "os": "linux"}, LINUX, ARM, "linux/arm64"),
        ({}, LINUX, ARM, None),
        ({}, ARM, LINUX, None),
    ],
)
def test_a_config_that_does_not_say_its_platform(
    said: dict[str, Any], unnamed: Platform, wanted: Platform, theirs: str | None
) -> None:
    document = {"rootfs": CONFIG["rootfs"], **said}
    if theirs is None:
        with pytest.raises(UdiError, match=f"{unnamed} \\(its config does not say\\), wanted"):
            manifest.config(document, wanted, unnamed, 1, "it")
    else:
        assert str(manifest.config(document, wanted, unnamed, 1, "it").platform) == theirs


V2 = "pni ssse3 sse4_1 sse4_2 cx16 lahf_lm popcnt"
V3 = f"{V2} avx avx2 bmi1 bmi2 f16c fma abm movbe xsave"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"
A81 = "fp asimd crc32 atomics asimdrdm"
A84 = f"{A81} dcpop jscvt fcma lrcpc dit uscat ilrcpc flagm asimddp"
A85 = f"{A84} sb dcpodp flagm2 frint"


@pytest.mark.parametrize(
    ("architecture", "flags", "variant"),
    [
        ("amd64", "fpu sse sse2", ""),
        ("amd64", V2, "v2"),
        ("amd64", V2.replace("popcnt", ""), ""),
        ("amd64", V3, "v3"),
        ("amd64", V4.replace("fma", ""), "v2"),
        ("amd64", V4, "v4"),
        ("arm64", "fp asimd aes crc32", ""),
        ("arm64", A81, "v8.1"),
        ("arm64", f"{A81} dcpop sve", "v8.2"),
        ("arm64", A84, "v8.4"),
        ("arm64", A85, "v8.5"),
        ("arm64", f"{A85} sve2", "v9.0"),
        ("riscv64", V4, ""),
    ],
)
def test_what_a_cpu_has(architecture: str, flags: str, variant: str) -> None:
    name = "flags\t\t" if architecture == "amd64" else "Features\t"
    text = f"processor\t: 0\n{name}: {flags}\nbugs\t\t: x\n\nprocessor\t: 1\n{name}: x\n"
    assert platforms.variant(architecture, text) == variant
    assert platforms.variant(architecture, "") == ""


NAMES = ["schemaVersion", "mediaType", "manifests", "layers", "config", "digest", "size", "os"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(D),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*NAMES, "platform", "rootfs", "Env"]), inner)
    ),
    max_leaves=12,
)


@given(JSON, JSON)
def test_any_document_is_read_or_refused(one: object, other: object) -> None:
    for call in (
        lambda: manifest.media_type(one, "", "it"),
        lambda: manifest.choose({"manifests": one}, LINUX, "it"),
        lambda: manifest.manifest({"config": one, "layers": other}, "it"),
        lambda: manifest.config({**CONFIG, "config": one}, LINUX, LINUX, 1, "it"),
        lambda: manifest.config(one, LINUX, LINUX, 1, "it"),
    ):
        try:
            call()
        except UdiError as error:
            assert error.message.startswith("it: ")
