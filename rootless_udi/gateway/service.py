"""What the gateway does, whatever interface asks for it: find, pull, expire, count."""

import functools
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import trio
from sqlalchemy import Connection, bindparam, delete, insert, select, update
from starlette.requests import Request

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain
from rootless_udi.gateway import (
    access,
    audit,
    catalogue,
    expiry,
    importing,
    munge,
    requests,
    sharing,
    tokens,
)
from rootless_udi.gateway.catalogue import CatalogueEntry, Wanted
from rootless_udi.gateway.database import Database
from rootless_udi.gateway.examiner import Examiner
from rootless_udi.gateway.expiry import Clock, Rules
from rootless_udi.gateway.finding import Finder
from rootless_udi.gateway.limits import Limits
from rootless_udi.gateway.member import GatewayMember
from rootless_udi.gateway.people import ADMINISTRATORS, Asker, Denied, Forbidden, People
from rootless_udi.gateway.queue import Queue
from rootless_udi.gateway.requests import BadRequest
from rootless_udi.gateway.starts import StartCounter
from rootless_udi.gateway.statistics import Metrics
from rootless_udi.gateway.tables import IMAGES, LOOKUPS, STARTS
from rootless_udi.plan.reference import Platform, Reference
from rootless_udi.plan.site import Site
from rootless_udi.store import find
from rootless_udi.store.store import Store

_COUNT_SECONDS = 1.0
"""Lookups are written together, that often."""
_COUNTED_MOST = 100_000
"""Most lookups that wait to be written; where the database does not take them, older ones go."""
_TOKENS_MOST = 10_000
_KEPT_SECONDS = 90 * 86400.0
_TIDY_SECONDS = 3600.0
PEER = "udi.peer"
"""The key of a request's scope that has the uid of a Unix socket's peer."""


class NotFound(UdiError):
    """What is asked for is not there, or not for who asks."""


