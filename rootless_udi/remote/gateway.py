"""An image of a site's gateway (docs/gateway.md), to be read where it is: `gateway://HOST/NAME`."""

import os

from rootless_udi.base import windows
from rootless_udi.base.errors import UdiError
from rootless_udi.base.windows import place
from rootless_udi.config import load
from rootless_udi.plan.reference import parse_platform, platform_of
from rootless_udi.pull import from_gateway
from rootless_udi.pull.gateway import GatewayClient
from rootless_udi.pull.http import Reply
from rootless_udi.remote.sources import Remote, RemoteRequest, begun, end
from rootless_udi.serve.distant import THERE
from rootless_udi.store.store import Store


class _GatewayFile:
    """The file of the image `digest` at a gateway, an `Origin`."""

    # Its ETag is the digest, which another file of the same image has too; the list tells.
    pinned = True
    others = 0

    def __init__(self, client: GatewayClient, digest: str) -> None:
        self.size = 0
        self.shown = f"image {digest} of the gateway at {client.address}"
        self._client, self._digest = client, digest

    def ask(self, headers: dict[str, str]) -> Reply:
        return self._client.part(self._digest, headers)

    def failed(self) -> None:
        """Do nothing: there is no other place."""

    def reached(self) -> bool:
        return bool(self._client.transport.reached)


def of_gateway(asked: RemoteRequest) -> Remote | str:
    """Return the image; THERE where it is to fill a store that has it. Raises UdiError."""
    site = load.load(dict(os.environ))
    one = from_gateway.meant(asked.image, site, asked.insecure, asked.timeout)
    platform = parse_platform(asked.platform) if asked.platform else platform_of(os.uname().machine)
    digest, own = from_gateway.found(one, platform)
    if own and asked.fill and Store(asked.folder).image(own) is not None:
        for name in one.names:
            Store(asked.folder).set_name(name, platform, own)
        return THERE
    given = one.client.facts(digest)
    ranges, head, used = begun(_GatewayFile(one.client, digest), asked.timeout)
    last, tail = end(ranges, head, used, asked.folder)
    try:
        known = windows.behind(lambda at, most: bytes(tail[at - place(used) :][:most]), used)
    except ValueError as error:
        raise UdiError(f"reading {ranges.shown} failed: {error}") from None
    if known is None:
        raise UdiError(f"reading {ranges.shown} failed: it has no list of its windows")
    own = own or known.digest
    facts = from_gateway.facts(given, digest, own, one.names[0])
    names = tuple((platform.key(), name) for name in one.names)
    return Remote(ranges, head, used, tail, known, own, facts, names, last)
