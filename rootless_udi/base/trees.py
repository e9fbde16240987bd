"""Remove a directory tree; find a path's mount point. Off the start path."""

import os
import shutil
import stat
from collections.abc import Callable
from typing import Any


def remove_tree(path: str) -> None:
    """Remove a file or directory tree of the caller's, if it is there. Raises OSError.

    Images have folders that even their owner may not write or enter. Where the kernel refuses to
    remove something, the folder gets mode 0700, and it is tried again.
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
    """Return the mount point of the file system on which `path` is, or would be if it was made."""
    path = os.path.realpath(path)
    while path != "/" and not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def filesystem(path: str) -> str:
    """Return the type of the file system that `path` is on, from /proc/self/mountinfo."""
    best, kind = "", "unknown"
    path = os.path.realpath(path)
    for line in _lines("/proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        point = left.split()[4].encode().decode("unicode_escape")
        inside = path == point or path.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind


def _lines(path: str) -> list[str]:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().splitlines()
    except OSError:
        return []
