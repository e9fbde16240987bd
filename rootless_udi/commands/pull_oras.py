"""udi pull oras://HOST/NAME:TAG [NAME]: a SIF file that is in a registry as an artifact.

`apptainer push` and `oras push` make such artifacts: a manifest (image-spec 1.1) with one layer,
which is the file. It is fetched as an image's layers are, to where the store has those, and
imported.
"""

import argparse

from rootless_udi.base.errors import UdiError, amount
from rootless_udi.base.process import tell
from rootless_udi.commands.common import newfile
from rootless_udi.commands.common.given import Arguments, image_stores
from rootless_udi.commands.import_ import import_
from rootless_udi.plan.reference import Reference, parse
from rootless_udi.plan.site import Site
from rootless_udi.store.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.pull.manifest import Descriptor
    from rootless_udi.pull.repository import Repository

PREFIX = "oras://"
TYPE = "application/vnd.sylabs.sif.layer.v1.sif"
"""The layer's media type (apptainer's `oras` package)."""


def pull(arguments: Arguments, site: Site) -> int:
    """Fetch the file and import it; print the digest of what it became in the store."""
    from rootless_udi.pull.blobs import Blobs
    from rootless_udi.pull.claims import believed
    from rootless_udi.pull.registry import Endpoint
    from rootless_udi.pull.repository import RegistryOptions, Repository
    from rootless_udi.pull.stop import Stop

    reference = _reference(arguments.image, site)
    name = arguments.name or reference.canonical
    note = (lambda text: None) if arguments.quiet else tell
    store, stop = Store(image_stores(site)[0]), Stop()
    store.create()
    blobs = Blobs(store, stop, arguments.keep_blobs, note)
    insecure = arguments.insecure or reference.registry in site.insecure
    there = Repository(reference, stop, RegistryOptions(insecure, dict(site.mirrors), note=note))
    used = False
    try:
        with newfile.ending():
            layer, digest = _layer(there, reference)
            believed(site).allow(reference, [digest], there.signatures)
            note(f"fetching a SIF file of {amount(layer.size)}")

            def ask(endpoint: Endpoint) -> str:
                what = f"pulling blob {layer.digest} of {endpoint}"
                return blobs.fetch(layer, endpoint.blob, lambda done: None, what)

            path = there.first(ask)
            status = import_(argparse.Namespace(file=path, name=name))
            used = True
        return status
    finally:
        blobs.release(used)
        there.close()


def _reference(text: str, site: Site) -> Reference:
    rest = text.removeprefix(PREFIX)
    if "/" not in rest:
        raise UdiError(f"pulling {text} failed: it names no registry", "oras://HOST/NAME:TAG")
    return parse(f"docker://{rest}", site.registry)


def _layer(there: "Repository", reference: Reference) -> "tuple[Descriptor, str]":
    """Return the file's descriptor and the manifest's digest. Raises UdiError."""
    import hashlib

    from rootless_udi.pull import manifest
    from rootless_udi.pull.registry import check
    from rootless_udi.pull.sources import parse as parsed

    what = f"pulling {PREFIX}{reference.canonical}"
    body, _ = there.manifest(reference.digest or reference.tag)
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if reference.digest:
        check(body, reference.digest, what)
        digest = reference.digest
    document = parsed(body, what)
    layers = document.get("layers") if isinstance(document, dict) else None
    found = [
        manifest.descriptor(layer, f"layer {number + 1}", what)
        for number, layer in enumerate(layers if isinstance(layers, list) else ())
    ]
    if len(found) != 1 or found[0].media_type != TYPE:
        types = ", ".join(one.media_type for one in found[:3]) or "nothing"
        raise UdiError(
            f"{what} failed: it is no SIF file: {types}",
            f"an image is pulled by its name alone: udi pull {reference.canonical}",
        )
    return found[0], digest
