"""The gateway's database: SQLite in the store, opened by one gateway, written by one thread.

Calls run in trio's threads, each within one transaction. A cancelled request waits for its call to
end, so that none leaves a transaction open. SQLAlchemy's pysqlite driver would begin transactions
late, so it is told not to, and they are begun here (SQLAlchemy's documentation, "SQLite").
"""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import trio
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError, disk_hint

FOLDER = "gateway"
"""The folder in the store that only the gateway's account can enter."""
_FILE = "gateway.sqlite"
_READERS = 4
"""Connections, and so threads, that read at once."""
_BUSY_SECONDS = 2
"""How long a call waits for a lock that another program (a backup) has on the file."""

_Answer = TypeVar("_Answer")


class Unavailable(UdiError):
    """The database can't be used now: locked, full, read-only or damaged."""


class Database:
    """The database of the gateway that keeps `store`. `close` it."""

    def __init__(self, store: str) -> None:
        self.folder = f"{store}/{FOLDER}"
        self.path = f"{self.folder}/{_FILE}"
        self._lock = _lock(self.folder)
        try:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            os.close(fd)
        except OSError as error:
            os.close(self._lock)
            raise _refused(self.path, error) from None
        self._writer = _engine(self.path, "BEGIN IMMEDIATE", 1)
        self._reader = _engine(self.path, "BEGIN", _READERS)
        try:
            self.write_now(_upgrade)
        except BaseException:
            self.close()
            raise
        self._writing = trio.CapacityLimiter(1)
        self._reading = trio.CapacityLimiter(_READERS)

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
        """Do as `read`, in the one transaction that may write; it is undone where `call` raises."""
        return await trio.to_thread.run_sync(
            self._do, self._writer, call, args, limiter=self._writing
        )

    def write_now(self, call: Callable[..., _Answer], *args: Any) -> _Answer:
        """Do as `write`, from code that does not run in trio."""
        return self._do(self._writer, call, args)

    def _do(self, engine: Engine, call: Callable[..., _Answer], args: tuple[Any, ...]) -> _Answer:
        try:
            with engine.begin() as connection:
                return call(connection, *args)
        except exc.DBAPIError as error:
            if not isinstance(error, exc.OperationalError | exc.DatabaseError):
                raise
            why = str(error.orig)
            raise Unavailable(
                f"the gateway's database failed on {self.path}: {why}", _hint(why)
            ) from None


def _hint(why: str) -> str:
    for word, hint in (
        ("locked", "another program holds it (a backup?); asked again later it works"),
        ("full", "make room on its file system"),
        ("readonly", "the gateway's account must be able to write it and its folder"),
        ("malformed", "restore the last backup: docs/gateway.md"),
        ("not a database", "restore the last backup: docs/gateway.md"),
    ):
        if word in why:
            return hint
    return ""


def _refused(path: str, error: OSError) -> UdiError:
    why = os.strerror(error.errno or 0)
    hint = disk_hint(error.errno, "start it as the account that owns the store")
    return UdiError(f"opening the gateway's database failed on {path}: {why}", hint)


def _lock(folder: str) -> int:
    """Take the lock that one gateway of a store has; return its descriptor. Raises UdiError."""
    path = f"{folder}/lock"
    try:
        trust.make(folder, 0o700)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _refused(folder, error) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        who = os.pread(fd, 200, 0).decode(errors="replace").strip()
        os.close(fd)
        if not isinstance(error, BlockingIOError):
            raise _refused(path, error) from None
        raise UdiError(
            f"another gateway has this store: {who or path}", "one gateway serves a store; stop it"
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.uname().nodename}, process {os.getpid()}\n".encode(), 0)
    return fd


def _engine(path: str, begin: str, connections: int) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=path),
        pool_size=connections,
        max_overflow=0,
        connect_args={"timeout": _BUSY_SECONDS, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(begin)

    return engine


def _upgrade(connection: Connection) -> None:
    """Bring the schema to what this version has. Raises UdiError for one of a later version."""
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

    def steps(revision: Any, context: Any) -> Any:
        return script._upgrade_revs("head", revision)

    with EnvironmentContext(Config(), script, fn=steps) as environment:
        environment.configure(connection=connection, transactional_ddl=False)
        environment.run_migrations()
