"""Answer a lookup that was answered before at once, without Starlette's routes and records.

Jobs of many nodes look up the same few images: what is asked of a Unix socket, by somebody who is
known, for an image of whose record nothing has changed, is answered from memory. Anything else goes
the whole way, which also fills this memory.
"""

from collections.abc import Callable
from typing import Any

from rootless_udi.base.records import Record
from rootless_udi.gateway.catalogue import CatalogueEntry
from rootless_udi.gateway.limits import Busy
from rootless_udi.gateway.service import PEER, Service

_MOST = 20_000
"""Most answers that are kept; each has a record of a kilobyte or so."""
_PROOFS = frozenset((b"authentication", b"authorization"))


class KnownAnswer(Record):
    """An answer to a path: the image, the record as JSON, and what is counted."""

    entry: CatalogueEntry
    body: bytes
    system: str
    kind: str
    tag: str


class QuickAnswers:
    """The answers of one gateway, by the path of their request."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._known: dict[bytes, KnownAnswer] = {}
        self._at = -1

    def keep(self, path: bytes, at: int, answer: KnownAnswer) -> None:
        """Remember an answer that was made when the catalogue had changed `at` times."""
        now = self._service.queue.published
        if self._at != now or len(self._known) >= _MOST:
            self._known.clear()
            self._at = now
        if at == now:
            self._known[path] = answer

    async def answer(self, scope: Any, send: Any) -> bool:
        """Answer a request if that can be done at once; return whether it was."""
        if self._at != self._service.queue.published or scope.get("query_string"):
            return False
        if not self._service.member.current:
            return False
        known = self._known.get(scope.get("raw_path", b""))
        if known is None or scope.get("method") != "GET":
            return False
        if any(name in _PROOFS for name, _ in scope["headers"]):
            return False
        asker = self._service.known_peer(scope.get(PEER))
        if asker is None or not known.entry.readable(asker.uid, asker.groups):
            return False
        try:
            self._service.spend(asker)
        except Busy:
            # Asked again, he is told so.
            return False
        self._service.count(asker, known.system, known.kind, known.tag, known.entry.digest)
        head = [
            (b"content-type", b"application/json"),
            (b"content-length", b"%d" % len(known.body)),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": known.body})
        return True

    def around(self, app: Callable[..., Any]) -> Callable[..., Any]:
        """Return an ASGI application that answers from memory what it can, and has `app` do the
        rest."""

        async def quick(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http" or not await self.answer(scope, send):
                await app(scope, receive, send)

        return quick
