"""An image in an OCI image layout on disk (image-layout.md of the OCI image specification)."""

import os
from collections.abc import Sequence

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import Platform, Reference
from rootless_udi.pull import manifest
from rootless_udi.pull.artifact import FoundSquashfs
from rootless_udi.pull.blobs import Report, verify
from rootless_udi.pull.claims import Believed
from rootless_udi.pull.manifest import Descriptor
from rootless_udi.pull.registry import check
from rootless_udi.pull.sources import Resolved, Told, from_index, parse
from rootless_udi.pull.stop import Stop


class LayoutSource:
    """An OCI image layout on disk (image-spec 1.1, image-layout.md), its blobs read in place."""

    parallel = 2

    def __init__(self, reference: Reference, stop: Stop) -> None:
        self.what = f"reading {reference.canonical}"
        self._reference = reference
        self._stop = stop
        self._path = os.path.abspath(reference.path)

    def resolve(self, platform: Platform) -> Resolved:
        version = parse(self._file("oci-layout"), f"{self.what}: oci-layout")
        found = version.get("imageLayoutVersion") if isinstance(version, dict) else None
        if not isinstance(found, str) or found.partition(".")[0] != "1":
            raise UdiError(f"{self.what}: image layout version {found!r} is unknown")
        del version, found
        reference = self._reference
        return from_index(
            # Given no name here, so that its memory can be freed within from_index.
            parse(self._file("index.json"), f"{self.what}: index.json"),
            reference.tag,
            reference.digest,
            platform,
            self.what,
            self._document,
        )

    def _file(self, name: str) -> bytes:
        path = f"{self._path}/{name}"
        try:
            with open(trust.regular(path), "rb") as file:
                body = file.read(manifest.DOCUMENT_MAX + 1)
        except OSError as error:
            hint = "an OCI image layout has oci-layout, index.json and blobs/"
            raise UdiError(f"{self.what} failed on {path}: {error.strerror}", hint) from None
        if len(body) > manifest.DOCUMENT_MAX:
            raise UdiError(f"{self.what} failed on {path}: is larger than any document may be")
        return body

    def _blob(self, descriptor: Descriptor) -> str:
        return "/".join((self._path, "blobs", *descriptor.digest.split(":")))

    def _document(self, descriptor: Descriptor) -> bytes:
        body = self._file("blobs/" + descriptor.digest.replace(":", "/"))
        check(body, descriptor.digest, f"{self.what}: {descriptor.digest}")
        return body

    def allowed(self, resolved: Resolved, believed: Believed) -> tuple[str, ...]:
        return believed.allow(self._reference, (), lambda digest: ())

    def squashfs(self, digest: str, believed: Believed, told: Told) -> FoundSquashfs | None:
        return None

    def order(self, layers: Sequence[Descriptor]) -> list[Descriptor]:
        return list(layers)

    def fetch(self, layer: Descriptor, report: Report) -> str:
        path = self._blob(layer)
        verify(path, layer, f"{self.what}: blob {layer.digest}", self._stop, report)
        return path

    def room(self, layers: Sequence[Descriptor]) -> int:
        return 0

    def close(self, used: bool) -> None:
        pass
