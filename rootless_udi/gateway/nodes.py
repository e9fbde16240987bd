"""The gateways that share one database: each is a row, and a session that holds a lock.

PostgreSQL gives the lock back when the session's process or node ends, whatever ended it. So who
has a row and no lock has died, and the others put its jobs back into the queue, and complete or
undo what it had begun. A gateway whose session is lost stops its jobs, and enters anew.
"""

import os
import secrets
import time

from sqlalchemy import Connection, delete, insert, select, text, update

from rootless_udi.base.errors import UdiError
from rootless_udi.gateway import jobs
from rootless_udi.gateway.database import Database
from rootless_udi.gateway.postgres import LOCKS, lasting
from rootless_udi.gateway.tables import CHANGES, GATEWAYS

WORD = "database"
"""The file in the gateway's folder with the word by which store and database know each other."""
_ALIVE = text(
    "SELECT objid::bigint FROM pg_locks WHERE locktype = 'advisory' AND granted "
    f"AND classid = {LOCKS} AND objsubid = 2 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)


class Presence:
    """One gateway's session. `number` is its name in the table of jobs.

    With the number that it had `before`, it goes on with the jobs that nobody else can do.
    Raises Unavailable.
    """

    def __init__(self, database: Database, before: int = 0) -> None:
        assert database.url is not None
        self._database = database
        self._engine = lasting(database.url)
        with database.failures():
            self._connection = self._engine.connect()
        try:
            self.number = database.write_now(self._enter, self._connection, before)
        except BaseException:
            self.close()
            raise

    def _enter(self, connection: Connection, lasting: Connection, before: int) -> int:
        values = {"host": os.uname().nodename[:255], "began": time.time()}
        found = connection.execute(insert(GATEWAYS).values(**values)).inserted_primary_key
        assert found is not None
        # The lock is held before others can see the row.
        lasting.exec_driver_sql(f"SELECT pg_advisory_lock({LOCKS}, {found[0]})")
        if before:
            jobs.pass_on(connection, before, found[0])
            connection.execute(delete(GATEWAYS).where(GATEWAYS.c.id == before))
        return int(found[0])

    def look(self) -> tuple[int, bool]:
        """Return how often the database was changed, and whether another gateway has died.

        Raises Unavailable: the session has ended, and others may do this gateway's jobs.
        """
        with self._database.failures():
            return changes(self._connection), bool(dead(self._connection))

    def close(self) -> None:
        """End the session: what was not done is for others to do."""
        self._connection.invalidate()
        self._connection.close()
        self._engine.dispose()


def changes(connection: Connection) -> int:
    """Return how often the database was changed, as far as others are told of it."""
    return int(connection.execute(select(CHANGES.c.number)).scalar_one())


def dead(connection: Connection) -> set[int]:
    """Return the numbers of gateways that have died."""
    known = set(connection.execute(select(GATEWAYS.c.id)).scalars())
    return known - set(connection.execute(_ALIVE).scalars())


def bury(connection: Connection) -> int:
    """Put the jobs of gateways that have died back into the queue; return how many had."""
    gone = dead(connection)
    if gone:
        jobs.recover(connection, gone)
        connection.execute(delete(GATEWAYS).where(GATEWAYS.c.id.in_(gone)))
    return len(gone)


def check_alone(folder: str) -> None:
    """See that a gateway without a shared database may have the store. Raises UdiError."""
    path = f"{folder}/{WORD}"
    if os.path.lexists(path):
        raise UdiError(
            f"this store's gateways share a PostgreSQL database, by {path}",
            "start it with --database; udi gateway backup and restore bring its rows to SQLite",
        )


def check_store(connection: Connection, folder: str) -> None:
    """See that the database is this store's: a wrong one's images would all be forgotten.

    Raises UdiError. The first gateway writes the same word into both.
    """
    path = f"{folder}/{WORD}"
    try:
        with open(path) as file:
            here = file.read(100).strip()
    except FileNotFoundError:
        here = ""
    there = str(connection.execute(select(CHANGES.c.store)).scalar_one())
    if here and here == there:
        return
    if there:
        raise UdiError(
            f"the database belongs to another store: it has {there}, and {path} has "
            f"{here or 'nothing'}",
            f"name the right database, or write {there} into that file if the store is the same",
        )
    here = here or secrets.token_hex(16)
    connection.execute(update(CHANGES).values(store=here))
    with open(f"{path}.new", "w") as file:
        file.write(f"{here}\n")
    os.rename(f"{path}.new", path)
