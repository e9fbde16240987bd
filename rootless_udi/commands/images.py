"""udi images, inspect and extract: the images of the stores."""

import fnmatch
import os
import shutil
import time
from collections.abc import Callable, Sequence

from rootless_udi.base import jsontext, trust
from rootless_udi.base.errors import BYTES, UdiError, plain
from rootless_udi.base.process import page, say, tell
from rootless_udi.base.records import Record
from rootless_udi.commands import names
from rootless_udi.commands.given import (
    Arguments,
    any_image,
    image_stores,
    parsed_platform,
    stored_image,
)
from rootless_udi.config import load
from rootless_udi.plan.reference import parse
from rootless_udi.plan.site import Site
from rootless_udi.store import find, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.store.store import ListedImage


class ImageRow(Record):
    """A name of an image, as it is typed and in full; both "" where it has none."""

    name: str
    reference: str
    platform: str
    entry: "ListedImage"


def images(arguments: Arguments) -> int:
    """udi images: a row a name, the newest first; the site's stores after the user's."""
    site = load.load(os.environ)
    rows = _rows(site, _filters(arguments.filter))
    if arguments.json:
        page(jsontext.text([_document(row) for row in rows]) + "\n")
    elif arguments.quiet or arguments.names:
        texts = [names.digits(r.entry.image.digest) if arguments.quiet else r.name for r in rows]
        for text in dict.fromkeys(filter(None, texts)):
            say(text)
    else:
        _print(rows, arguments.digests)
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
    return rows


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
    }


def _print(rows: Sequence[ImageRow], whole: bool) -> None:
    shown = []
    for row in rows:
        image = row.entry.image
        digest = image.digest if whole else names.digits(image.digest)
        name = plain(row.name or "<none>", keep=BYTES)
        cells = (digest, plain(row.platform), names.amount(image.size))
        shown.append((name, *cells, names.when(row.entry.pulled)))
    head = ("NAME", "DIGEST", "PLATFORM", "SIZE", "PULLED")
    for line in names.table(head, shown, shutil.get_terminal_size().columns):
        say(line)
    images = {(r.entry.image.store, r.entry.image.digest): r.entry.image.size for r in rows}
    shared = sum(row.entry.image.size for row in rows) - sum(images.values())
    again = f"; shared by several names: {names.amount(shared)}" if shared else ""
    if rows:
        tell(f"{len(images)} images, {names.amount(sum(images.values()))}{again}")


_FILTERS = "reference=PATTERN, platform=ARCH, untagged=true, older=AGE"


def _filters(texts: Sequence[str]) -> list[Callable[[ImageRow], bool]]:
    """Return what each KEY=VALUE asks of a row; all must hold. Raises UdiError."""
    return [_filter(text) for text in texts]


def _filter(text: str) -> Callable[[ImageRow], bool]:
    key, _, value = text.partition("=")
    if key in ("reference", "name"):
        # docker's patterns leave the tag out.
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


def inspect(arguments: Arguments) -> int:
    """udi inspect: the facts that the pull wrote, and where the image is; also of a file."""
    site = load.load(os.environ)
    if parse(arguments.image, site.registry).kind in ("squashfs", "path"):
        file = any_image(arguments.image, site)
        size = os.stat(file.path).st_size
        page(jsontext.text({**file.facts, "squashfs": file.path, "size": size}) + "\n")
        return 0
    image = stored_image(arguments.image, site, parsed_platform(arguments))
    place = {"squashfs": image.squashfs, "store": image.store, "size": image.size}
    facts = resolve.read(image.facts, find.owners(image))
    page(jsontext.text({**facts, **place}) + "\n")
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
