"""Copies of the gateway's database: a file of SQLite, whatever database it is of and goes to.

So a copy is a backup, and the way from SQLite to PostgreSQL and back. Both are done while gateways
run: a copy is read in one transaction, and put back in one. What a gateway has done since the copy
stays: later rows of the logs, images that came later, jobs that wait or are being done.
"""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sqlalchemy import Connection, Engine, Table, delete, func, insert, select, update

from rootless_udi.base.errors import UdiError, disk_hint
from rootless_udi.gateway import catalogue, jobs, nodes, sharing, sqlite
from rootless_udi.gateway.database import Database, tell_others, upgrade
from rootless_udi.gateway.tables import (
    AUDIT,
    CHANGES,
    CREDENTIALS,
    GATEWAYS,
    GRANTS,
    IMAGES,
    JOBS,
    LOOKUPS,
    METADATA,
    STARTS,
    TOKENS,
)
from rootless_udi.store.store import Store, sync

_OWN = (CHANGES, CREDENTIALS, GATEWAYS)
"""What is of one database alone: who shares it, and what its gateways have taken."""
_AT_ONCE = 1000
_Rows = Iterable[dict[str, Any]]


def write(database: Database, path: str) -> dict[str, int]:
    """Write a copy to the new file `path`, which only its owner can read; return each table's rows.

    Raises UdiError.
    """
    if os.path.lexists(path):
        raise UdiError(f"writing {path} failed: it is there already", "name a new file")
    part = f"{path}.part-{os.getpid()}"
    try:
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        with _file(part) as engine, database.failures(), engine.begin() as there:
            found = database.read_now(_copied, there)
        with contextlib.closing(sqlite3.connect(part)) as copy:
            # So that it can be read where nothing can be written beside it.
            copy.execute("PRAGMA journal_mode=DELETE")
        sync(part)
        os.rename(part, path)
        sync(os.path.dirname(os.path.abspath(path)))
    except OSError as error:
        why = os.strerror(error.errno or 0)
        hint = disk_hint(error.errno, "name a file in a folder that can be written")
        raise UdiError(f"writing {path} failed: {why}", hint) from None
    finally:
        for word in ("", "-wal", "-shm"):
            _remove(part + word)
    return found


def _copied(here: Connection, there: Connection) -> dict[str, int]:
    upgrade(there)
    found = {}
    for table in METADATA.sorted_tables:
        if table not in _OWN:
            found[table.name] = _insert(there, table, _rows(here, table))
    return found


