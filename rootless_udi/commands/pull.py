"""udi pull: an image of a registry, layout or archive, into the user's store."""

import argparse
import os
import sys

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say, tell
from rootless_udi.commands.common import names
from rootless_udi.commands.common.given import (
    Arguments,
    image_stores,
    parsed_platform,
    parsed_reference,
)
from rootless_udi.commands.common.parsers import Parsers, add_insecure, command
from rootless_udi.commands.tag import new_name
from rootless_udi.config import load
from rootless_udi.plan.reference import Platform, Reference
from rootless_udi.plan.site import Site
from rootless_udi.store import sif

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.pull import pipeline

_PIPE = Reference("stream", "docker-archive:-")
"""An archive that standard input brings."""
_PATHS = "an OCI image layout is oci:DIR, the output of `docker save` docker-archive:FILE"
"""What is pulled of a path."""


def add(commands: Parsers) -> None:
    """Add the parser of `udi pull`."""
    one = command(commands, "pull", pull, "fetch an image and make one squashfs file of it")
    one.add_argument("image", help="its reference; - for an archive of `docker save` from a pipe")
    one.add_argument("name", nargs="?", metavar="NAME", help="what it is called in the store")
    one.add_argument("--platform", help="OS/ARCHITECTURE[/VARIANT], this machine's by default")
    one.add_argument("--compression", help="zstd[:LEVEL], gzip[:LEVEL], xz, lz4, lzo or none")
    add_insecure(one)
    one.add_argument(
        "--force", action="store_true", help="pull it again, though it is in the store"
    )
    one.add_argument("--keep-blobs", action="store_true", help="keep the compressed layers")
    one.add_argument("--writer", default="", help="tar2sqfs or mksquashfs, by name or path")
    one.add_argument(
        "--convert", action="store_true", help="of its layers, also if `udi push` left a squashfs"
    )
    one.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")
    one.add_argument(
        "--verbose", "-v", action="store_true", help="say why a pushed squashfs is used or not"
    )
    one.add_argument(
        "--site", action="store_true", help="have the site's gateway pull it, into the site's store"
    )


def pull(arguments: Arguments) -> int:
    """udi pull: print the digest; everything else is on standard error."""
    if arguments.image.startswith("gateway://"):
        from rootless_udi.commands import pull_gateway

        return pull_gateway.pull(arguments)
    if sif.is_sif(arguments.image) and not arguments.site:
        from rootless_udi.commands import import_

        return import_.import_(argparse.Namespace(file=arguments.image, name=arguments.name))
    site = load.load(os.environ)
    if arguments.image.startswith("oras://") and not arguments.site:
        from rootless_udi.commands import pull_oras

        return pull_oras.pull(arguments, site)
    piped = arguments.image == "-"
    reference = _PIPE if piped else parsed_reference(arguments.image, site, arguments.name, _PATHS)
    try:
        from rootless_udi.commands.common import progress
        from rootless_udi.pull import pipeline
        from rootless_udi.store import striping
        from rootless_udi.store.store import Store
    except ModuleNotFoundError as error:
        raise UdiError(
            f"udi pull needs the Python module {error.name}, and {sys.executable} does not have it",
            "pip install rootless_udi installs it; images that are there run without it",
        ) from None

    if arguments.site:
        return _by_gateway(arguments, reference, site)
    options = options_for(reference, site, parsed_platform(arguments), arguments.insecure)
    options = options.replace(
        compression=arguments.compression or options.compression,
        force=arguments.force,
        keep_blobs=arguments.keep_blobs,
        writer=arguments.writer,
        name=new_name(arguments.name, site) if arguments.name else "",
    )
    if arguments.convert:
        options = options.replace(believed=options.believed.replace(claims=False))
    stores = image_stores(site)
    striping.prepare(stores[0], site.stripes)
    try:
        with progress.shown(arguments.quiet, arguments.verbose) as shown:
            image = pipeline.pull_sync(reference, Store(stores[0]), options, shown)
    except UdiError as error:
        raise _with_what_is_meant(error, arguments.image, reference, stores) from None
    if piped and not arguments.name:
        tell(f"it is {names.familiar(image.name, site.registry)}")
    say(image.digest)
    return 0


def _by_gateway(arguments: Arguments, reference: Reference, site: Site) -> int:
    from rootless_udi.commands.common import over_gateway, progress

    given = vars(arguments)
    for name in ("name", "compression", "insecure", "force", "keep_blobs", "writer", "convert"):
        if given[name]:
            raise UdiError(
                f"--site and {name.replace('_', '-')}: the gateway pulls as the site has it",
                "leave one of them out",
            )
    one, platform = over_gateway.client(site), parsed_platform(arguments)
    with progress.shown(arguments.quiet) as shown:
        digest = over_gateway.pull(one, reference, str(platform or ""), shown)
    say(digest)
    return 0


def _with_what_is_meant(
    error: UdiError, text: str, reference: Reference, stores: tuple[str, ...]
) -> UdiError:
    """Return the error with "did you mean" in its hint, for a name that no store has."""
    from rootless_udi.store import resolve, suggest

    try:
        known = reference.kind != "registry" or resolve.lookup(stores, reference)
    except UdiError:
        known = True
    meant = "" if known else suggest.meant(text, stores)
    hint = "; ".join(filter(None, (error.hint, meant)))
    return UdiError(error.message, hint, error.status)


def options_for(
    reference: Reference, site: Site, platform: Platform | None, insecure: bool
) -> "pipeline.Options":
    """Return a pull's options by the site's configuration."""
    from rootless_udi.pull import pipeline
    from rootless_udi.pull.claims import believed

    return pipeline.Options(
        platform=platform,
        compression=compression_of(site),
        insecure=insecure or reference.registry in site.insecure,
        mirrors=dict(site.mirrors),
        believed=believed(site),
    )


def compression_of(site: Site) -> str:
    """Return the site's compression in the words of --compression."""
    # none and lz4 have no levels.
    plain = site.compression in ("none", "lz4")
    return site.compression if plain else f"{site.compression}:{site.compression_level}"
