"""Sign a manifest in a registry by a key, and put the signature beside it as cosign does."""

import json
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.pull import artifact, identity, manifest, signature
from rootless_udi.pull.manifest import OCI_CONFIG, OCI_MANIFEST
from rootless_udi.pull.registry import Missing
from rootless_udi.pull.signature import SIGNATURES, PrivateKey, Signature
from rootless_udi.pull.sources import parse
from rootless_udi.pull.upload import Uploading

_NO_TIME = "0001-01-01T00:00:00Z"


def sign(there: Uploading, name: identity.Name, digest: str, key: PrivateKey) -> bool:
    """Sign the manifest `digest` at `there` as the image `name`.

    Return False where this key has done so before. Raises UdiError.
    """
    tag = signature.tag(digest)
    document = _there(there, tag)
    layers: list[dict[str, Any]] = document["layers"]
    data = signature.payload(digest, name)
    own = manifest.sha256(data)
    for layer in layers:
        signed = layer["annotations"].get(signature.ANNOTATION)
        given = Signature(data, signed if isinstance(signed, str) else "")
        if layer["digest"] == own and key.public.made(given):
            return False
    if len(layers) >= SIGNATURES:
        raise UdiError(
            f"signing {there}@{digest} failed: it has {len(layers)} signatures, which is the most",
            f"remove some from {there}:{tag}",
        )
    one = artifact.described(there.put_blob(data, signature.PAYLOAD))
    layers.append({**one, "annotations": {signature.ANNOTATION: key.sign(data)}})
    config = {
        "architecture": "",
        "created": _NO_TIME,
        "history": [{"created": _NO_TIME} for _ in layers],
        "os": "",
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
        "config": {},
    }
    text = json.dumps(config, separators=(",", ":")).encode()
    document["config"] = artifact.described(there.put_blob(text, OCI_CONFIG))
    body = json.dumps(document, separators=(",", ":")).encode()
    there.put_manifest(tag, body, OCI_MANIFEST)
    return True


def _there(there: Uploading, tag: str) -> dict[str, Any]:
    """Return the manifest of the signatures that are there, or an empty one. Raises UdiError."""
    empty = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": {}, "layers": []}
    what = f"reading {there}:{tag}"
    try:
        found = parse(there.manifest(tag, "reading")[0], what)
    except Missing:
        return empty
    layers = found.get("layers") if isinstance(found, dict) else None
    if not isinstance(layers, list):
        raise UdiError(f"{what}: it has no list of signatures", "remove that tag")
    for number, layer in enumerate(layers):
        manifest.descriptor(layer, f"signature {number + 1}", what)
        if not isinstance(layer.get("annotations"), dict):
            raise UdiError(f"{what}: signature {number + 1} has no annotations", "remove that tag")
    return {**empty, "layers": layers}
