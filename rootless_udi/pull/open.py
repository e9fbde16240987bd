"""From a reference to the source that gives its image."""

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import STORAGES, Reference
from rootless_udi.pull.blobs import Blobs
from rootless_udi.pull.from_layout import LayoutSource
from rootless_udi.pull.from_registry import RegistrySource
from rootless_udi.pull.repository import RegistryOptions
from rootless_udi.pull.sources import Source
from rootless_udi.pull.stop import Stop


def open_source(reference: Reference, blobs: Blobs, stop: Stop, options: RegistryOptions) -> Source:
    """Return the source that `reference` names. Raises UdiError where there is nothing to pull."""
    if reference.kind == "registry":
        return RegistrySource(reference, blobs, stop, options)
    if reference.kind == "oci":
        return LayoutSource(reference, stop)
    if reference.kind == "archive":
        from rootless_udi.pull.from_archive import ArchiveSource

        return ArchiveSource(reference, blobs, stop)
    if reference.kind == "stream" or reference.kind in STORAGES:
        from rootless_udi.pull.from_stream import StreamSource

        return StreamSource(reference, blobs.store, blobs, stop)
    raise UdiError(
        f"pulling {reference.canonical}: there is nothing to pull",
        "a digest names an image of the store, a path a file or directory that udi-run takes as is",
    )
