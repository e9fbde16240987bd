"""Check munge credentials by the program `unmunge` (munge(7)).

munged itself refuses what has expired and what it has seen before, so that a credential proves its
user once. Each node's munged knows its own alone: gateways that share a database tell each other.
"""

import base64
import contextlib
import hashlib
import json
import time
from collections.abc import Mapping

import trio
from sqlalchemy import Connection, delete
from sqlalchemy.dialects.postgresql import insert

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.gateway.database import Database
from rootless_udi.gateway.tables import CREDENTIALS

LONGEST = 16 << 10
"""Most bytes of a credential, with what it carries."""
_SECONDS = 10
_WHY = {15: "it has expired", 16: "its time is in the future", 17: "it was used before"}
"""Exit statuses of unmunge (munge.h, munge_err_t)."""
_UNREACHED = (6, 7)
"""Those where munged was not reached, or gave no answer."""
_KEPT_SECONDS = 86400.0
"""How long a credential that was taken is remembered: longer than any is good (munged's hour, of
clocks that differ)."""


class BadCredential(UdiError):
    """A credential that is no proof."""


class Unreachable(UdiError):
    """munge itself does not work here."""


class Decoded(Record):
    """What a credential proves, and what its user put into it."""

    uid: int
    gid: int
    payload: bytes

    def __repr__(self) -> str:
        return f"Decoded({self.uid}, {self.gid})"


async def decoded(credential: str, socket: str = "") -> Decoded:
    """Return what a credential says.

    Raises BadCredential, and Unreachable where munge does not work.
    """
    if len(credential) > LONGEST or not credential.startswith("MUNGE:"):
        raise BadCredential("that is no munge credential", "authentication: MUNGE:...")
    argv = ["unmunge", *(["--socket", socket] if socket else [])]
    try:
        with trio.fail_after(_SECONDS):
            done = await trio.run_process(
                argv,
                stdin=credential.encode(),
                capture_stdout=True,
                capture_stderr=True,
                check=False,
            )
    except OSError as error:
        raise Unreachable(f"starting unmunge failed: {error.strerror}", "install munge") from None
    except trio.TooSlowError:
        raise Unreachable(
            f"unmunge gave no answer in {_SECONDS} seconds", "is munged well?"
        ) from None
    if done.returncode in _WHY:
        raise BadCredential(
            f"the munge credential is no proof: {_WHY[done.returncode]}", "make a new one"
        )
    head, _, payload = done.stdout.partition(b"\n\n")
    rows = dict(
        line.split(":", 1) for line in head.decode(errors="replace").splitlines() if ":" in line
    )
    if done.returncode != 0:
        why = done.stderr.decode(errors="replace").strip() or f"exit status {done.returncode}"
        why = why.removeprefix("unmunge: Error: ")
        if done.returncode in _UNREACHED:
            raise Unreachable(f"unmunge failed: {why}", "munged must run on the gateway's host")
        raise BadCredential(f"the munge credential is no proof: {why}")
    try:
        uid, gid = (int(rows[key].rsplit("(", 1)[1].rstrip(") \t")) for key in ("UID", "GID"))
        length = int(rows["LENGTH"])
    except (KeyError, ValueError, IndexError):
        raise Unreachable("unmunge's answer is not as munge 0.5 writes it") from None
    return Decoded(uid, gid, payload[:length])


async def check(socket: str) -> None:
    """See that a munged answers. Raises Unreachable."""
    with contextlib.suppress(BadCredential):
        # It is none, which munged must say.
        await decoded("MUNGE:AAAA:", socket)


async def take(database: Database, credential: str) -> None:
    """Remember a credential for all gateways of a shared database.

    Raises BadCredential where one of them has taken it, and Unavailable.
    """
    if not database.shared:
        return
    if not _is_proper(credential.strip()):
        raise BadCredential("that is no munge credential as munge writes them", "make a new one")
    if not await database.write_quietly(_take, credential.strip()):
        raise BadCredential(
            f"the munge credential is no proof: {_WHY[17]}, at another gateway", "make a new one"
        )


def _take(connection: Connection, credential: str) -> bool:
    """Write down a credential; return whether it is new."""
    now = time.time()
    connection.execute(delete(CREDENTIALS).where(CREDENTIALS.c.time < now - _KEPT_SECONDS))
    mark = hashlib.sha256(credential.encode()).hexdigest()
    new = insert(CREDENTIALS).values(mark=mark, time=now).on_conflict_do_nothing()
    return connection.execute(new.returning(CREDENTIALS.c.mark)).first() is not None


def _is_proper(credential: str) -> bool:
    """Tell whether a credential is as munge writes it: base64 can be written in several ways, of
    which each would look like a credential of its own."""
    body = credential.removeprefix("MUNGE:").removesuffix(":").encode(errors="replace")
    try:
        return base64.b64encode(base64.b64decode(body, validate=True)) == body
    except ValueError:
        return False


def locations(payload: bytes) -> Mapping[str, str]:
    """Return the credentials for registries in a payload, as Shifter's clients put them there.

    {"authorized_locations": {"default": "USER:PASSWORD", ...}}; {} for any other payload.
    """
    try:
        found = json.loads(payload or b"{}")["authorized_locations"]
        return {str(name): str(text) for name, text in found.items() if ":" in str(text)}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