class Service:
    """One gateway: a store, its database, its queue, its people."""

    def __init__(
        self,
        store: Store,
        database: Database,
        site: Site,
        systems: tuple[str, ...],
        people: People,
        workers: int,
        limits: Limits,
        rules: Rules | None = None,
        starts: StartCounter | None = None,
        examiner: Examiner | None = None,
        import_most: int = 0,
    ) -> None:
        self.store, self.database, self.site, self.systems = store, database, site, systems
        self.machine = os.uname().machine
        self.private = access.works(store)
        self.queue = Queue(database, store, workers, self._ended, examiner)
        self.queue.import_most = import_most
        self.member = GatewayMember(database, self.queue, self._complete, self.forget)
        self.metrics = Metrics()
        self.accel = ""
        """Where nginx, which stands in front, has the store: it sends images' files itself."""
        self.rules = rules or Rules()
        self.starts = starts or StartCounter(database, None)
        self._clock = Clock()
        self._people = people
        people.take = functools.partial(munge.take, database)
        self._limits = limits
        self.finder = Finder(database, lambda: self.queue.published, lambda: self.member.current)
        self._tokens: dict[str, tuple[int, str, float]] = {}
        self._counting = trio.Lock()
        self._counted: deque[dict[str, Any]] = deque(maxlen=_COUNTED_MOST)

    def begin(self) -> None:
        """Bring the database to what is in the store, and unfinished jobs back into the queue."""
        self.store.create(0o755)
        if not self.private:
            complain(
                "udi gateway",
                f"{self.store.root}: its file system has no access lists",
                "a private image can be kept for one group of this account, and for nobody else",
            )
        self.member.enter()

    def _complete(self) -> None:
        """Complete or undo what a gateway that was killed had begun."""
        self.database.write_now(catalogue.adopt, self.store)
        for message in self.database.write_now(sharing.enforce_all, self.store):
            complain("udi gateway", message)

    def _ended(self, state: str) -> None:
        self.metrics.pulls.labels(state).inc()

    async def run(self) -> None:
        """Do the queue's jobs and write what was counted, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.member.run)
            nursery.start_soon(self.finder.run)
            nursery.start_soon(self._count_on)
            nursery.start_soon(self.starts.run)

    def forget(self) -> None:
        """Have the database asked again for all that is known of it."""
        self.queue.published += 1
        self._tokens.clear()

    async def asker(self, request: Request, needed: str = "read") -> Asker:
        """Return who asks for what a token of the scope `needed` is good for.

        Raises Denied, Forbidden for a token of less, and Busy where he asks too often.
        """
        header = requests.single(request, "authentication")
        text = requests.single(request, "authorization").removeprefix("Bearer ")
        if header.startswith(tokens.PREFIX):
            text, header = header, ""
        if text and not header:
            found = await self._by_token(text)
        else:
            found = await self._people.asker(request.scope.get(PEER), header)
        self._limits.spend(found)
        if tokens.SCOPES.index(found.scope) < tokens.SCOPES.index(needed):
            raise Forbidden(
                f"this token is good to {found.scope}, not for this",
                f"udi gateway token --scope={needed} makes one that is",
            )
        return found

    def known_peer(self, uid: int | None) -> Asker | None:
        """Return who is at the other end of a Unix socket, if that is known without looking."""
        return None if uid is None else self._people.remembered(uid)

    def spend(self, asker: Asker) -> None:
        """Count a request of his. Raises Busy."""
        self._limits.spend(asker)

    async def _by_token(self, text: str) -> Asker:
        """Return whose a token is; he is no administrator by it. Raises Denied."""
        mark = tokens.mark(text)
        kept = self._tokens.get(mark) if self.member.current else None
        found = kept or await self.database.read(tokens.find, text)
        if found is None or found[2] <= time.time():
            raise Denied("this token is not known, or its time is over", "udi gateway token")
        if len(self._tokens) >= _TOKENS_MOST:
            self._tokens.clear()
        self._tokens[mark] = found
        return await self.holder(found[0], found[1])

    async def holder(self, uid: int, scope: str) -> Asker:
        """Return who holds a token of this scope; he is no administrator by it."""
        one = await self._people.known(uid, "token")
        return one.replace(admin=False, scope=scope)

    def forget_tokens(self) -> None:
        """Have the database asked again whose a token is: one was taken back."""
        self._tokens.clear()

    async def change(
        self, call: Callable[..., None], uid: int, digest: str, users: Any, groups: Any
    ) -> None:
        """Change an image's access list by `call`, a function of `sharing`. Raises UdiError."""
        if call is not sharing.remove:
            access.check_ids(users, groups)
        await self.database.write(call, self.store, uid, digest, users, groups)
        self.queue.published += 1

    def check_system(self, system: str) -> None:
        """Raise NotFound for a system's name that is none of this gateway's."""
        if system not in self.systems:
            known = ", ".join(self.systems)
            raise NotFound(
                f"there is no system {system[:60]!r} here",
                f"known: {known}; `site.name` says which one is asked for",
            )

    async def find(self, platform: str, reference: Reference) -> CatalogueEntry | None:
        """Return the image that a reference means on a platform (`Platform.key`), or None."""
        named = reference.kind != "store"
        what = find.name_of(reference) if named else reference.digest
        return await self.finder.find((platform, named, what))

    async def pull(
        self,
        asker: Asker,
        platform: str,
        reference: Reference,
        wanted: Wanted,
        secrets: Mapping[str, str],
    ) -> tuple[Any, bool]:
        """Put a pull into the queue; return its job, and whether it is new (`jobs.ask`)."""
        if reference.registry == importing.HOST:
            raise NotFound(f"{importing.HOST} is no registry", "shifterimg lists what is imported")
        self._check_lists(wanted)
        own = {
            name: text
            for name, text in secrets.items()
            if name == reference.registry
            or (name == "default" and reference.registry == self.site.registry)
        }
        name = find.name_of(reference)
        most, room = self._limits.pulls, self._room(asker)
        return await self.queue.ask(platform, name, asker.uid, wanted, own, most, room)

    def _check_lists(self, wanted: Wanted) -> None:
        """Raise NoLists or NoId where an image can't be closed as it is wanted."""
        if not wanted.public and not self.private:
            access.group_for(wanted.users, wanted.groups)
        access.check_ids(wanted.users, wanted.groups)

    def check_import(self) -> None:
        """Raise Forbidden where the site lets nobody import files."""
        if not self.queue.import_most:
            raise Forbidden(
                "importing images from files is off here",
                "put it into a registry (skopeo copy), then pull it",
            )

    async def import_file(
        self, asker: Asker, platform: str, reference: Reference, wanted: Wanted, path: str
    ) -> tuple[Any, bool]:
        """Put the import of a file into the queue; return its job, and whether it is new.

        Raises Forbidden, and UdiError for a file that the asker may not import.
        """
        largest = self.queue.import_most
        self._check_lists(wanted)
        try:
            version = await trio.to_thread.run_sync(importing.version, path, asker.uid, largest)
        except UdiError as error:
            raise BadRequest(error.message, error.hint) from None
        name, file = find.name_of(reference), (path, version)
        most, room = self._limits.pulls, self._room(asker)
        return await self.queue.ask(platform, name, asker.uid, wanted, {}, most, room, file)

    def _room(self, asker: Asker) -> int:
        """Return the most bytes that a user may have brought when he brings more; 0: no limit."""
        return 0 if asker.admin else self.rules.room_of(asker.user)

    async def expire(self, asker: Asker, reference: Reference, platform: Platform) -> None:
        """Remove a name, and its image if it has no other. Raises Forbidden and NotFound.

        Administrators may, and who owns a private image with nobody else.
        """
        entry = await self.find(platform.key(), reference)
        visible = entry is not None and (asker.admin or entry.readable(asker.uid, asker.groups))
        if entry is None or not visible:
            raise NotFound("image not found")
        if not asker.admin and (entry.public or entry.owners != (asker.uid,)):
            raise Forbidden(
                "only administrators expire images that others use too",
                "your own private images you may expire",
            )
        await self.database.write(self._remove, reference, platform, asker.uid)
        self.queue.published += 1

    def _remove(
        self, connection: Connection, reference: Reference, platform: Platform, uid: int
    ) -> None:
        # The store first, which is what starts read; `adopt` completes what is interrupted here.
        self.store.remove(reference, platform)
        catalogue.forget(connection, self.store)
        audit.note(connection, uid, "expire", reference.canonical)

    async def autoexpire(self, asker: Asker) -> int:
        """Remove what broken pulls left; return how many files. Raises Forbidden.

        What others did to the store (`udi pull`, `udi rm`) is taken over too.
        """
        if not asker.admin:
            raise Forbidden("only administrators clean up", ADMINISTRATORS)
        await self.database.write(catalogue.adopt, self.store)
        self.queue.published += 1
        await self.apply_rules(asker, dry=False)
        return len(await trio.to_thread.run_sync(self.store.sweep))

    async def apply_rules(self, asker: Asker, dry: bool) -> list[dict[str, Any]]:
        """Remove what goes by the rules (`expiry`), or with `dry` only say what would.

        Raises Forbidden, and UdiError where the clock has jumped.
        """
        if not asker.admin:
            raise Forbidden("only administrators clean up", ADMINISTRATORS)
        await self.write_counts()
        known = await self.database.read(expiry.looked_up)
        now = self._clock.now()
        found = await trio.to_thread.run_sync(expiry.chosen, self.store, known, self.rules, now)
        if not dry:
            found = [
                one
                for one in found
                if await self.database.write(expiry.remove, self.store, asker.uid, one)
            ]
            self.queue.published += 1
        return [expiry.described(one) for one in found]

    def count(self, asker: Asker, system: str, kind: str, tag: str, digest: str) -> None:
        """Count a lookup. It is written a little later, with others."""
        self.metrics.lookups.inc()
        self._counted.append(
            {
                "time": time.time(),
                "uid": asker.uid,
                "user": asker.user[:64],
                "system": system,
                "type": kind,
                "tag": tag,
                "digest": digest,
            }
        )

    async def _count_on(self) -> None:
        tidied = trio.current_time()
        while True:
            await trio.sleep(_COUNT_SECONDS)
            await self.write_counts()
            # Where the clock has jumped, all of them might seem old.
            if trio.current_time() - tidied > _TIDY_SECONDS and not self._clock.jump():
                tidied = trio.current_time()
                await self._tidy()

    async def _tidy(self) -> None:
        try:
            await self.database.write_quietly(_remove_old)
        except UdiError as error:
            complain("udi gateway", error.message, error.hint)

    async def write_counts(self) -> None:
        """Write lookups and starts that were counted; where that fails, the next time."""
        await self.starts.write()
        # Under a lock: who asks for them to be written waits for those that are being written too.
        async with self._counting:
            rows = [self._counted.popleft() for _ in range(len(self._counted))]
            if not rows:
                return
            try:
                await self.database.write_quietly(_write_lookups, rows)
            except UdiError as error:
                complain("udi gateway", error.message, error.hint)
                self._counted.extendleft(reversed(rows))

    async def lookups(self, limit: int) -> list[dict[str, Any]]:
        """Return the last lookups, the oldest first, as Shifter's rows."""
        await self.write_counts()
        return await self.database.read(_last_lookups, limit)


def _write_lookups(connection: Connection, rows: list[dict[str, Any]]) -> None:
    connection.execute(insert(LOOKUPS), rows)
    last = {row["digest"]: row["time"] for row in rows}
    connection.execute(
        update(IMAGES).where(IMAGES.c.digest == bindparam("which")).values(used=bindparam("when")),
        [{"which": digest, "when": when} for digest, when in last.items()],
    )


def _remove_old(connection: Connection) -> None:
    """Remove lookups and starts of long ago."""
    for table in (LOOKUPS, STARTS):
        connection.execute(delete(table).where(table.c.time < time.time() - _KEPT_SECONDS))


def _last_lookups(connection: Connection, limit: int) -> list[dict[str, Any]]:
    query = select(LOOKUPS).order_by(LOOKUPS.c.id.desc()).limit(limit)
    return [
        {
            "user": row.user,
            "uid": row.uid,
            "system": row.system,
            "type": row.type,
            "tag": row.tag,
            "id": row.digest.partition(":")[2],
            "time": row.time,
        }
        for row in reversed(connection.execute(query).all())
    ]
