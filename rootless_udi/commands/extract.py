"""udi extract: an image of the store as a directory."""

import os

from rootless_udi.base import trust
from rootless_udi.base.process import say
from rootless_udi.commands.common.given import Arguments, parsed_platform, stored_image
from rootless_udi.commands.common.parsers import Parsers, add_platform, command
from rootless_udi.config import load


def add(commands: Parsers) -> None:
    """Add the parser of `udi extract`."""
    one = command(commands, "extract", extract, "unpack an image into a directory of the store")
    one.add_argument("image")
    add_platform(one)


def extract(arguments: Arguments) -> int:
    """udi extract: print the directory. Where there is no FUSE, udi-run extracts by itself."""
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
