"""Read ranges of one file by HTTP (RFC 9110, 14): an answer is that range of that file, or refused.

A server may ignore a range, answer another one, break off, or have got another file meanwhile: none
of these bytes are used. What may pass is tried again until the time is over that the site allows;
then the reader gets an error that names the source. Where it is, redirects and secrets are
`remote.origins`'.
"""

import time

from rootless_udi.base.errors import UdiError, counted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rootless_udi.pull.http import Reply
    from rootless_udi.remote.origins import Origin
    from rootless_udi.remote.plain import PlainReply

_FIRST_WAIT, _LONGEST_WAIT = 0.1, 5.0
"""Seconds before the second attempt, doubled each time, and at most."""
_EXPIRED = (401, 403, 410)
"""What the target of a redirect answers when its signature has expired."""


class _Again(Exception):
    """An attempt failed in a way that may pass. `wait`: the seconds that the server asks for."""

    def __init__(self, why: str, wait: "float | None" = None) -> None:
        super().__init__(why)
        self.wait = wait


class Ranges:
    """The file at `origin`. Safe for several threads; connections are kept for the next request.

    `size` is the file's, in bytes, once `begin` has returned. Methods raise UdiError, whose message
    names the origin.
    """

    def __init__(self, origin: "Origin", timeout: float) -> None:
        """`timeout`: the seconds that a range may take, all attempts together."""
        self.shown = origin.shown
        self.size = origin.size
        self.requests = self.bytes = 0
        self._origin = origin
        self.timeout = timeout
        self._version: str | None = None

    def begin(self, most: int) -> memoryview:
        """Return the file's first `most` bytes, fewer where it is shorter; it fixes `size`."""
        return self.part(0, most)[: self.size]

    def part(self, at: int, stop: int) -> memoryview:
        """Return the bytes from `at` to `stop`."""
        room = memoryview(bytearray(max(stop - at, 0)))
        self.read(at, len(room), lambda there: room[there:])
        return room

    def read(
        self,
        at: int,
        size: int,
        room: "Callable[[int], memoryview]",
        come: "Callable[[int], object]" = lambda there: None,
        fresh: bool = False,
    ) -> None:
        """Read `size` bytes from `at` on, or as many as the file has, with one request.

        room(how many are there) returns where the next ones go, as many as it holds; call come(how
        many are there) whenever it has been filled, or some have come. `come` raises no OSError.
        After an interruption the rest is asked for. `fresh`: caches on the way shall not answer.
        """
        end, begun = time.monotonic() + self.timeout, at
        wait, others = _FIRST_WAIT, self._origin.others
        stop = min(at + size, self.size or at + size)
        while at < stop:
            before = at
            try:
                for got in self._once(at, stop - at, room, at - begun, fresh):
                    at += got
                    stop = min(stop, self.size)
                    come(at - begun)
                    if time.monotonic() > end:
                        raise _Again("it comes too slowly")
                return
            except _Again as error:
                why, asked = str(error), error.wait
            except Exception as error:
                final, why = self._judge(error)
                if final is not None:
                    # What one mirror refuses another may have.
                    others -= 1
                    if others < 0:
                        raise final from None
                    self._origin.failed()
                    continue
                asked = None
            self._origin.failed()
            if at > before:
                wait = _FIRST_WAIT
            from random import uniform  # 5 ms, that only who waits needs

            pause = max(wait * uniform(0.75, 1.25), asked or 0.0)
            if time.monotonic() + pause >= end:
                raise UdiError(
                    f"reading {self.shown} failed: {why} ({self.timeout:g} s)",
                    "is the network there? image.timeout says how long to wait",
                )
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _judge(self, error: Exception) -> tuple[UdiError | None, str]:
        """Return the error to raise for one that another attempt would meet again, else None; and
        what it was. Raises what is no error of the network or a server."""
        if isinstance(error, UdiError):
            return error, error.message
        from http.client import HTTPException

        from rootless_udi.pull.retry import lasting, reason

        if not isinstance(error, (OSError, HTTPException)):
            raise error
        final = lasting(error, self._origin.reached())
        if final is None:
            return None, reason(error)
        return UdiError(f"reading {self.shown} failed: {final[0]}", final[1]), final[0]

    def _once(
        self, at: int, size: int, room: "Callable[[int], memoryview]", there: int, fresh: bool
    ) -> "Iterator[int]":
        headers = {"Range": f"bytes={at}-{at + size - 1}", "Accept-Encoding": "identity"}
        if fresh:
            headers["Cache-Control"] = "no-cache"
        self.requests += 1
        reply = self._origin.ask(headers)
        try:
            left = self._judged(reply, at, size, at == there == 0)
            while left:
                got = reply.read_into(room(there)[:left])
                if not got:
                    raise _Again("the connection broke")
                left, there = left - got, there + got
                self.bytes += got
                yield got
            if reply.length() is None and reply.read_some(1):
                raise self._wrong("more bytes than it announced")
        finally:
            reply.close()

    def _judged(self, reply: "Reply | PlainReply", at: int, size: int, first: bool) -> int:
        """Return how many bytes an answer has, if it is that range of that file."""
        status = reply.status
        if status == 206:
            return self._range(reply, at, size, first)
        if status == 200:
            raise self._wrong("the whole file in answer to a range", "it must know Range requests")
        from rootless_udi.pull.retry import TRANSIENT, retry_after

        elsewhere = len(reply.visited) > 1
        if status in TRANSIENT or (elsewhere and status in _EXPIRED):
            raise _Again(f"it answers {status}", retry_after(reply.headers.get("Retry-After")))
        if status == 416:
            raise self._changed()
        raise self._wrong(str(status), "check the URL")

    def _range(self, reply: "Reply | PlainReply", at: int, size: int, first: bool) -> int:
        text = reply.headers.get("Content-Range", "").strip()
        unit, _, rest = text.partition(" ")
        span, _, total = rest.partition("/")
        begin, _, end = span.partition("-")
        if unit != "bytes" or not all(_number(x) for x in (begin, end, total)):
            raise self._wrong(f"a range that nobody understands ({text!r})")
        version = reply.headers.get("ETag", "") or reply.headers.get("Last-Modified", "")
        if first and self._version is None:
            self.size, self._version = self.size or int(total), version
        if int(total) != self.size or (version != self._version and not self._origin.pinned):
            raise self._changed()
        wanted = min(size, self.size - at)
        if (int(begin), int(end)) != (at, at + wanted - 1):
            raise self._wrong(f"bytes {span} in answer to {at}-{at + wanted - 1}")
        length = reply.length()
        if length is not None and length != wanted:
            raise self._wrong(f"{counted(length, 'byte')} in answer to {wanted}")
        return wanted

    def _wrong(self, what: str, hint: str = "") -> UdiError:
        return UdiError(f"reading {self.shown} failed: it answers {what}", hint)

    def _changed(self) -> UdiError:
        return UdiError(
            f"reading {self.shown} failed: the file there has changed", "start the command again"
        )


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
