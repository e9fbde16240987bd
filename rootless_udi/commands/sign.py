"""udi sign: sign an image in a registry, as cosign does with a key."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say, tell
from rootless_udi.commands.common.given import Arguments, parsed_reference
from rootless_udi.commands.common.keys import private_key
from rootless_udi.commands.common.parsers import Parsers, add_insecure, command
from rootless_udi.config import load


def add(commands: Parsers) -> None:
    """Add the parser of `udi sign`."""
    one = command(commands, "sign", sign, "sign an image in a registry by a key")
    one.add_argument("image", help="REGISTRY/NAME:TAG, or @sha256:HEX of an image or an artifact")
    one.add_argument("--key", metavar="FILE", required=True, help="the private key (PEM)")
    one.add_argument(
        "--recursive", action="store_true", help="also each image of an index, as podman wants it"
    )
    add_insecure(one)


def sign(arguments: Arguments) -> int:
    """udi sign: print the digest of each manifest that was signed."""
    site = load.load(os.environ)
    reference = parsed_reference(arguments.image, site)
    if reference.kind != "registry":
        raise UdiError(f"{arguments.image} is not in a registry", "udi push puts it into one")
    from rootless_udi.pull import identity, manifest, signing
    from rootless_udi.pull.http import Transport
    from rootless_udi.pull.sources import parse
    from rootless_udi.pull.upload import Uploading

    key = private_key(arguments.key)
    insecure = arguments.insecure or reference.registry in site.insecure
    transport = Transport()
    there = Uploading(
        reference.registry, reference.repository, transport, insecure=insecure, note=tell
    )
    body, _ = there.manifest(reference.digest or reference.tag, "reading")
    digests = [reference.digest or manifest.sha256(body)]
    document = parse(body, f"reading {there}@{digests[0]}")
    if arguments.recursive and isinstance(document, dict) and "manifests" in document:
        found, _ = manifest.entries(document, "the index", f"reading {there}@{digests[0]}")
        digests += [one.digest for _, one in found]
    named = identity.Name(str(there), f":{reference.tag}" if not reference.digest else "")
    for digest in digests:
        if not signing.sign(there, named, digest, key):
            tell(f"{digest} is signed by this key already")
        say(digest)
    transport.close()
    return 0
