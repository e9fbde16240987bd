"""Trees of files: remove one, and find the file system that one is on. Off the start path."""

import os
import shutil
import stat
from collections.abc import Callable
from typing import Any


def remove_tree(path: str) -> None:
    """Remove a tree of the caller's, if it is there; raises OSError.

    Also one with folders that their owner may not write or enter, which images have: such a folder
    is given mode 0700 when the kernel has refused to remove something in it.
    """

    def again(call: Callable[..., Any], name: str, _why: object) -> None:
        for one in (os.path.dirname(name), name):
            if not os.path.islink(one) and os.path.isdir(one):
                os.chmod(one, stat.S_IRWXU)
        if os.path.isdir(name) and not os.path.islink(name):
            shutil.rmtree(name, onerror=again)
        else:
            call(name)

    if os.path.lexists(path):
        shutil.rmtree(path, onerror=again)


def mount_point(path: str) -> str:
    """Return the mount point of the file system that `path` is on, or would be if it was made."""
    path = os.path.realpath(path)
    while path != "/" and not os.path.ismount(path):
        path = os.path.dirname(path)
    return path
