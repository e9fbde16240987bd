"""Answer plain lookups before hypercorn sees them, which would take ten times as long.

Jobs of many nodes look images up. What a Unix socket's peer who is known asks for in a request of
nothing but that is answered here, from memory where nothing of the catalogue has changed. Whatever
is otherwise in the least, an error's answer too, goes to hypercorn and the application.
"""

import re
import time
from collections.abc import Awaitable, Callable
from email.utils import formatdate

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.gateway import page_guard
from rootless_udi.gateway.catalogue import CatalogueEntry
from rootless_udi.gateway.limits import Busy
from rootless_udi.gateway.people import Asker
from rootless_udi.gateway.service import Service

_MOST = 20_000
"""Most answers that are kept."""
_MOST_BYTES = 32 << 20
"""Most bytes of them. A record is a kilobyte or so; one with many labels has 64 KiB, and a user can
write its name in thousands of ways, of which each is a path of its own (`//NAME`)."""
_HEADS_MOST = 1000
_LONGEST = 2000
"""Bytes of the longest request that is looked at, whose bounds are thereby those of the names."""
_REQUEST = re.compile(
    rb"GET (/api/lookup/([\w.-]{1,64})/(docker|id)/([\w./:@+-]{1,240})) HTTP/1\.1\r\n"
    rb"((?:[A-Za-z-]+: [!-~][ -~]*\r\n)+)\r\n",
    re.ASCII,
)
_PLAIN = frozenset((b"host", b"user-agent", b"accept", b"accept-encoding", b"connection"))
"""Headers that change nothing of an answer."""
_HEAD = (
    b"HTTP/1.1 200 \r\ncontent-type: application/json\r\ncontent-length: %d\r\ndate: %s\r\n\r\n%s"
)


class KnownAnswer(Record):
    """An answer to a lookup: the image, the record as JSON, and what is counted."""

    entry: CatalogueEntry
    body: bytes
    system: str
    kind: str
    tag: str


Look = Callable[[Asker, str, str, str], Awaitable[KnownAnswer]]
"""Looks up (asker, system, kind, tag). Raises UdiError."""


class QuickAnswers:
    """The answers of one gateway, by the path of their request; `look` makes those."""

    def __init__(self, service: Service, look: Look) -> None:
        self._service = service
        self._look = look
        self._known: dict[bytes, KnownAnswer] = {}
        self._bytes = 0
        self._at = -1
        self._heads: dict[bytes, bool] = {}
        self._second, self._date = 0, b""

    async def answer(self, data: bytes, peer: int | None) -> bytes | None:
        """Return the answer to a request, or None where it is for the application."""
        found = _REQUEST.fullmatch(data) if len(data) <= _LONGEST else None
        asker = self._service.known_peer(peer)
        if found is None or asker is None or not self._service.member.current:
            return None
        path, system, kind, tag, head = found.groups()
        if not self._plain(head):
            return None
        try:
            known = self._remembered(path)
            if known is None:
                at = self._service.queue.published
                words = (system.decode(), kind.decode(), tag.decode())
                known = await self._look(asker, *words)
                if at == self._service.queue.published:
                    self._keep(path, known)
            elif not known.entry.readable(asker.uid, asker.groups):
                return None
            self._service.spend(asker)
        except (UdiError, Busy):
            # The application comes to the same, and says it.
            return None
        self._service.count(asker, known.system, known.kind, known.tag, known.entry.digest)
        return _HEAD % (len(known.body), self._now(), known.body)

    def _remembered(self, path: bytes) -> KnownAnswer | None:
        now = self._service.queue.published
        if self._at != now:
            self._known.clear()
            self._at, self._bytes = now, 0
        return self._known.get(path)

    def _keep(self, path: bytes, known: KnownAnswer) -> None:
        size = len(path) + len(known.body)
        if len(self._known) >= _MOST or self._bytes + size > _MOST_BYTES:
            self._known.clear()
            self._bytes = 0
        # Two who asked for it at once have each brought it.
        if path not in self._known:
            self._known[path] = known
            self._bytes += size

    def _plain(self, head: bytes) -> bool:
        """Tell whether a request's headers change nothing, and name the gateway as a peer may."""
        found = self._heads.get(head)
        if found is None:
            if len(self._heads) >= _HEADS_MOST:
                self._heads.clear()
            found = self._heads[head] = _is_plain(head)
        return found

    def _now(self) -> bytes:
        now = int(time.time())
        if now != self._second:
            self._second, self._date = now, formatdate(now, usegmt=True).encode()
        return self._date


def _is_plain(head: bytes) -> bool:
    rows = [line.split(b": ", 1) for line in head.split(b"\r\n")[:-1]]
    told = {name.lower(): value for name, value in rows}
    # One without a Host is answered by an error (RFC 9112, 3.2).
    if len(told) != len(rows) or not told.keys() <= _PLAIN or b"host" not in told:
        return False
    connection = told.get(b"connection", b"keep-alive").strip().lower()
    return connection == b"keep-alive" and page_guard.is_local(told)
