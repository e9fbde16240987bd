"""Artifacts as `udi push` makes them, pushed by other code: urllib, and what the format says."""

import hashlib
import json
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from rootless_udi.store import windows

TYPE = "application/vnd.rootless-udi.image.v1"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"


def digest_of(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Pusher:
    """Pushes to the repository `name` at `host`, by plain http."""

    def __init__(self, host: str, name: str) -> None:
        self.url = f"http://{host}/v2/{name}"

    def blob(self, data: bytes, media: str) -> dict[str, Any]:
        """Push a blob in one piece; return its descriptor."""
        request = urllib.request.Request(f"{self.url}/blobs/uploads/", b"", method="POST")
        with urllib.request.urlopen(request) as reply:
            place = urllib.parse.urljoin(self.url, reply.headers["Location"])
        place += ("&" if "?" in place else "?") + f"digest={digest_of(data)}"
        head = {"Content-Type": "application/octet-stream"}
        urllib.request.urlopen(urllib.request.Request(place, data, head, method="PUT")).close()
        return {"mediaType": media, "digest": digest_of(data), "size": len(data)}

    def manifest(self, tag: str, document: dict[str, Any]) -> dict[str, Any]:
        """Push a manifest or an index under a tag, or "" for its digest; return its descriptor."""
        body = json.dumps(document).encode()
        place = f"{self.url}/manifests/{tag or digest_of(body)}"
        head = {"Content-Type": document["mediaType"]}
        urllib.request.urlopen(urllib.request.Request(place, body, head, method="PUT")).close()
        return {"mediaType": document["mediaType"], "digest": digest_of(body), "size": len(body)}

    def read(self, path: str) -> Any:
        """Return a document, None where there is none."""
        try:
            with urllib.request.urlopen(
                urllib.request.Request(
                    f"{self.url}/{path}", headers={"Accept": f"{MANIFEST},{INDEX}"}
                )
            ) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            assert error.code == 404, error
            return None

    def delete(self, digest: str) -> None:
        """Remove a manifest."""
        request = urllib.request.Request(f"{self.url}/manifests/{digest}", method="DELETE")
        urllib.request.urlopen(request).close()

    def referrer(self, entry: dict[str, Any], subject: str) -> None:
        """Name a referrer under the fallback tag."""
        tag = subject.replace(":", "-")
        index = self.read(f"manifests/{tag}") or {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [],
        }
        index["manifests"].append({**entry, "artifactType": TYPE})
        self.manifest(tag, index)


def artifact(
    pusher: Pusher,
    squashfs: Path,
    facts: dict[str, Any],
    subject: dict[str, Any] | None = None,
    tag: str = "",
    **changed: Any,
) -> dict[str, Any]:
    """Push an image's file as an artifact; `changed` are members of its manifest. Return its
    descriptor."""
    data = squashfs.read_bytes()
    used = int.from_bytes(data[40:48], "little")
    listed = data[used + -used % 4096 :]
    with open(squashfs, "rb") as file:
        known = windows.behind(file.fileno(), used)
    assert known is not None
    base = "application/vnd.rootless-udi"
    document = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "artifactType": TYPE,
        "config": pusher.blob(b"{}", "application/vnd.oci.empty.v1+json"),
        "layers": [
            pusher.blob(data, f"{base}.squashfs.v1"),
            pusher.blob(listed, f"{base}.windows.v1"),
            pusher.blob(json.dumps(facts).encode(), f"{base}.facts.v1+json"),
        ],
        "annotations": {"org.rootless-udi.windows": known.digest},
        **({"subject": subject} if subject else {}),
        **changed,
    }
    return pusher.manifest(tag, document)
