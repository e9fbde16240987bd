"""Fetch an image as a gateway has it, whole, into a store of one's own: `gateway://HOST/NAME`.

Nothing is merged or compressed again: the gateway's squashfs is the image, with the list of its
windows behind it, by which each MiB is compared. What the image is, the gateway says; TLS proves
who that is.
"""

import os
import urllib.parse
from collections.abc import Callable

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import Platform, Reference, parse
from rootless_udi.pull.gateway import GatewayClient
from rootless_udi.pull.proxies import is_loopback
from rootless_udi.store import adding, windows
from rootless_udi.store.find import StoredImage
from rootless_udi.store.store import Store, discard

SCHEME = "gateway://"
_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def parts(text: str, site_gateway: str, registry: str) -> tuple[str, Reference]:
    """Return the gateway's address and the image of "gateway://HOST/NAME"; without HOST, the
    site's own gateway's. Raises UdiError."""
    host, _, name = text.removeprefix(SCHEME).partition("/")
    address = site_gateway if not host else f"https://{host}"
    bare = host.rpartition(":")[0] if host[-1:].isdigit() and ":" in host else host
    if host and is_loopback(bare):
        address = f"http://{host}"
    if not name or not address:
        raise UdiError(
            f"{text}: names no image of a gateway",
            "gateway://HOST/NAME:TAG; gateway:///NAME:TAG asks the one of gateway.address",
        )
    return address, parse(f"docker://{urllib.parse.unquote(name)}", registry)


def pull(
    client: GatewayClient,
    reference: Reference,
    store: Store,
    platform: Platform,
    name: str,
    tell: Callable[[int, int], None],
) -> StoredImage:
    """Bring an image of the gateway's into `store`, under `name`. Raises UdiError.

    `tell` gets (done, of all) bytes.
    """
    record = client.lookup(reference, str(platform))
    digest = f"sha256:{record.get('id')}"
    if not _proper(digest):
        raise UdiError(f"the gateway at {client.address} gave no digest for {reference.canonical}")
    store.create()
    lock = store.lock(digest)
    lock.wait()
    try:
        image = store.image(digest)
        if image is None:
            image = _fetch(client, store, digest, tell)
    finally:
        lock.release()
    store.set_name(name, platform, digest)
    return image


def _proper(digest: str) -> bool:
    """Tell whether what a gateway calls an image can be the name of a file."""
    return len(digest) == 71 and not {*digest.removeprefix("sha256:")} - {*"0123456789abcdef"}


def _fetch(
    client: GatewayClient, store: Store, digest: str, tell: Callable[[int, int], None]
) -> StoredImage:
    facts = client.facts(digest)
    path = store.temporary("images", digest)
    try:
        fd = os.open(path, _NEW, 0o600)
        try:
            client.download(digest, fd, tell)
            used = windows.used(fd)
            try:
                listed = windows.behind(fd, used) if used else None
            except ValueError:
                listed = None
            if listed is None:
                raise UdiError(f"what the gateway sent for {digest} is no image of its store")
            windows.refuse_damage(fd, f"fetching {digest} failed")
        finally:
            os.close(fd)
        return adding.add(store, digest, path, {**facts, "digest": digest}, listed)
    except OSError as error:
        raise store.refused(f"fetching image {digest}", error) from None
    finally:
        discard(path)
