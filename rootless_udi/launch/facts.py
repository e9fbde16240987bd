"""What a start finds out first: the site, the host, the image and who serves it.

The image server is told at once and opens the image while this process loads the planner.
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
from rootless_udi.plan.site import Site
from rootless_udi.plan.start import Start
from rootless_udi.serve import choose
from rootless_udi.store import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.serve.helper import Helper


WEEK = 7 * 86400
"""Seconds after which what a start asked is recorded anew, since programs change."""


class StartFacts(Record):
    """The facts that the choice of the image server rests on, and the choice."""

    site: Site
    host: Host
    image: Image
    root: Root


def find(
    request: Request, environ: "dict[str, str]", who: str, helper: "Helper | None"
) -> StartFacts:
    """Gather the facts and choose; `helper` hears which image its server will serve.

    `who` is the launcher (`node.launcher`), "" for none. Changes nothing but the store.
    Raises UdiError for what is impossible.
    """
    site = load.load(environ)
    host = facts.gather(environ, site.squashfuse)
    if request.writable:
        # For kernels that mount no overlay. No other start looks for it.
        host = host.replace(fuse_overlayfs=facts.which("fuse-overlayfs", environ))
    image = resolve.image(request, site, environ, who)
    wanted = "udi" if request.trace else request.fuse or site.server
    root = choose.choose(wanted, host, image)
    if root.program:
        root = root.replace(options=site.server_options)
    if request.trace:
        trace = os.path.abspath(request.trace)
        if not os.access(os.path.dirname(trace), os.W_OK):
            raise UdiError(f"writing the profile {trace} failed: its folder can't be written")
        root = root.replace(trace=trace)
    if helper is not None and root.server == "udi":
        words = [word for word in (request.entrypoint, *request.command) if word]
        # A longer word is no path; the server has no use for it.
        program = words[0] if words and len(words[0]) < 4096 else ""
        helper.announce(root, program, _start(image, words, environ))
    return StartFacts(site, host, image, root)


def _start(image: Image, words: "list[str]", environ: "dict[str, str]") -> Start:
    """Return what is known of a start of the command `words`: see `serve.prefetch`.

    Its key is a digest of the program and of its first argument that is no option, which for an
    interpreter is the script. The file on this node is named by the image's file as well.
    """
    about = next((word for word in words[1:] if not word.startswith("-")), "")
    key = digest("\0".join((*words[:1], about)).encode("utf-8", "surrogateescape"))
    try:
        status = os.stat(image.path)
    except OSError:
        # The server will say so.
        return Start(key)
    parts = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, key
    name = digest(repr(parts).encode())
    path = f"{places.seen(places.directories(environ, os.getuid()))}/starts/{name}"
    try:
        if time() - os.stat(path).st_mtime < WEEK:
            return Start(key, known=path)
    except OSError:
        pass
    return Start(key, name, known=image.path if image.optimized else "")
