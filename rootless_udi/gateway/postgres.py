"""The gateway's database in PostgreSQL, which several gateways of one store share.

All that is written is written by one transaction at a time, of whatever gateway: the files' access
lists and names in the store change along with it, and these know no transactions. So a transaction
that writes begins by taking a lock of the database (pg_advisory_xact_lock), as SQLite's does.
"""

from importlib.util import find_spec
from typing import Any

from sqlalchemy import URL, Connection, Engine, NullPool, create_engine, event, exc, make_url

from rootless_udi.base.errors import UdiError

LOCKS = 0x756469
"""The class of our advisory locks: "udi"."""
WRITER = 0
"""The lock of who writes. Gateways have those of their numbers, which begin at 1 (`nodes`)."""
_FORM = "postgresql://HOST/NAME, or postgresql:///NAME?host=/run/postgresql"
_SETTINGS = {
    "application_name": "udi gateway",
    "connect_timeout": "5",
    # A node that is gone is noticed by both sides: within about 30 seconds.
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
    "options": "-c lock_timeout=30s -c statement_timeout=120s -c tcp_keepalives_idle=10 "
    "-c tcp_keepalives_interval=5 -c tcp_keepalives_count=3",
}
"""libpq's settings ("Parameter Key Words" of PostgreSQL's documentation), unless the address has
others."""


def parsed(text: str) -> URL:
    """Return a database's address. Raises UdiError, also where no driver is installed."""
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError):
        raise UdiError(f"{_shown(text)} is no address of a database", _FORM) from None
    if url.drivername not in ("postgresql", "postgres") or not url.database:
        raise UdiError(f"{_shown(text)} is no address of a PostgreSQL database", _FORM)
    if url.password is not None:
        raise UdiError(
            "the database's address has a password, which everybody on this host could read",
            "put it into ~/.pgpass of the gateway's account, of mode 0600",
        )
    if find_spec("psycopg") is None:
        raise UdiError(
            "PostgreSQL needs the Python module psycopg, which is not installed",
            "pip install 'rootless_udi[gateway,postgresql]' installs it",
        )
    return url.set(drivername="postgresql+psycopg")


def _shown(text: str) -> str:
    """Return an address for a message; not what may be a password."""
    return text if "@" not in text and "password" not in text else "that"


def engines(url: URL, readers: int) -> tuple[Engine, Engine]:
    """Return what writes the database, one transaction at a time, and what reads it."""
    # Whatever the server's default is: a snapshot of before the lock lacks what others wrote.
    isolation = "READ COMMITTED"
    writer = create_engine(
        url, pool_size=1, max_overflow=0, isolation_level=isolation, **_options(url)
    )
    reader = create_engine(
        url,
        pool_size=readers,
        max_overflow=0,
        isolation_level="REPEATABLE READ",
        execution_options={"postgresql_readonly": True},
        **_options(url),
    )

    @event.listens_for(writer, "begin")
    def start(connection: Connection) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({LOCKS}, {WRITER})")

    return writer, reader


def lasting(url: URL) -> Engine:
    """Return what makes the connection that is kept for as long as a gateway lives."""
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT", **_options(url))


def _options(url: URL) -> dict[str, Any]:
    given = {key: value for key, value in _SETTINGS.items() if key not in url.query}
    return {"connect_args": given, "pool_pre_ping": True}


def hint(why: str) -> str:
    """Return what helps against an error that PostgreSQL tells."""
    for word, text in (
        ("permission denied", "the gateway's user must own the database, or its schema"),
        ("does not exist", "createdb makes a database, createuser a user"),
        ("password", "put it into ~/.pgpass of the gateway's account, of mode 0600"),
        ("lock timeout", "another gateway writes for long; asked again later it works"),
        ("read-only", "is it a standby? the gateway must write"),
        ("No space left", "make room on the database's host"),
    ):
        if word in why:
            return text
    return "is PostgreSQL up, and does it let this account in? asked again later it works"
