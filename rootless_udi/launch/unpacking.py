"""Files that no server can serve here: unpacked into the caller's store, and used from there.

Images of a store have their place in it; this is for images and volumes that are files elsewhere
(`store.unpacked`). Only starts without FUSE, or without a program that can read the file, import
this.
"""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.host.facts import which
from rootless_udi.plan.facts import Host
from rootless_udi.plan.image import Image, Root
from rootless_udi.serve import choose
from rootless_udi.store import find, resolve, unpacked

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootless_udi.plan.site import Site


def root(wanted: str, host: Host, image: Image, site: "Site", environ: "Mapping[str, str]") -> Root:
    """Return how `image` is mounted, where it may be unpacked too; `wanted` as for `choose`.

    Nothing is unpacked yet. Raises UdiError.
    """
    if not image.directory:
        image = image.replace(directory=unpacked.tree(_folder(image, site, environ)))
    return choose.choose(wanted, host, image, lambda name: which(name, environ))


def _folder(image: Image, site: "Site", environ: "Mapping[str, str]") -> str:
    """Return the folder in the caller's store for the file of `image`."""
    store = resolve.all_stores(site, environ)[0]
    try:
        status = os.stat(image.path)
    except OSError as error:
        raise UdiError(f"opening image {image.path} failed: {error.strerror}") from None
    return unpacked.folder(store, image.path, status, image.offset)


def ensure(tree: str, path: str, stores: "tuple[str, ...]") -> None:
    """Unpack the file at `path` as `tree`, where that has not been done. Raises UdiError."""
    if not os.path.isdir(tree):
        if resolve.udi(["extract", "--", path], {}):
            raise UdiError(f"{path} could not be unpacked into {tree}")
        if not os.path.isdir(tree):
            raise UdiError(f"{path} was changed while it was unpacked", "start it again")
    folder = os.path.dirname(tree)
    unpacked.touch(folder)
    find.check_tree(folder, stores)
