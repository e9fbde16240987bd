"""udi fetch: have an image in the store whole, going on where a start of it (--pull=lazy) is."""

import argparse
import os
import time

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say, tell
from rootless_udi.commands.common.given import (
    Arguments,
    image_stores,
    parsed_platform,
    parsed_reference,
)
from rootless_udi.commands.common.parsers import Parsers, add_insecure, add_platform, command
from rootless_udi.config import load
from rootless_udi.plan.reference import ELSEWHERE, REMOTE, Reference
from rootless_udi.plan.site import Site
from rootless_udi.serve.distant import BROKEN, NONE
from rootless_udi.store import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.pull.progress import Progress
    from rootless_udi.remote.sources import Remote, RemoteRequest

_LOOK = 1.0
"""Seconds between two looks how far another process is."""
_TOGETHER = 16
"""Windows in one request: nobody waits for single ones."""


def add(commands: Parsers) -> None:
    """Add the parser of `udi fetch`."""
    one = command(commands, "fetch", fetch, "have an image in the store that is filling it")
    one.add_argument("image", help="its name, or the URL of a squashfs file")
    add_platform(one)
    add_insecure(one)
    one.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")


def fetch(arguments: Arguments) -> int:
    """udi fetch: print the digest of the image, once the store has it whole.

    Where nothing can be read in place, it is pulled as by `udi pull`.
    """
    site = load.load(os.environ)
    reference, platform = parsed_reference(arguments.image, site), parsed_platform(arguments)
    stores = image_stores(site)
    there = resolve.lookup(stores, reference, platform)
    if there is None:
        if reference.kind not in ELSEWHERE:
            return _pull(arguments)
        kind, _, why = _remote(arguments, reference, site, stores[0]).partition("\0")
        if kind in (NONE, BROKEN):
            if kind == BROKEN:
                tell(f"{arguments.image} is pulled: {why}")
            # What has just failed is not asked for again.
            return _pull(arguments, *(["--convert"] if kind == BROKEN else []))
        there = resolve.lookup(stores, reference, platform)
    if there is None:
        raise UdiError(f"image {arguments.image} is not in the store after it was fetched")
    say(there.digest)
    return 0


def _pull(arguments: Arguments, *options: str) -> int:
    from rootless_udi.commands import pull

    words = [f"--{name}" for name in ("insecure", "quiet") if vars(arguments)[name]]
    words += [f"--platform={arguments.platform}"] if arguments.platform else []
    whole = argparse.ArgumentParser()
    pull.add(whole.add_subparsers())
    return pull.pull(whole.parse_args(["pull", *options, *words, "--", arguments.image]))


def _remote(arguments: Arguments, reference: Reference, site: Site, store: str) -> str:
    """Fetch what is missing; return "", or what `opening.found` says where it can't be read."""
    from rootless_udi.commands.common import progress
    from rootless_udi.remote import opening
    from rootless_udi.remote.sources import RemoteRequest

    insecure = arguments.insecure or _insecure(reference, site)
    words = insecure, True, arguments.platform or "", store
    asked = RemoteRequest(arguments.image, float(site.timeout), *words)
    with progress.shown(arguments.quiet) as shown:
        shown.stage("resolve", reference.canonical)
        found = opening.found(asked)
        if isinstance(found, str):
            return found
        _fill(asked, found, shown)
    return ""


def _insecure(reference: Reference, site: Site) -> bool:
    host = reference.registry
    if reference.path.startswith(REMOTE):
        host = reference.path.partition("://")[2].partition("/")[0].rpartition("@")[2]
    return host in site.insecure


def _fill(asked: "RemoteRequest", remote: "Remote", shown: "Progress") -> None:
    from rootless_udi.remote import places
    from rootless_udi.remote.filler import Filler, FillingEnded
    from rootless_udi.remote.kept import Kept
    from rootless_udi.store.store import Store

    what = f"fetching {remote.ranges.shown}"
    mask = os.umask(0)
    os.umask(mask)
    try:
        where = places.opened(asked, remote, mask)
        if where.filling is None:
            raise UdiError(
                f"{what} failed: the store can't be filled: {where.why}",
                "set UDI_STORE to a directory on another file system",
            )
        if where.made():
            return
        kept = Kept(remote.ranges, where.fd, remote.used, _nobody, where.journal, remote.known)
        kept.begin(remote.head, remote.tail, remote.last)

        def told(there: int, windows: int) -> None:
            state = "done" if there == windows else "running"
            size = remote.size * there // max(windows, 1)
            shown.blob(remote.digest, size, remote.size, state)

        waits = lambda seconds: time.sleep(min(seconds, _LOOK))  # noqa: E731
        Filler(kept, where, remote.facts, waits, told, _TOGETHER).run()
    except FillingEnded as error:
        hint = "what came is kept: the same command goes on"
        raise UdiError(f"{what} failed: {error}", hint) from None
    except OSError as error:
        raise Store(asked.folder).refused(what, error) from None


def _nobody(number: int, why: str, window: bytes) -> None:
    """Nobody waits for single windows here."""
