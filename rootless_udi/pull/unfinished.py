"""Where an upload goes on that a killed `udi push` left: a note in the user's store.

    STORE/blobs/sha256-HEX.upload   the least bytes of a chunk, and the URL that the registry gave

HEX is made of the repository and the content. Whether the registry still has the upload, and how
far it came, it says itself; it compares the digest of all at the end. The note goes after a day, as
partial downloads do (`Store.sweep`). The URL may hold a secret: only the user can read the note.
"""

import contextlib
import os

from rootless_udi.base import trust
from rootless_udi.base.windows import sha256
from rootless_udi.store.store import Store, discard, stem

_MOST = 1 << 14
"""Most bytes of a note."""


class Unfinished:
    """The note of one upload; without `store`, where that can't be written, and where another
    process sends the same, it has none and keeps none. `close` must be called."""

    def __init__(self, store: Store | None, *what: str) -> None:
        self._path = ""
        self._lock = None
        if store is None or not os.path.isdir(store.path("blobs")):
            return
        text = "\0".join(what)
        key = f"sha256:{sha256(text.encode()).hex()}"
        lock = store.lock(key)
        with contextlib.suppress(OSError):
            if lock.acquire():
                self._lock, self._path = lock, store.path("blobs", f"{stem(key)}.upload")

    def read(self) -> tuple[str, int]:
        """Return the URL, "" for none, and the least bytes of a chunk."""
        if not self._path:
            return "", 0
        try:
            least, _, place = trust.read(self._path, ())[:_MOST].decode().partition("\n")
            return place.strip(), int(least[:18])
        except (OSError, trust.Untrusted, ValueError):
            return "", 0

    def write(self, place: str, least: int) -> None:
        """Note where the next chunk goes. Where that fails, the next push begins anew."""
        if not self._path:
            return
        temporary = f"{os.path.dirname(self._path)}/.{os.path.basename(self._path)}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600), "w", encoding="utf-8") as file:
                file.write(f"{least}\n{place}\n")
            os.rename(temporary, self._path)
        except OSError:
            self.forget()

    def forget(self) -> None:
        """Remove the note."""
        if self._path:
            with contextlib.suppress(OSError):
                discard(self._path)

    def close(self) -> None:
        if self._lock is not None:
            self._lock.release()
