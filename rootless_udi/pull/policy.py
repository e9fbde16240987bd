"""Which images may be pulled, and who must have signed them: containers-policy.json(5).

Understood are reject, insecureAcceptAnything and sigstoreSigned with keys. Of the other types of
requirements (signedBy; sigstoreSigned with certificates or a log) an image that falls under them is
refused: a policy never means less than it says.
"""

import base64
import binascii
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan.reference import STORAGES, Reference
from rootless_udi.pull import identity
from rootless_udi.pull.identity import Identity, Name
from rootless_udi.pull.signature import Claim, PublicKey, Signature, claim

_ARCHIVES = ("docker-archive", "oci-archive")
_TRANSPORTS = {"registry": ("docker",), "archive": _ARCHIVES, "stream": _ARCHIVES}
"""Kind of a reference -> the specification's transports. Which of the two an archive is, only its
content says: what is said of either counts."""
_KEYS = ("keyPath", "keyPaths", "keyData", "keyDatas")
_NO_KEYS = (
    *("fulcio", "pki", "rekorPublicKeyPath", "rekorPublicKeyPaths", "rekorPublicKeyData"),
    "rekorPublicKeyDatas",
)

Signatures = Callable[[str], Sequence[Signature]]
"""Returns the signatures that lie beside a manifest, by its digest. Raises UdiError."""


class Requirement(Record):
    """One of a scope's requirements, of which all must be met.

    `kind` is the specification's, or "unsupported": then `why` says what is not understood. `keys`
    are their names, with PEM texts, or b"" where the name is a file that has it.
    """

    kind: str
    keys: tuple[tuple[str, bytes], ...] = ()
    identity: Identity = Identity("matchRepoDigestOrExact")
    why: str = ""


class Policy(Record):
    """The policy of the file at `path`: the default, and transport -> scope -> requirements."""

    path: str
    default: tuple[Requirement, ...]
    transports: Mapping[str, Mapping[str, tuple[Requirement, ...]]]

    def requirements(self, reference: Reference) -> tuple[str, tuple[Requirement, ...]]:
        """Return the scope that counts for an image, in words, and its requirements."""
        found: list[Requirement] = []
        words = []
        for transport in _TRANSPORTS.get(reference.kind, (reference.kind,)):
            scopes = self.transports.get(transport, {})
            if reference.kind in STORAGES and set(scopes) - {""}:
                why = f"scopes of {transport} are not understood here"
                return transport, (Requirement("unsupported", why=why),)
            scope = next((one for one in _scopes(reference) if one in scopes), None)
            if scope is not None:
                found += scopes[scope]
                words.append(f"{transport} {scope}".strip())
        return (", ".join(words), tuple(found)) if words else ("default", self.default)

    def keyed(self, reference: Reference) -> bool:
        """Tell whether the policy names keys for an image: then signed claims may be believed."""
        return any(one.kind == "sigstoreSigned" for one in self.requirements(reference)[1])

    def check(
        self,
        reference: Reference,
        digests: Sequence[str],
        signatures: Signatures | None,
        wanted: Name | None = None,
    ) -> tuple[str, ...]:
        """Return who vouches for an image, in words; () where the policy asks for nobody.

        `digests` are those of its manifest and of the index that led there: a signature of either
        counts. `signatures` is None where the image comes from what has none (a gateway). `wanted`
        is what it must be signed as, the image's name without it. Raises UdiError where the policy
        refuses it.
        """
        scope, needed = self.requirements(reference)
        what = f"image {reference.canonical} is refused by the policy {self.path} ({scope})"
        found = []
        for one in needed:
            if one.kind == "reject":
                raise UdiError(f"{what}: it rejects all", "whoever wrote the policy knows why")
            if one.kind == "unsupported":
                raise UdiError(f"{what}: {one.why}", "sigstoreSigned with keyPath is understood")
            if one.kind == "sigstoreSigned":
                if reference.kind != "registry" or signatures is None:
                    raise UdiError(
                        f"{what}: it must be signed, and only registries have signatures"
                    )
                name = wanted or identity.of(reference)
                found.append(_signed(one, name, digests, signatures, what))
        return tuple(found)


def _signed(
    one: Requirement,
    wanted: Name,
    digests: Sequence[str],
    signatures: Signatures,
    what: str,
) -> str:
    """Return who has signed one of `digests`. Raises UdiError where nobody has who counts."""
    keys = [PublicKey(pem or _file(name), name) for name, pem in one.keys]
    reasons: dict[str, None] = {}
    for digest in digests:
        for given in signatures(digest):
            key = next((key for key in keys if key.made(given)), None)
            if key is None:
                reasons["a signature is by another key"] = None
                continue
            try:
                said = claim(given.payload)
            except ValueError as error:
                reasons[f"the payload of a signature is not as specified: {error}"] = None
                continue
            against = _against(said, digest, wanted, one.identity)
            if not against:
                return f"signed by {key.name} for {said.name}"
            reasons[against] = None
    why = "; ".join(reasons) or "it is not signed"
    raise UdiError(f"{what}: {why}", "udi sign signs an image; cosign does, with keys")


