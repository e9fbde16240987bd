"""Facts about the node for perNodeCaches: memory limits, directories, programs. Changes nothing."""

import os

from rootless_udi.base.calls import spawn
from rootless_udi.plan import pernodecache
from rootless_udi.plan.pernodecache import CacheFacts, Place

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rootless_udi.plan.site import Site
    from rootless_udi.plan.volumes import Volume


def gather(volumes: "Iterable[Volume]", site: "Site", environ: "Mapping[str, str]") -> CacheFacts:
    """Return the facts that are needed to plan the caches among `volumes`."""
    files = pernodecache.cgroup_files(_text("/proc/self/cgroup"))
    limits = {path: text for path in files if (text := _text(path))}
    memory, by = pernodecache.smallest(limits, _text("/proc/meminfo"))
    directories = pernodecache.candidates(volumes, site, memory)
    if not directories:
        return CacheFacts(memory, by)
    from rootless_udi.host.facts import which

    fuse2fs = which("fuse2fs", environ)
    return CacheFacts(
        memory,
        by,
        tuple(_place(path) for path in directories),
        which("mke2fs", environ),
        fuse2fs,
        _libfuse(fuse2fs) if fuse2fs else 0,
    )


def _libfuse(fuse2fs: str) -> int:
    """Ask fuse2fs for the major version of its libfuse; 3 where it does not say."""
    mine, theirs = os.pipe()
    try:
        pid = spawn(fuse2fs, [fuse2fs, "-V"], {"LC_ALL": "C"}, [(theirs, 1), (theirs, 2)])
    except OSError:
        os.close(mine)
        return 3
    finally:
        os.close(theirs)
    with open(mine, "rb") as said:
        text = said.read()
    os.waitpid(pid, 0)
    _, found, rest = text.lower().partition(b"fuse library version")
    return 2 if found and rest.lstrip(b": ").startswith(b"2") else 3


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
