"""udi images, inspect, rm and extract: the images of the stores."""

import os
import time

from rootless_udi.base import jsontext, trust
from rootless_udi.base.errors import BYTES, plain
from rootless_udi.base.process import page, say
from rootless_udi.commands.given import (
    Arguments,
    image_stores,
    parsed_platform,
    parsed_reference,
    stored_image,
)
from rootless_udi.config import load
from rootless_udi.plan import reference as oci
from rootless_udi.store import find, resolve


def images(arguments: Arguments) -> int:
    """udi images: a row a name, the newest first; the site's stores after the user's."""
    from rootless_udi.store.store import Store

    rows = []
    for root in image_stores(load.load(os.environ)):
        for entry in Store(root).images():
            for platform, name in entry.names or (("", "<none>"),):
                # After the "#" is the state of the file that it was pulled from.
                name = name.partition("#")[0]
                rows.append(
                    (name, entry.image.digest, platform, entry.image.size, entry.pulled, root)
                )
    if arguments.json:
        keys = ("name", "digest", "platform", "size", "pulled", "store")
        page(jsontext.text([dict(zip(keys, row, strict=True)) for row in rows]) + "\n")
        return 0
    table = [("NAME", "DIGEST", "PLATFORM", "SIZE", "PULLED")]
    for name, digest, platform, size, pulled, _ in rows:
        shown = digest if arguments.digests else digest.partition(":")[2][:12]
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(pulled))
        table.append((plain(name, keep=BYTES), shown, plain(platform), _size(size), when))
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    for row in table:
        say("  ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True)).rstrip())
    return 0


def _size(size: int) -> str:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.1f} {unit}"
    return f"{size} B"


def inspect(arguments: Arguments) -> int:
    """udi inspect: the facts that the pull wrote, and where the image is."""
    image = stored_image(arguments.image, load.load(os.environ), parsed_platform(arguments))
    place = {"squashfs": image.squashfs, "store": image.store, "size": image.size}
    facts = resolve.read(image.facts, find.owners(image))
    page(jsontext.text({**facts, **place}) + "\n")
    return 0


def remove(arguments: Arguments) -> int:
    """udi rm: print each name and image that is gone."""
    from rootless_udi.store.store import Store

    site = load.load(os.environ)
    store = Store(image_stores(site)[0])
    platform = parsed_platform(arguments) or oci.platform_of(os.uname().machine)
    for text in arguments.image:
        names, digests = store.remove(parsed_reference(text, site), platform)
        for name in names:
            say(f"untagged {name}")
        for digest in digests:
            say(f"removed {digest}")
    return 0


def extract(arguments: Arguments) -> int:
    """udi extract: what udi-run does by itself where there is no FUSE. Prints the directory."""
    from rootless_udi.layers import squashfs_tools
    from rootless_udi.store.store import Store

    image = stored_image(arguments.image, load.load(os.environ), parsed_platform(arguments))
    store = Store(image.store)
    lock = store.lock(image.digest)
    lock.wait()
    try:
        trust.make(os.path.dirname(image.directory))
        squashfs_tools.extract(image.squashfs, image.directory)
    except OSError as error:
        raise store.refused(f"extracting {image.name or image.digest}", error) from None
    finally:
        lock.release()
    say(image.directory)
    return 0
