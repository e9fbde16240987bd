"""The gateway's database: a file of SQLite in the store, or PostgreSQL for several gateways.

Calls run in trio's threads, each within one transaction, of which one writes at a time. A cancelled
request waits for its call to end, so that none leaves a transaction open.
"""

import contextlib
import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import trio
from sqlalchemy import Connection, Engine, exc, update

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError, disk_hint, plain
from rootless_udi.gateway import postgres, sqlite
from rootless_udi.gateway.tables import CHANGES

FOLDER = "gateway"
"""The folder in the store that only the gateway's account can enter."""
_FILE = "gateway.sqlite"
_READERS = 4
"""Connections, and so threads, that read at once."""
_BUGS = (exc.IntegrityError, exc.DataError, exc.ProgrammingError)
"""What a database says of wrong SQL, and not of itself."""

_Answer = TypeVar("_Answer")


class Unavailable(UdiError):
    """The database can't be used now: locked, full, read-only, damaged or not reached."""


class Database:
    """The database of the gateway that keeps `store`: SQLite, or at the address `url`.

    `shared` tells whether other gateways may have it too; `where` names it. `close` it. With
    `beside` a gateway may have it meanwhile, whose schema it must have.
    """

    def __init__(self, store: str, url: str = "", beside: bool = False) -> None:
        self.folder = f"{store}/{FOLDER}"
        self.url = postgres.parsed(url) if url else None
        self.shared = self.url is not None
        path = self.path(store)
        self.where = str(self.url.set(drivername="postgresql")) if self.url else path
        self._hint = postgres.hint if self.url else sqlite.hint
        self._lock, alone = _lock(self.folder, self.shared, beside)
        try:
            self._writer, self._reader = (
                postgres.engines(self.url, _READERS) if self.url else sqlite.engines(path, _READERS)
            )
        except OSError as error:
            os.close(self._lock)
            raise _refused(path, error) from None
        try:
            self.write_now(upgrade, not alone)
        except BaseException:
            self.close()
            raise
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(_READERS)

    @staticmethod
    def path(store: str) -> str:
        """Return the path of a store's SQLite."""
        return f"{store}/{FOLDER}/{_FILE}"

    def close(self) -> None:
        """Close all connections and let another gateway open the database."""
        self._writer.dispose()
        self._reader.dispose()
        os.close(self._lock)

    async def read(self, call: Callable[..., _Answer], *args: Any) -> _Answer:
        """Return `call(connection, *args)`, in a thread. Raises Unavailable."""
        return await trio.to_thread.run_sync(
            self._do, self._reader, call, args, limiter=self._reading
        )

    async def write(self, call: Callable[..., _Answer], *args: Any) -> _Answer:
        """Do as `read`, in the one transaction that may write; it is undone where `call` raises.

        Other gateways of the database hear that something has changed.
        """
        return await trio.to_thread.run_sync(
            self._do, self._writer, call, args, self.shared, limiter=self._writing
        )

    async def write_quietly(self, call: Callable[..., _Answer], *args: Any) -> _Answer:
        """Do as `write`, for what other gateways need not hear of at once."""
        return await trio.to_thread.run_sync(
            self._do, self._writer, call, args, limiter=self._writing
        )

    def read_now(self, call: Callable[..., _Answer], *args: Any) -> _Answer:
        """Do as `read`, from code that does not run in trio."""
        return self._do(self._reader, call, args)

    def write_now(self, call: Callable[..., _Answer], *args: Any) -> _Answer:
        """Do as `write_quietly`, from code that does not run in trio."""
        return self._do(self._writer, call, args)

    def _do(
        self,
        engine: Engine,
        call: Callable[..., _Answer],
        args: tuple[Any, ...],
        tell: bool = False,
    ) -> _Answer:
        with self.failures(), engine.begin() as connection:
            found = call(connection, *args)
            if tell:
                tell_others(connection)
            return found

    @contextlib.contextmanager
    def failures(self) -> Any:
        """Raise Unavailable for what a database says of itself."""
        try:
            yield
        except (exc.DBAPIError, exc.TimeoutError) as error:
            why = str(getattr(error, "orig", None) or error).strip()
            if isinstance(error, _BUGS) and "permission denied" not in why:
                raise
            raise Unavailable(
                f"the gateway's database failed on {self.where}: {plain(why.splitlines()[0])}",
                self._hint(why),
            ) from None


def tell_others(connection: Connection) -> None:
    """Have other gateways of the database look at it: something has changed."""
    connection.execute(update(CHANGES).values(number=CHANGES.c.number + 1))


def _refused(path: str, error: OSError) -> UdiError:
    why = os.strerror(error.errno or 0)
    hint = disk_hint(error.errno, "start it as the account that owns the store")
    return UdiError(f"opening the gateway's database failed on {path}: {why}", hint)


def _lock(folder: str, shared: bool, beside: bool) -> tuple[int, bool]:
    """Take the store's lock, which one gateway has, or all of a `shared` database.

    Returns its descriptor, and True. Raises UdiError. With `beside` another may have it: False.
    """
    path = f"{folder}/lock"
    try:
        trust.make(folder, 0o700)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(folder, error) from None
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if beside and isinstance(error, BlockingIOError):
            return fd, False
        who = os.pread(fd, 200, 0).decode(errors="replace").strip()
        os.close(fd)
        if not isinstance(error, BlockingIOError):
            raise _refused(path, error) from None
        raise UdiError(
            f"another gateway has this store: {who or path}",
            "stop it; several gateways of one store share a PostgreSQL database, all by --database",
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.uname().nodename}, process {os.getpid()}\n".encode(), 0)
    return fd, True


def upgrade(connection: Connection, used: bool = False) -> None:
    """Bring the schema to what this version has. Raises UdiError for one of a later version, and
    for an earlier one that a gateway has in use."""
    from alembic.config import Config
    from alembic.runtime.environment import EnvironmentContext
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    folder = str(Path(__file__).parent / "migrations")
    script = ScriptDirectory(folder, version_locations=[folder])
    current = MigrationContext.configure(connection).get_current_revision()
    known = {one.revision for one in script.walk_revisions()}
    if current is not None and current not in known:
        raise UdiError(
            f"the gateway's database has schema {current}, and this version of rootless_udi knows "
            f"schemas up to {script.get_current_head()}",
            "start the version that made it, or a later one",
        )

    if used and current != script.get_current_head():
        raise UdiError(
            f"the gateway that runs has schema {current}, and this version has another",
            "start it anew with this version first",
        )

    def steps(revision: Any, context: Any) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(Config(), script, fn=steps) as environment:
        environment.configure(connection=connection, transactional_ddl=False)
        environment.run_migrations()
