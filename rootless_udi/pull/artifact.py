"""The artifact that `udi push` makes of an image: its squashfs, ready to run, in a registry.

An OCI image manifest of artifactType TYPE (image-spec 1.1) with three blobs:

    SQUASHFS   the image's file as a store has it: the squashfs, behind it the list of its windows
    WINDOWS    that list once more (`base.windows.packed`), for who reads windows from a registry
    FACTS      the facts, as JSON

The annotation LISTED is the list's digest. With `subject`, the manifest of an image, it says: "this
is that image's content". That is a claim: the digests prove what was pushed, and nothing else. Who
is believed, `claims` decides. Without a subject it is an image of its own, whose digest is that of
the artifact's manifest. No times are in it: the same image gives the same artifact.
"""

import json
from typing import Any

from rootless_udi.base import windows
from rootless_udi.base.errors import UdiError, amount
from rootless_udi.base.records import Record
from rootless_udi.plan.reference import digest_fault
from rootless_udi.pull import manifest
from rootless_udi.pull.manifest import OCI_MANIFEST, Descriptor

TYPE = "application/vnd.rootless-udi.image.v1"
SQUASHFS = "application/vnd.rootless-udi.squashfs.v1"
WINDOWS = "application/vnd.rootless-udi.windows.v1"
FACTS = "application/vnd.rootless-udi.facts.v1+json"
EMPTY = "application/vnd.oci.empty.v1+json"
EMPTY_BODY = b"{}"
LISTED = "org.rootless-udi.windows"
_TITLE = "org.opencontainers.image.title"
"""The name of the file that `oras pull` makes of a blob."""
FACTS_MAX = 64 << 20
"""Most bytes of facts, as inside a file."""
_TITLES = {SQUASHFS: "image.sqfs", WINDOWS: "image.windows", FACTS: "image.json"}


class Artifact(Record):
    """What such a manifest says: its three blobs; `listed`, the digest of the list of windows; and
    the digest of the image's manifest, "" for an image of its own."""

    squashfs: Descriptor
    windows: Descriptor
    facts: Descriptor
    listed: str
    subject: str = ""


class FoundSquashfs(Record):
    """A squashfs that may be used for the image `digest`.

    `artifact` is the digest of the artifact's manifest, and `host` the registry or mirror that has
    it and its blobs. `why` says in words why it is believed.
    """

    digest: str
    artifact: str
    parts: Artifact
    host: str
    why: str


def made(
    squashfs: Descriptor,
    windows: Descriptor,
    facts: Descriptor,
    listed: str,
    subject: Descriptor | None,
) -> bytes:
    """Return the manifest of an artifact."""
    empty = Descriptor(EMPTY, manifest.sha256(EMPTY_BODY), len(EMPTY_BODY))
    document: dict[str, Any] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": TYPE,
        "config": described(empty),
        "layers": [
            {**described(one), "annotations": {_TITLE: _TITLES[one.media_type]}}
            for one in (squashfs, windows, facts)
        ],
        "annotations": {LISTED: listed},
    }
    if subject is not None:
        document["subject"] = described(subject)
    return json.dumps(document, separators=(",", ":")).encode()


def described(one: Descriptor) -> dict[str, Any]:
    """Return a descriptor as documents have it."""
    return {"mediaType": one.media_type, "digest": one.digest, "size": one.size}


def is_one(document: object) -> bool:
    """Tell whether a parsed manifest says that it is such an artifact."""
    return isinstance(document, dict) and document.get("artifactType") == TYPE


def parsed(document: dict[str, Any], what: str) -> Artifact:
    """Check the manifest of an artifact, all that is used of it. Raises UdiError."""
    layers = document.get("layers")
    found: dict[str, Descriptor] = {}
    for number, value in enumerate(layers if isinstance(layers, list) else ()):
        layer = manifest.descriptor(value, f"layer {number + 1}", what)
        if layer.media_type in _TITLES and layer.media_type not in found:
            found[layer.media_type] = layer
    missing = [name for name in _TITLES if name not in found]
    if missing:
        raise UdiError(f"{what}: has no layer of type {missing[0]}", "push it again (udi push)")
    notes = document.get("annotations")
    listed = notes.get(LISTED) if isinstance(notes, dict) else None
    fault = digest_fault(listed)
    if fault:
        raise UdiError(f"{what}: annotation {LISTED}: {fault}", "push it again (udi push)")
    subject = ""
    if document.get("subject") is not None:
        subject = manifest.descriptor(document["subject"], "the subject", what).digest
    one = Artifact(found[SQUASHFS], found[WINDOWS], found[FACTS], str(listed), subject)
    for part, most in ((one.windows, windows.room(one.squashfs.size)), (one.facts, FACTS_MAX)):
        if part.size > most:
            raise UdiError(
                f"{what}: {part.digest} has {amount(part.size)}; at most {amount(most)} are read"
            )
    return one
