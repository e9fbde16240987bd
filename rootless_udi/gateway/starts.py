"""Count starts by the datagrams that udi-run sends (`launch.counted`). Any may be lost or repeated.

A datagram proves nothing: its counts are statistics, and the one thing that it does to an image is
that it was used. On a Unix socket the kernel says who sent it.
"""

import hmac
import os
import re
import secrets
import socket
import struct
import time
from typing import Any

import trio
from sqlalchemy import Connection, bindparam, select, update
from sqlalchemy.dialects import postgresql, sqlite

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain
from rootless_udi.gateway.database import Database
from rootless_udi.gateway.listen import remove_socket
from rootless_udi.gateway.tables import IMAGES, STARTS

_WORD = b"udi-start/1"
_DIGEST = re.compile("-|[a-z0-9+._-]{1,16}:[0-9a-f]{1,128}")
_LONGEST = 1500
_RECEIVED = 64
"""Datagrams that are read before other tasks have their turn."""
_BUFFER = 4 << 20
"""Bytes of what is not read yet that the kernel shall keep; net.core.rmem_max is its bound."""
_MOST = 100_000
"""Most starts that wait to be written; further ones are not counted."""
_WRITE_SECONDS = 1.0
_AT_ONCE = 300
_KEY = "users.key"


def opened(text: str) -> socket.socket:
    """Return the socket that gets datagrams at "unix:/PATH" or "ADDRESS:PORT". Raises UdiError."""
    host, _, port = text.rpartition(":")
    host = host.strip("[]")
    try:
        if text.startswith("unix:/"):
            one = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            path = text.removeprefix("unix:")
            remove_socket(path)
            one.bind(path)
            os.chmod(path, 0o666)
            one.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        else:
            one = socket.socket(
                socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
            )
            one.bind((host, int(port)))
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    except (OSError, ValueError, OverflowError) as error:
        raise UdiError(
            f"--starts={text}: no datagrams can come there: {error}",
            "an IP address of this host and a port, 0.0.0.0:7007, or unix:/PATH",
        ) from None
    one.setblocking(False)
    return one


def key(folder: str) -> bytes:
    """Return the secret that users are hashed with, made once for a store. Raises UdiError."""
    path = f"{folder}/{_KEY}"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        os.write(fd, secrets.token_bytes(32))
        os.close(fd)
    except FileExistsError:
        pass
    except OSError as error:
        raise UdiError(f"making {path} failed: {error.strerror}") from None
    with open(path, "rb") as file:
        return file.read()


class StartCounter:
    """Gets datagrams from `sock` and writes them together; with `key` users are hashed."""

    def __init__(self, database: Database, sock: socket.socket | None, key: bytes = b"") -> None:
        self._database = database
        self._socket = sock
        self._key = key
        self._waiting: dict[str, dict[str, Any]] = {}
        self.address = _address(sock) if sock else ""

    async def run(self) -> None:
        """Count until cancelled."""
        if self._socket is None:
            return
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._receive, self._socket)
            while True:
                await trio.sleep(_WRITE_SECONDS)
                await self.write()

    async def _receive(self, sock: socket.socket) -> None:
        space = socket.CMSG_SPACE(struct.calcsize("3i"))
        while True:
            await trio.lowlevel.wait_readable(sock)
            for _ in range(_RECEIVED):
                try:
                    data, extra, _, _ = sock.recvmsg(_LONGEST, space)
                except BlockingIOError:
                    break
                except OSError:
                    # An ICMP answer to nobody, or a signal.
                    continue
                self.take(data, extra)
            await trio.lowlevel.checkpoint()

    def take(self, data: bytes, extra: Any = ()) -> None:
        """Count a datagram, whatever is in it."""
        words = data.split(b" ", 4)
        if len(words) < 4 or words[0] != _WORD or len(self._waiting) >= _MOST:
            return
        try:
            one, user, digest = (word.decode("ascii") for word in words[1:4])
        except UnicodeDecodeError:
            return
        proper = user == "-" or (user.isdecimal() and len(user) <= 10)
        # PostgreSQL takes no NUL, so that anybody could have kept the others' from being written.
        if not one.isalnum() or len(one) > 32 or not proper or not _DIGEST.fullmatch(digest):
            return
        for level, kind, value in extra:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS) and user != "-":
                user = str(struct.unpack("3i", value)[1])
        row = {"id": one, "time": time.time(), "user": self.hashed(user), "digest": digest}
        self._waiting.setdefault(one, row)

    def hashed(self, user: str) -> str:
        """Return a user's id as the table has it."""
        if not self._key or user == "-":
            return user
        return "h" + hmac.digest(self._key, user.encode(), "sha256").hex()[:24]

    async def write(self) -> None:
        """Write what waits; where that fails, the next time."""
        rows, self._waiting = self._waiting, {}
        if not rows:
            return
        try:
            await self._database.write_quietly(_write, list(rows.values()))
        except UdiError as error:
            complain("udi gateway", error.message, error.hint)
            self._waiting = rows | self._waiting


def _address(sock: socket.socket) -> str:
    """Return where `sock` gets datagrams."""
    found = sock.getsockname()
    if isinstance(found, str):
        return f"unix:{found}"
    return f"[{found[0]}]:{found[1]}" if ":" in found[0] else f"{found[0]}:{found[1]}"


def _write(connection: Connection, rows: list[dict[str, Any]]) -> None:
    """Write starts that are not there yet, and that their images were used."""
    known: set[str] = set()
    digests = sorted({row["digest"] for row in rows})
    for at in range(0, len(digests), _AT_ONCE):
        some = IMAGES.c.digest.in_(digests[at : at + _AT_ONCE])
        known |= set(connection.execute(select(IMAGES.c.digest).where(some)).scalars())
    # What anybody can send in, and is no image here, is one row for all such.
    rows = [{**row, "digest": row["digest"] if row["digest"] in known else ""} for row in rows]
    insert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
    connection.execute(insert(STARTS).on_conflict_do_nothing(), rows)
    last = {row["digest"]: row["time"] for row in rows if row["digest"]}
    if last:
        connection.execute(
            update(IMAGES)
            .where(IMAGES.c.digest == bindparam("which"), IMAGES.c.used < bindparam("when"))
            .values(used=bindparam("when")),
            [{"which": digest, "when": when} for digest, when in last.items()],
        )
