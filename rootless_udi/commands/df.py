"""udi df: what the image stores take, and how much of it could go."""

import os
from typing import Any

from rootless_udi.base import jsontext
from rootless_udi.base.errors import BYTES, plain
from rootless_udi.base.process import page, say, tell
from rootless_udi.commands.common import names
from rootless_udi.commands.common.given import Arguments, image_stores
from rootless_udi.commands.common.parsers import Parsers, add_json, command
from rootless_udi.config import load
from rootless_udi.store import unpacked, upkeep
from rootless_udi.store.store import Store


def add(commands: Parsers) -> None:
    """Add the parser of `udi df`."""
    add_json(command(commands, "df", df, "show what the stores take"))


def df(arguments: Arguments) -> int:
    """udi df: for each store its images, trees of `udi extract` (images, files), and downloads."""
    roots = image_stores(load.load(os.environ))
    stores = [Store(root) for root in roots if os.path.isdir(root)]
    documents = [_look(store) for store in stores]
    if arguments.json:
        page(jsontext.text(documents) + "\n")
        return 0
    if not stores:
        tell(f"there is no image store at {' nor at '.join(roots)}")
    for store, found in zip(stores, documents, strict=True):
        where = plain(store.root, keep=BYTES)
        say(f"{where} ({names.amount(found['free'])} free on {plain(store.filesystem())})")
        rows = []
        for what, row in found["parts"].items():
            size, free = names.amount(row["size"]), names.amount(row["reclaimable"])
            rows.append((f"  {what}", str(row["count"]), size, free))
        for line in names.table(("  WHAT", "COUNT", "SIZE", "UNTAGGED"), rows, 80):
            say(line)
    return 0


def _look(store: Store) -> dict[str, Any]:
    uses = upkeep.uses(store)
    unnamed = upkeep.unnamed(uses)
    trees = [use for use in uses if use.extracted]
    files = unpacked.listed(store.root)
    sizes = {one.folder: upkeep.folder_size(one.folder) for one in files}
    stale = sum(sizes[one.folder] for one in files if not (one.current and one.whole))
    blobs = store.path("blobs")
    downloads = len(os.listdir(blobs)) if os.path.isdir(blobs) else 0
    size = upkeep.folder_size(blobs)
    parts = {
        "images": (len(uses), sum(u.squashfs for u in uses), sum(u.squashfs for u in unnamed)),
        "extracted": (
            len(trees),
            sum(u.extracted for u in trees),
            sum(u.extracted for u in unnamed),
        ),
        "unpacked files": (len(files), sum(sizes.values()), stale),
        "downloads": (downloads, size, size),
    }
    keys = ("count", "size", "reclaimable")
    return {
        "store": store.root,
        "free": store.free(),
        "parts": {name: dict(zip(keys, row, strict=True)) for name, row in parts.items()},
    }
