"""udi pull gateway://HOST/NAME: an image as a gateway has it, into the user's own store."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say
from rootless_udi.commands.common.given import Arguments, image_stores, parsed_platform
from rootless_udi.commands.tag import new_name
from rootless_udi.config import load
from rootless_udi.plan.reference import platform_of
from rootless_udi.store import find


def pull(arguments: Arguments) -> int:
    """Fetch the image, and print its digest."""
    from rootless_udi.commands.common import progress
    from rootless_udi.pull import from_gateway
    from rootless_udi.pull.gateway import ANY_SYSTEM, GatewayClient
    from rootless_udi.store.store import Store

    given = vars(arguments)
    for word in ("compression", "force", "keep_blobs", "writer", "convert", "site"):
        if given[word]:
            raise UdiError(
                f"gateway:// and --{word.replace('_', '-')}: the image is taken as it is there",
                "leave one of them out",
            )
    site = load.load(os.environ)
    address, reference = from_gateway.parts(arguments.image, site.gateway, site.registry)
    if site.policy:
        from rootless_udi.pull import policy

        policy.read(site.policy).check(reference, (), None)
    client = GatewayClient(address, ANY_SYSTEM, site.gateway_munge)
    name = new_name(arguments.name, site) if arguments.name else find.name_of(reference)
    platform = parsed_platform(arguments) or platform_of(os.uname().machine)
    with progress.shown(arguments.quiet) as shown:
        shown.stage("resolve", f"{reference.canonical}, of the gateway at {address}")

        def tell(done: int, total: int) -> None:
            shown.blob("sha256:image", done, total, "running" if done < total else "done")

        store = Store(image_stores(site)[0])
        image = from_gateway.pull(client, reference, store, platform, name, tell)
    say(image.digest)
    return 0
