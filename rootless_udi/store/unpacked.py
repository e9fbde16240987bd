"""Squashfs and SIF files that lie outside of a store, unpacked into it for nodes without FUSE.

    STORE/dirs/file-PATH-STATE/root    what is in the file
    STORE/dirs/file-PATH-STATE/from    its path, and where in it the squashfs begins, as JSON

PATH and STATE are digests: of the file's path without links, and of what changes whenever the file
does. So a tree is never that of an earlier file, and one unpacking serves all nodes that share the
store. `from` is touched by each start. Only the store's owner can enter the folder, since the file
may be readable for nobody else.
"""

import os
from time import time

from rootless_udi.base import fastjson
from rootless_udi.base.records import Record
from rootless_udi.base.trees import remove_tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from rootless_udi.store.store import Store

MOST = 64
"""Trees that a store keeps, but for those that were used within `_KEPT`."""
_KEPT = 7 * 86400
"""Seconds for which a tree that was used stays, though its file is gone: a job of another node may
run in it."""
_PREFIX = "file-"
_BYTES = 10
"""Of each digest in a name."""


class Unpacked(Record):
    """A tree: its folder in the store, the file's path, and when it was last used (Unix seconds).

    `current`: the file is still there, and as it was. `whole`: the tree is complete.
    """

    folder: str
    path: str
    used: float
    current: bool
    whole: bool


def folder(store: str, path: str, status: os.stat_result, offset: int) -> str:
    """Return the folder in `store` for the file at `path`, which has no links; `status` is its
    stat(2), `offset` where in it the squashfs begins.

    Not by its device number, which nodes give to the same file system differently. Nobody can set
    the time of its last change (ctime).
    """
    state = status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, offset
    names = _digest(os.fsencode(path)), _digest(repr(state).encode())
    return f"{store}/dirs/{_PREFIX}{'-'.join(names)}"


def _digest(data: bytes) -> str:
    # hashlib would be slower to import. Somebody else may have chosen the file's name.
    from _blake2 import blake2b

    return blake2b(data, digest_size=_BYTES).hexdigest()


def tree(folder: str) -> str:
    """Return where in its folder the tree is."""
    return f"{folder}/root"


def touch(folder: str) -> None:
    """Note that the tree is used now."""
    try:
        os.utime(f"{folder}/from")
    except OSError:
        # A store that is read-only here, or a tree that was removed meanwhile.
        pass


def begin(folder: str, path: str, offset: int) -> None:
    """Make the folder of a tree, and say in it what it is of. Raises OSError."""
    os.makedirs(folder, 0o700, exist_ok=True)
    text = fastjson.dumps({"path": os.fsencode(path).decode("latin-1"), "offset": offset})
    with open(f"{folder}/from", "w", encoding="ascii") as file:
        file.write(text)


def listed(store: str) -> "list[Unpacked]":
    """Return the trees of a store, the longest unused first."""
    try:
        names = os.listdir(f"{store}/dirs")
    except OSError:
        return []
    found = [_one(store, f"{store}/dirs/{name}") for name in names if name.startswith(_PREFIX)]
    return sorted(found, key=lambda one: one.used)


def _one(store: str, where: str) -> Unpacked:
    path, used, current = "", 0.0, False
    try:
        used = os.stat(f"{where}/from").st_mtime
        with open(f"{where}/from", encoding="ascii") as file:
            known = fastjson.loads(file.read(1 << 16))
        path = os.fsdecode(known["path"].encode("latin-1"))
        current = folder(store, path, os.stat(path), known["offset"]) == where
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        # Its file is gone, or the folder was never finished.
        pass
    return Unpacked(where, path, used, current, os.path.isdir(tree(where)))


def superfluous(found: "list[Unpacked]") -> "Iterator[Unpacked]":
    """Yield those that a store need not keep: of files that are gone or changed, and beyond MOST.

    One that was used within the last week stays.
    """
    now = time()
    old = [one for one in found if now - one.used > _KEPT]
    beyond = max(len(found) - MOST, 0)
    for number, one in enumerate(old):
        if number < beyond or not (one.current and one.whole):
            yield one


def in_use(one: Unpacked) -> bool:
    """Tell whether a container of the caller on this node has the tree.

    A volume is in its table of mounts. An image may be below an overlay, where no table shows it:
    the container's helper has it open.
    """
    mark = f"/{os.path.basename(one.folder)}/"
    for pid in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/mountinfo", "rb") as file:
                if mark.encode() in file.read():
                    return True
            for fd in os.listdir(f"/proc/{pid}/fd"):
                if mark in os.readlink(f"/proc/{pid}/fd/{fd}"):
                    return True
        except OSError:
            # It has ended, or is another's.
            continue
    return False


def remove(store: "Store", one: Unpacked) -> bool:
    """Remove a tree, but for one that is just being made; return whether it is gone.

    Raises OSError.
    """
    lock = store.lock(name(one.folder))
    if not lock.acquire():
        return False
    try:
        if os.path.lexists(one.folder):
            aside = store.temporary("dirs", name(one.folder))
            os.rename(one.folder, aside)
            remove_tree(aside)
        return True
    finally:
        lock.release()


def name(folder: str) -> str:
    """Return what a tree is locked by, in the form of a digest."""
    return os.path.basename(folder).replace("-", ":", 1)
