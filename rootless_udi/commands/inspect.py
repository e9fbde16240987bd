"""udi inspect: what is known of an image."""

import os

from rootless_udi.base import jsontext
from rootless_udi.base.process import page
from rootless_udi.commands.common.given import Arguments, any_image, parsed_platform, stored_image
from rootless_udi.commands.common.parsers import Parsers, add_platform, command
from rootless_udi.config import load
from rootless_udi.plan.reference import named
from rootless_udi.store import find, resolve


def add(commands: Parsers) -> None:
    """Add the parser of `udi inspect`."""
    one = command(commands, "inspect", inspect, "print what is known of an image, as JSON")
    one.add_argument("image")
    add_platform(one)


def inspect(arguments: Arguments) -> int:
    """udi inspect: the facts that the pull wrote, and where the image is; or those in a file."""
    site = load.load(os.environ)
    if named(arguments.image, site.registry).kind in ("squashfs", "path"):
        file = any_image(arguments.image, site, sif=True)
        place = {"squashfs": file.path, "size": os.stat(file.path).st_size}
        if file.offset:
            from rootless_udi.commands.common import singularity

            place["offset"] = file.offset
            place["labels"] = singularity.labels(file.path, file.offset)
        page(jsontext.text({**file.facts, **place}) + "\n")
        return 0
    image = stored_image(arguments.image, site, parsed_platform(arguments))
    place = {"squashfs": image.squashfs, "store": image.store, "size": image.size}
    facts = resolve.read(image.facts, find.owners(image))
    page(jsontext.text({**facts, **place}) + "\n")
    return 0
