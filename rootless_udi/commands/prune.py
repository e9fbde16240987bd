"""udi prune: remove images that are not needed any more."""

import os
import time

from rootless_udi.base.errors import BYTES, OURS, plain
from rootless_udi.base.process import complain, say, tell
from rootless_udi.commands.common import names
from rootless_udi.commands.common.given import Arguments, image_stores
from rootless_udi.commands.common.parsers import Parsers, command
from rootless_udi.config import load
from rootless_udi.plan import sizes
from rootless_udi.store import unpacked, upkeep
from rootless_udi.store.store import Store
from rootless_udi.store.upkeep import Use


def add(commands: Parsers) -> None:
    """Add the parser of `udi prune`."""
    one = command(
        commands, "prune", prune, "remove images without a name, and what broken pulls left"
    )
    one.add_argument("--older-than", metavar="AGE", help="also what was not used for 30d, 6w, 1y")
    one.add_argument("--until-free", metavar="SIZE", help="the longest unused, until 100G are free")
    one.add_argument("--dry-run", "-n", action="store_true", help="only print what would go")


def prune(arguments: Arguments) -> int:
    """udi prune: print each image that is removed; 125 where --until-free was not reached."""
    before = (
        time.time() - names.age(arguments.older_than, "--older-than") if arguments.older_than else 0
    )
    wanted = sizes.parse(arguments.until_free, "--until-free") if arguments.until_free else 0
    site = load.load(os.environ)
    store = Store(image_stores(site)[0])
    if not os.path.isdir(store.root):
        tell(f"there is no image store at {store.root}")
        return 0
    idle = _idle(upkeep.uses(store))
    chosen = _chosen(store, idle, before, wanted)
    total = 0
    for use in chosen:
        named = bool(use.entry.names) and bool(before or wanted)
        if arguments.dry_run or upkeep.remove(store, use, named):
            total += use.size
            texts = [names.familiar(name, site.registry) for _, name in use.entry.names]
            say(f"{names.digits(use.entry.image.digest)}  {' '.join(texts) or '<none>'}")
    total += _unpacked(store, before, bool(wanted), arguments.dry_run)
    if not arguments.dry_run:
        store.sweep()
    tell(f"{'would free' if arguments.dry_run else 'freed'} {names.amount(total)}")
    if wanted and not arguments.dry_run and store.free() < wanted:
        complain(
            "udi",
            f"--until-free={arguments.until_free}: {names.amount(store.free())} are free on "
            f"{store.filesystem()}, and no image that may go is left",
            "what else takes room there? `udi df` shows what images take",
        )
        return OURS
    return 0


def _unpacked(store: Store, before: float, room: bool, dry_run: bool) -> int:
    """Remove trees of files (`store.unpacked`) that changed or are gone, or are not used; return
    the bytes. `room`: all are, since room is wanted."""
    total = 0
    for one in unpacked.listed(store.root):
        needed = one.current and one.whole and one.used >= before and not room
        if needed or unpacked.in_use(one):
            continue
        size = upkeep.folder_size(one.folder)
        try:
            if not dry_run and not unpacked.remove(store, one):
                continue
        except OSError as error:
            raise store.refused(f"removing {one.folder}", error) from None
        total += size
        say(f"unpacked {plain(one.path, keep=BYTES) or one.folder}")
    return total


def _chosen(store: Store, found: list[Use], before: float, wanted: int) -> list[Use]:
    if wanted:
        # With both options only images that old are removed, and only as many as needed.
        return upkeep.until(
            upkeep.unused(found, before) if before else found, wanted - store.free()
        )
    old = upkeep.unused(found, before)
    return [use for use in found if not use.entry.names or use in old]


def _idle(found: list[Use]) -> list[Use]:
    """Return those that no container on this node uses now; one that waits will not be joined."""
    from rootless_udi.commands.common.containers import containers

    living = {one.digest for one in containers(dict(os.environ)) if one.members}
    return [use for use in found if use.entry.image.digest not in living]
