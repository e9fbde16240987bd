"""Images that are filling: a store gets them window by window, while containers run of them.

    STORE/blobs/NAME.windows   a sparse file as long as the image's; its windows come in any order
    STORE/blobs/NAME.journal   the numbers of the windows that are there: 4 bytes, little-endian
    STORE/blobs/NAME.filling   what it will be, as JSON (`Filling`)

NAME is the image's digest, with "-" in place of ":", a dot, and the beginning of its list's. Only
windows that are what the list says are written, by any number of processes of any node: all write
the same bytes. The journal may be wrong, after a crash or by many writers: whoever reads a window
compares it with the list, and has it fetched anew. The file becomes the image by one rename(2),
after all of it was compared.
"""

import contextlib
import json
import os
from collections.abc import Iterator

from rootless_udi.base import trust
from rootless_udi.base.records import Record
from rootless_udi.base.windows import count
from rootless_udi.store.journal import FLAGS, JOURNAL, WINDOWS, Journal, name_of
from rootless_udi.store.store import Store, discard

FILLING = ".filling"
_RECORD_MAX = 1 << 16
"""Most bytes of a record."""


class Filling(Record):
    """An image that is filling: its digest and its list's; the bytes of its file and of the
    squashfs in it; where it comes from; and its names, each (platform key, name in the store).

    `there` is how many of its windows have come, `begun` when (Unix seconds).
    """

    digest: str
    listed: str
    size: int
    used: int
    origin: str
    names: tuple[tuple[str, str], ...]
    store: str = ""
    there: int = 0
    begun: float = 0.0

    @property
    def windows(self) -> int:
        return count(self.used)


def begin(store: Store, one: Filling) -> None:
    """Write the record of an image, with the names that it has already. Raises OSError."""
    path = store.path("blobs", name_of(one.digest, one.listed) + FILLING)
    known = _read(path)
    names = dict.fromkeys((*(known.names if known else ()), *one.names))
    if known is not None and set(names) == set(known.names):
        os.utime(path)
        return
    fields = (*Filling.FIELDS[:5],)
    document = {key: getattr(one, key) for key in fields} | {"names": list(names)}
    temporary = store.temporary("blobs", one.digest)
    try:
        with open(os.open(temporary, FLAGS | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
            json.dump(document, file)
        os.rename(temporary, path)
    finally:
        discard(temporary)


def wanted(store: Store, one: Filling) -> Filling | None:
    """Return an image's record as it is now, None where `udi rm` has removed it."""
    return _read(store.path("blobs", name_of(one.digest, one.listed) + FILLING))


def listed(store: Store) -> list[Filling]:
    """Return the images that are filling in a store, by name, with how far they are."""
    found = []
    for path in _records(store):
        one = _read(path)
        if one is None or store.image(one.digest) is not None:
            continue
        there, begun = 0, 0.0
        with contextlib.suppress(OSError):
            begun = os.stat(path).st_mtime
            fd = os.open(path.removesuffix(FILLING) + JOURNAL, os.O_RDONLY | os.O_CLOEXEC)
            try:
                there = len(Journal(fd, one.windows).news())
            finally:
                os.close(fd)
        found.append(one.replace(store=store.root, there=there, begun=begun))
    return sorted(found, key=lambda one: one.names)


def _records(store: Store) -> Iterator[str]:
    try:
        names = os.listdir(store.path("blobs"))
    except OSError:
        return
    for name in sorted(names):
        if name.endswith(FILLING) and not name.startswith("."):
            yield store.path("blobs", name)


def _read(path: str) -> Filling | None:
    """Return the record at `path`; None where there is none, or it is no such record."""
    try:
        document = json.loads(trust.read(path, ())[:_RECORD_MAX])
        names = tuple((str(key), str(name)) for key, name in document["names"])
        digest, known, size, used, origin = (document[key] for key in Filling.FIELDS[:5])
    except (OSError, trust.Untrusted, ValueError, KeyError, TypeError):
        return None
    texts = all(isinstance(text, str) for text in (digest, known, origin))
    if not texts or not isinstance(size, int) or not isinstance(used, int) or not 0 < used <= size:
        return None
    return Filling(digest, known, size, used, origin, names)


def drop(store: Store, one: Filling) -> None:
    """Remove what is there of an image: who fills it sees that. Raises OSError."""
    base = store.path("blobs", name_of(one.digest, one.listed))
    for suffix in (FILLING, JOURNAL, WINDOWS):
        discard(base + suffix)
