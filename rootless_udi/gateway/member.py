"""This gateway among those that share its database: it enters, follows the others, and leaves.

A gateway alone with its SQLite has nobody to follow.
"""

import contextlib
from collections.abc import Callable

import trio

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain
from rootless_udi.gateway import jobs, nodes
from rootless_udi.gateway.database import Database, Unavailable
from rootless_udi.gateway.queue import Queue

_LOOK_SECONDS = 0.5
"""So often it is looked for what others have changed in the database."""
_HEAR_SECONDS = 1.0
"""The same for SQLite, which another program changes hardly ever."""
_LOST_SECONDS = 5.0
"""Without an answer for so long, what is in memory is believed no more."""


class GatewayMember:
    """Runs the queue of this gateway. `complete` completes or undoes what a killed one had begun;
    `forget` drops what is kept in memory."""

    def __init__(
        self,
        database: Database,
        queue: Queue,
        complete: Callable[[], None],
        forget: Callable[[], None],
    ) -> None:
        self._database = database
        self._queue = queue
        self._complete = complete
        self._forget = forget
        self._presence: nodes.Presence | None = None
        self.current = True
        """Whether what is kept in memory is what the database says."""

    def enter(self) -> None:
        """Complete what was begun, and go on with the jobs. Raises UdiError."""
        if not self._database.shared:
            nodes.check_alone(self._database.folder)
            self._complete()
            self._database.write_now(jobs.restart)
            return
        self._database.write_now(nodes.check_store, self._database.folder)
        self._complete()
        self._presence = nodes.Presence(self._database, self._queue.number)
        self._queue.number = self._presence.number
        self._database.write_now(jobs.remove_old)

    def leave(self) -> None:
        """Tell the other gateways that this one ends."""
        if self._presence is not None:
            self._presence.close()

    async def run(self) -> None:
        """Do the queue's jobs for as long as they are this gateway's, for ever."""
        if not self._database.shared:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._queue.run)
                nursery.start_soon(self._hear)
                await trio.sleep_forever()
        while True:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._queue.run)
                await self._follow()
                # Others may do our jobs now.
                nursery.cancel_scope.cancel()
            await self._enter_again()

    async def _hear(self) -> None:
        """Follow what is put back into a database of SQLite meanwhile (`copies`), for ever."""
        seen = -1
        while True:
            with contextlib.suppress(UdiError):
                number = await self._database.read(nodes.changes)
                if number != seen:
                    seen = number
                    self._forget()
                    self._queue.heard()
            await trio.sleep(_HEAR_SECONDS)

    async def _follow(self) -> None:
        """Follow what other gateways do to the database; return where the session is lost."""
        assert self._presence is not None
        seen = -1
        while True:
            try:
                with trio.fail_after(_LOST_SECONDS):
                    number, died = await trio.to_thread.run_sync(
                        self._presence.look, abandon_on_cancel=True
                    )
                buried = await self._database.write(nodes.bury) if died else 0
                if buried:
                    complain("udi gateway", "another gateway has died: its pulls are done here")
                    await trio.to_thread.run_sync(self._complete)
            except (UdiError, trio.TooSlowError) as error:
                self.current = False
                self._forget()
                why = error.message if isinstance(error, UdiError) else "it gives no answer"
                complain("udi gateway", f"its session with the database is lost: {why}")
                return
            if number != seen:
                seen = number
                self._forget()
                self._queue.heard()
            await trio.sleep(_LOOK_SECONDS)

    async def _enter_again(self) -> None:
        old = self._presence
        while not self.current:
            try:
                await trio.to_thread.run_sync(self.enter)
                self.current = True
            except Unavailable:
                # It was said that it is lost; who asks for something is told so too.
                await trio.sleep(_LOOK_SECONDS)
        complain("udi gateway", "it has a session with the database again")
        if old is not None:
            await trio.to_thread.run_sync(old.close, abandon_on_cancel=True)
