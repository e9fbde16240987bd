"""An image in a registry (the OCI distribution specification)."""

import hashlib
from collections.abc import Callable, Mapping, Sequence

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import Platform, Reference
from rootless_udi.pull import credentials
from rootless_udi.pull.authorizer import Lookup
from rootless_udi.pull.blobs import Blobs, Report
from rootless_udi.pull.http import Transport
from rootless_udi.pull.manifest import Descriptor
from rootless_udi.pull.registry import Endpoint, Missing, Note
from rootless_udi.pull.retry import Patience
from rootless_udi.pull.sources import Answer, Resolved, config_of, descend
from rootless_udi.pull.stop import Stop


class RegistrySource:
    """An image of a registry; the mirrors that the site has for it are asked first."""

    parallel = 4

    def __init__(
        self,
        reference: Reference,
        blobs: Blobs,
        stop: Stop,
        insecure: bool = False,
        mirrors: Mapping[str, Sequence[str]] | None = None,
        patience: Patience | None = None,
        note: Note = lambda text: None,
        lookup: Lookup = credentials.find,
    ) -> None:
        self.what = f"pulling {reference.canonical}"
        self._reference = reference
        self._blobs = blobs
        self._note = note
        self._transport = Transport(stop)
        hosts = [*(mirrors or {}).get(reference.registry, ()), reference.registry]
        self._endpoints = [
            Endpoint(
                host,
                reference.repository,
                self._transport,
                # A mirror that does not answer is given up soon: there is another after it.
                patience if host == reference.registry else Patience(attempts=2),
                insecure and host == reference.registry,
                note,
                lookup,
            )
            for host in hosts
        ]

    def _first(self, ask: Callable[[Endpoint], Answer]) -> Answer:
        """Return the answer of the first endpoint that has one; the registry itself comes last."""
        *mirrors, registry = self._endpoints
        said: list[str] = []
        for mirror in mirrors:
            try:
                return ask(mirror)
            except Missing:
                said.append(f"mirror {mirror.host} does not have it")
            except UdiError as error:
                said.append(f"mirror {mirror.host}: {error.message}")
                self._note(said[-1])
        try:
            return ask(registry)
        except Missing:
            raise
        except UdiError as error:
            if said:
                error.hint = "; ".join([*said, *([error.hint] if error.hint else [])])
            raise

    def resolve(self, platform: Platform) -> Resolved:
        first = self._reference.digest or self._reference.tag
        body, told = self._first(lambda endpoint: endpoint.manifest(first))
        top = _digest_of(body, self._reference.digest)

        def read(descriptor: Descriptor) -> bytes:
            return self._first(lambda endpoint: endpoint.manifest(descriptor.digest))[0]

        found = descend(body, told, top, platform, self.what, read)
        raw = self._first(lambda endpoint: endpoint.document(found.manifest.config, "config"))
        config = config_of(raw, found, platform, self.what)
        return Resolved(found.digest, found.manifest, config, top if top != found.digest else "")

    def order(self, layers: Sequence[Descriptor]) -> list[Descriptor]:
        """Return the layers with the largest first, since it takes the longest."""
        return sorted(layers, key=lambda layer: -layer.size)

    def fetch(self, layer: Descriptor, report: Report) -> str:
        def ask(endpoint: Endpoint) -> str:
            what = f"pulling blob {layer.digest} of {endpoint}"
            return self._blobs.fetch(layer, endpoint.blob, report, what)

        return self._first(ask)

    def room(self, layers: Sequence[Descriptor]) -> int:
        unique = {layer.digest: layer for layer in layers}.values()
        return sum(layer.size - self._blobs.have(layer) for layer in unique)

    def close(self, used: bool) -> None:
        self._blobs.release(used)
        self._transport.close()


def _digest_of(body: bytes, asked: str) -> str:
    if asked:
        return asked
    return f"sha256:{hashlib.sha256(body).hexdigest()}"
