"""udi extract: an image of the store, or a squashfs or SIF file, as a directory of the store."""

import contextlib
import os

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say
from rootless_udi.base.trees import remove_tree
from rootless_udi.commands.common.given import (
    Arguments,
    image_stores,
    parsed_platform,
    stored_image,
)
from rootless_udi.commands.common.parsers import Parsers, add_platform, command
from rootless_udi.config import load
from rootless_udi.plan.reference import named
from rootless_udi.plan.site import Site
from rootless_udi.store import resolve, sif, unpacked
from rootless_udi.store.store import Store


def add(commands: Parsers) -> None:
    """Add the parser of `udi extract`."""
    one = command(commands, "extract", extract, "unpack an image into a directory of the store")
    one.add_argument("image", help="of the store, or a squashfs or SIF file (./FILE)")
    add_platform(one)


def extract(arguments: Arguments) -> int:
    """udi extract: print the directory. Where there is no FUSE, udi-run extracts by itself."""
    from rootless_udi.layers import squashfs_tools

    site = load.load(os.environ)
    reference = named(arguments.image, site.registry)
    if reference.kind in ("squashfs", "path"):
        say(_file(os.path.realpath(reference.path), site))
        return 0
    image = stored_image(arguments.image, site, parsed_platform(arguments))
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


def _file(path: str, site: Site) -> str:
    """Unpack the squashfs or SIF file at `path`, which has no links; return the directory.

    Raises UdiError.
    """
    from rootless_udi.layers import squashfs_tools

    try:
        fd = trust.regular(path)
    except OSError as error:
        raise UdiError(f"opening image {path} failed: {error.strerror}") from None
    store = Store(image_stores(site)[0])
    store.create()
    with open(fd, "rb", buffering=0):
        is_sif = os.pread(fd, len(sif.MAGIC), sif.MAGIC_AT) == sif.MAGIC
        offset = sif.data(fd, path).offset if is_sif else 0
        resolve.examine(path, "the file is damaged: copy it again" if offset else "", None, offset)
        folder = unpacked.folder(store.root, path, os.fstat(fd), offset)
        lock = store.lock(unpacked.name(folder))
        lock.wait()
        try:
            _make_room(store, folder)
            unpacked.begin(folder, path, offset)
            squashfs_tools.extract(path, unpacked.tree(folder), offset, fd)
            if unpacked.folder(store.root, path, os.fstat(fd), offset) != folder:
                remove_tree(folder)
                raise UdiError(f"extracting {path} failed: it changed meanwhile")
        except OSError as error:
            raise store.refused(f"extracting {path}", error) from None
        finally:
            lock.release()
    return unpacked.tree(folder)


def _make_room(store: Store, ours: str) -> None:
    """Remove trees that are not needed any more."""
    for one in unpacked.superfluous(unpacked.listed(store.root)):
        if one.folder != ours and not unpacked.in_use(one):
            with contextlib.suppress(OSError):
                unpacked.remove(store, one)
