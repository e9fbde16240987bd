"""Plan perNodeCaches, which are private file systems of one node: method, place and limits. Pure.

There are two methods. `tmpfs` is the kernel's file system in memory: the kernel enforces its size,
and it is gone when the mount namespace is. `file` is an ext4 file system in a sparse file, which
fuse2fs serves. The file has no name any more, so it is gone when the server ends. It lies in a
directory of the node or on a parallel file system, which serves one large file better than many
small ones. `rootless_udi.host.cachefacts` gathers the facts.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan import sizes
from rootless_udi.plan.site import BUILT_IN
from rootless_udi.plan.steps import Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from rootless_udi.plan.site import Site
    from rootless_udi.plan.volumes import Volume

_LEAST_FILE = 1024**2
"""Bytes. mke2fs(8) makes no useful ext4 that is smaller."""
_BLOCK = 4096
"""Bytes of a block of the ext4."""
_MEMORY_OPTIONS = ("nosuid", "nodev", "mode=755")


class Place(Record):
    """A directory for a cache's file: its `free` bytes; `why` it can't be used, or ""."""

    path: str
    why: str
    free: int


class CacheFacts(Record):
    """What this node has: `memory` that the job may use in bytes (0: unknown), `limited_by` what,
    the directories asked for, and the paths of the two programs ("" for none)."""

    memory: int
    limited_by: str
    places: tuple[Place, ...] = ()
    mke2fs: str = ""
    fuse2fs: str = ""
    libfuse: int = 0
    """Major version of the libfuse that fuse2fs was built with."""


class FileCache(Record):
    """A step: make a sparse file without a name in `directory`, of `size` bytes; run `mke2fs` on
    it; mount it at `target` by `fuse2fs`. In both argvs FILE and TARGET stand for the paths."""

    target: str
    directory: str
    size: int
    mke2fs: tuple[str, ...]
    fuse2fs: tuple[str, ...]
    reason: str = ""


FILE, TARGET = "{file}", "{target}"


def methods(volumes: "Iterable[Volume]", site: "Site", memory: int) -> "list[tuple[Volume, str]]":
    """Return each volume that is a cache, with its method, "tmpfs" or "file".

    Where neither the volume nor the site names a method, it is "tmpfs" as long as all caches
    together fit into `memory` bytes (0: unknown), else "file", as in Shifter.
    """
    found = []
    total = 0
    for volume in volumes:
        if volume.cache is None:
            continue
        how = volume.cache.method or site.cache_method
        if _unsaid(volume, site) and memory and total + _size(volume) > memory:
            how = "file"
        if how == "tmpfs":
            total += _size(volume)
        found.append((volume, how))
    return found


def candidates(volumes: "Iterable[Volume]", site: "Site", memory: int) -> tuple[str, ...]:
    """Return the directories for the caches' files: the site's, or else the volumes' sources."""
    files = [v for v, how in methods(volumes, site, memory) if how == "file"]
    if not files:
        return ()
    return site.cache_paths or tuple(dict.fromkeys(v.source for v in files))


def plan(
    volumes: "Iterable[Volume]", site: "Site", facts: CacheFacts
) -> "tuple[Mount | FileCache, ...]":
    """Return the steps of the volumes that are caches, in their order.

    Raises UdiError for a cache larger than the site's limit, for caches in memory that together
    need more than the job may use, where no directory has room for a file, and where mke2fs or
    fuse2fs is missing.
    """
    steps: list[Mount | FileCache] = []
    in_memory = 0
    for volume, how in methods(volumes, site, facts.memory):
        _within_limit(volume, site)
        if how == "tmpfs":
            in_memory += _size(volume)
            steps.append(_tmpfs(volume, in_memory, site, facts))
        else:
            steps.append(_file(volume, site, facts))
    return tuple(steps)


