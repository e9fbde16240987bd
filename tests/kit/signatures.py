"""Signatures of images by cosign's specification, made by openssl and nothing of ours."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

from tests.kit.artifacts import MANIFEST, Pusher

PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
ANNOTATION = "dev.cosignproject.cosign/signature"


class Key:
    """A key pair of ECDSA P-256 in two PEM files."""

    def __init__(self, folder: Path, name: str) -> None:
        self.private, self.public = folder / f"{name}.key", folder / f"{name}.pub"
        argv = ["openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout"]
        subprocess.run([*argv, "-out", self.private], check=True, capture_output=True)
        argv = ["openssl", "ec", "-in", str(self.private), "-pubout", "-out", str(self.public)]
        subprocess.run(argv, check=True, capture_output=True)

    def sign(self, data: bytes) -> str:
        argv = ["openssl", "dgst", "-sha256", "-sign", str(self.private)]
        out = subprocess.run(argv, input=data, check=True, capture_output=True).stdout
        return base64.b64encode(out).decode()

    def verified(self, data: bytes, signature: str, folder: Path) -> bool:
        file = folder / "signature"
        file.write_bytes(base64.b64decode(signature))
        argv = ["openssl", "dgst", "-sha256", "-verify", str(self.public), "-signature", str(file)]
        return subprocess.run(argv, input=data, capture_output=True).returncode == 0


def payload(digest: str, name: str, **changed: Any) -> bytes:
    """What is signed; `changed` are members of the whole."""
    critical = {
        "identity": {"docker-reference": name},
        "image": {"docker-manifest-digest": digest},
        "type": "cosign container image signature",
    }
    return json.dumps({"critical": critical, "optional": None, **changed}).encode()


def attach(pusher: Pusher, digest: str, *signed: tuple[bytes, str]) -> None:
    """Put signatures, each (payload, in base64), where those of a manifest lie."""
    config = pusher.blob(b'{"rootfs": {}}', "application/vnd.oci.image.config.v1+json")
    layers = [
        {**pusher.blob(data, PAYLOAD), "annotations": {ANNOTATION: text}} for data, text in signed
    ]
    document = {"schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers}
    pusher.manifest(digest.replace(":", "-") + ".sig", document)
