"""udi tag: give an image of the user's store another name."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say
from rootless_udi.commands.common import names
from rootless_udi.commands.common.given import (
    Arguments,
    image_stores,
    parsed_platform,
    stored_image,
)
from rootless_udi.commands.common.parsers import Parsers, add_platform, command
from rootless_udi.config import load
from rootless_udi.plan.reference import Platform, parse, platform_of, platform_of_key
from rootless_udi.plan.site import Site
from rootless_udi.store import find, resolve, upkeep
from rootless_udi.store.store import Store


def add(commands: Parsers) -> None:
    """Add the parser of `udi tag`."""
    one = command(commands, "tag", tag, "give an image another name")
    one.add_argument("image")
    one.add_argument("name", metavar="NAME")
    add_platform(one)


def tag(arguments: Arguments) -> int:
    """udi tag: print the name; the image that had it keeps its other names."""
    site = load.load(os.environ)
    image = stored_image(arguments.image, site, parsed_platform(arguments), arguments.name)
    own = image_stores(site)[0]
    if image.store != own:
        raise UdiError(
            f"image {arguments.image} is in {image.store}, and names are given in {own}",
            f"udi pull {arguments.image} brings it there",
        )
    name = new_name(arguments.name, site)
    Store(own).set_name(name, _platform_of(image), image.digest)
    say(names.familiar(name, site.registry))
    return 0


def new_name(text: str, site: Site) -> str:
    """Return the full name for the store that `text` is. Raises UdiError where it is no name."""
    reference = parse(text, site.registry)
    if reference.kind != "registry" or reference.digest:
        raise UdiError(
            f"{text} can't be given as a name", "a name is [HOST[:PORT]/]NAME[:TAG]: my/app:2.1"
        )
    return find.name_of(reference)


def _platform_of(image: find.StoredImage) -> Platform:
    """Return an image's platform: that of its names, else of its facts, else this machine's."""
    for key, _ in upkeep.links_of(Store(image.store), image.digest):
        return platform_of_key(key)
    facts = resolve.read(image.facts, find.owners(image))
    known = [str(facts.get(key) or "") for key in ("architecture", "variant")]
    return Platform("linux", *known) if known[0] else platform_of(os.uname().machine)
