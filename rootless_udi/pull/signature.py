"""Signatures of images as cosign makes them with keys: a "simple signing" payload and ECDSA.

Beside an image with the manifest sha256:HEX lies, under the tag sha256-HEX.sig, a manifest whose
layers are payloads; an annotation of each is the signature of its bytes (cosign, SIGNATURE_SPEC;
containers-signature(5)). A payload names the digest and the image's name: a signature proves
nothing for another digest, and by the policy nothing for another name.

The arithmetic is the library `cryptography`'s, an extra: `[sign]`. Not `sigstore`, which brings 30
packages for what has no key: certificates of Fulcio and the log Rekor, which a cluster can't reach.
"""

import base64
import binascii
import json
import sys
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan.reference import digest_fault
from rootless_udi.pull import identity
from rootless_udi.pull.identity import Name

PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
ANNOTATION = "dev.cosignproject.cosign/signature"
_TYPE = "cosign container image signature"
PAYLOAD_MAX = 1 << 18
_MAKE = "openssl ecparam -name prime256v1 -genkey -noout makes one"
SIGNATURES = 64
"""Most signatures of one image that are looked at."""


class Signature(Record):
    """A payload, and the signature of its bytes, in base64."""

    payload: bytes
    signed: str


class Claim(Record):
    """What a payload says: the digest of a manifest, and the image's name."""

    digest: str
    name: Name


def tag(digest: str) -> str:
    """Return the tag under which the signatures of a manifest lie."""
    return digest.replace(":", "-", 1) + ".sig"


def payload(digest: str, name: Name) -> bytes:
    """Return what is signed."""
    document = {
        "critical": {
            "identity": {"docker-reference": str(name)},
            "image": {"docker-manifest-digest": digest},
            "type": _TYPE,
        },
        "optional": {"creator": "rootless_udi"},
    }
    return json.dumps(document, separators=(",", ":")).encode()


def claim(data: bytes) -> Claim:
    """Return what a payload says. Raises ValueError; nothing of it is guessed."""
    document = json.loads(data.decode(), object_pairs_hook=_once)
    critical = _members(document, {"critical"}, {"optional"})["critical"]
    _members(critical, {"identity", "image", "type"})
    image = _members(critical["image"], {"docker-manifest-digest"})
    who = _members(critical["identity"], {"docker-reference"})
    digest, name = image["docker-manifest-digest"], who["docker-reference"]
    if critical["type"] != _TYPE:
        raise ValueError(f"it is of type {critical['type']!r}")
    fault = digest_fault(digest)
    if fault:
        raise ValueError(fault)
    try:
        return Claim(digest, identity.name(name if isinstance(name, str) else ""))
    except UdiError as error:
        raise ValueError(error.message) from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a member is there twice")
    return found


def _members(value: Any, needed: set[str], more: frozenset[str] | set[str] = frozenset()) -> Any:
    if not isinstance(value, dict) or not needed <= set(value) <= needed | more:
        raise ValueError(f"it has not just the members {', '.join(sorted(needed))}")
    return value


def _library() -> None:
    """Have `cryptography` importable. Raises UdiError."""
    if sys.flags.no_site:
        # The process of a lazy start, which needs nothing else of site-packages.
        import site

        site.main()
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise UdiError(
            "checking and making signatures needs the Python module cryptography",
            "pip install 'rootless_udi[sign]' installs it; Debian has it as python3-cryptography",
        ) from None


class PublicKey:
    """A public key, of ECDSA; `name` says in messages which."""

    def __init__(self, pem: bytes, name: str) -> None:
        """Raises UdiError for what is no such key."""
        _library()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key

        self.name = name
        try:
            key = load_pem_public_key(pem)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise UdiError(f"reading key {name} failed: it is no public key: {error}") from None
        if not isinstance(key, EllipticCurvePublicKey):
            raise UdiError(f"reading key {name} failed: it is not one of ECDSA", _MAKE)
        self._key = key

    def made(self, one: Signature) -> bool:
        """Tell whether this key has signed the payload."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        try:
            signed = base64.b64decode(one.signed, validate=True)
            self._key.verify(signed, one.payload, ECDSA(SHA256()))
        except (InvalidSignature, binascii.Error, ValueError):
            return False
        return True


class PrivateKey:
    """A private key of ECDSA, with which images are signed; `public` is its other half."""

    def __init__(self, pem: bytes, password: str, name: str) -> None:
        """`password` is "" for a key that is not encrypted. Raises UdiError for what is no such
        key, and for a password that is wrong or missing."""
        _library()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
        from cryptography.hazmat.primitives.serialization import (
            Encoding,
            PublicFormat,
            load_pem_private_key,
        )

        if b" SIGSTORE PRIVATE KEY" in pem or b" COSIGN PRIVATE KEY" in pem:
            hint = "let cosign sign with it; or make one with openssl, which cosign imports too"
            raise UdiError(f"reading key {name} failed: it is encrypted in cosign's own way", hint)
        try:
            key = load_pem_private_key(pem, password.encode() if password else None)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            hint = "the password of an encrypted key is in COSIGN_PASSWORD, or asked for"
            raise UdiError(f"reading key {name} failed: {error}", hint) from None
        if not isinstance(key, EllipticCurvePrivateKey):
            raise UdiError(f"reading key {name} failed: it is not one of ECDSA", _MAKE)
        self._key = key
        form = PublicFormat.SubjectPublicKeyInfo
        self.public = PublicKey(key.public_key().public_bytes(Encoding.PEM, form), name)

    def sign(self, data: bytes) -> str:
        """Return the signature of `data`, in base64."""
        from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
        from cryptography.hazmat.primitives.hashes import SHA256

        return base64.b64encode(self._key.sign(data, ECDSA(SHA256()))).decode()
