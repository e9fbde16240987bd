"""An image's file as an answer: by the server's sendfile where it has it, else in pieces."""

import os
from typing import Any

import trio
from starlette.datastructures import Headers
from starlette.responses import FileResponse

from rootless_udi.gateway.service import NotFound

ZERO_COPY = "http.response.zerocopysend"
"""The name of ASGI's extension (its documentation, "Zero Copy Send")."""
_LARGE, _SMALL, _FEW = 1 << 20, 1 << 16, 32
"""Bytes of a piece of an image, and for how many clients at once the large one is used."""


class ImageResponse(FileResponse):
    """An image's file, or the part of it that Range names.

    What is not sent by the server itself is read in large pieces as long as few clients get one:
    each piece is a change of threads, and stays in memory until its client has read it.
    """

    _now = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            self.stat_result = await trio.to_thread.run_sync(os.stat, self.path)
        except FileNotFoundError:
            # It went after who asks was found to be a reader.
            raise NotFound("image not found") from None
        self.set_stat_headers(self.stat_result)
        if ZERO_COPY in scope.get("extensions", {}) and scope["method"] == "GET":
            part = self._wanted(Headers(scope=scope), self.stat_result.st_size)
            if part is not None:
                await self._send_part(*part, send)
                return
        self.chunk_size = _LARGE if ImageResponse._now < _FEW else _SMALL
        ImageResponse._now += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            ImageResponse._now -= 1

    def _wanted(self, headers: Headers, size: int) -> tuple[int, int] | None:
        """Return the bytes [from, to) to send; None where Starlette knows what to answer."""
        wanted, condition = headers.get("range"), headers.get("if-range")
        if wanted is None or condition not in (None, self.headers["etag"]):
            return 0, size
        part = _part(wanted, size)
        if part is not None:
            self.status_code = 206
            self.headers["content-range"] = f"bytes {part[0]}-{part[1] - 1}/{size}"
            self.headers["content-length"] = str(part[1] - part[0])
        return part

    async def _send_part(self, at: int, end: int, send: Any) -> None:
        fd = await trio.to_thread.run_sync(os.open, self.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status, headers = self.status_code, self.raw_headers
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": ZERO_COPY, "file": fd, "offset": at, "count": end - at})
        finally:
            os.close(fd)


def _part(text: str, size: int) -> tuple[int, int] | None:
    """Return the bytes [from, to) of one range of which something is there; None for any other."""
    unit, _, words = text.partition("=")
    first, dash, last = words.strip().partition("-")
    if unit.strip().lower() != "bytes" or not dash or not (first + last).isdecimal():
        return None
    if not text.isascii() or len(text) > 60:
        return None
    if not first:
        at, end = max(size - int(last), 0), size
    else:
        at, end = int(first), min(int(last) + 1, size) if last else size
    return (at, end) if at < end else None
