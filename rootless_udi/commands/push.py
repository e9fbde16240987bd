"""udi push: an image's squashfs into a registry, for pulls and starts without a conversion."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say, tell
from rootless_udi.commands.common.given import (
    Arguments,
    any_image,
    image_stores,
    opened,
    parsed_platform,
    parsed_reference,
)
from rootless_udi.commands.common.keys import private_key
from rootless_udi.commands.common.parsers import Parsers, add_insecure, add_platform, command
from rootless_udi.config import load
from rootless_udi.plan.reference import Reference, parse
from rootless_udi.plan.site import Site

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.plan.image import Image
    from rootless_udi.pull.push import Pushed


def add(commands: Parsers) -> None:
    """Add the parser of `udi push`."""
    one = command(
        commands, "push", push, "put an image's squashfs into a registry, beside the image"
    )
    one.add_argument("image", help="of the store, or a squashfs file (./FILE.sqfs)")
    one.add_argument(
        "target",
        nargs="?",
        metavar="REGISTRY/NAME:TAG",
        help="where it was pulled from, without it",
    )
    add_platform(one)
    add_insecure(one)
    one.add_argument("--key", metavar="FILE", help="sign what is pushed by this private key (PEM)")
    one.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")


def push(arguments: Arguments) -> int:
    """udi push: print the digest of the artifact; everything else is on standard error."""
    site = load.load(os.environ)
    image = any_image(arguments.image, site, parsed_platform(arguments))
    known = str(image.facts.get("reference") or "")
    if not arguments.target and not known:
        raise UdiError(f"{arguments.image} does not say where it is from", "udi push IMAGE TARGET")
    target = parsed_reference(arguments.target or known, site)
    if target.kind != "registry":
        raise UdiError(
            f"{target.canonical} is not in a registry", "udi push IMAGE REGISTRY/NAME:TAG"
        )
    done = _push(arguments, site, image, target, known)
    if not arguments.quiet:
        name = f"{target.registry}/{target.repository}"
        tell(
            f"a squashfs for {name}@{done.subject}: it is used where the configuration trusts "
            f"{target.registry} (registry.{target.registry}.trusted), or a key that has signed it"
            if done.subject
            else f"{target.canonical} is {done.digest}"
        )
    say(done.digest)
    return 0


def _push(
    arguments: Arguments, site: Site, image: "Image", target: Reference, known: str
) -> "Pushed":
    from rootless_udi.commands.common import progress
    from rootless_udi.pull import push as pushing
    from rootless_udi.pull import signing
    from rootless_udi.pull.content import ImageContent
    from rootless_udi.pull.http import Transport
    from rootless_udi.pull.identity import Name
    from rootless_udi.pull.registry import Endpoint
    from rootless_udi.pull.upload import Uploading
    from rootless_udi.store.store import Store

    key = private_key(arguments.key) if arguments.key else None
    insecure = arguments.insecure or target.registry in site.insecure
    beside = _beside(known, target)
    transport = Transport()
    with (
        opened(image.path) as file,
        progress.shown(arguments.quiet) as shown,
    ):
        there = Uploading(
            target.registry,
            target.repository,
            transport,
            insecure=insecure,
            note=shown.note,
            beside=beside,
        )
        origin = (
            Endpoint(target.registry, beside, transport, insecure=insecure, note=shown.note)
            if beside
            else None
        )
        content = ImageContent(file.fileno(), arguments.image)

        def report(done: int) -> None:
            state = "done" if done == content.size else "running"
            shown.blob("squashfs", done, content.size, state)

        try:
            store = Store(image_stores(site)[0])
            more = image.facts, report, shown.note, store
            done = pushing.push(target, there, origin, content, *more)
            if key is not None:
                signing.sign(there, Name(str(there)), done.digest, key)
            return done
        finally:
            content.end()
            transport.close()


def _beside(known: str, target: Reference) -> str:
    """Return the repository that an image was pulled from, if it is another one of the target's
    registry; else ""."""
    try:
        origin = parse(known) if known else target
    except UdiError:
        return ""
    same = origin.kind == "registry" and origin.registry == target.registry
    return origin.repository if same and origin.repository != target.repository else ""
