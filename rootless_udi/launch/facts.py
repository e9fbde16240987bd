"""What a start finds out first: configuration, host, image, and which server serves the image.

The image server is told at once, so that it opens the image while this process goes on.
"""

import os
from time import time

from rootless_udi.base.digest import digest
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.config import load
from rootless_udi.host import facts
from rootless_udi.node import places
from rootless_udi.plan.facts import Host
from rootless_udi.plan.image import Image, Root
from rootless_udi.plan.options import Request
from rootless_udi.plan.reference import GATEWAY, REMOTE
from rootless_udi.plan.site import Site
from rootless_udi.plan.start import Start
from rootless_udi.serve import choose
from rootless_udi.serve.outside import CHECKED, LISTED
from rootless_udi.store import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.serve.helper import Helper


WEEK = 7 * 86400
"""Seconds. After so long the reads of a start are recorded again, since programs change."""


class StartFacts(Record):
    """The configuration, the facts of host and image, and how the image is mounted."""

    site: Site
    host: Host
    image: Image
    root: Root


def find(
    request: Request, environ: "dict[str, str]", who: str, helper: "Helper | None", state: str = ""
) -> StartFacts:
    """Gather the facts and choose the image server; tell `helper` what it will serve.

    `who` is the launcher (`node.launcher`), "" for none. `state` is the state directory's path, ""
    where it was not looked for. A missing image may be pulled; nothing else is changed. Raises
    UdiError where something that was asked for is impossible.
    """
    site = load.load(environ)
    host = facts.gather(environ, site.squashfuse)
    if request.writable:
        # For kernels that mount no overlay. Only --writable needs it.
        host = host.replace(fuse_overlayfs=facts.which("fuse-overlayfs", environ))
    away = None
    if request.image.startswith((*REMOTE, GATEWAY)) or "lazy" in (request.pull, site.pull):
        from rootless_udi.launch import away as elsewhere

        away = elsewhere.find(request, site, environ, who)
    image = away.image if away is not None else resolve.image(request, site, environ, who)
    wanted = "udi" if request.trace else request.fuse or site.server
    try:
        root = choose.choose(wanted, host, image, lambda name: facts.which(name, environ))
    except UdiError:
        if away is not None or not image.path:
            raise
        from rootless_udi.launch import unpacking

        root = unpacking.root(wanted, host, image, site, environ)
    checks = away.verify(root) if away is not None else verify(site, image, root)
    if root.program:
        root = root.replace(options=site.server_options)
    if request.trace:
        trace = os.path.abspath(request.trace)
        if not os.access(os.path.dirname(trace), os.W_OK):
            raise UdiError(f"writing the profile {trace} failed: its folder can't be written")
        root = root.replace(trace=trace)
    if helper is not None and root.server == "udi":
        words = [word for word in (request.entrypoint, *request.command) if word]
        # A longer word can be no path.
        program = words[0] if words and len(words[0]) < 4096 else ""
        listed = away.listed if away is not None else ""
        state = state or places.seen(places.directories(environ, os.getuid()))
        start = _start(image, words, state, listed)
        if checks:
            start = start.replace(verify=checks)
        if away is None:
            helper.announce(root, program, start)
        else:
            helper.announce(root, program, away.told(start), away.fds)
    if away is not None:
        away.close()
    return StartFacts(site, host, image, root)


def verify(site: Site, image: Image, root: Root) -> str:
    """Return how the image server checks what it reads, for `Start.verify`.

    Raises UdiError where the site wants an image checked that another server serves.
    """
    if site.verify != "always":
        return ""
    listed = bool(image.facts.get("windows"))
    if root.server == "udi":
        return LISTED if listed else CHECKED
    if listed:
        raise UdiError(
            f"checking image {image.request} failed: image.verify is always, and {root.server} "
            f"serves it, which does not check what it reads ({root.reason})",
            'only our own server does (--fuse=udi); image.verify = "remote" leaves it out',
        )
    return ""


def _start(image: Image, words: "list[str]", state: str, listed: str) -> Start:
    """Return what prefetching needs for a start of the command `words` (`serve.prefetch`).

    The key is a digest of the program and its first argument that is no option: for an interpreter
    that is the script. The name of the file on this node stands for the image's file as well: by
    its times, or where it is elsewhere by its list of windows (`listed`).
    """
    about = next((word for word in words[1:] if not word.startswith("-")), "")
    key = digest("\0".join((*words[:1], about)).encode("utf-8", "surrogateescape"))
    parts: tuple[object, ...] = listed, key
    if not listed:
        try:
            status = os.stat(image.path)
        except OSError:
            # The image is gone, which its server will say; or elsewhere, and has no list.
            return Start(key)
        parts = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, key
    name = digest(repr(parts).encode())
    path = f"{state}/starts/{name}"
    try:
        if time() - os.stat(path).st_mtime < WEEK:
            return Start(key, known=path)
    except OSError:
        pass
    known = image.path if image.optimized and not listed else ""
    return Start(key, name, known, behind=bool(known))
