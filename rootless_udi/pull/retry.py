"""When to try again, how long to wait, when to give up, and how to stop all threads of a pull."""

import contextlib
import email.utils
import http.client
import random
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator

from rootless_udi.base.errors import UdiError, counted
from rootless_udi.base.records import Record
from rootless_udi.pull.stop import Stop, shut

_STEP = 1 << 16
"""Bytes that count as progress, at the most (`Tries.progressed`)."""
TRANSIENT = (408, 429, 500, 502, 503, 504)
"""HTTP statuses after which a later attempt may succeed."""


@contextlib.contextmanager
def within(seconds: float, sock: socket.socket | None) -> Iterator[None]:
    """Shut the socket and raise TimeoutError if the block takes longer than `seconds`.

    A socket's own timeout starts again with every byte: it would never end for a server that sends
    one now and then, or "100 Continue" for ever.
    """
    late = threading.Event()

    def end() -> None:
        late.set()
        shut(sock)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except (OSError, http.client.HTTPException):
        if late.is_set():
            raise TimeoutError from None
        raise
    finally:
        timer.cancel()
    if late.is_set():
        raise TimeoutError


class GaveUp(UdiError):
    """The network or the server failed for too long. Partial downloads are worth keeping."""


class Patience(Record):
    """How often and how long to try again.

    At most `attempts` without any progress; waits of `first` seconds, doubled each time up to
    `longest`. A server that asks to wait more than `asked` seconds is given up. `total`: seconds
    for all attempts at one thing, 0 for any time.
    """

    attempts: int = 6
    first: float = 0.5
    longest: float = 30.0
    asked: float = 300.0
    total: float = 0.0


class Tries:
    """The attempts at one thing under a `Patience`. `hint` is what to do once they are over."""

    def __init__(
        self,
        patience: Patience,
        stop: Stop,
        note: Callable[[str], None],
        hint: str,
    ) -> None:
        self.patience = patience
        self._hint = hint
        self._stop = stop
        self._note = note
        self._failures = 0
        self._furthest = 0
        self._begun = time.monotonic()

    def progressed(self, done: int, total: int) -> None:
        """Note that there are `done` of `total` bytes; after progress, failures count from 0 again.

        Progress are bytes beyond the furthest so far, and enough of them: 64 KiB, a 64th of all, or
        a 16th of what is missing, whichever is least. A server that sends one byte for each
        connection would never be given up otherwise.
        """
        enough = min(_STEP, total // 64, (total - self._furthest) // 16) + 1
        if done - self._furthest >= enough or done == total:
            self._furthest = done
            self._failures = 0

    def failed(self, what: str, why: str, asked: float | None = None, hint: str = "") -> None:
        """Wait before the next attempt. Raises GaveUp ("what: why") where there is none."""
        self._failures += 1
        hint = hint or self._hint
        if asked is not None and asked > self.patience.asked:
            raise GaveUp(f"{what}: {why}; it asks to come back in {asked:.0f} s", hint)
        if self._failures >= self.patience.attempts:
            raise GaveUp(f"{what}: {why} ({counted(self._failures, 'attempt')})", hint)
        wait = min(self.patience.first * 2 ** (self._failures - 1), self.patience.longest)
        # At random, so that thousands of nodes that failed together don't ask together again.
        wait *= random.uniform(0.75, 1.25)
        if asked is not None:
            wait = max(wait, asked)
        total = self.patience.total
        if total and time.monotonic() - self._begun + wait > total:
            raise GaveUp(f"{what}: {why} ({total:g} s)", "is the network there? " + hint)
        self._note(f"{what}: {why}; again in {wait:.1f} s")
        self._stop.sleep(wait)


def retry_after(value: str | None, now: float | None = None) -> float | None:
    """Return the seconds that a Retry-After header asks for (RFC 9110, 10.2.3), or None."""
    if not value:
        return None
    value = value.strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        when = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        # OverflowError: a year or a time zone that datetime can't have.
        return None
    return max(0.0, when - (time.time() if now is None else now))


def lasting(error: Exception, reached: bool) -> tuple[str, str] | None:
    """Return (why, hint) for an error that another attempt would meet again, else None.

    `reached`: the server has answered before, so a refused connection may be a passing one.
    """
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its TLS certificate is not trusted: {error.verify_message}",
            "set SSL_CERT_FILE to the site's CA certificates; --insecure goes without",
        )
    if isinstance(error, ssl.SSLError) and not reached:
        return (f"TLS: {error.reason or error}", "--insecure allows plain http")
    if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
        return (f"the host name is not known: {error.strerror}", "check the name and the network")
    if isinstance(error, ConnectionRefusedError) and not reached:
        return ("Connection refused", "check the host, the port, and http_proxy")
    if isinstance(error, OSError) and "Tunnel connection failed" in str(error):
        return (f"the proxy refused: {error}", "check https_proxy and no_proxy")
    return None


def reason(error: Exception) -> str:
    """Return a network error in a few words."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, http.client.IncompleteRead):
        return "the connection broke"
    if isinstance(error, OSError):
        return error.strerror or str(error) or type(error).__name__
    return str(error) or type(error).__name__
