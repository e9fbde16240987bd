"""Send files to connections by sendfile(2), past hypercorn, which would copy each piece.

It runs in threads: the file may lie on a file system that takes its time. Each client has a thread
for a turn, as long as it reads; who reads slowly is waited for by trio, and has none meanwhile.
"""

import os
import select
import time
from typing import Any

import trio

_THREADS = 8
_TURN_SECONDS = 0.2
"""For how long one client may have a thread, where others wait for one."""
_PATIENCE_MS = 2
"""For how long a thread waits for a client that has not read what was sent."""
_MOST = 8 << 20
"""Bytes of one call: it does not end before a client that reads has them all."""
_turns: trio.CapacityLimiter | None = None


async def send_file(sock: Any, fd: int, at: int, count: int, patience: float) -> None:
    """Send `count` bytes of the file `fd`, from `at` on, to the trio socket `sock`.

    Raises trio.BrokenResourceError where the client is gone, reads nothing for `patience` seconds,
    or the file is shorter.
    """
    global _turns
    turns = _turns = _turns or trio.CapacityLimiter(_THREADS)
    end = at + count
    while at < end:
        async with turns:
            # The connection may be closed meanwhile, and its number be another client's.
            number = sock.fileno()
            if number < 0:
                raise trio.BrokenResourceError("the connection is closed")
            own = os.dup(number)
            try:
                # One token is held already.
                limiter = trio.CapacityLimiter(1)
                at, full = await trio.to_thread.run_sync(_send, own, fd, at, end, limiter=limiter)
            except OSError as error:
                raise trio.BrokenResourceError(f"sending failed: {error.strerror}") from None
            finally:
                os.close(own)
        if full:
            with trio.move_on_after(patience) as scope:
                await trio.lowlevel.wait_writable(sock)
            if scope.cancelled_caught:
                raise trio.BrokenResourceError("the client does not read")


def _send(sock: int, fd: int, at: int, end: int) -> tuple[int, bool]:
    """Send as much as a turn allows; return where it is, and whether the client must read first."""
    until = time.monotonic() + _TURN_SECONDS
    poll = select.poll()
    poll.register(sock, select.POLLOUT)
    while at < end and time.monotonic() < until:
        try:
            sent = os.sendfile(sock, fd, at, min(end - at, _MOST))
        except BlockingIOError:
            if not poll.poll(_PATIENCE_MS):
                return at, True
            continue
        if not sent:
            raise OSError(0, "the file is shorter than it was")
        at += sent
    return at, False
