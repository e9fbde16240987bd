"""Clean up a store: how much room each image takes, when it was used, and which to remove.

`udi df` and `udi prune` use this, and all commands that take the beginning of a digest. The caller
names the rules by which images are chosen from these facts (`Use`).
"""

import os
from collections.abc import Iterable

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.store import find
from rootless_udi.store.store import ListedImage, Store, stem

_SHORTEST, _SHA256 = 4, 64
"""Hexadecimal digits: the fewest of a digest's beginning, and all of a sha256."""
_HEX = frozenset("0123456789abcdef")


class Use(Record):
    """An image's bytes on disk, and when it was last pulled or read (`used`, in Unix seconds).

    The kernel records a read about once a day, and never on a file system mounted with noatime.
    """

    entry: ListedImage
    squashfs: int
    extracted: int
    used: float

    @property
    def size(self) -> int:
        return self.squashfs + self.extracted


def short(text: str) -> str:
    """Return the hexadecimal digits of `text` if it may be the beginning of a digest, else ""."""
    digits = text.removeprefix("sha256:").lower()
    fits = _SHORTEST <= len(digits) <= _SHA256 and not set(digits) - _HEX
    return digits if fits else ""


def by_digits(stores: Iterable[str], digits: str) -> str:
    """Return the digest that begins with `digits` in one of `stores`, "" for none.

    Raises UdiError where several do.
    """
    found = set()
    for store in stores:
        try:
            files = os.listdir(f"{store}/images")
        except OSError:
            continue
        for file in files:
            base, _, suffix = file.partition(".")
            if suffix == "sqfs" and base.startswith(f"sha256-{digits}"):
                found.add(base.replace("-", ":", 1))
    if len(found) > 1:
        raise UdiError(
            f"{digits} is the beginning of {len(found)} digests: {', '.join(sorted(found))}",
            "give more of its digits",
        )
    return found.pop() if found else ""


def uses(store: Store) -> list[Use]:
    """Return all images of a store, the longest unused first."""
    found = []
    for entry in store.images():
        base = store.path("images", stem(entry.image.digest))
        size, used = 0, entry.pulled
        for suffix in (".sqfs", find.OPTIMIZED, ".json"):
            status = _status(base + suffix)
            if status is not None:
                size += status.st_size
                # The facts' times say nothing of use: they are rewritten, and listings read them.
                if suffix != ".json":
                    used = max(used, status.st_mtime, status.st_atime)
        found.append(Use(entry, size, folder_size(entry.image.directory), used))
    return sorted(found, key=lambda use: (use.used, use.entry.image.digest))


def folder_size(path: str) -> int:
    """Return the bytes that the files of a folder take on disk; 0 where there is none."""
    total = 0
    for folder, _, files in os.walk(path):
        for file in files:
            status = _status(f"{folder}/{file}")
            total += status.st_blocks * 512 if status is not None else 0
    return total


def _status(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except OSError:
        return None


def unnamed(found: Iterable[Use]) -> list[Use]:
    """Return the images without a name."""
    return [use for use in found if not use.entry.names]


def unused(found: Iterable[Use], before: float) -> list[Use]:
    """Return the images that were last pulled or read before that time (Unix seconds)."""
    return [use for use in found if use.used < before]


def until(found: Iterable[Use], bytes_: int) -> list[Use]:
    """Return images that take `bytes_` together: those without a name, then the longest unused."""
    chosen: list[Use] = []
    for use in sorted(found, key=lambda one: (bool(one.entry.names), one.used)):
        if bytes_ <= 0:
            break
        chosen.append(use)
        bytes_ -= use.size
    return chosen


def remove(store: Store, use: Use, named: bool) -> bool:
    """Remove an image, and with `named` its names too; return whether it is gone.

    Without `named`, an image that was given a name meanwhile stays. Raises UdiError.
    """
    base = stem(use.entry.image.digest)
    try:
        links = links_of(store, use.entry.image.digest) if named else []
        return bool(store.drop([path for _, path in links], [base]))
    except OSError as error:
        raise store.refused(f"removing image {use.entry.image.digest}", error) from None


def links_of(store: Store, digest: str) -> list[tuple[str, str]]:
    """Return (platform key, path) of each link that names an image."""
    found = []
    for key, _, path in store.links():
        try:
            if os.readlink(path) == stem(digest):
                found.append((key, path))
        except OSError:
            continue
    return found
