"""The queue as it moves: jobs as the page shows them, sent again whenever something has changed."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import trio
from starlette.requests import Request
from starlette.responses import Response

from rootless_udi.base.errors import counted, plain
from rootless_udi.base.records import Record
from rootless_udi.gateway import page_data, page_session
from rootless_udi.gateway.database import Unavailable
from rootless_udi.gateway.limits import Busy
from rootless_udi.gateway.page_text import age, amount
from rootless_udi.gateway.people import Asker
from rootless_udi.gateway.service import Service

_STREAMS = 400
"""Most that are open at once: each is one of the server's connections."""
_EACH = 8
"""Most of one user."""
_STEP = 0.25
"""Seconds between two messages, and for which what was read serves all streams."""
_GLANCE = 2.0
"""Seconds after which the queue is looked at where nothing was told."""
_LIFE = 300.0
"""Seconds after which a stream ends; the browser opens another, and proves again who it is."""
_ALIVE = 15.0
"""Seconds after which something is sent, so that a client that has gone is noticed."""
_LONGEST = 600
_WORDS = {
    "INIT": "Waiting",
    "PENDING": "Waiting",
    "PULLING": "Fetching layers",
    "EXAMINATION": "Being examined",
    "CONVERSION": "Converting",
    "TRANSFER": "Storing",
    "READY": "Ready",
    "FAILURE": "Failed",
}
_KINDS = {"INIT": "waits", "PENDING": "waits", "READY": "ready", "FAILURE": "failed"}


class Job(Record):
    """A job as the page shows it: texts, and `part` of 1000 that is done, -1 where none is told.

    `kind` is "waits", "runs", "ready" or "failed".
    """

    number: int
    name: str
    state: str
    kind: str
    part: int
    amount: str
    who: str
    message: str
    digest: str
    when: str


BLANK = Job(0, "", "", "waits", -1, "", "", "", "", "")
"""What the page's script fills in."""


def job(row: page_data.QueueRow, name: str, done: int, total: int, who: str) -> Job:
    """Return a job as the page shows it; `done` of `total` bytes of its layers are there."""
    kind = _KINDS.get(row.state, "runs")
    text, part = "", -1
    if kind == "runs" and total > 0:
        done = min(done, total)
        text, part = f"{amount(done)} of {amount(total)}", done * 1000 // total
    return Job(
        number=row.id,
        name=plain(name),
        state=_WORDS.get(row.state, row.state.capitalize()),
        kind=kind,
        part=part,
        amount=text,
        who=plain(who),
        message=plain(row.message[:_LONGEST]),
        digest=row.digest if kind == "ready" else "",
        when=age(row.changed) if kind in ("ready", "failed") else "",
    )


def summary(found: Sequence[Job]) -> str:
    """Return how many jobs run and wait."""
    running = sum(one.kind == "runs" for one in found)
    waiting = sum(one.kind == "waits" for one in found)
    if not running and not waiting:
        return "Nothing is being pulled."
    text = f"{counted(running, 'pull')} running" if running else "No pull running"
    return f"{text}, {waiting} waiting." if waiting else f"{text}."


def _fields(one: Job) -> dict[str, Any]:
    return dict(zip(one.FIELDS, one.values(), strict=True))


class Events:
    """The streams of one gateway. All are served from one look at the queue."""

    def __init__(
        self, service: Service, job_of: Callable[[page_data.QueueRow, Asker], Job]
    ) -> None:
        self._service = service
        self._job_of = job_of
        self._open: dict[int, int] = {}
        self._looking = trio.Lock()
        self._rows: list[page_data.QueueRow] = []
        self._looked = 0.0

    async def stream(self, request: Request) -> Response:
        """Answer with server-sent events: the jobs that who looks may know of, as JSON."""
        asker = await page_session.looker(self._service, request)
        # Where the database is lost the answer says so.
        await self._read()
        mine = self._open.get(asker.uid, 0)
        if mine >= _EACH or sum(self._open.values()) >= _STREAMS:
            raise Busy("too many pages follow the queue at once", "close some, or ask again later")
        # Counted before anything is waited for: another one may ask meanwhile.
        self._open[asker.uid] = mine + 1
        return _Stream(self, asker)

    def end(self, asker: Asker) -> None:
        """Count one stream of his less."""
        self._open[asker.uid] -= 1
        if not self._open[asker.uid]:
            del self._open[asker.uid]

    async def _read(self) -> list[page_data.QueueRow]:
        async with self._looking:
            now = time.monotonic()
            if now - self._looked >= _STEP:
                self._rows = await self._service.database.read(page_data.queue)
                self._looked = time.monotonic()
            return self._rows

    def _text(self, rows: Sequence[page_data.QueueRow], asker: Asker) -> bytes:
        found = [self._job_of(row, asker) for row in rows if row.shown_to(asker)]
        document = {"summary": summary(found), "jobs": [_fields(one) for one in found]}
        return b"data: %s\n\n" % json.dumps(document).encode()

    async def follow(self, asker: Asker, send: Callable[[bytes], Any]) -> None:
        """Send the queue, and again what it has become, until the stream's time is over, or the
        database is lost: the page asks again.
        """
        await send(b"retry: 2000\n\n")
        last, sent = b"", 0.0
        with trio.move_on_after(_LIFE):
            while True:
                changed = self._service.queue.changed
                try:
                    text = self._text(await self._read(), asker)
                except Unavailable:
                    return
                now = time.monotonic()
                if text != last or now - sent > _ALIVE:
                    await send(text if text != last else b":\n\n")
                    last, sent = text, now
                with trio.move_on_after(_GLANCE):
                    await changed.wait()
                await trio.sleep(_STEP)


class _Stream(Response):
    """An answer that goes on until its client goes; `events` counts it until then."""

    def __init__(self, events: Events, asker: Asker) -> None:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(headers=headers, media_type="text/event-stream")
        # It has no length.
        del self.headers["content-length"]
        self._events = events
        self._asker = asker

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def more(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        async def until_gone(scope: trio.CancelScope) -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            scope.cancel()

        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        try:
            await send(start)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(until_gone, nursery.cancel_scope)
                await self._events.follow(self._asker, more)
                await send({"type": "http.response.body", "body": b""})
                nursery.cancel_scope.cancel()
        finally:
            self._events.end(self._asker)
