"""udi update: which of the store's tags mean another image by now, and that image."""

import os

from rootless_udi.base.errors import OURS, UdiError, counted
from rootless_udi.base.process import complain, say, tell
from rootless_udi.base.records import Record
from rootless_udi.commands.common import names
from rootless_udi.commands.common.given import Arguments, image_stores, parsed_reference
from rootless_udi.commands.common.parsers import Parsers, add_insecure, command
from rootless_udi.commands.pull import options_for
from rootless_udi.config import load
from rootless_udi.plan.reference import Platform, Reference, parse, platform_of, platform_of_key
from rootless_udi.store import platforms
from rootless_udi.store.store import Store

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.pull import pipeline


class Tag(Record):
    """A name of the store: its platform as it was asked for (None: this machine's), its image.

    `from_there`: its image was pulled from that repository. A name of `udi tag` may be anybody's in
    a registry, so that it is asked for only by its name.
    """

    name: str
    platform: Platform | None
    digest: str
    from_there: bool


def add(commands: Parsers) -> None:
    """Add the parser of `udi update`."""
    one = command(commands, "update", update, "pull the images of tags that have moved")
    one.add_argument("image", nargs="*", help="these tags; else all that were pulled")
    one.add_argument("--check", action="store_true", help="only tell which have moved")
    add_insecure(one)
    one.add_argument("--quiet", "-q", action="store_true", help="show no progress")


def update(arguments: Arguments) -> int:
    """udi update: a line for each tag that has moved; those that can't be asked for are told."""
    from rootless_udi.commands.common import progress
    from rootless_udi.pull import pipeline

    site = load.load(os.environ)
    store = Store(image_stores(site)[0])
    wanted = [parsed_reference(text, site).canonical for text in arguments.image]
    every = _tags(store)
    found = [t for t in every if (t.name in wanted if wanted else t.from_there)]
    missing = set(wanted) - {tag.name for tag in found}
    status = OURS if missing else 0
    for name in sorted(missing):
        complain("udi", f"{name} is no tag of the image store {store.root}", f"udi pull {name}")
    moved = 0
    for tag in found:
        try:
            reference = parse(tag.name)
            options = options_for(reference, site, tag.platform, arguments.insecure)
            now = _there(reference, store, options)
            if now == tag.digest:
                continue
            moved += 1
            if not arguments.check:
                with progress.shown(arguments.quiet) as shown:
                    now = pipeline.pull_sync(reference, store, options, shown).digest
            name = names.familiar(tag.name, site.registry)
            say(f"{name}  {names.digits(tag.digest)} -> {names.digits(now)}")
        except UdiError as error:
            complain("udi", error.message, error.hint)
            status = OURS
    tell(f"{moved} of {counted(len(found), 'tag')} moved")
    if other := 0 if wanted else len(every) - len(found):
        names_are = counted(other, "name is", "names are")
        tell(f"{names_are} of another repository than its image, and left alone")
    return status


def _there(reference: Reference, store: Store, options: "pipeline.Options") -> str:
    """Return the digest that a tag means at its registry or a mirror, for the store's platform."""
    from rootless_udi.pull.blobs import Blobs
    from rootless_udi.pull.open import open_source
    from rootless_udi.pull.repository import RegistryOptions
    from rootless_udi.pull.stop import Stop

    stop = Stop()
    blobs = Blobs(store, stop, False, lambda text: None)
    asked = RegistryOptions(options.insecure, options.mirrors, options.patience, tell)
    source = open_source(reference, blobs, stop, asked)
    try:
        return source.resolve(options.platform or platforms.here()).digest
    finally:
        source.close(False)


def _tags(store: Store) -> list[Tag]:
    """Return the tags of registries in a store."""
    here = platform_of(os.uname().machine).key()
    found = []
    for entry in store.images():
        for key, name in entry.names:
            if "#" in name or "@" in name or name.startswith(("oci:", "docker-archive:")):
                continue
            origin = str(store.facts(entry.image).get("reference"))
            platform = None if key == here else platform_of_key(key)
            there = _repository(origin) == _repository(name)
            found.append(Tag(name, platform, entry.image.digest, there))
    return sorted(found, key=lambda tag: tag.name)


def _repository(canonical: str) -> str:
    return canonical.partition("@")[0].rpartition(":")[0]
