"""Find images in the catalogue: what was found is kept in memory, and what is asked for while the
database is asked is looked up in it together, next.

A question costs the database some queries and two changes of threads, however many ask.
"""

from collections.abc import Callable
from typing import Any

import trio

from rootless_udi.gateway import catalogue
from rootless_udi.gateway.catalogue import CatalogueEntry, Question
from rootless_udi.gateway.database import Database

_KNOWN_MOST = 20_000
"""Most entries that are kept in memory."""
_TOGETHER_MOST = 200
"""Most questions of one call of the database."""


class _Waiting:
    """A question, and its answer once there is one."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.found: CatalogueEntry | None = None
        self.error: Exception | None = None


class Finder:
    """Finds images in `database`. `changes` counts the catalogue's changes; `current` tells whether
    what is in memory is what the database says. `run` asks the database."""

    def __init__(
        self, database: Database, changes: Callable[[], int], current: Callable[[], bool]
    ) -> None:
        self._database = database
        self._changes = changes
        self._current = current
        self._known: dict[Question, CatalogueEntry] = {}
        self._known_at = -1
        self._waiting: dict[Question, _Waiting] = {}
        self._asked = trio.Event()

    async def find(self, question: Question) -> CatalogueEntry | None:
        """Return the image that a question means, or None. Raises Unavailable."""
        if self._known_at != self._changes():
            self._known.clear()
            self._known_at = self._changes()
        if question in self._known and self._current():
            return self._known[question]
        at = self._known_at
        one = self._waiting.setdefault(question, _Waiting())
        self._asked.set()
        await one.done.wait()
        if one.error is not None:
            raise one.error
        if one.found is not None and at == self._changes():
            if len(self._known) >= _KNOWN_MOST:
                self._known.clear()
            self._known[question] = one.found
        return one.found

    async def run(self) -> None:
        """Answer questions until cancelled."""
        while True:
            await self._asked.wait()
            self._asked = trio.Event()
            while self._waiting:
                some = list(self._waiting)[:_TOGETHER_MOST]
                # Who asks from now on may know of a change that this call does not see.
                waiting = [self._waiting.pop(one) for one in some]
                found: list[Any] = [None] * len(some)
                error: Exception | None = None
                try:
                    found = await self._database.read(catalogue.answers, some)
                except Exception as failed:
                    # Each who waits has it, and says so.
                    error = failed
                for one, entry in zip(waiting, found, strict=True):
                    one.found, one.error = entry, error
                    one.done.set()
