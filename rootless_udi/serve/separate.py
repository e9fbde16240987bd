"""The helper as a program of its own, for a start whose plan is known (`launch.known`).

udi-run in C starts it, and makes the container while it loads. The sockets are those of
`serve.helper.Helper`, and so are the messages.
"""

import _socket
import os
import sys

from rootless_udi.fuse import decompress, raw_transport
from rootless_udi.serve import outside
from rootless_udi.serve.helper import work
from rootless_udi.serve.outside import BUG, HELPER

# Loaded before the fork in `work`: afterwards each page that is written is copied.
__all__ = ["main", "raw_transport"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

    from rootless_udi.fuse.precheck import Beforehand


def main(ahead: "Beforehand | None" = None) -> "NoReturn":
    """Serve, and end. The arguments are the `Place` of the container's record, udi-run's process
    id, and the image's file; the descriptors of the sockets are in the option -X sockets. `ahead`
    tells which of the image's windows were compared already."""
    status = BUG
    try:
        mine, source = map(int, str(sys._xoptions["sockets"]).split("."))
        path, name, token, launcher, _ = sys.argv[1:]
        kind = _socket.AF_UNIX, _socket.SOCK_SEQPACKET, 0
        outside.leave(HELPER, mine, source, *(ahead.fds if ahead is not None else ()))
        os.set_inheritable(mine, False)
        os.set_inheritable(source, False)
        # The usual one: `udi pull` makes images with it.
        decompress.available("zstd")
        sock, server = _socket.socket(*kind, mine), _socket.socket(*kind, source)
        work(sock, server, (path, name, token), int(launcher), ahead)
        _renew()
        status = 0
    finally:
        os._exit(status)


def _renew() -> None:
    """Write the bundles anew where this one was missing, damaged or old: no other start looks."""
    stale = any(getattr(one, "stale", False) for one in sys.meta_path)
    # None: of a bundle, as another module than the one that was asked for.
    loader = __spec__.loader if __spec__ is not None else None
    if loader.__class__.__name__ != "SourceFileLoader" and not stale:
        return
    package = os.path.dirname(os.path.dirname(__file__))
    if os.access(f"{package}/__pycache__", os.W_OK):
        from rootless_udi import bundle

        # Others may run this installation, too.
        os.umask(0o022)
        bundle.write(package)
