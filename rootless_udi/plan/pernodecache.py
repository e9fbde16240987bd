"""perNodeCache: which method, where, within which limits, and the programs' argv. Pure.

`tmpfs` is the kernel's own file system in memory: its size is enforced, and it is gone with the
mount namespace. `file` is a sparse ext4 file in a directory of the node (or of a parallel file
system: one big file in place of its many small ones), served by fuse2fs and unlinked while open.
`rootless_udi.host.cachefacts` reads the facts.
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

LEAST_FILE = 1024**2
"""Bytes: below this mke2fs makes no useful ext4."""
_BLOCK = 4096
_MEMORY_OPTIONS = ("nosuid", "nodev", "mode=755")


class Place(Record):
    """A directory for a cache's file: `why` it can't be, empty where it can; `free` bytes."""

    path: str
    why: str
    free: int


class CacheFacts(Record):
    """What this node has. `memory` in bytes (0: no limit known), `limited_by` says what sets it."""

    memory: int
    limited_by: str
    places: tuple[Place, ...] = ()
    mke2fs: str = ""
    fuse2fs: str = ""
    libfuse: int = 0
    """Major version of the libfuse that fuse2fs was built with."""


class FileCache(Record):
    """A step: make an unnamed sparse file of `size` bytes in `directory`, run `mke2fs` on it, and
    mount it at `target` by `fuse2fs`; the argvs have FILE and TARGET for the paths."""

    target: str
    directory: str
    size: int
    mke2fs: tuple[str, ...]
    fuse2fs: tuple[str, ...]
    reason: str = ""


FILE, TARGET = "{file}", "{target}"


def methods(volumes: "Iterable[Volume]", site: "Site", memory: int) -> "list[tuple[Volume, str]]":
    """Return each volume that is a cache with its method, "tmpfs" or "file".

    Where neither the volume nor the site says, it is memory while all of them fit into `memory`
    bytes (0: no limit known), else a file in the directory that the volume names, as Shifter's are.
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
    """Return the directories that facts are needed of: the site's, else the volumes' sources."""
    files = [v for v, how in methods(volumes, site, memory) if how == "file"]
    if not files:
        return ()
    return site.cache_paths or tuple(dict.fromkeys(v.source for v in files))


def plan(
    volumes: "Iterable[Volume]", site: "Site", facts: CacheFacts
) -> "tuple[Mount | FileCache, ...]":
    """Return the steps of the volumes that are caches, in their order.

    Raises UdiError for a size above the site's limit, the memory that the job may use (all tmpfs
    caches together), or what a directory has free; for no directory; and for missing programs.
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
    """Whole blocks of `bs`, as dd would make them."""
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
    if size < LEAST_FILE:
        raise UdiError(
            f"{_what(volume)} is too small for a file system in a file",
            f"ask for at least size={sizes.show(LEAST_FILE)}, or method=tmpfs",
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
    """Return the first directory that will do: the site's in their order, else the volume's own."""
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
    """Say why a cache is to be a file: the volume or the site says so, or the memory does."""
    if not _unsaid(volume, site):
        return ",method=file"
    return f" does not fit into {about(facts.memory)}, the limit of {facts.limited_by}; in a file"


def _less(volume: "Volume", site: "Site", facts: CacheFacts) -> str:
    if _unsaid(volume, site):
        return f"ask for less: {about(facts.memory)} of all caches fit into memory"
    return "ask for less, or keep it in memory: method=tmpfs"


def about(size: int) -> str:
    """Return bytes for a person, rounded down: 8.1G."""
    value, power = float(size), 0
    while value >= 1024 and power < len(sizes.UNITS) - 1:
        value /= 1024
        power += 1
    whole = int(value * 10) / 10
    return f"{whole:g}{sizes.UNITS[power].upper() if power else ''}"


def mke2fs(program: str, size: int) -> tuple[str, ...]:
    """Return the argv that makes an ext4 of `size` bytes for one session on FILE (mke2fs(8)).

    No journal, since nobody mounts it twice; inode tables left unwritten, so that 100 GiB take a
    moment; owned by 0, the caller in the server's namespace. Two blocks are reserved for root:
    where none are, fuse2fs 1.47 keeps a tenth of the file system back.
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
    """Return the argv that serves FILE at TARGET in the foreground (fuse2fs(1)).

    One thread, since a lock serialises them anyway. libfuse 2 must be told to take writes of more
    than 4 KiB, libfuse 3 always does and refuses the word. The caches' only writers go through this
    mount, so names and attributes may be kept.
    """
    words = "rw,nosuid,nodev,minixdf,allow_other,kernel_cache,entry_timeout=3600,attr_timeout=3600"
    big = ",big_writes" if libfuse == 2 else ""
    return (program, FILE, TARGET, "-f", "-s", "-o", words + big)


def filled(argv: tuple[str, ...], file: str, target: str = "") -> list[str]:
    """Return an argv with its paths in place."""
    return [{FILE: file, TARGET: target}.get(word, word) for word in argv]


def cgroup_files(text: str) -> tuple[str, ...]:
    """Return the files that may limit a process's memory, from its /proc/PID/cgroup.

    Of cgroup v2 ("0::/path") memory.max of each level, of v1 (a line naming "memory")
    memory.limit_in_bytes; below their usual mount points (cgroups(7)).
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
    """Return the memory that a job may use and what limits it: (bytes, "cgroup ...").

    `limits` are the texts of `cgroup_files` that exist; "max" and v1's near 2^63 mean none.
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