def restore(database: Database, store: Store, path: str) -> dict[str, int]:
    """Put a copy back; return how many of its rows of each table are here then.

    Raises UdiError, with nothing changed.
    """
    with tempfile.TemporaryDirectory(dir=database.folder, ignore_cleanup_errors=True) as folder:
        # It is brought to the schema of now, and the file stays as it is.
        own = f"{folder}/copy"
        try:
            _backup(path, own)
        except (sqlite3.Error, OSError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise UdiError(
                f"reading the copy {path} failed: {why}", "udi gateway backup writes one"
            ) from None
        with _file(own) as copy, database.failures(), copy.begin() as there:
            upgrade(there)
            if database.shared:
                database.write_now(nodes.check_store, database.folder)
            found: dict[str, int] = database.write_now(_put_back, store, there)
    if not database.shared:
        # Its rows are here now: PostgreSQL's are those of before.
        _remove(f"{database.folder}/{nodes.WORD}")
    return found


def _put_back(here: Connection, store: Store, there: Connection) -> dict[str, int]:
    found = {}
    for table, put in _WAYS.items():
        found[table.name] = put(here, there)
    # The store says what is there, and the kernel's lists follow the rows.
    catalogue.adopt(here, store)
    if failed := sharing.enforce_all(here, store):
        raise UdiError(failed[0])
    tell_others(here)
    return found


def _images(here: Connection, there: Connection) -> int:
    """Replace what is known of the copy's images; others are the store's to tell."""
    number = 0
    for row in _rows(there, IMAGES):
        which = IMAGES.c.digest == row["digest"]
        if here.execute(update(IMAGES).where(which).values(**row)).rowcount == 0:
            here.execute(insert(IMAGES).values(**row))
        here.execute(delete(GRANTS).where(GRANTS.c.digest == row["digest"]))
        number += 1
    return number


def _grants(here: Connection, there: Connection) -> int:
    return _insert(here, GRANTS, _rows(there, GRANTS))


def _jobs(here: Connection, there: Connection) -> int:
    """Add what is not under way; what was unfinished in the copy waits again."""
    last = there.execute(select(func.max(JOBS.c.changed))).scalar() or 0.0
    here.execute(delete(JOBS).where(JOBS.c.state.in_(jobs.DONE), JOBS.c.changed <= last))
    under_way = set(here.execute(select(JOBS.c.key)).scalars())

    def rows() -> Iterator[dict[str, Any]]:
        for row in _rows(there, JOBS):
            if row["key"] in under_way:
                continue
            if row["state"] not in jobs.DONE:
                secret = {"state": "FAILURE", "message": jobs.RESTARTED}
                again = {"state": "PENDING", "attempts": 0, "due": 0.0}
                row |= secret if row["secret"] else again
            yield {**_unnumbered(row), "gateway": 0}

    return _insert(here, JOBS, rows())


def _log(table: Table) -> Callable[[Connection, Connection], int]:
    """Return what replaces a log's rows up to the copy's last; later ones stay, and stay later."""

    def put(here: Connection, there: Connection) -> int:
        last = there.execute(select(func.max(table.c.time))).scalar() or 0.0
        later = list(_rows(here, table, table.c.time > last))
        here.execute(delete(table))
        number = _insert(here, table, map(_unnumbered, _rows(there, table)))
        _insert(here, table, map(_unnumbered, later))
        return number

    return put


def _starts(here: Connection, there: Connection) -> int:
    last = there.execute(select(func.max(STARTS.c.time))).scalar() or 0.0
    here.execute(delete(STARTS).where(STARTS.c.time <= last))
    known = set(here.execute(select(STARTS.c.id)).scalars())
    return _insert(here, STARTS, (row for row in _rows(there, STARTS) if row["id"] not in known))


def _tokens(here: Connection, there: Connection) -> int:
    """Add tokens that are not here, but for those that were taken back since the copy; return how
    many of the copy's are here then.

    They keep their numbers where these are free: the log has them.
    """
    known = set(here.execute(select(TOKENS.c.mark)).scalars())
    taken = set(here.execute(select(TOKENS.c.id)).scalars())
    query = select(AUDIT.c.what).where(AUDIT.c.action == "revoke")
    back = set(here.execute(query).scalars())
    number = 0
    for row in _rows(there, TOKENS):
        if row["mark"] in known:
            number += 1
        elif str(row["id"]) not in back:
            one = _unnumbered(row) if row["id"] in taken else row
            here.execute(insert(TOKENS).values(**one))
            number += 1
    if here.dialect.name == "postgresql":
        # Its own count does not follow numbers that are given to it.
        here.exec_driver_sql(
            "SELECT setval(pg_get_serial_sequence('tokens', 'id'), "
            "(SELECT coalesce(max(id), 0) + 1 FROM tokens), false)"
        )
    return number


_WAYS: dict[Table, Callable[[Connection, Connection], int]] = {
    # Before the log is replaced: it has which were taken back.
    TOKENS: _tokens,
    IMAGES: _images,
    GRANTS: _grants,
    JOBS: _jobs,
    LOOKUPS: _log(LOOKUPS),
    STARTS: _starts,
    AUDIT: _log(AUDIT),
}
"""How the copy's rows are put back. Names are what the store's links say."""


def _unnumbered(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row without its number: a new one is given by the database that it goes to."""
    return {key: value for key, value in row.items() if key != "id"}


def _rows(connection: Connection, table: Table, *where: Any) -> Iterator[dict[str, Any]]:
    query = select(table).where(*where).order_by(*table.primary_key)
    streamed = connection.execute(query, execution_options={"yield_per": _AT_ONCE})
    for row in streamed.mappings():
        yield dict(row)


def _insert(connection: Connection, table: Table, rows: _Rows) -> int:
    """Insert rows, many at once; return how many they are."""
    number, some = 0, []
    for row in rows:
        some.append(row)
        if len(some) == _AT_ONCE:
            connection.execute(insert(table), some)
            number, some = number + len(some), []
    if some:
        connection.execute(insert(table), some)
    return number + len(some)


def _backup(path: str, own: str) -> None:
    """Copy a file of SQLite, also one that somebody writes. Raises sqlite3.Error and OSError."""
    os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    source = sqlite3.connect(f"file:{_quoted(path)}?mode=ro", uri=True)
    try:
        target = sqlite3.connect(own)
        try:
            source.backup(target)
        finally:
            target.close()
    finally:
        source.close()


def _quoted(path: str) -> str:
    return os.path.abspath(path).replace("%", "%25").replace("?", "%3f").replace("#", "%23")


@contextlib.contextmanager
def _file(path: str) -> Iterator[Engine]:
    """The engine of a copy, for as long as it is used."""
    writer, reader = sqlite.engines(path, 1)
    try:
        yield writer
    finally:
        writer.dispose()
        reader.dispose()


def _remove(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
