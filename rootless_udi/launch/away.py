"""An image that is elsewhere: who fetches it, and how it is checked.

It is named by a URL, as an image of a gateway, or, with `image.pull = lazy`, by its registry.
"""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import tell
from rootless_udi.plan.image import Image, Root
from rootless_udi.plan.options import Request
from rootless_udi.plan.reference import GATEWAY, REMOTE, named, parse, parse_platform
from rootless_udi.plan.site import Site
from rootless_udi.plan.start import Start
from rootless_udi.serve import distant
from rootless_udi.serve.distant import Distant
from rootless_udi.serve.outside import CHECKED, LISTED
from rootless_udi.store import resolve

LAZY = "lazy"
"""The value of image.pull and --pull with which images start before they are in the store."""


class Away:
    """An image whose windows a process fetches; `image` is what is known of it.

    `fds` are their file and the socket to that process, for the image server.
    """

    def __init__(
        self, found: Distant, image: Image, digest: str, checked: bool, site: Site
    ) -> None:
        """`digest` is what the list of its windows must have, "" for any."""
        self._found, self._digest, self._checked = found, digest, checked
        self._timeout, self._always = site.timeout, site.verify == "always"
        self.fds = (found.file, found.sock.fileno())
        self.image = image

    @property
    def kept(self) -> str:
        """The path of the file with the windows."""
        return self._found.path

    @property
    def listed(self) -> str:
        """The digest of the list of its windows, by which it is the same image on each node."""
        return self._found.listed

    def verify(self, root: Root) -> str:
        """Return `Start.verify`. Raises UdiError where another server than ours was chosen."""
        if root.server != "udi":
            raise UdiError(
                f"serving {root.path} failed: only our own server reads what is elsewhere, "
                f"and {root.server} was chosen ({root.reason})",
                "leave out --fuse; `udi doctor` says what this machine lacks",
            )
        if not self._checked:
            return ""
        return LISTED if self._always else CHECKED

    def told(self, start: Start) -> Start:
        """Return `start` with what the server must know of the image besides."""
        if not start.known and self.image.optimized:
            # What is behind the squashfs has come.
            start = start.replace(known=self.kept, behind=True)
        return start.replace(timeout=self._timeout, digest=self._digest, there=self._found.there)

    def close(self) -> None:
        """Close the descriptors, of which the server has its own now."""
        os.close(self.fds[0])
        self._found.sock.close()


def find(request: Request, site: Site, environ: "dict[str, str]", who: str) -> "Away | None":
    """Return the request's image if it is to be read where it is, None where a store has it, or
    where it must be pulled first. `who` is the launcher of several ranks, which never pull, or "".

    Raises UdiError where there is no image at a URL.
    """
    lazy = (request.pull or site.pull) == LAZY
    if request.image.startswith((*REMOTE, GATEWAY)):
        return _in_place(request, site, environ, lazy)
    return _of_registry(request, site, environ, who) if lazy else None


def _in_place(request: Request, site: Site, environ: "dict[str, str]", lazy: bool) -> "Away | None":
    """Return an image whose name says where it is; None where a store has it and may be asked."""
    reference = named(request.image, site.registry)
    platform = parse_platform(request.platform) if request.platform else None
    stores = resolve.all_stores(site, environ)
    never = request.pull == "never"
    if (lazy or never) and resolve.lookup(stores, reference, platform) is not None:
        return None
    if never:
        shown = request.image.partition("#")[0]
        raise UdiError(f"image {shown} is in no image store, and --pull=never", "leave that out")
    # --explain changes nothing.
    folder = stores[0] if request.explain is None else ""
    if reference.kind == "web":
        return _by_url(request, site, folder, lazy)
    asked = site.timeout, request.insecure, folder, lazy and bool(folder), request.platform or ""
    found = distant.opened(request.image, *asked)
    return None if isinstance(found, str) else _listed(request, site, found)


def _by_url(request: Request, site: Site, folder: str, lazy: bool) -> "Away | None":
    _, _, digest = request.image.partition("#")
    if digest and (not digest.startswith("sha256:") or len(digest) != 71):
        raise UdiError(
            f"image {request.image}: {digest!r} is no digest of a list of windows",
            "URL#sha256:HEX, as `udi inspect FILE` prints it (windows)",
        )
    checked = site.verify != "never" or bool(digest) or lazy
    host = request.image.partition("://")[2].partition("/")[0].rpartition("@")[2]
    insecure = request.insecure or host in site.insecure
    # Kept with the downloads of pulls, of which those that were not used for a day are removed.
    # Only what is compared with a list before each use may be kept.
    folder = folder if checked else ""
    found = distant.opened(request.image, site.timeout, insecure, folder, lazy and bool(folder))
    if isinstance(found, str):
        return None  # another start has just filled the store
    # The file is as long as the image, and has all that is looked at here: its first bytes, and
    # the facts behind it.
    image = resolve.local(request.image, f"/proc/self/fd/{found.file}")
    return Away(found, image.replace(path=found.shown), digest, checked, site)


def _of_registry(
    request: Request, site: Site, environ: "dict[str, str]", who: str
) -> "Away | None":
    reference = parse(request.image, site.registry)
    if reference.kind != "registry":
        return None
    platform = parse_platform(request.platform) if request.platform else None
    stores = resolve.all_stores(site, environ)
    if resolve.lookup(stores, reference, platform) is not None:
        return None
    insecure = request.insecure or reference.registry in site.insecure
    folder = stores[0] if request.explain is None else ""
    asked = site.timeout, insecure, folder, bool(folder), request.platform or ""
    found = distant.opened(request.image, *asked)
    if isinstance(found, str):
        kind, _, why = found.partition("\0")
        if kind == distant.BROKEN or (request.verbose and kind == distant.NONE):
            tell(f"{request.image} {'must be' if who else 'is'} pulled first: {why}")
        if kind == distant.BROKEN and not who:
            # What has just failed is not asked for again.
            resolve.pull(request, stores[0], "--convert")
        return None
    return _listed(request, site, found)


def _listed(request: Request, site: Site, found: Distant) -> Away:
    """Return an image that has a list of its windows, and whose facts came along."""
    packed = resolve.check(f"/proc/self/fd/{found.file}", "push it again (udi push)", ())
    facts = resolve.parsed(found.facts.encode())
    image = Image(request.image, found.digest, found.shown, "", facts, *packed)
    return Away(found, image, found.listed, True, site)