def _size(volume: "Volume") -> int:
    """Return a cache's bytes: its size, rounded up to whole blocks of `bs` as dd(1) writes them."""
    assert volume.cache is not None
    block = volume.cache.block or 1
    return -(-volume.cache.size // block) * block


def _what(volume: "Volume") -> str:
    assert volume.cache is not None
    return f"perNodeCache {volume.destination}: size={sizes.show(volume.cache.size)}"


def _within_limit(volume: "Volume", site: "Site") -> None:
    limit = site.cache_limit
    if limit and _size(volume) > limit:
        raise UdiError(
            f"{_what(volume)} is more than this site allows: {sizes.show(limit)} "
            f"({site.origin('cache.limit')})",
            f"ask for at most size={sizes.show(limit)}",
        )


def _tmpfs(volume: "Volume", total: int, site: "Site", facts: CacheFacts) -> Mount:
    assert volume.cache is not None
    size = _size(volume)
    if facts.memory and total > facts.memory:
        all_of_them = f" (all caches: {sizes.show(total)})" if total > size else ""
        raise UdiError(
            f"{_what(volume)}{all_of_them} in memory is more than {about(facts.memory)}, "
            f"the limit of {facts.limited_by}",
            f"ask for less than {about(facts.memory)}, or keep it in a file: "
            f"perNodeCache=size={sizes.show(volume.cache.size)},method=file",
        )
    asked = volume.cache.method or f"cache.method, {site.origin('cache.method')}"
    return Mount(
        volume.destination,
        "tmpfs",
        "tmpfs",
        (*_MEMORY_OPTIONS, f"size={size}"),
        True,
        f"perNodeCache ({volume.origin}) in memory: method={asked}",
    )


def _file(volume: "Volume", site: "Site", facts: CacheFacts) -> FileCache:
    size = _size(volume)
    if size < _LEAST_FILE:
        raise UdiError(
            f"{_what(volume)} is too small for a file system in a file",
            f"ask for at least size={sizes.show(_LEAST_FILE)}, or method=tmpfs",
        )
    missing = [n for n, path in (("mke2fs", facts.mke2fs), ("fuse2fs", facts.fuse2fs)) if not path]
    if missing:
        raise UdiError(
            f"{_what(volume)}{_how(volume, site, facts)}: this node has no "
            f"{' and no '.join(missing)}",
            f"{_less(volume, site, facts)}; or let the site install e2fsprogs and fuse2fs",
        )
    place = _place(volume, size, site, facts)
    return FileCache(
        volume.destination,
        place.path,
        size,
        mke2fs(facts.mke2fs, size),
        fuse2fs(facts.fuse2fs, facts.libfuse),
        f"perNodeCache ({volume.origin}) in a file in {place.path}",
    )


def _place(volume: "Volume", size: int, site: "Site", facts: CacheFacts) -> Place:
    """Return the first suitable directory of the site's, or else the volume's own."""
    wanted = site.cache_paths or (volume.source,)
    whys = []
    for place in facts.places:
        if place.path in wanted:
            if not place.why and place.free >= size:
                return place
            whys.append(f"{place.path}: {place.why or f'{about(place.free)} free'}")
    from_site = f" (cache.paths, {site.origin('cache.paths')})" if site.cache_paths else ""
    raise UdiError(
        f"{_what(volume)}{_how(volume, site, facts)}: no directory for its file{from_site}: "
        f"{'; '.join(whys)}",
        ("" if site.cache_paths else "name a directory of yours before the ':', or ")
        + _less(volume, site, facts),
    )


def _unsaid(volume: "Volume", site: "Site") -> bool:
    """Tell whether neither the volume nor the site names a method."""
    assert volume.cache is not None
    said = volume.cache.method or site.origin("cache.method") != BUILT_IN
    return not said and site.cache_method == "tmpfs"


def _how(volume: "Volume", site: "Site", facts: CacheFacts) -> str:
    """Return, for a message, why a cache is a file: it was asked for, or memory is too small."""
    if not _unsaid(volume, site):
        return ",method=file"
    return f" does not fit into {about(facts.memory)}, the limit of {facts.limited_by}; in a file"


def _less(volume: "Volume", site: "Site", facts: CacheFacts) -> str:
    if _unsaid(volume, site):
        return f"ask for less: {about(facts.memory)} of all caches fit into memory"
    return "ask for less, or keep it in memory: method=tmpfs"


def about(size: int) -> str:
    """Return a size for a message, rounded down: 8.1G."""
    value, power = float(size), 0
    while value >= 1024 and power < len(sizes.UNITS) - 1:
        value /= 1024
        power += 1
    whole = int(value * 10) / 10
    return f"{whole:g}{sizes.UNITS[power].upper() if power else ''}"


def mke2fs(program: str, size: int) -> tuple[str, ...]:
    """Return the argv of mke2fs(8) that makes an ext4 of `size` bytes in FILE.

    It has no journal, since it is mounted only once. Its inode tables are not written, so that 100
    GiB take only a moment. Its owner is id 0, which is the caller in the server's user namespace.
    Two blocks are reserved for root: without any, fuse2fs 1.47 reserves a tenth of all.
    """
    reserved = 200 * _BLOCK / size
    return (
        program,
        "-q",
        "-F",
        "-t",
        "ext4",
        "-b",
        str(_BLOCK),
        "-m",
        f"{reserved:.12f}",
        "-O",
        "^has_journal,^resize_inode,uninit_bg,^metadata_csum",
        "-E",
        "lazy_itable_init=1,nodiscard,root_owner=0:0",
        FILE,
    )


def fuse2fs(program: str, libfuse: int) -> tuple[str, ...]:
    """Return the argv of fuse2fs(1) that serves FILE at TARGET in the foreground.

    `libfuse` is the major version that it was built with. It uses one thread (-s), since a lock
    lets only one work anyway. libfuse 2 needs `big_writes` for writes of more than 4 KiB; libfuse 3
    always does them and refuses the word. Nobody writes the file system but through this mount, so
    the kernel may keep names and attributes for long.
    """
    words = "rw,nosuid,nodev,minixdf,allow_other,kernel_cache,entry_timeout=3600,attr_timeout=3600"
    big = ",big_writes" if libfuse == 2 else ""
    return (program, FILE, TARGET, "-f", "-s", "-o", words + big)


def filled(argv: tuple[str, ...], file: str, target: str = "") -> list[str]:
    """Return an argv with `file` and `target` in the places of FILE and TARGET."""
    return [{FILE: file, TARGET: target}.get(word, word) for word in argv]


def cgroup_files(text: str) -> tuple[str, ...]:
    """Return the paths of the files that may limit a process's memory (cgroups(7)).

    `text` is the content of its /proc/PID/cgroup. The files are memory.max for cgroup v2 (a line
    "0::/PATH") and memory.limit_in_bytes for v1 (a line that names "memory"), in the cgroup and all
    above it, below the usual mount points.
    """
    found = []
    for line in text.splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            root, name = "/sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            root, name = "/sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for end in range(len(parts), -1, -1):
            found.append("/".join((root, *parts[:end], name)))
    return tuple(found)


def smallest(limits: "dict[str, str]", meminfo: str) -> tuple[int, str]:
    """Return the memory that a job may use, in bytes, and in words what limits it.

    `limits` maps those of `cgroup_files` that exist to their content, `meminfo` is that of
    /proc/meminfo. "max" and, for v1, numbers near 2^63 mean no limit.
    """
    best, by = 0, ""
    for line in meminfo.splitlines():
        if line.startswith("MemTotal:"):
            best, by = int(line.split()[1]) * 1024, "this node's memory"
    for path, text in limits.items():
        text = text.strip()
        if text.isdigit() and 0 < int(text) < 2**62 and (not best or int(text) < best):
            best, by = int(text), f"this job's cgroup ({path})"
    return best, by
