"""Who asks: the kernel says it of a Unix socket's peer, munge or a token of a request elsewhere."""

import grp
import os
import pwd
import socket
import struct
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import trio

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.gateway import munge

ADMINISTRATORS = "root, the gateway's own account and its --admin are: no token makes one"
_KEPT_SECONDS = 60.0
"""For how long an account's name and groups are believed."""
_KEPT = 10_000
"""Most accounts that are remembered."""
_PROOFS = 16
"""Most munge credentials that are looked at together: each costs a process, whoever sends it."""
NOBODY = 65534
"""What the kernel says of a peer whose id is not mapped here (user_namespaces(7))."""


class Denied(UdiError):
    """There is no proof of who asks, or a wrong one."""


class Forbidden(UdiError):
    """Who asks is known, and may not."""


class Asker(Record):
    """Who asks. `uid` is -1 for somebody without a proof, where the site lets such ask.

    `how` is "socket", "munge", "token" or "nobody"; `scope` is what the proof is good for
    (`tokens.SCOPES`); `secrets` are credentials for registries that came within the proof:
    location -> "USER:PASSWORD".
    """

    uid: int
    user: str
    groups: frozenset[int]
    admin: bool
    how: str
    scope: str = "all"
    secrets: Mapping[str, str] = {}

    def __repr__(self) -> str:
        return f"Asker({self.uid}, {self.user!r}, {self.how})"


class People:
    """Knows who asks by a connection's peer and a request's headers.

    `admins` are names of users; root and the gateway's own account are administrators too.
    `munge_socket` is None where munge is not used, "" for its usual socket. With `anonymous`
    requests without a proof are let through, as nobody's.
    """

    def __init__(
        self, admins: Iterable[str] = (), munge_socket: str | None = None, anonymous: bool = False
    ) -> None:
        self._admins = frozenset(admins)
        self._munge = munge_socket
        self._anonymous = anonymous
        self._known: dict[int, tuple[float, Asker]] = {}
        self._limiter = trio.CapacityLimiter(8)
        self._proofs = trio.CapacityLimiter(_PROOFS)
        self.take: Callable[[str], Awaitable[None]] | None = None
        """Remembers a munge credential that is good, and raises UdiError where that was done."""

    async def asker(self, uid: int | None, header: str) -> Asker:
        """Return who asks: by the header `authentication`, else by the socket's peer `uid`.

        Raises Denied.
        """
        if header:
            return await self._by_header(header)
        if uid is not None and uid != NOBODY:
            return await self.known(uid, "socket")
        if self._anonymous:
            return Asker(-1, "", frozenset(), False, "nobody")
        raise Denied(
            "there is no proof of who asks",
            "ask by the gateway's Unix socket, with a munge credential or with a token",
        )

    async def _by_header(self, header: str) -> Asker:
        if self._munge is None:
            raise Denied(
                "this gateway does not take munge credentials", "start it with --munge to do so"
            )
        async with self._proofs:
            found = await munge.decoded(header, self._munge)
        if self.take is not None:
            await self.take(header)
        one = await self.known(found.uid, "munge")
        return one.replace(secrets=munge.locations(found.payload))

    async def known(self, uid: int, how: str) -> Asker:
        """Return an account, with its groups. Looked up in a thread: LDAP may take its time."""
        now = time.monotonic()
        kept = self._known.get(uid)
        if kept is None or kept[0] < now:
            one = await trio.to_thread.run_sync(self._look, uid, limiter=self._limiter)
            if len(self._known) >= _KEPT:
                self._known.clear()
            kept = self._known[uid] = (now + _KEPT_SECONDS, one)
        return kept[1] if how == kept[1].how else kept[1].replace(how=how)

    def remembered(self, uid: int) -> Asker | None:
        """Return an account at a Unix socket, if it is remembered still."""
        # Whom munge or a token calls so is remembered too.
        kept = None if uid == NOBODY else self._known.get(uid)
        return kept[1] if kept is not None and kept[0] >= time.monotonic() else None

    def _look(self, uid: int) -> Asker:
        try:
            found = pwd.getpwuid(uid)
            name, groups = found.pw_name, os.getgrouplist(found.pw_name, found.pw_gid)
        except KeyError:
            name, groups = str(uid), []
        admin = uid in (0, os.getuid()) or name in self._admins
        return Asker(uid, name, frozenset(groups), admin, "socket")


def peer(sock: Any) -> int | None:
    """Return the uid at the other end of a Unix socket (SO_PEERCRED, unix(7)); None for others."""
    if sock.family != socket.AF_UNIX:
        return None
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", data)[1])


def user_name(uid: int) -> str:
    """Return a user's name, or the number as text where there is none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def group_name(gid: int) -> str:
    """Return a group's name, or the number as text where there is none."""
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
