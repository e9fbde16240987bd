"""What an image is pulled from: a registry, an OCI image layout, an archive of `docker save`.

`Source` is what all of them can do: first read the documents (`resolve`), then give a local file
for each layer (`fetch`). All that a source returns has been checked against its digest.
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from rootless_udi.base.errors import UdiError, counted
from rootless_udi.base.records import Record
from rootless_udi.layers.bounds import INDEXES
from rootless_udi.plan.reference import Platform, platform_of
from rootless_udi.pull import artifact, manifest
from rootless_udi.pull.artifact import Artifact, FoundSquashfs
from rootless_udi.pull.blobs import Report
from rootless_udi.pull.claims import Believed
from rootless_udi.pull.manifest import Config, Descriptor, Manifest
from rootless_udi.pull.registry import WrongContent

Answer = TypeVar("Answer")
Told = Callable[[str], object]


class Resolved(Record):
    """An image of one platform: `digest` of its manifest, `index` of its index or "".

    `name` is what an archive says that its image is called, or "". `found` is the image's squashfs,
    if it is one that was pushed as such: then the manifest has no layers, and the config says
    nothing.
    """

    digest: str
    manifest: Manifest
    config: Config
    index: str = ""
    name: str = ""
    found: FoundSquashfs | None = None


class Source(Protocol):
    """One image to pull. Calls block; `fetch` is called from at most `parallel` threads."""

    parallel: int

    def resolve(self, platform: Platform) -> Resolved:
        """Read index, manifest and config. Raises UdiError, also for a wrong platform."""
        ...

    def order(self, layers: Sequence[Descriptor]) -> list[Descriptor]:
        """Return the layers in the order in which they are best fetched."""
        ...

    def allowed(self, resolved: Resolved, believed: Believed) -> tuple[str, ...]:
        """Return who vouches for the image by the policy, in words; () where nobody need. Raises
        UdiError where the policy refuses it: to be called before anything of it is used."""
        ...

    def squashfs(self, digest: str, believed: Believed, told: Told) -> FoundSquashfs | None:
        """Return a squashfs that was pushed for the image `digest`, None where none is to be used;
        `told` is called with the reasons."""
        ...

    def fetch(self, layer: Descriptor, report: Report) -> str:
        """Return the path of a layer's compressed blob, checked; it stays until `close`."""
        ...

    def room(self, layers: Sequence[Descriptor]) -> int:
        """Return the bytes that `fetch` will write into the store."""
        ...

    def close(self, used: bool) -> None:
        """Release the files of `fetch`. `used`: the image was made, they are not needed again."""
        ...


class FoundManifest(Record):
    """The manifest that was chosen for a platform.

    `unnamed` is the platform that counts where its config names none. `artifact` is what the
    manifest says if it is a pushed squashfs; `manifest` has no layers then.
    """

    digest: str
    manifest: Manifest
    unnamed: Platform
    artifact: Artifact | None = None


def parse(body: bytes, what: str) -> Any:
    """Return a JSON document, whose texts can all be encoded as UTF-8. Raises UdiError.

    Bytes that are no UTF-8 and halves of surrogate pairs become U+FFFD, as in Go's encoding/json:
    Docker and others, which are written in Go, run such images.
    """
    try:
        found = json.loads(body.decode("utf-8-sig", "replace"))
        return _whole(found) if b"\\ud" in body.lower() else found
    except (ValueError, RecursionError) as error:
        raise UdiError(f"{what}: is no JSON: {error}") from None


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in value)
    if isinstance(value, dict):
        return {_whole(key): _whole(one) for key, one in value.items()}
    return [_whole(one) for one in value] if isinstance(value, list) else value


