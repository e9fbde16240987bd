"""`serve.separate` for an image that is checked: windows are compared while the server loads.

Before anything else is loaded a process begins with it (`fuse.precheck`).
"""

import os
import sys

from rootless_udi.fuse import precheck

__all__ = ["main"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> "NoReturn":
    """Do what `separate.main` does."""
    try:
        fd = os.open(sys.argv[5], os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        ahead = None  # the server will say it
    else:
        sockets = str(sys._xoptions["sockets"]).split(".")
        ahead = precheck.begin(fd, sockets=tuple(map(int, sockets)))
    from rootless_udi.serve import separate

    separate.main(ahead)
