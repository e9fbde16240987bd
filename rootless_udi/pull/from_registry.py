"""An image in a registry (the OCI distribution specification)."""

import hashlib
from collections.abc import Sequence

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import Platform, Reference
from rootless_udi.pull.artifact import FoundSquashfs
from rootless_udi.pull.blobs import Blobs, Report
from rootless_udi.pull.claims import Believed
from rootless_udi.pull.manifest import Descriptor
from rootless_udi.pull.referrers import find_squashfs
from rootless_udi.pull.registry import Endpoint
from rootless_udi.pull.repository import RegistryOptions, Repository
from rootless_udi.pull.sources import Resolved, Told, config_of, descend, pushed
from rootless_udi.pull.stop import Stop


class RegistrySource:
    """An image of a registry; the mirrors that the site has for it are asked first."""

    parallel = 4

    def __init__(
        self, reference: Reference, blobs: Blobs, stop: Stop, options: RegistryOptions
    ) -> None:
        self.what = f"pulling {reference.canonical}"
        self._reference = reference
        self._blobs = blobs
        self.repository = Repository(reference, stop, options)

    def resolve(self, platform: Platform) -> Resolved:
        first = self._reference.digest or self._reference.tag
        body, told = self.repository.manifest(first)
        top = _digest_of(body, self._reference.digest)

        def read(descriptor: Descriptor) -> bytes:
            return self.repository.manifest(descriptor.digest)[0]

        found = descend(body, told, top, platform, self.what, read)
        if found.artifact is not None:
            return pushed(found, platform, top, self._reference.registry)
        raw = self.repository.document(found.manifest.config, "config")
        config = config_of(raw, found, platform, self.what)
        return Resolved(found.digest, found.manifest, config, top if top != found.digest else "")

    def allowed(self, resolved: Resolved, believed: Believed) -> tuple[str, ...]:
        digests = [resolved.digest, *([resolved.index] if resolved.index else [])]
        return believed.allow(self._reference, digests, self.repository.signatures)

    def squashfs(self, digest: str, believed: Believed, told: Told) -> FoundSquashfs | None:
        try:
            return find_squashfs(self.repository, digest, believed, told)
        except UdiError as error:
            told(error.message)
            return None

    def order(self, layers: Sequence[Descriptor]) -> list[Descriptor]:
        """Return the layers with the largest first, since it takes the longest."""
        return sorted(layers, key=lambda layer: -layer.size)

    def fetch(self, layer: Descriptor, report: Report) -> str:
        def ask(endpoint: Endpoint) -> str:
            what = f"pulling blob {layer.digest} of {endpoint}"
            return self._blobs.fetch(layer, endpoint.blob, report, what)

        return self.repository.first(ask)

    def room(self, layers: Sequence[Descriptor]) -> int:
        unique = {layer.digest: layer for layer in layers}.values()
        return sum(layer.size - self._blobs.have(layer) for layer in unique)

    def close(self, used: bool) -> None:
        self._blobs.release(used)
        self.repository.close()


def _digest_of(body: bytes, asked: str) -> str:
    if asked:
        return asked
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
