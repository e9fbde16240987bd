"""Where an image comes from: a registry, an OCI image layout, an archive of `docker save`.

Each source gives the documents first (`resolve`), then a local file for each layer (`fetch`). All
that a source gives has been checked against its digest.
"""

import json
import os
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.layers.bounds import INDEXES
from rootless_udi.plan.reference import Platform, platform_of
from rootless_udi.pull import manifest
from rootless_udi.pull.blobs import Report
from rootless_udi.pull.manifest import Config, Descriptor, Manifest
from rootless_udi.pull.registry import WrongContent

Answer = TypeVar("Answer")


class Resolved(Record):
    """An image of one platform. `digest` is its manifest's, `index` that of the index or ""."""

    digest: str
    manifest: Manifest
    config: Config
    index: str = ""


class Source(Protocol):
    """One image somewhere. Blocking; `fetch` is called from at most `parallel` threads."""

    parallel: int

    def resolve(self, platform: Platform) -> Resolved:
        """Read index, manifest and config. Raises UdiError, also for a wrong platform."""
        ...

    def order(self, layers: Sequence[Descriptor]) -> list[Descriptor]:
        """Return the layers in the order in which they are best fetched."""
        ...

    def fetch(self, layer: Descriptor, report: Report) -> str:
        """Return the path of a layer's compressed blob, checked; it stays until `close`."""
        ...

    def room(self, layers: Sequence[Descriptor]) -> int:
        """Return the bytes that `fetch` will write into the store."""
        ...

    def close(self, used: bool) -> None:
        """Let go of what `fetch` gave; `used`: the image was made, nobody needs it again."""
        ...


class FoundManifest(Record):
    """The manifest that was chosen for a platform.

    `unnamed` is the platform that its config is taken to be for where the config names none.
    """

    digest: str
    manifest: Manifest
    unnamed: Platform


def parse(body: bytes, what: str) -> Any:
    """Return a JSON document, each text of it such as UTF-8 has. Raises UdiError.

    What is none (bytes that are no UTF-8, half of a surrogate pair) becomes U+FFFD, as in Go's
    encoding/json, whose programs run such images: no variable or label holds it as it was.
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
    """Go from a document to the manifest for `platform`, through indexes.

    `read` returns an index's or manifest's bytes, their digest checked; `entry` is the platform
    that is known of the document.
    """
    for _ in range(INDEXES):
        document = parse(body, what)
        if manifest.media_type(document, told, what) in manifest.MANIFESTS:
            unnamed = entry or platform_of(os.uname().machine)
            return FoundManifest(digest, manifest.manifest(document, what), unnamed)
        chosen = manifest.choose(document, platform, what)
        # Each is 30 times its bytes in memory: one at a time.
        del document
        body, told, digest = sized(read(chosen), chosen, what), chosen.media_type, chosen.digest
        entry = chosen.platform or entry
    raise UdiError(f"{what}: has more than {INDEXES} indexes within each other")


def sized(body: bytes, descriptor: Descriptor, what: str) -> bytes:
    """Return a document; raise WrongContent unless it is as long as its descriptor says."""
    if len(body) != descriptor.size:
        raise WrongContent(
            f"{what}: {descriptor.digest} has {len(body)} bytes, its descriptor says "
            f"{descriptor.size}",
            "what refers to it is wrong: push the image again",
        )
    return body


def config_of(raw: bytes, found: FoundManifest, platform: Platform, what: str) -> Config:
    """Check a config's bytes (their digest is) against its manifest and the wanted platform."""
    sized(raw, found.manifest.config, what)
    media, layers = found.manifest.config.media_type, len(found.manifest.layers)
    return manifest.config(parse(raw, what), platform, found.unnamed, layers, what, media)


REF_NAME = "org.opencontainers.image.ref.name"
_CONTAINERD_NAME = "io.containerd.image.name"


def from_index(
    index: Any,
    tag: str,
    digest: str,
    platform: Platform,
    what: str,
    read: Callable[[Descriptor], bytes],
) -> Resolved:
    """Resolve in a layout's index.json by `tag` (annotation ref.name) or digest; both may be empty.

    Without them there must be one image only, perhaps for several platforms.
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
    # What is parsed of 4 MiB may be 100 MiB: gone before the next is read.
    del index, entries, chosen, entry, one
    body = sized(read(top), top, what)
    found = descend(body, top.media_type, top.digest, platform, what, read, top.platform)
    config = config_of(read(found.manifest.config), found, platform, what)
    index_digest = top.digest if top.digest != found.digest else ""
    return Resolved(found.digest, found.manifest, config, index_digest)


def _names(entry: Any) -> list[str]:
    annotations = entry.get("annotations")
    if not isinstance(annotations, dict):
        return []
    names = [annotations.get(REF_NAME), annotations.get(_CONTAINERD_NAME)]
    return [name for name in names if isinstance(name, str) and name]
