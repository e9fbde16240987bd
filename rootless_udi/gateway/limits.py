"""How much one user may ask for: requests in a second, pulls in the queue."""

import time

from rootless_udi.base.errors import UdiError
from rootless_udi.gateway.people import Asker

_BURST_SECONDS = 2.0
"""Requests that were not made are saved up for so long."""
_MOST = 10_000
"""Most users that are remembered."""


class Busy(UdiError):
    """A user asks more often than he may."""


class Limits:
    """A token bucket for each user. `rate`: requests a second; `pulls`: a user's in the queue."""

    def __init__(self, rate: float = 500.0, pulls: int = 20) -> None:
        self.pulls = pulls
        self._rate = rate
        self._left: dict[int, tuple[float, float]] = {}

    def spend(self, asker: Asker) -> None:
        """Count a request. Raises Busy. Administrators may ask as often as they like."""
        if asker.admin:
            return
        now, most = time.monotonic(), self._rate * _BURST_SECONDS
        left, then = self._left.get(asker.uid, (most, now))
        left = min(most, left + (now - then) * self._rate)
        if left < 1.0:
            raise Busy(f"more than {self._rate:g} requests a second", "ask less often")
        if len(self._left) >= _MOST:
            self._left.clear()
        self._left[asker.uid] = (left - 1.0, now)
