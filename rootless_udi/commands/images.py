"""udi images: the images of the stores, as a table, as names, or as JSON."""

import fnmatch
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence

from rootless_udi.base import jsontext
from rootless_udi.base.errors import BYTES, UdiError, counted, plain
from rootless_udi.base.process import page, say, tell
from rootless_udi.base.records import Record
from rootless_udi.commands.common import names
from rootless_udi.commands.common.given import Arguments, image_stores
from rootless_udi.commands.common.parsers import Parsers, add_json, command
from rootless_udi.config import load
from rootless_udi.plan.site import Site
from rootless_udi.store.find import StoredImage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.store.store import ListedImage

_FILTERS = "reference=PATTERN, platform=ARCH, untagged=true, older=AGE"


class ImageRow(Record):
    """A row of the table: `name` as typed, `reference` in full; "" for no name.

    `filling` is how many percent of it are there, where it is not there whole.
    """

    name: str
    reference: str
    platform: str
    entry: "ListedImage"
    filling: int | None = None


def add(commands: Parsers) -> None:
    """Add the parser of `udi images`."""
    one = command(commands, "images", images, "list the images of the stores")
    add_json(one)
    one.add_argument("--digests", action="store_true", help="whole digests")
    one.add_argument(
        "--quiet", "-q", action="store_true", help="digests only, as udi rm takes them"
    )
    one.add_argument("--names", action="store_true", help="names only, one a line")
    one.add_argument(
        "--filter", "-f", action="append", default=[], metavar="KEY=VALUE", help=_FILTERS
    )
    one.add_argument("--site", action="store_true", help="those that the site's gateway has")


def images(arguments: Arguments) -> int:
    """udi images: a row for each name, the newest first; the user's store, then the site's."""
    site = load.load(os.environ)
    if arguments.site:
        return _of_gateway(arguments, site)
    rows = _rows(site, _filters(arguments.filter))
    if arguments.json:
        page(jsontext.text([_document(row) for row in rows]) + "\n")
    elif arguments.quiet or arguments.names:
        texts = [names.digits(r.entry.image.digest) if arguments.quiet else r.name for r in rows]
        for text in dict.fromkeys(filter(None, texts)):
            say(text)
    elif rows:
        _print(rows, arguments.digests)
    elif arguments.filter:
        tell("no image is as --filter asks")
    else:
        tell(f"no image is in {' and '.join(image_stores(site))}: udi pull IMAGE brings one")
    return 0


def _of_gateway(arguments: Arguments, site: Site) -> int:
    from rootless_udi.commands.common import over_gateway

    if arguments.filter:
        raise UdiError("--site and --filter: the gateway's list is not filtered", "pipe it to grep")
    found = over_gateway.images(over_gateway.client(site))
    if arguments.json:
        keys = ("name", "digest", "size", "pulled")
        page(jsontext.text([dict(zip(keys, row, strict=True)) for row in found]) + "\n")
    elif arguments.quiet or arguments.names:
        texts = [names.digits(row[1]) if arguments.quiet else row[0] for row in found]
        for text in dict.fromkeys(texts):
            say(text)
    elif not found:
        tell("the site's gateway has no image that you may read: udi pull --site IMAGE brings one")
    else:
        rows = [
            (
                plain(name),
                digest if arguments.digests else names.digits(digest),
                names.amount(size),
                names.when(pulled),
            )
            for name, digest, size, pulled in found
        ]
        head = ("NAME", "DIGEST", "SIZE", "PULLED")
        for line in names.table(head, rows, shutil.get_terminal_size().columns):
            say(line)
    return 0


def _rows(site: Site, wanted: Sequence[Callable[[ImageRow], bool]]) -> list[ImageRow]:
    from rootless_udi.store.store import Store

    rows = []
    for root in image_stores(site):
        for entry in Store(root).images():
            for platform, name in entry.names or (("", ""),):
                full = name.partition("#")[0]
                row = ImageRow(names.familiar(name, site.registry), full, platform, entry)
                rows += [row] if all(fits(row) for fits in wanted) else []
        rows += [row for row in _filling(root, site) if all(fits(row) for fits in wanted)]
    return rows


def _filling(root: str, site: Site) -> Iterator[ImageRow]:
    """Yield a row for each name of an image that a store is filling (--pull=lazy)."""
    from rootless_udi.store import filling
    from rootless_udi.store.store import ListedImage, Store

    for one in filling.listed(Store(root)):
        for platform, name in one.names:
            image = StoredImage(one.digest, name, root, "", "", "", one.size)
            entry = ListedImage(image, one.names, one.begun)
            percent = 100 * one.there // one.windows
            yield ImageRow(names.familiar(name, site.registry), name, platform, entry, percent)


def _document(row: ImageRow) -> dict[str, object]:
    image = row.entry.image
    return {
        "name": row.name or None,
        "reference": row.reference or None,
        "digest": image.digest,
        "platform": row.platform,
        "size": image.size,
        "pulled": row.entry.pulled,
        "store": image.store,
        **({} if row.filling is None else {"filling": row.filling}),
    }


def _print(rows: Sequence[ImageRow], whole: bool) -> None:
    shown = []
    for row in rows:
        image = row.entry.image
        digest = image.digest if whole else names.digits(image.digest)
        name = plain(row.name or "<none>", keep=BYTES)
        cells = (digest, plain(row.platform), names.amount(image.size))
        when = names.when(row.entry.pulled) if row.filling is None else f"{row.filling} % there"
        shown.append((name, *cells, when))
    head = ("NAME", "DIGEST", "PLATFORM", "SIZE", "PULLED")
    for line in names.table(head, shown, shutil.get_terminal_size().columns):
        say(line)
    images = {(r.entry.image.store, r.entry.image.digest): r.entry.image.size for r in rows}
    shared = sum(row.entry.image.size for row in rows) - sum(images.values())
    again = f"; shared by several names: {names.amount(shared)}" if shared else ""
    tell(f"{counted(len(images), 'image')}, {names.amount(sum(images.values()))}{again}")


def _filters(texts: Sequence[str]) -> list[Callable[[ImageRow], bool]]:
    """Return a condition on rows for each KEY=VALUE. Raises UdiError for a bad one."""
    return [_filter(text) for text in texts]


def _filter(text: str) -> Callable[[ImageRow], bool]:
    key, _, value = text.partition("=")
    if key in ("reference", "name"):
        # As with docker, a pattern without a tag matches every tag.
        patterns = (value, f"{value}:*")
        return lambda row: any(
            fnmatch.fnmatchcase(one, p) for p in patterns for one in (row.name, row.reference)
        )
    if key == "platform":
        wanted = value.removeprefix("linux/").replace("/", "-")
        return lambda row: row.platform == wanted
    if key in ("untagged", "dangling") and value in ("true", "false"):
        return lambda row: bool(row.name) == (value == "false")
    if key in ("older", "until"):
        before = time.time() - names.age(value, f"--filter={key}")
        return lambda row: row.entry.pulled < before
    raise UdiError(f"--filter={text}: unknown", f"filters are: {_FILTERS}")
