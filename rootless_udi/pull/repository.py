"""A repository of a registry, with the mirrors that the site has for it, which are asked first."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan.reference import Reference
from rootless_udi.pull import credentials, manifest, signature
from rootless_udi.pull.authorizer import Lookup
from rootless_udi.pull.http import Transport
from rootless_udi.pull.manifest import Descriptor
from rootless_udi.pull.registry import Endpoint, Missing, Note
from rootless_udi.pull.retry import GaveUp, Patience
from rootless_udi.pull.signature import Signature
from rootless_udi.pull.sources import Answer, parse
from rootless_udi.pull.stop import Stop


class RegistryOptions(Record):
    """How a registry is asked. `mirrors`: registry -> hosts or URLs that are tried before it.

    `note` gets what is tried again; `lookup` finds the credentials for a repository, None means
    those of the process's user. `answer`: most seconds for an answer (`http.Transport`).
    """

    insecure: bool = False
    mirrors: Mapping[str, Sequence[str]] = {}
    patience: Patience = Patience()
    note: Note | None = None
    lookup: Lookup | None = None
    answer: float | None = None


class Repository:
    """The repository that `reference` names. Calls block; they may come from several threads.

    Where the time is fixed (`Patience.total`), a mirror that was given up is not asked again.
    """

    def __init__(self, reference: Reference, stop: Stop, options: RegistryOptions) -> None:
        self.reference = reference
        self._note = options.note or (lambda text: None)
        self.transport = Transport(stop, answer=options.answer)
        patience = options.patience
        self._fixed = bool(patience.total)
        brief = patience.replace(attempts=1 if self._fixed else 2)
        hosts = [*options.mirrors.get(reference.registry, ()), reference.registry]
        self.endpoints = [
            Endpoint(
                host,
                reference.repository,
                self.transport,
                # A mirror that does not answer is given up soon: there is another after it.
                patience if host == reference.registry else brief,
                options.insecure and host == reference.registry,
                self._note,
                options.lookup or credentials.find,
            )
            for host in hosts
        ]

    def first(self, ask: Callable[[Endpoint], Answer]) -> Answer:
        """Return the answer of the first endpoint that has one; the registry itself comes last."""
        *mirrors, registry = self.endpoints
        said: list[str] = []
        for mirror in mirrors:
            try:
                return ask(mirror)
            except Missing:
                said.append(f"mirror {mirror.host} does not have it")
            except UdiError as error:
                said.append(f"mirror {mirror.host}: {error.message}")
                self._note(said[-1])
                if self._fixed and isinstance(error, GaveUp):
                    self.endpoints = [one for one in self.endpoints if one is not mirror]
        try:
            return ask(registry)
        except Missing:
            raise
        except UdiError as error:
            if said:
                error.hint = "; ".join([*said, *([error.hint] if error.hint else [])])
            raise

    def manifest(self, reference: str) -> tuple[bytes, str]:
        """Return a manifest's bytes and its media type; `reference` is a tag or a digest."""
        return self.first(lambda endpoint: endpoint.manifest(reference))

    def document(self, descriptor: Descriptor, part: str) -> bytes:
        """Return a small blob whole and checked."""
        return self.first(lambda endpoint: endpoint.document(descriptor, part))

    def signatures(self, digest: str) -> list[Signature]:
        """Return the signatures beside a manifest, where cosign has them. Raises UdiError."""
        name = signature.tag(digest)
        what = f"reading {self.reference.registry}/{self.reference.repository}:{name}"
        try:
            document = parse(self.manifest(name)[0], what)
        except Missing:
            return []
        layers = document.get("layers") if isinstance(document, dict) else None
        found: list[Signature] = []
        for number, layer in enumerate(layers if isinstance(layers, list) else ()):
            one = manifest.descriptor(layer, f"layer {number + 1}", what)
            notes = layer.get("annotations")
            signed = notes.get(signature.ANNOTATION) if isinstance(notes, dict) else None
            fine = one.media_type == signature.PAYLOAD and one.size <= signature.PAYLOAD_MAX
            if fine and isinstance(signed, str) and len(found) < signature.SIGNATURES:
                found.append(Signature(self.document(one, "signature"), signed))
        return found

    def close(self) -> None:
        self.transport.close()


def referrers(
    endpoint: Endpoint, digest: str, kind: str
) -> list[tuple[dict[str, Any], Descriptor]]:
    """Return what refers to the manifest `digest` and is of artifactType `kind`, at one endpoint.

    Asked by the referrers API (distribution-spec 1.1, "Listing Referrers"); a registry without it
    has them in an index under a tag that the digest names. Raises UdiError.
    """
    what = f"listing what refers to {endpoint}@{digest}"
    found = []
    try:
        query = f"?artifactType={kind}"
        bodies = list(endpoint.listing(f"referrers/{digest}", what, query))
    except GaveUp:
        raise
    except UdiError:
        # 404 by the specification; others answer 400 or 405.
        try:
            bodies = [endpoint.manifest(fallback_tag(digest))[0]]
        except Missing:
            return []
    for body in bodies:
        for entry, one in manifest.entries(parse(body, what), "the index", what)[0]:
            # The registry may have filtered, and need not.
            if entry.get("artifactType") == kind:
                found.append((entry, one))
    return found


def fallback_tag(digest: str) -> str:
    """Return the tag of the index of referrers (distribution-spec 1.1, "Referrers Tag Schema")."""
    algorithm, _, text = digest.partition(":")
    return f"{algorithm[:32]}-{text[:64]}"
