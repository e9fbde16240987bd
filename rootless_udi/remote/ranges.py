"""Read ranges of one file by HTTP (RFC 9110, 14): an answer is that range of that file, or refused.

A server may ignore a range, answer another one, break off, or have got another file meanwhile: none
of these bytes are used. What may pass is tried again until the time is over that the site allows;
then the reader gets an error that names the source. Redirects, proxies, TLS and whom a secret is
sent to are `pull.http`'s: a URL that redirects to a signed one is asked again for each range, so
that a signature that has expired is made anew.
"""

import http.client
import random
import time
import urllib.parse
from collections.abc import Callable, Iterator

from rootless_udi.base.errors import UdiError
from rootless_udi.pull import parties
from rootless_udi.pull.http import Reply, Transport
from rootless_udi.pull.proxies import is_loopback
from rootless_udi.pull.retry import TRANSIENT, lasting, reason, retry_after

_PIECE = 1 << 18
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
    """The file at `url`. Safe for several threads; connections are kept for the next request.

    `size` is the file's, in bytes, once `begin` has returned. Methods raise UdiError, whose message
    names the URL.
    """

    def __init__(self, url: str, timeout: float, insecure: bool = False) -> None:
        """`timeout`: the seconds that a range may take, all attempts together. `insecure`: plain
        http, and TLS without a certificate."""
        self.url = url
        self.size = 0
        self.requests = self.bytes = 0
        self._timeout = timeout
        self._insecure = insecure
        self._version = ""
        self._transport = Transport(answer=timeout)
        scheme, host, _ = parties.origin(url)
        if scheme == "http" and not insecure and not is_loopback(host):
            raise UdiError(
                f"reading {self.shown} failed: nothing proves who answers by plain http",
                "use https, or --insecure",
            )

    @property
    def shown(self) -> str:
        """The URL without a name, a password and what may be a signature."""
        parts = urllib.parse.urlsplit(self.url)
        return urllib.parse.urlunsplit(
            (parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", "")
        )

    def begin(self, most: int) -> bytes:
        """Return the file's first `most` bytes, fewer where it is shorter; it fixes `size`."""
        data = bytearray()
        self.read(0, most, lambda _, piece: data.extend(piece))
        return bytes(data)

    def read(
        self, at: int, size: int, sink: Callable[[int, bytes], object], fresh: bool = False
    ) -> None:
        """Give the bytes of a range to sink(position, bytes), in order, as they come.

        `sink` raises no OSError. After an interruption the rest is asked for. `fresh`: caches on
        the way shall not answer.
        """
        end, begun = time.monotonic() + self._timeout, at
        wait = _FIRST_WAIT
        stop = at + size
        while at < stop:
            before = at
            try:
                for piece in self._once(at, stop - at, fresh, begun == at == 0):
                    sink(at, piece)
                    at += len(piece)
                    stop = min(stop, self.size)
                    if time.monotonic() > end:
                        raise _Again("it comes too slowly")
                return
            except _Again as error:
                why, asked = str(error), error.wait
            except (OSError, http.client.HTTPException) as error:
                final = lasting(error, bool(self._transport.reached))
                if final:
                    raise UdiError(f"reading {self.shown} failed: {final[0]}", final[1]) from None
                why, asked = reason(error), None
            if at > before:
                wait = _FIRST_WAIT
            pause = max(wait * random.uniform(0.75, 1.25), asked or 0.0)
            if time.monotonic() + pause >= end:
                raise UdiError(
                    f"reading {self.shown} failed: {why} ({self._timeout:g} s)",
                    "is the network there? image.timeout says how long to wait",
                )
            time.sleep(pause)
            wait = min(2 * wait, _LONGEST_WAIT)

    def _once(self, at: int, size: int, fresh: bool, first: bool) -> Iterator[bytes]:
        headers = {"Range": f"bytes={at}-{at + size - 1}", "Accept-Encoding": "identity"}
        if fresh:
            headers["Cache-Control"] = "no-cache"
        self.requests += 1
        reply = self._transport.get(self.url, headers, insecure=self._insecure)
        try:
            length = self._judged(reply, at, size, first)
            left = length
            while left:
                piece = reply.read_some(min(_PIECE, left + 1))
                if not piece:
                    raise _Again("the connection broke")
                if len(piece) > left:
                    raise self._wrong("more bytes than it announced")
                left -= len(piece)
                self.bytes += len(piece)
                yield piece
        finally:
            reply.close()

    def _judged(self, reply: Reply, at: int, size: int, first: bool) -> int:
        """Return how many bytes an answer has, if it is that range of that file."""
        status = reply.status
        if status == 206:
            return self._range(reply, at, size, first)
        if status == 200:
            raise self._wrong("the whole file in answer to a range", "it must know Range requests")
        elsewhere = len(reply.visited) > 1
        if status in TRANSIENT or (elsewhere and status in _EXPIRED):
            raise _Again(f"it answers {status}", retry_after(reply.headers.get("Retry-After")))
        if status == 416:
            raise self._changed()
        raise self._wrong(str(status), "check the URL")

    def _range(self, reply: Reply, at: int, size: int, first: bool) -> int:
        text = reply.headers.get("Content-Range", "").strip()
        unit, _, rest = text.partition(" ")
        span, _, total = rest.partition("/")
        begin, _, end = span.partition("-")
        if unit != "bytes" or not all(_number(x) for x in (begin, end, total)):
            raise self._wrong(f"a range that nobody understands ({text!r})")
        version = reply.headers.get("ETag", "") or reply.headers.get("Last-Modified", "")
        if first and not self.size:
            self.size, self._version = int(total), version
        elif int(total) != self.size or version != self._version:
            raise self._changed()
        wanted = min(size, self.size - at)
        if (int(begin), int(end)) != (at, at + wanted - 1):
            raise self._wrong(f"bytes {span} in answer to {at}-{at + wanted - 1}")
        length = reply.length()
        if length is not None and length != wanted:
            raise self._wrong(f"{length} bytes in answer to {wanted}")
        return wanted

    def _wrong(self, what: str, hint: str = "") -> UdiError:
        return UdiError(f"reading {self.shown} failed: it answers {what}", hint)

    def _changed(self) -> UdiError:
        return UdiError(
            f"reading {self.shown} failed: the file there has changed", "start the command again"
        )


def _number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 18
