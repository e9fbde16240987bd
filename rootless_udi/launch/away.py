"""An image that is named by a URL: who fetches it, and how it is checked."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.image import Root
from rootless_udi.plan.options import Request
from rootless_udi.plan.site import Site
from rootless_udi.plan.start import Start
from rootless_udi.serve import distant
from rootless_udi.serve.outside import LISTED
from rootless_udi.store import resolve


class Away:
    """The image that a request names by a URL; `image` is what is known of it.

    A process fetches its windows. `fds` are their file and the socket to that process, for the
    image server.
    """

    def __init__(self, request: Request, site: Site, environ: "dict[str, str]") -> None:
        """Have the process started. Raises UdiError where there is no image at the URL."""
        url, _, self._digest = request.image.partition("#")
        digest = self._digest
        if digest and (not digest.startswith("sha256:") or len(digest) != 71):
            raise UdiError(
                f"image {request.image}: {digest!r} is no digest of a list of windows",
                "URL#sha256:HEX, as `udi inspect FILE` prints it (windows)",
            )
        if request.pull == "never":
            raise UdiError(f"image {url} is in no image store, and --pull=never", "leave that out")
        self._checked = site.verify != "never" or bool(digest)
        self._timeout = site.timeout
        scheme, _, rest = url.partition("://")
        where, slash, path = rest.partition("/")
        host = where.rpartition("@")[2]
        insecure = request.insecure or host in site.insecure
        # Kept with the downloads of pulls, of which those that were not used for a day are removed.
        # Only what is compared with a list before each use may be kept.
        folder = f"{resolve.all_stores(site, environ)[0]}/blobs" if self._checked else ""
        file, self._sock = distant.opened(url, site.timeout, insecure, folder)
        self.fds = (file, self._sock.fileno())
        # The file is as long as the image, and has all that is looked at here: its first bytes, and
        # the facts behind it.
        found = resolve.local(request.image, f"/proc/self/fd/{file}")
        # Without what may be a secret: a name with a password, and a signature. It is logged.
        self.image = found.replace(path=f"{scheme}://{host}{slash}{path.partition('?')[0]}")

    def verify(self, root: Root) -> str:
        """Return `Start.verify`. Raises UdiError where another server than ours was chosen."""
        if root.server != "udi":
            raise UdiError(
                f"serving {root.path} failed: only our own server reads what is elsewhere, "
                f"and {root.server} was chosen ({root.reason})",
                "leave out --fuse; `udi doctor` says what this machine lacks",
            )
        return LISTED if self._checked else ""

    def told(self, start: Start) -> Start:
        """Return `start` with what the server must know of the image besides."""
        return start.replace(timeout=self._timeout, digest=self._digest)

    def close(self) -> None:
        """Close the descriptors, of which the server has its own now."""
        os.close(self.fds[0])
        self._sock.close()
