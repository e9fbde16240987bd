"""What `udi doctor` says of the configuration, the state directory and the image stores."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.trees import filesystem
from rootless_udi.commands.common.findings import FAILURE, OK, WARNING, Finding
from rootless_udi.config import load
from rootless_udi.node import places
from rootless_udi.store import resolve, striping


def configuration(environ: dict[str, str]) -> Finding:
    """Tell the first of what `udi config check` finds."""
    from rootless_udi.config import show

    try:
        problems = show.check(environ)
    except UdiError as error:
        return Finding(FAILURE, "configuration", error.message, error.hint)
    if problems:
        return Finding(WARNING, "configuration", f"{problems[0]}", "udi config check has all")
    return Finding(OK, "configuration", "nothing is wrong with it")


def state(environ: dict[str, str]) -> Iterator[Finding]:
    """Yield where ranks find one another's container."""
    what = "state directory"
    for text in places.passed_over(places.directories(environ, os.getuid())):
        yield Finding(WARNING, what, text, "have it removed")
    try:
        path, fd = places.find(environ, make=True)
    except UdiError as error:
        yield Finding(FAILURE, what, error.message, error.hint)
        return
    if fd < 0:
        yield Finding(
            WARNING,
            what,
            "none can be made: ranks of a job can't share a container",
            "set XDG_RUNTIME_DIR to a directory of your own on this node",
        )
        return
    os.close(fd)
    yield Finding(OK, what, path)


def store(environ: dict[str, str]) -> Iterator[Finding]:
    """Yield the image stores: the user's, which nobody has not, and the site's."""
    try:
        stores = resolve.all_stores(load.load(environ), environ)
    except UdiError as error:
        yield Finding(FAILURE, "image store", error.message, error.hint)
        return
    for number, path in enumerate(stores):
        if number == 0 and os.getuid() == trust.NOBODY:
            continue
        what = "image store" if number == 0 else "site's image store"
        there = Path(path)
        while not there.exists() and there != there.parent:
            there = there.parent
        usage = shutil.disk_usage(there)
        kind = filesystem(str(there))
        text = f"{path} on {kind}, {usage.free / 1e9:.0f} GB free"
        if number == 0 and not os.access(there, os.W_OK):
            yield Finding(
                FAILURE, what, f"{text}: not writable", "set UDI_STORE to a directory of your own"
            )
        elif kind in ("tmpfs", "ramfs"):
            yield Finding(WARNING, what, f"{text}: images are in memory", "set UDI_STORE")
        else:
            yield _striped(what, text, path)


def _striped(what: str, text: str, path: str) -> Finding:
    """Return the finding of a store that is well, with its stripes where it is on Lustre."""
    stripes = striping.found(path) if os.path.isdir(path) else None
    if stripes is None:
        return Finding(OK, what, text)
    if stripes in (0, 1):
        words = " ".join(striping.layout(8))
        folders = " ".join(f"{path}/{folder}" for folder in striping.FOLDERS)
        remedy = f"lfs setstripe {words} {folders}: for what comes later"
        return Finding(WARNING, what, f"{text}; each file is on one server of Lustre", remedy)
    shown = "all" if stripes < 0 else str(stripes)
    return Finding(OK, what, f"{text}; large files in {shown} stripes")
