"""Add an image to a store: its squashfs file, with the list of its windows, and its facts.

The list stands behind the squashfs in the same file (`base.windows`), and the facts name the lists
of the image's files (`windows`), of which one may be what `udi optimize` made. Whatever ends an
addition, between any two steps, what is there fits together: the facts come first and name both
the lists that are there and the new one, then the new file takes its place by rename(2), then the
facts name only what is left. Callers have the lock of the image's digest.
"""

import os
import threading
from collections.abc import Mapping
from typing import Any

from rootless_udi.base import fastjson, trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.windows import WindowList
from rootless_udi.store import find, windows
from rootless_udi.store.find import StoredImage
from rootless_udi.store.store import Store, close_to_others, discard, stem, sync

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def add(
    store: Store,
    digest: str,
    squashfs: str,
    facts: Mapping[str, Any],
    listed: WindowList | None = None,
) -> StoredImage:
    """Make the image `digest` of the temporary file `squashfs` and its facts.

    `listed` is the list of windows that the file has; without it, it is made here. Raises UdiError
    where the file system refuses something.
    """
    target = store.path("images", stem(digest))
    try:
        # By the umask, others may be allowed to write it.
        close_to_others(squashfs, 0o022)
        if listed is None:
            listed = _listed(squashfs)
        sync(squashfs)
        more = _place(store, digest, squashfs, f"{target}.sqfs", facts, listed)
        # An optimised one may be damaged, which `udi pull --force` is to mend.
        discard(target + find.OPTIMIZED)
        if more:
            _write(store, digest, facts, [listed.digest])
        sync(store.path("images"))
    except OSError as error:
        raise store.refused(f"storing image {digest}", error) from None
    found = store.image(digest)
    if found is None:
        raise UdiError(f"storing image {digest} failed on {target}.sqfs: it vanished")
    return found


def add_optimized(store: Store, image: StoredImage, squashfs: str, listed: WindowList) -> None:
    """Put the temporary file `squashfs`, which is on the disk, beside the image that it was made
    of. Raises UdiError."""
    base = store.path("images", stem(image.digest))
    target = base + find.OPTIMIZED
    facts = store.facts(image)
    try:
        _place(store, image.digest, squashfs, target, facts, listed)
        _write(store, image.digest, facts, [*_digests(f"{base}.sqfs"), listed.digest])
        sync(store.path("images"))
    except OSError as error:
        raise store.refused(f"storing image {image.digest}", error) from None


def _place(
    store: Store,
    digest: str,
    squashfs: str,
    target: str,
    facts: Mapping[str, Any],
    listed: WindowList,
) -> bool:
    """Rename a squashfs file to its place, after its facts: whoever finds an image finds them.

    Return whether they name the lists of files that were there before, too.
    """
    base = store.path("images", stem(digest))
    there = [x for suffix in (".sqfs", find.OPTIMIZED) for x in _digests(base + suffix)]
    _write(store, digest, facts, [*there, listed.digest])
    os.rename(squashfs, target)
    sync(store.path("images"))
    return bool(there)


def _write(store: Store, digest: str, facts: Mapping[str, Any], lists: list[str]) -> None:
    """Write an image's facts, which name these lists, in place of those that are there."""
    temporary = store.temporary("images", digest)
    whole = {**facts, "windows": list(dict.fromkeys(lists))}
    try:
        with open(os.open(temporary, _NEW, 0o644), "w", encoding="utf-8") as file:
            # fastjson: names of files are in it, which may be no UTF-8.
            file.write(fastjson.dumps(whole, separators=(",", ":")) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, store.path("images", f"{stem(digest)}.json"))
    finally:
        discard(temporary)


def _listed(path: str) -> WindowList:
    """Write the list of windows behind a squashfs file that was written just now; return it.

    It is summed from the page cache, while the kernel writes it to the disk. Not earlier: the
    writers of squashfs go back in their file, for its superblock and where a file turns out to be a
    copy of another, so that nothing is settled before they have ended.
    """
    failed: list[OSError] = []
    with open(path, "r+b", buffering=0) as file:

        def settle() -> None:
            try:
                os.fsync(file.fileno())
            except OSError as error:
                failed.append(error)

        other = threading.Thread(target=settle)
        other.start()
        try:
            known = windows.append(file.fileno())
        finally:
            other.join()
    if failed:
        raise failed[0]
    return known


def _digests(path: str) -> list[str]:
    """Return the digest of the list in the squashfs file at `path`, if it has one."""
    try:
        with open(trust.regular(path), "rb", buffering=0) as file:
            known = windows.behind(file.fileno(), windows.used(file.fileno()))
    except (OSError, ValueError):
        return []
    return [known.digest] if known is not None else []
