"""Indexes, manifests and configs: check parsed JSON, choose by platform. For the pull only.

Formats: OCI image-spec 1.1 (index, manifest, config) and Docker image manifest version 2, schema 2.
Every document comes from outside: all that is used of it is checked here. Whether a document is an
index or a manifest is told by its content, which is guarded by a digest; what Content-Type or an
index's entry say of it is often wrong. Media types of other things than images are refused by name.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

from rootless_udi.base.errors import UdiError, amount, counted
from rootless_udi.base.records import Record
from rootless_udi.layers import bounds
from rootless_udi.plan.platforms import suitability
from rootless_udi.plan.reference import Platform, digest_fault, normal

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIGS = (OCI_CONFIG, "application/vnd.docker.container.image.v1+json")
INDEXES = (OCI_INDEX, DOCKER_LIST)
MANIFESTS = (OCI_MANIFEST, DOCKER_MANIFEST)
ACCEPT = ", ".join((*MANIFESTS, *INDEXES))

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
_FOREIGN_LAYER = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"
LAYERS = {
    **{f"{base}{end}": kind for base in (OCI_LAYER, _FOREIGN_LAYER)
       for end, kind in (("", "none"), ("+gzip", "gzip"), ("+zstd", "zstd"))},
    **{f"{base}{end}": kind for base in (_DOCKER_LAYER, _DOCKER_FOREIGN)
       for end, kind in (("", "none"), (".gzip", "gzip"), (".zstd", "zstd"))},
}  # fmt: skip
"""Media types of layers, and the compression that each stands for (the blob's bytes decide).

A layer of another type is refused before any download.
"""

DOCUMENT_MAX, LAYERS_MAX = bounds.DOCUMENT, bounds.LAYERS
"""Bytes of an index, manifest or config: what registries accept (distribution-spec, "Pushing")."""

_SCHEMA1 = "application/vnd.docker.distribution.manifest.v1+"
_HINTS = {
    _SCHEMA1: "it is of Docker's schema 1, given up in 2017: push it again with a newer tool",
    "application/vnd.cncf.helm": "it is a Helm chart",
    "application/vnd.sylabs.sif": "it is a SIF file for Singularity or Apptainer",
    "application/vnd.docker.plugin": "it is a Docker plugin",
    "application/vnd.in-toto": "it is an attestation (provenance, SBOM)",
    "application/vnd.oci.empty": "it is an artifact, no image",
}

_STEP_MAX = 400
"""Characters of a step of an image's history that are kept."""


class Descriptor(Record):
    """What a document says of a blob: `size` in bytes; `platform` only in an index."""

    media_type: str
    digest: str
    size: int
    platform: Platform | None = None


class Manifest(Record):
    """One image of one platform: its config's descriptor and its layers', lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


class Config(Record):
    """What a run needs of an image's config. `diff_ids`: digests of uncompressed layers."""

    platform: Platform
    diff_ids: tuple[str, ...]
    created: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    workdir: str = ""
    user: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    volumes: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    """EXPOSE: "80/tcp"."""
    history: tuple[tuple[str, str, bool], ...] = ()
    """(created, created by, has no layer), the lowest first."""


def sha256(body: bytes) -> str:
    """Return the digest of a document."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def _refuse(what: str, why: str, hint: str = "") -> UdiError:
    return UdiError(f"{what}: {why}", hint)


def _unknown(what: str, part: str, media: object) -> UdiError:
    hint = next((h for start, h in _HINTS.items() if str(media).startswith(start)), "")
    return _refuse(what, f"media type {media!r} of {part} is unknown", hint)


def descriptor(value: object, part: str, what: str, typed: bool = True) -> Descriptor:
    """Check a descriptor (image-spec, descriptor.md). `part` and `what` name it in errors.

    Without `typed` its media type may be missing.
    """
    if not isinstance(value, dict):
        raise _refuse(what, f"{part} has no descriptor")
    media, digest, size = value.get("mediaType"), value.get("digest"), value.get("size")
    if media is None and not typed:
        media = ""
    if not isinstance(media, str) or (typed and not media):
        raise _refuse(what, f"{part} has no media type")
    fault = digest_fault(digest)
    if fault:
        raise _refuse(what, f"{part}: {fault}")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 1 << 62:
        raise _refuse(what, f"size {size!r} of {part} is no number of bytes")
    return Descriptor(media, str(digest), size)


def media_type(document: object, told: str, what: str) -> str:
    """Return whether `document` is an index or a manifest, as its media type.

    `told` is the media type of the registry's answer or of the descriptor, perhaps empty. It is
    used to say what a document is that is no image. If the document has a media type itself, its
    content must fit; one that could be read as index and as manifest is refused. Raises UdiError.
    """
    if not isinstance(document, dict):
        raise _refuse(what, "is no JSON object")
    told = told.partition(";")[0].strip()
    own = document.get("mediaType")
    if own is None and document.get("schemaVersion") == 1:
        own = told if told.startswith(_SCHEMA1) else f"{_SCHEMA1}json"
    if own is None:
        own = OCI_INDEX if "manifests" in document else OCI_MANIFEST
    if own not in INDEXES + MANIFESTS:
        raise _unknown(what, "the manifest", own)
    if document.get("schemaVersion") != 2:
        raise _refuse(what, f"schema version {document.get('schemaVersion')!r} is unknown")
    if ("manifests" in document) == ("layers" in document):
        raise _refuse(what, "is neither an index nor a manifest")
    if ("manifests" in document) != (own in INDEXES):
        raise _refuse(what, f"is not what its media type says: {own}")
    return str(own)


def choose(document: dict[str, Any], platform: Platform, what: str) -> Descriptor:
    """Return the entry of an index for `platform`: a manifest, or an index without a platform.

    Attestations (platform unknown/unknown) are no images. Of several variants the newest that the
    machine can run is chosen, and an entry without a platform if no other fits. Raises UdiError if
    none does: it names the platforms that there are, or what is wrong with an entry.
    """
    found, fault = entries(document, "the index", what)
    best: tuple[bool, int, Descriptor] | None = None
    offered = []
    for _, one in found:
        known = one.media_type in INDEXES + MANIFESTS
        if not known and one.media_type.startswith("application/vnd."):
            continue  # by its media type no image; of an unknown type its content decides
        theirs = one.platform
        if theirs is None:
            rank = 0
        elif not theirs.architecture or not theirs.os:
            rank = 0 if _partly(theirs, platform) else -1
        else:
            if theirs.os != "unknown":
                offered.append(str(theirs))
            rank = suitability(theirs, platform)
        if rank >= 0 and (best is None or (known, rank) > best[:2]):
            best = known, rank, one
    if best is not None:
        return best[2]
    if fault is not None:
        raise fault
    raise _refuse(
        what,
        f"has no image for {platform}",
        f"it has {', '.join(sorted(set(offered))) or 'none at all'}",
    )


def entries(
    document: object, part: str, what: str
) -> tuple[list[tuple[dict[str, Any], Descriptor]], UdiError | None]:
    """Return an index's good entries, each as it is and as checked, and the first bad one's error.

    A bad entry is no failure unless it is the one that is wanted. Raises UdiError where there is no
    list.
    """
    listed = document.get("manifests") if isinstance(document, dict) else None
    if not isinstance(listed, list):
        raise _refuse(what, f"{part} has no list of manifests")
    found, fault = [], None
    for number, entry in enumerate(listed):
        name = f"entry {number + 1} of {part}"
        try:
            one = descriptor(entry, name, what, typed=False)
            theirs = _platform(entry.get("platform"), name, what)
            found.append((entry, one.replace(platform=theirs)))
        except UdiError as error:
            fault = fault or error
    return found, fault


def _platform(value: object, part: str, what: str) -> Platform | None:
    if value is None:
        return None
    if not isinstance(value, dict):
        raise _refuse(what, f"{part}: the platform is no object")
    names = ["" if (text := value.get(key)) is None else text for key in Platform.FIELDS]
    if not all(isinstance(name, str) for name in names):
        raise _refuse(what, f"{part}: the platform is not text")
    return normal(Platform(*names))


def _partly(theirs: Platform, ours: Platform) -> bool:
    pairs = ((theirs.os, ours.os), (theirs.architecture, ours.architecture))
    return all(one in ("", other) for one, other in pairs)


def manifest(document: dict[str, Any], what: str) -> Manifest:
    """Check an image manifest, all that a pull uses of it. Raises UdiError."""
    config = descriptor(document.get("config"), "the config", what, typed=False)
    layers = document.get("layers")
    if not isinstance(layers, list):
        raise _refuse(what, "the manifest has no list of layers")
    # No check against one type: images have had octet-stream, json and html here
    # (distribution#1621, moby#48361).
    if config.media_type.startswith(tuple(_HINTS)):
        raise _unknown(what, "the config", config.media_type)
    if config.size > DOCUMENT_MAX:
        raise _refuse(
            what, f"the config has {amount(config.size)}; at most {amount(DOCUMENT_MAX)} are read"
        )
    if len(layers) > LAYERS_MAX:
        raise _refuse(what, f"has {len(layers)} layers; at most {LAYERS_MAX} are merged")
    found = []
    for number, value in enumerate(layers):
        layer = descriptor(value, f"layer {number + 1}", what)
        if layer.media_type not in LAYERS:
            if layer.media_type.endswith("+encrypted"):
                raise _refuse(what, f"layer {number + 1} is encrypted", "decrypt it with skopeo")
            raise _unknown(what, f"layer {number + 1}", layer.media_type)
        found.append(layer)
    if not found:
        raise _refuse(what, "the image has no layers")
    return Manifest(config, tuple(found))


def config(
    document: object,
    platform: Platform,
    unnamed: Platform,
    layers: int,
    what: str,
    media: str = OCI_CONFIG,
) -> Config:
    """Check an image config against the wanted platform and the manifest's number of layers.

    `unnamed` is the platform of a config that names none: that of the index's entry, else this
    machine's. `media` is the config's media type in the manifest. Raises UdiError.
    """
    if not isinstance(document, dict):
        raise _refuse(what, "the config is no JSON object")
    rootfs = document.get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list):
        if media not in _CONFIGS:
            raise _unknown(what, "the config", media)
        raise _refuse(what, "the config has no list of diff_ids")
    theirs = _suited(document, platform, unnamed, what)
    for number, digest in enumerate(diff_ids):
        fault = digest_fault(digest)
        if fault:
            raise _refuse(what, f"diff_id {number + 1} of the config: {fault}")
    if len(diff_ids) != layers:
        raise _refuse(
            what, f"has {counted(layers, 'layer')}, and its config speaks of {len(diff_ids)}"
        )
    run = document.get("config")
    run = {} if run is None else run
    if not isinstance(run, dict):
        raise _refuse(what, "config of the config is no object")
    labels = _texts_of(run.get("Labels"), "Labels", what)
    return Config(
        platform=theirs,
        diff_ids=tuple(diff_ids),
        created=_text(document.get("created"), "created", what),
        env=_environment(run.get("Env"), what),
        entrypoint=_words(run.get("Entrypoint"), "Entrypoint", what),
        cmd=_words(run.get("Cmd"), "Cmd", what),
        workdir=_text(run.get("WorkingDir"), "WorkingDir", what),
        user=_text(run.get("User"), "User", what),
        labels=tuple(sorted(labels.items())),
        volumes=tuple(sorted(_keys(run.get("Volumes"), "Volumes", what))),
        ports=tuple(sorted(_keys(run.get("ExposedPorts"), "ExposedPorts", what))),
        history=_history(document.get("history")),
    )


def _history(value: object) -> tuple[tuple[str, str, bool], ...]:
    """Return the steps of the image's history, without bad ones; long ones are cut."""
    rows = [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []
    found = []
    for row in rows[: bounds.HISTORY]:
        texts = (row.get("created"), row.get("created_by") or row.get("comment"))
        created, how = (text if isinstance(text, str) else "" for text in texts)
        found.append((created[:40], how[:_STEP_MAX], row.get("empty_layer") is True))
    return tuple(found)


def _suited(document: dict[str, Any], platform: Platform, unnamed: Platform, what: str) -> Platform:
    """Return the config's platform. Raises UdiError where `platform` can't run it."""
    said = _platform(document, "the config", what)
    assert said is not None
    theirs = said
    if not said.os or not said.architecture:
        same = said.architecture in ("", unnamed.architecture)
        theirs = Platform(
            said.os or unnamed.os,
            said.architecture or unnamed.architecture,
            said.variant or (unnamed.variant if same else ""),
        )
    if suitability(theirs, platform) < 0:
        silent = "" if said == theirs else " (its config does not say)"
        raise _refuse(
            what,
            f"is an image for {theirs}{silent}, wanted is {platform}",
            f"for another machine: --platform {theirs}"
            if theirs.os == "linux"
            else "only linux images can be run",
        )
    return theirs


def _text(value: object, part: str, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise _refuse(what, f"{part} of the config is no text: {value!r}")
    return value


def _words(value: object, part: str, what: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        # Docker before 1.0 wrote one string.
        value = [value]
    if not isinstance(value, list):
        raise _refuse(what, f"{part} of the config is no list of words: {value!r}")
    return tuple(_text(word, part, what) if word is not None else "" for word in value)


def _environment(value: object, what: str) -> tuple[str, ...]:
    """Return the entries that are NAME=VALUE; others are ignored, as docker and Shifter do."""
    return tuple(word for word in _words(value, "Env", what) if word.find("=") > 0)


def _keys(value: object, part: str, what: str) -> Sequence[str]:
    if value is None:
        return ()
    if not isinstance(value, dict):
        raise _refuse(what, f"{part} of the config is no object")
    return [_text(key, part, what) for key in value]


def _texts_of(value: object, part: str, what: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _refuse(what, f"{part} of the config is no object")
    return {_text(k, part, what): _text(v, part, what) for k, v in value.items()}
