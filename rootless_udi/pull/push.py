"""Push an image's squashfs to a registry as an artifact (`artifact`): beside the image, or alone.

Beside the image where the repository has the image's own manifest, or can have it from another
repository of the same registry, in which the layers are already. Else the artifact is the image.
"""

import json
import random
import time
from collections.abc import Callable, Mapping
from typing import Any

from rootless_udi.base import fastjson
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan.reference import Reference, digest_fault
from rootless_udi.pull import artifact, manifest
from rootless_udi.pull.content import ImageContent
from rootless_udi.pull.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor
from rootless_udi.pull.registry import Endpoint, Missing
from rootless_udi.pull.repository import fallback_tag
from rootless_udi.pull.sources import parse
from rootless_udi.pull.unfinished import Unfinished
from rootless_udi.pull.upload import Report, Uploading
from rootless_udi.store.store import Store

_TRIES = 5
"""How often an index of referrers is written anew where others write it at the same time."""
_NOT_PUSHED = ("pushed", "signed")
"""Facts that say how an image came to this store."""


class Pushed(Record):
    """`digest` is that of the artifact's manifest, `subject` that of the image's, "" for none."""

    digest: str
    subject: str


def push(
    target: Reference,
    there: Uploading,
    origin: Endpoint | None,
    content: ImageContent,
    facts: Mapping[str, Any],
    report: Report,
    told: Callable[[str], object],
    store: Store | None = None,
) -> Pushed:
    """Push an image to `target` at `there`; `origin` is the repository of the same registry that it
    was pulled from, None where there is none.

    `told` is called with what happens. In `store` is noted how far it is, for the next push after
    this one was killed. Raises UdiError.
    """
    subject = _subject(there, origin, str(facts.get("digest") or ""), told)
    # Before minutes of sending.
    _look_at_tag(target, there, subject)
    unfinished = Unfinished(store, str(there), content.mark)
    try:
        digest = there.upload(content, report, unfinished)
    finally:
        unfinished.close()
    listed, windows = content.listed()
    known = {key: value for key, value in facts.items() if key not in _NOT_PUSHED}
    known = {"version": 1, **known, "windows": [listed]}
    data = fastjson.dumps(known, separators=(",", ":")).encode("utf-8", "surrogateescape")
    there.put_blob(artifact.EMPTY_BODY, artifact.EMPTY)
    body = artifact.made(
        Descriptor(artifact.SQUASHFS, digest, content.size),
        there.put_blob(windows, artifact.WINDOWS),
        there.put_blob(data, artifact.FACTS),
        listed,
        subject,
    )
    own = manifest.sha256(body)
    headers = there.put_manifest(own, body, OCI_MANIFEST)
    if subject is None:
        told(f"it is an image of its own there: {there.host} has not the image's own manifest")
        if target.tag and not target.digest:
            there.put_manifest(target.tag, body, OCI_MANIFEST)
        return Pushed(own, "")
    if headers.get("OCI-Subject") != subject.digest:
        _note(there, subject.digest, Descriptor(OCI_MANIFEST, own, len(body)), body)
        tag = fallback_tag(subject.digest)
        told(f"{there.host} does not list referrers itself: they are under the tag {tag}")
    return Pushed(own, subject.digest)


def _subject(
    there: Uploading, origin: Endpoint | None, digest: str, told: Callable[[str], object]
) -> Descriptor | None:
    """Return the image's own manifest in the repository, None where it can't be there."""
    if digest_fault(digest):
        return None
    for endpoint in (there, origin):
        if endpoint is None:
            continue
        try:
            body, media = endpoint.manifest(digest, "reading")
        except Missing:
            continue
        document = parse(body, f"reading {endpoint}@{digest}")
        if artifact.is_one(document):
            return None
        media = manifest.media_type(document, media, f"reading {endpoint}@{digest}")
        if endpoint is not there:
            if not _mounted(there, document):
                return None
            there.put_manifest(digest, body, media)
            told(f"the image's own manifest and layers are in {there} too, from {endpoint}")
        return Descriptor(media, digest, len(body))
    return None


def _mounted(there: Uploading, document: dict[str, Any]) -> bool:
    """Have all blobs of an image from the other repository; tell whether they are there."""
    found = manifest.manifest(document, f"reading what {there} may have")
    blobs = dict.fromkeys(one.digest for one in (found.config, *found.layers))
    return all(there.has(digest) or there.mounted(digest) for digest in blobs)


def _look_at_tag(target: Reference, there: Uploading, subject: Descriptor | None) -> None:
    """Give the image's manifest its tag, if the tag is free. Raises UdiError where it is not."""
    if target.digest:
        if subject is None or subject.digest != target.digest:
            raise UdiError(
                f"pushing {target.canonical}: {there} has not the image {target.digest}, or it is "
                "another one than that in the store",
                "push it to a tag",
            )
        return
    what = f"reading {there}:{target.tag}"
    try:
        body, _ = there.manifest(target.tag, "reading")
    except Missing:
        if subject is not None:
            body, _ = there.manifest(subject.digest, "reading")
            there.put_manifest(target.tag, body, subject.media_type)
        return
    document = parse(body, what)
    if subject is None:
        if artifact.is_one(document):
            return
    elif subject.digest in (manifest.sha256(body), *_entries(document, what)):
        return
    raise UdiError(
        f"pushing {target.canonical}: that tag is another image there ({manifest.sha256(body)})",
        "push it to another tag",
    )


def _entries(document: object, what: str) -> list[str]:
    if not isinstance(document, dict) or "manifests" not in document:
        return []
    return [one.digest for _, one in manifest.entries(document, "the index", what)[0]]


def _note(there: Uploading, subject: str, one: Descriptor, body: bytes) -> None:
    """Name the artifact in the index under the fallback tag (distribution-spec 1.1, "Referrers Tag
    Schema"). Raises UdiError.

    Nothing prevents two clients from doing so at once: who has read it before another one's entry
    was there takes that away. So each looks again after a while, and adds its own once more.
    """
    tag = fallback_tag(subject)
    document = json.loads(body)
    entry = {
        **artifact.described(one),
        "artifactType": artifact.TYPE,
        "annotations": document["annotations"],
    }
    for number in range(_TRIES):
        # Longer than another one takes from reading to writing.
        time.sleep(random.uniform(0.4, 0.8) if number else 0)
        index = _index(there, tag)
        if any(isinstance(e, dict) and e.get("digest") == one.digest for e in index["manifests"]):
            return
        index["manifests"].append(entry)
        text = json.dumps(index, separators=(",", ":")).encode()
        there.put_manifest(tag, text, OCI_INDEX)
    raise UdiError(
        f"pushing {there}@{one.digest}: others take it out of {there}:{tag} again and again",
        "try again when they have ended",
    )


def _index(there: Uploading, tag: str) -> dict[str, Any]:
    empty = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}
    try:
        found = parse(there.manifest(tag, "reading")[0], f"reading {there}:{tag}")
    except Missing:
        return empty
    if not isinstance(found, dict) or not isinstance(found.get("manifests"), list):
        raise UdiError(f"reading {there}:{tag}: is no index of referrers", "remove that tag")
    return found
