"""udi pull: the digest on standard output, all else on standard error."""

import os
import sys

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say
from rootless_udi.commands.given import Arguments, image_stores, parsed_platform, parsed_reference
from rootless_udi.config import load
from rootless_udi.plan import site as plan_site


def pull(arguments: Arguments) -> int:
    """udi pull: print the digest on standard output; all else goes to standard error."""
    site = load.load(os.environ)
    reference = parsed_reference(arguments.image, site)
    try:
        from rootless_udi.commands import progress
        from rootless_udi.pull import pipeline
        from rootless_udi.store.store import Store
    except ModuleNotFoundError as error:
        raise UdiError(
            f"udi pull needs the Python module {error.name}, and {sys.executable} does not have it",
            "pip install rootless_udi installs it; images that are there run without it",
        ) from None

    options = pipeline.Options(
        platform=parsed_platform(arguments),
        compression=arguments.compression or _compression(site),
        insecure=arguments.insecure or reference.registry in site.insecure,
        force=arguments.force,
        keep_blobs=arguments.keep_blobs,
        writer=arguments.writer,
        mirrors=dict(site.mirrors),
    )
    with progress.shown(arguments.quiet) as shown:
        image = pipeline.pull_sync(reference, Store(image_stores(site)[0]), options, shown)
    say(image.digest)
    return 0


def _compression(site: plan_site.Site) -> str:
    # These two have no levels.
    plain = site.compression in ("none", "lz4")
    return site.compression if plain else f"{site.compression}:{site.compression_level}"
