"""The gateway's database as a file of SQLite in the store, written by one thread of one gateway.

SQLAlchemy's pysqlite driver would begin transactions late, so it is told not to, and they are begun
here (SQLAlchemy's documentation, "SQLite").
"""

import os
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event

_BUSY_SECONDS = 2
"""How long a call waits for a lock that another program (a backup) has on the file."""


def engines(path: str, readers: int) -> tuple[Engine, Engine]:
    """Return what writes the file `path`, and what reads it. Raises OSError."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return _engine(path, "BEGIN IMMEDIATE", 1), _engine(path, "BEGIN", readers)


def hint(why: str) -> str:
    """Return what helps against an error that SQLite tells."""
    for word, text in (
        ("locked", "another program holds it (a backup?); asked again later it works"),
        ("full", "make room on its file system"),
        ("readonly", "the gateway's account must be able to write it and its folder"),
        ("disk I/O error", "is its file system read-only now, or broken? see the kernel's log"),
        ("malformed", "restore the last backup: docs/gateway.md"),
        ("not a database", "restore the last backup: docs/gateway.md"),
    ):
        if word in why:
            return text
    return ""


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
