"""What a node has for perNodeCaches: memory limits, directories, programs. Reads, never changes."""

import os

from rootless_udi import cache
from rootless_udi.cache import Facts, Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def gather(directories: "Iterable[str]", environ: "Mapping[str, str]") -> Facts:
    """Return the facts; `directories` are `cache.candidates`, empty where all is in memory."""
    directories = tuple(directories)
    files = cache.cgroup_files(_text("/proc/self/cgroup"))
    limits = {path: text for path in files if (text := _text(path))}
    memory, by = cache.smallest(limits, _text("/proc/meminfo"))
    if not directories:
        return Facts(memory, by)
    from rootless_udi.host import which

    return Facts(
        memory,
        by,
        tuple(_place(path) for path in directories),
        which("mke2fs", environ),
        which("fuse2fs", environ),
    )


def _place(path: str) -> Place:
    try:
        info = os.statvfs(path)
        if not os.path.isdir(path):
            return Place(path, "not a directory", 0)
    except OSError as error:
        return Place(path, os.strerror(error.errno or 0), 0)
    if not os.access(path, os.W_OK | os.X_OK):
        return Place(path, "you may not write there", 0)
    return Place(path, "", info.f_bavail * info.f_frsize)


def _text(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except (OSError, ValueError):
        return ""