def descend(
    body: bytes,
    told: str,
    digest: str,
    platform: Platform,
    what: str,
    read: Callable[[Descriptor], bytes],
    entry: Platform | None = None,
) -> FoundManifest:
    """Return the manifest for `platform`: the document `body` itself, or what its indexes lead to.

    `told` is the document's media type, perhaps "". `read` returns the bytes of an index or
    manifest, checked; `entry` is the platform that an index gave for the document. Raises UdiError.
    """
    for _ in range(INDEXES):
        document = parse(body, what)
        if manifest.media_type(document, told, what) in manifest.MANIFESTS:
            unnamed = entry or platform_of(os.uname().machine)
            if artifact.is_one(document):
                parts = artifact.parsed(document, what)
                return FoundManifest(digest, Manifest(parts.facts, ()), unnamed, parts)
            return FoundManifest(digest, manifest.manifest(document, what), unnamed)
        chosen = manifest.choose(document, platform, what)
        # A parsed document takes 30 times its bytes of memory: have one at a time.
        del document
        body, told, digest = _sized(read(chosen), chosen, what), chosen.media_type, chosen.digest
        entry = chosen.platform or entry
    raise UdiError(f"{what}: has more than {INDEXES} indexes within each other")


def _sized(body: bytes, descriptor: Descriptor, what: str) -> bytes:
    """Return a document; raise WrongContent unless it is as long as its descriptor says."""
    if len(body) != descriptor.size:
        raise WrongContent(
            f"{what}: {descriptor.digest} has {counted(len(body), 'byte')}, its descriptor says "
            f"{descriptor.size}",
            "what refers to it is wrong: push the image again",
        )
    return body


def pushed(found: FoundManifest, platform: Platform, top: str, host: str) -> Resolved:
    """Return the image of its own that a pushed squashfs is: `artifact` says why.

    `top` is the digest by which it was found, `host` what has it.
    """
    assert found.artifact is not None
    why = "the name means it"
    one = FoundSquashfs(found.digest, found.digest, found.artifact, host, why)
    index = top if top != found.digest else ""
    return Resolved(found.digest, found.manifest, Config(platform, ()), index, found=one)


def config_of(raw: bytes, found: FoundManifest, platform: Platform, what: str) -> Config:
    """Return a config, checked against its manifest and the wanted platform.

    The digest of `raw` has been checked. Raises UdiError.
    """
    _sized(raw, found.manifest.config, what)
    media, layers = found.manifest.config.media_type, len(found.manifest.layers)
    return manifest.config(parse(raw, what), platform, found.unnamed, layers, what, media)


_REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"


def from_index(
    index: Any,
    tag: str,
    digest: str,
    platform: Platform,
    what: str,
    read: Callable[[Descriptor], bytes],
) -> Resolved:
    """Return the image of a layout's index.json that has this tag or digest; both may be empty.

    A tag is an entry's annotation org.opencontainers.image.ref.name. Without tag and digest there
    must be one image only, perhaps for several platforms. Raises UdiError.
    """
    entries, fault = manifest.entries(index, "index.json", what)
    names: list[str] = []
    chosen = []
    for entry, one in entries:
        known = _names(entry)
        names += known[:1]
        if (digest and one.digest == digest) or (not digest and (not tag or tag in known)):
            chosen.append((entry, one))
    if not chosen and fault is not None:
        raise fault
    if not chosen:
        wanted = digest or f"tag {tag!r}"
        raise UdiError(f"{what}: has no {wanted}", f"it has {', '.join(names) or 'no tags'}")
    if not (tag or digest) and len({(_names(entry) or [""])[0] for entry, _ in chosen}) > 1:
        raise UdiError(f"{what}: holds several images", f"add one of its tags: {', '.join(names)}")
    if len(chosen) == 1:
        top = chosen[0][1]
    else:
        top = manifest.choose({"manifests": [entry for entry, _ in chosen]}, platform, what)
    # 4 MiB of JSON may be 100 MiB when parsed: free it before the next document is read.
    del index, entries, chosen, entry, one
    body = _sized(read(top), top, what)
    found = descend(body, top.media_type, top.digest, platform, what, read, top.platform)
    if found.artifact is not None:
        return pushed(found, platform, top.digest, "")
    config = config_of(read(found.manifest.config), found, platform, what)
    index_digest = top.digest if top.digest != found.digest else ""
    return Resolved(found.digest, found.manifest, config, index_digest)


def _names(entry: Any) -> list[str]:
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        return []
    names = [annotations.get(_REF_NAME), annotations.get(_CONTAINERD_NAME)]
    return [name for name in names if isinstance(name, str) and name]
