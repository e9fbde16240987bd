"""udi pull gateway://HOST/NAME: an image as a gateway has it, into the user's own store."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say
from rootless_udi.commands.common.given import Arguments, image_stores, parsed_platform
from rootless_udi.commands.tag import new_name
from rootless_udi.config import load
from rootless_udi.plan.reference import platform_of


def pull(arguments: Arguments) -> int:
    """Fetch the image, and print its digest."""
    from rootless_udi.commands.common import progress
    from rootless_udi.pull import from_gateway
    from rootless_udi.store.store import Store

    given = vars(arguments)
    for word in ("compression", "force", "keep_blobs", "writer", "convert", "site"):
        if given[word]:
            raise UdiError(
                f"gateway:// and --{word.replace('_', '-')}: the image is taken as it is there",
                "leave one of them out",
            )
    site = load.load(os.environ)
    one = from_gateway.meant(arguments.image, site, arguments.insecure)
    names = (new_name(arguments.name, site),) if arguments.name else one.names
    platform = parsed_platform(arguments) or platform_of(os.uname().machine)
    with progress.shown(arguments.quiet) as shown:
        shown.stage("resolve", f"{one.image.canonical}, of the gateway at {one.client.address}")

        def tell(done: int, total: int) -> None:
            shown.blob("squashfs", done, total, "running" if done < total else "done")

        store = Store(image_stores(site)[0])
        image = from_gateway.pull(one, store, platform, names, tell)
    say(image.digest)
    return 0
