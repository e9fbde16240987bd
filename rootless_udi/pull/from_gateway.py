"""Fetch an image as a gateway has it, whole, into a store of one's own: `gateway://HOST/NAME`.

Nothing is merged or compressed again: the gateway's squashfs is the image, with the list of its
windows behind it, by which each MiB is compared. What the image is, the gateway says; TLS proves
who that is. A gateway that the configuration does not name is not told who asks, and is not
believed which registry's image it is: the image is called by its list's digest then.
"""

import os
from collections.abc import Callable, Mapping
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan.reference import GATEWAY, Platform, Reference, digest_fault, named, parse
from rootless_udi.plan.site import Site
from rootless_udi.pull import policy
from rootless_udi.pull.gateway import ANY_SYSTEM, GatewayClient
from rootless_udi.pull.proxies import is_loopback
from rootless_udi.store import adding, find, windows
from rootless_udi.store.find import StoredImage
from rootless_udi.store.store import Store, discard

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


class GatewayImage(Record):
    """What "gateway://HOST/NAME" means: `image` of the gateway that `client` asks; `names` are what
    the image is called in a store."""

    client: GatewayClient
    image: Reference
    names: tuple[str, ...]


def meant(text: str, site: Site, insecure: bool = False, answer: float = 60) -> GatewayImage:
    """Return what `text` means; without HOST it is of the site's own gateway.

    `answer`: most seconds for an answer. Raises UdiError, also where the policy refuses the image.
    """
    reference = named(text, site.registry)
    host = reference.path
    address = f"https://{host}" if host else site.gateway
    if is_loopback(host.rpartition(":")[0] if ":" in host and host[-1].isdigit() else host):
        address = f"http://{host}"
    if not address:
        raise UdiError(
            f"{text}: the configuration names no image gateway",
            "gateway.address names it; gateway://HOST/NAME is an image of another one",
        )
    image = parse(f"docker://{reference.canonical[len(GATEWAY) + len(host) + 1 :]}")
    if site.policy:
        policy.read(site.policy).check(image, (), None)
    known = address == site.gateway.rstrip("/") or host in site.trusted
    insecure = insecure or host in site.insecure
    client = GatewayClient(address, ANY_SYSTEM, site.gateway_munge, known, insecure, answer)
    names = (find.name_of(reference), *([find.name_of(image)] if known else []))
    return GatewayImage(client, image, names)


def found(one: GatewayImage, platform: Platform) -> tuple[str, str]:
    """Return the digest by which the gateway has the image, and the one by which a store calls it,
    "" where that is its list's. Raises UdiError."""
    record = one.client.lookup(one.image, str(platform))
    digest = f"sha256:{record.get('id')}"
    if not _proper(digest):
        raise UdiError(
            f"the gateway at {one.client.address} gave no digest for {one.image.canonical}"
        )
    return digest, digest if one.client.known else ""


def facts(given: Mapping[str, Any], digest: str, own: str, reference: str) -> dict[str, Any]:
    """Return what a store has of an image of which the gateway says `given`; `own` is its digest
    here, `digest` the gateway's, `reference` its name."""
    # Who has signed or pushed it, the gateway's pull says, and nobody here has looked at.
    kept = {key: value for key, value in given.items() if key not in ("signed", "pushed")}
    if own != digest:
        kept |= {"reference": reference, "index": ""}
    return {**kept, "version": 1, "digest": own}


def pull(
    one: GatewayImage,
    store: Store,
    platform: Platform,
    names: tuple[str, ...],
    tell: Callable[[int, int], None],
) -> StoredImage:
    """Bring an image of a gateway's into `store`, under `names`. Raises UdiError.

    `tell` gets (done, of all) bytes.
    """
    digest, own = found(one, platform)
    given = one.client.facts(digest)
    if not own:
        # What the file must have then.
        listed = given.get("windows")
        own = str(listed[0]) if isinstance(listed, list) and listed else ""
        if not _proper(own):
            raise UdiError(f"the gateway at {one.client.address} names no list of {digest}")
    store.create()
    lock = store.lock(own)
    lock.wait()
    try:
        image = store.image(own)
        if image is None:
            made = facts(given, digest, own, one.names[0])
            image = _fetch(one, store, digest, made, tell)
    finally:
        lock.release()
    for name in names:
        store.set_name(name, platform, own)
    return image


def _proper(digest: str) -> bool:
    """Tell whether what a gateway calls an image can be the name of a file."""
    return digest.startswith("sha256:") and not digest_fault(digest)


def _fetch(
    one: GatewayImage,
    store: Store,
    digest: str,
    made: dict[str, Any],
    tell: Callable[[int, int], None],
) -> StoredImage:
    own = made["digest"]
    path = store.temporary("images", own)
    try:
        fd = os.open(path, _NEW, 0o600)
        try:
            one.client.download(digest, fd, tell)
            used = windows.used(fd)
            try:
                listed = windows.behind(fd, used) if used else None
            except ValueError:
                listed = None
            if listed is None or own not in (digest, listed.digest):
                raise UdiError(f"what the gateway sent for {digest} is no image of its store")
            windows.refuse_damage(fd, f"fetching {digest} failed")
        finally:
            os.close(fd)
        return adding.add(store, own, path, made, listed)
    except OSError as error:
        raise store.refused(f"fetching image {digest}", error) from None
    finally:
        discard(path)