def _against(said: Claim, digest: str, wanted: Name, one: Identity) -> str:
    if said.digest != digest:
        return f"a signature is for {said.digest}"
    if not one.fits(wanted, said.name):
        return f"a signature is for {said.name} ({one.kind})"
    return ""


def _scopes(reference: Reference) -> list[str]:
    """Return the scopes that an image falls under, the most specific one first."""
    if reference.kind in ("oci", "archive"):
        # The specification has absolute paths without links.
        path = os.path.realpath(reference.path)
        parts = path.rstrip("/").split("/")
        tagged = [f"{path}:{reference.tag}"] if reference.tag else []
        return [*tagged, *("/".join(parts[:n]) or "/" for n in range(len(parts), 0, -1)), ""]
    if reference.kind != "registry":
        return [""]
    name = f"{reference.registry}/{reference.repository}"
    parts = name.split("/")
    found = [str(identity.of(reference))]
    found += ["/".join(parts[:length]) for length in range(len(parts), 0, -1)]
    host = reference.registry.partition(":")[0].split(".")
    found += ["*." + ".".join(host[length:]) for length in range(1, len(host))]
    return [*found, ""]


def read(path: str) -> Policy:
    """Return the policy in a file. Raises UdiError where it is not as specified."""
    try:
        text = trust.read(path, what="the policy").decode()
        document = json.loads(text, object_pairs_hook=_once)
        _only(document, "the policy", {"default"}, {"transports"})
        transports = {}
        for name, scopes in document.get("transports", {}).items():
            transports[name] = {
                scope: _requirements(value, f"{name} {scope!r}") for scope, value in scopes.items()
            }
        return Policy(path, _requirements(document["default"], "default"), transports)
    except OSError as error:
        raise UdiError(
            f"reading the policy failed on {path}: {error.strerror}", "image.policy names it"
        ) from None
    except (ValueError, AttributeError, RecursionError) as error:
        raise UdiError(
            f"reading the policy failed on {path}: {error}", "containers-policy.json(5) says how"
        ) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError(f"{max(found, key=[key for key, _ in pairs].count)!r} is there twice")
    return found


def _only(value: Any, where: str, needed: set[str], more: set[str]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where} is no object")
    if missing := needed - set(value):
        raise ValueError(f"{where} has no {min(missing)}")
    if unknown := set(value) - needed - more:
        raise ValueError(f"{where} has the unknown member {min(unknown)!r}")


def _requirements(value: Any, where: str) -> tuple[Requirement, ...]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"{where} is no list of requirements")
    return tuple(_requirement(one, where) for one in value)


def _requirement(value: Any, where: str) -> Requirement:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: a requirement is no object")
    kind = value.get("type")
    if kind in ("reject", "insecureAcceptAnything"):
        _only(value, where, {"type"}, set())
        return Requirement(kind)
    if kind == "signedBy":
        return Requirement("unsupported", why="signedBy (GPG) is not understood here")
    if kind != "sigstoreSigned":
        raise ValueError(f"{where}: a requirement of type {kind!r}")
    _only(value, where, {"type"}, {*_KEYS, *_NO_KEYS, "signedIdentity"})
    other = [name for name in _NO_KEYS if name in value]
    if other:
        return Requirement("unsupported", why=f"sigstoreSigned with {other[0]} is not understood")
    named = [name for name in _KEYS if name in value]
    if len(named) != 1:
        raise ValueError(f"{where}: sigstoreSigned has one of {', '.join(_KEYS)}")
    fits = identity.parsed(value.get("signedIdentity", identity.DEFAULT))
    return Requirement(kind, _keys(named[0], value[named[0]], where), fits)


def _keys(member: str, value: Any, where: str) -> tuple[tuple[str, bytes], ...]:
    words = value if member.endswith("s") else [value]
    if not isinstance(words, list) or not words or not all(isinstance(x, str) for x in words):
        raise ValueError(f"{where}: {member} is no {'list of texts' if words is value else 'text'}")
    if member.startswith("keyData"):
        try:
            found = [base64.b64decode(word, validate=True) for word in words]
        except binascii.Error:
            raise ValueError(f"{where}: {member} is no base64") from None
        return tuple((f"{member} of {where}", pem) for pem in found)
    for path in words:
        if not path.startswith("/"):
            raise ValueError(f"{where}: {member} {path!r} is no absolute path")
    return tuple((path, b"") for path in words)


def _file(path: str) -> bytes:
    """Return the key in a file, which nobody may write who could not write the policy."""
    try:
        return trust.read(path, what="the key")
    except OSError as error:
        raise UdiError(f"reading key {path} failed: {error.strerror}") from None
