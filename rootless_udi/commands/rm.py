"""udi rm: remove names and images from the user's store."""

import os

from rootless_udi.base.errors import OURS, UdiError
from rootless_udi.base.process import complain, say
from rootless_udi.commands.common import names
from rootless_udi.commands.common.given import (
    Arguments,
    image_stores,
    parsed_platform,
    parsed_reference,
)
from rootless_udi.commands.common.parsers import Parsers, add_platform, command
from rootless_udi.config import load
from rootless_udi.plan.reference import ELSEWHERE, Platform, Reference, parse, platform_of
from rootless_udi.store import filling, find, upkeep
from rootless_udi.store.store import Store


def add(commands: Parsers) -> None:
    """Add the parser of `udi rm`."""
    one = command(commands, "rm", rm, "remove images from the store")
    one.add_argument("image", nargs="+", help="a name, a digest, or its first digits")
    add_platform(one)


def rm(arguments: Arguments) -> int:
    """udi rm: print each name and image that is removed; go on after one that is not there."""
    site = load.load(os.environ)
    store = Store(image_stores(site)[0])
    platform = parsed_platform(arguments) or platform_of(os.uname().machine)
    status = 0
    for text in arguments.image:
        reference: Reference | None = None
        try:
            reference = parsed_reference(text, site)
            gone, digests = store.remove(_meant(text, reference, store, platform), platform)
        except UdiError as error:
            if reference is None or not _stopped(store, text, reference, platform):
                complain("udi", error.message, error.hint)
                status = OURS
            continue
        for name in gone:
            say(f"untagged {names.familiar(name, site.registry)}")
        for digest in digests:
            say(f"removed {digest}")
    return status


def _stopped(store: Store, text: str, reference: Reference, platform: Platform) -> bool:
    """Drop an image that is filling (--pull=lazy); tell whether there was one."""
    digits = upkeep.short(text)
    for one in filling.listed(store):
        by_digits = digits and one.digest.partition(":")[2].startswith(digits)
        by_name = any((platform.key(), name) in one.names for name in _names(reference))
        if by_digits or by_name or reference.digest == one.digest:
            try:
                filling.drop(store, one)
            except OSError as error:
                raise store.refused(f"removing {text}", error) from None
            say(f"removed {one.digest}, of which {one.there} of {one.windows} MiB were there")
            return True
    return False


def _names(reference: Reference) -> tuple[str, ...]:
    return (find.name_of(reference),) if reference.kind in ELSEWHERE else ()


def _meant(text: str, reference: Reference, store: Store, platform: Platform) -> Reference:
    """Return what `text` means: a name in the store, else the first digits of a digest."""
    if upkeep.short(text) and find.find((store.root,), reference, platform) is None:
        digest = upkeep.by_digits((store.root,), upkeep.short(text))
        return parse(digest) if digest else reference
    return reference
