"""Ask the site's image gateway (docs/gateway.md), by Shifter's REST interface.

On a Unix socket the kernel tells it who asks. Elsewhere a munge credential does, made by the
program `munge`; a registry's password travels inside that credential, which only the gateway's
munged can read. A gateway gets the user's credentials for the registry of the image that he pulls,
as Shifter's does.
"""

import http.client
import json
import os
import subprocess
import time
import urllib.parse
from collections.abc import Callable, Iterable
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.reference import Reference
from rootless_udi.pull import credentials, parties
from rootless_udi.pull.artifact import FACTS_MAX
from rootless_udi.pull.http import Reply, SpentProof, Transport
from rootless_udi.pull.parties import NOTHING, Pass
from rootless_udi.pull.proxies import is_loopback
from rootless_udi.pull.retry import TRANSIENT, reason

ENDED = ("READY", "FAILURE")
"""The statuses of a pull that change no more."""
_SECONDS = 60
_MOST = 256 << 20
"""Most bytes of an answer: the list of a hundred thousand images."""
_ATTEMPTS = 4
ANY_SYSTEM = "-"
"""What a gateway takes for its own system, by whatever name."""
_PAUSE = 0.5
"""Seconds between two questions how a pull goes, as Shifter's client has it."""
TOKEN = "UDI_GATEWAY_TOKEN"
"""The variable that has a token of the gateway's, in place of munge."""
_NAME_IT = "the configuration has to name it (gateway.address), or to trust its host"
_PROVE = "munged must run here, or $UDI_GATEWAY_TOKEN have a token (udi gateway token)"
IDENTITY = "<token>"
"""The user's name where the password is an identity token, as credential helpers have it."""


class GatewayClient:
    """The gateway at `address` ("unix:/PATH", "http://HOST:PORT", "https://HOST") for `system`.

    With `known` it is one that the configuration names: another one is not told who asks, since it
    could ask the site's in his name then.
    """

    def __init__(
        self,
        address: str,
        system: str,
        munge_socket: str = "",
        known: bool = True,
        insecure: bool = False,
        answer: float = _SECONDS,
    ) -> None:
        """`answer`: most seconds for an answer; `insecure`: any certificate will do."""
        self.address, self.system, self.known = address, system, known
        self._munge, self._insecure = munge_socket, insecure
        local = address.removeprefix("unix:") if address.startswith("unix:") else ""
        self._base = "http://localhost" if local else address.rstrip("/")
        self.transport = Transport(answer=answer, local=local)

    def images(self) -> list[dict[str, Any]]:
        """Return the records of all images that the caller may read. Raises UdiError."""
        found = self._ask("GET", f"/api/list/{self._system()}/").get("list")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def lookup(self, reference: Reference, platform: str = "") -> dict[str, Any]:
        """Return the record of an image. Raises UdiError where there is none for the caller."""
        query = f"?platform={urllib.parse.quote(platform, safe='')}" if platform else ""
        return self._ask("GET", f"/api/lookup/{self._system()}/{_path(reference)}/{query}")

    def facts(self, digest: str) -> dict[str, Any]:
        """Return an image's facts, as its store has them. Raises UdiError."""
        return self._ask("GET", f"/api/v1/images/{digest}/facts", most=FACTS_MAX)

    def part(self, digest: str, headers: dict[str, str]) -> Reply:
        """Return the answer to a GET of an image's file: 200, 206, 416, or what may pass.

        Raises OSError and HTTPException of the network; UdiError for what the gateway refuses.
        """
        reply = self._send("GET", f"/api/v1/images/{digest}", headers)
        if reply.status in (200, 206, 416, *TRANSIENT):
            return reply
        try:
            text = reply.read_all(1 << 16, f"asking {self.address}")
        finally:
            reply.close()
        self._read(reply.status, text)
        raise UdiError(f"the image gateway at {self.address} answers {reply.status}")

    def download(self, digest: str, fd: int, tell: Callable[[int, int], None]) -> None:
        """Write an image's file to `fd`; `tell` gets (done, of all) bytes.

        What broke off is asked for from where it was, a few times. Raises UdiError, and OSError of
        the file.
        """
        done, total, why = 0, -1, ""
        for attempt in range(_ATTEMPTS):
            time.sleep(attempt)
            try:
                reply = self.part(digest, {"Range": f"bytes={done}-"})
            except (OSError, http.client.HTTPException) as error:
                why = reason(error)
                continue
            try:
                if reply.status in TRANSIENT:
                    why = f"it answers {reply.status}"
                    continue
                span, _, size = reply.headers.get("Content-Range", "").rpartition("/")
                if not span.startswith(f"bytes {done}-") or not size.isdigit() or len(size) > 18:
                    raise UdiError(f"{self.address} answers no range of {digest}")
                total, why = int(size), "it broke off"
                while data := _some(reply):
                    done += os.pwrite(fd, data, done)
                    tell(done, total)
            finally:
                reply.close()
            if done == total:
                return
        raise UdiError(
            f"fetching {digest} from the gateway at {self.address} failed: {why}",
            "is the network there? asked again, it begins anew",
        )

    def ask_to_pull(
        self,
        reference: Reference,
        users: Iterable[int] = (),
        groups: Iterable[int] = (),
        platform: str = "",
    ) -> dict[str, Any]:
        """Ask for a pull, or how it goes; return the record with its `status`. Raises UdiError.

        The caller's credentials for the registry, if he has any, go along.
        """
        body: dict[str, Any] = {}
        if users := list(users):
            body["allowed_uids"] = ",".join(map(str, users))
        if groups := list(groups):
            body["allowed_gids"] = ",".join(map(str, groups))
        if platform:
            body["platform"] = platform
        found = credentials.find(reference.registry, reference.repository)
        secrets = {}
        if found is not None:
            user, text = (
                (IDENTITY, found.token) if found.token else (found.username, found.password)
            )
            secrets = {reference.registry: f"{user}:{text}"}
        return self._ask("POST", f"/api/pull/{self._system()}/{_path(reference)}/", body, secrets)

    def pull(
        self,
        reference: Reference,
        tell: Callable[[dict[str, Any]], None],
        users: Iterable[int] = (),
        groups: Iterable[int] = (),
        platform: str = "",
    ) -> dict[str, Any]:
        """Ask for a pull and wait until it has ended; `tell` gets each record.

        Raises UdiError, also where the pull failed.
        """
        users, groups = list(users), list(groups)
        while True:
            record = self.ask_to_pull(reference, users, groups, platform)
            tell(record)
            if record.get("status") == "FAILURE":
                why = str(record.get("status_message", ""))
                why = why.removeprefix(f"pulling {reference.canonical}: ")
                raise UdiError(f"the gateway could not pull {reference.canonical}: {why}")
            if record.get("status") in ENDED:
                return record
            time.sleep(_PAUSE)

    def access(self, reference: Reference) -> dict[str, Any]:
        """Return who may read an image: `public`, `users` and `groups`. Raises UdiError."""
        return self._ask("GET", f"/api/v1/access/{self._system()}/{_path(reference)}/")

    def share(
        self, reference: Reference, users: list[int], groups: list[int], remove: bool
    ) -> dict[str, Any]:
        """Let users and groups read a private image, or no longer. Raises UdiError."""
        body = {"users": users, "groups": groups, "remove": remove}
        return self._ask("POST", f"/api/v1/access/{self._system()}/{_path(reference)}/", body)

    def tokens(self, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """List the caller's tokens; with `body` make one, or take one back. Raises UdiError."""
        return self._ask("GET" if body is None else "POST", "/api/v1/tokens/", body)

    def audit(self, limit: int) -> list[dict[str, Any]]:
        """Return the last rows of the log; for administrators. Raises UdiError."""
        found = self._ask("GET", f"/api/v1/audit/?limit={limit}").get("list", [])
        return found if isinstance(found, list) else []

    def stats(self, days: int) -> dict[str, Any]:
        """Return what was asked for, by day; for administrators. Raises UdiError."""
        return self._ask("GET", f"/api/v1/stats/?days={days}")

    def apply_rules(self, dry: bool) -> list[dict[str, Any]]:
        """Have images removed by the site's rules; return which. Raises UdiError."""
        found = self._ask("POST", "/api/v1/expire/", {"dry_run": dry}).get("list", [])
        return found if isinstance(found, list) else []

    def expire(self, reference: Reference) -> None:
        """Remove an image's name, and the image with its last. Raises UdiError."""
        self._ask("GET", f"/api/expire/{self._system()}/{_path(reference)}/")

    def autoexpire(self) -> None:
        """Have the gateway clean up; for administrators. Raises UdiError."""
        self._ask("GET", f"/api/autoexpire/{self._system()}/")

    def _system(self) -> str:
        return urllib.parse.quote(self.system, safe="")

    def _ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None = None,
        secrets: dict[str, str] | None = None,
        most: int = _MOST,
    ) -> dict[str, Any]:
        """Send a request; return the JSON object of its answer, of at most `most` bytes.

        Raises UdiError.
        """
        given = {"authorized_locations": secrets} if secrets else {}
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            reply = self._send(method, path, headers, body, given)
            try:
                text = reply.read_all(most, f"asking the image gateway at {self.address}")
            finally:
                reply.close()
        except (OSError, http.client.HTTPException) as error:
            raise UdiError(
                f"the image gateway at {self.address} can't be asked: {reason(error)}",
                "it may be down: tell the site; images of your own store need no gateway",
            ) from None
        return self._read(reply.status, text)

    def _send(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        body: dict[str, Any] | None = None,
        given: dict[str, Any] | None = None,
    ) -> Reply:
        """Return the answer to a request; `given` goes into what says who asks, else into `body`.

        Raises OSError and HTTPException of the network.
        """
        given = given or {}
        while True:
            proof, carried = self._proof(given)
            sent = body if carried or body is None else {**body, **given}
            data = None if sent is None else json.dumps(sent).encode()
            try:
                url = self._base + path
                return self.transport.get(url, headers, proof, self._insecure, method, data)
            except SpentProof:
                # The connection is gone: at the latest a new one ends this.
                continue

    def _proof(self, given: dict[str, Any]) -> tuple[Pass, bool]:
        """Return what says who asks, and whether `given` travels in it."""
        if not self.known:
            return NOTHING, False
        here = parties.origin(self._base)
        token = os.environ.get(TOKEN, "")
        if token:
            return Pass(f"Bearer {self._guarded(token)}", here), False
        if self.address.startswith("unix:"):
            return NOTHING, False
        payload = json.dumps(given) if given else ""
        text = encoded(payload.encode(), self._munge)
        return Pass(text, here, "authentication", single=True), True

    def _guarded(self, token: str) -> str:
        """Return the token. Raises UdiError where others could read it on its way."""
        scheme, host, _ = parties.origin(self._base)
        if scheme == "http" and not is_loopback(host):
            raise UdiError(
                f"{TOKEN} is not sent to {self.address}: others could read it on its way",
                "a gateway on another host is reached by https://",
            )
        if not token.isascii() or not token.isprintable():
            raise UdiError(f"{TOKEN} is no token", "udi gateway token makes one")
        return token

    def _read(self, status: int, text: bytes) -> dict[str, Any]:
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise UdiError(
                f"what answers at {self.address} is no image gateway: status {status}, and no JSON",
                "gateway.address in the configuration says where it is",
            )
        if status != 200:
            message, hint = (
                str(found.get("message", f"status {status}")),
                str(found.get("hint", "")),
            )
            if status == 401 and not self.known:
                hint = f"it was not told who asks: {_NAME_IT}"
            elif status == 401 and os.environ.get(TOKEN):
                hint = f"it is that of ${TOKEN}; `udi gateway token` prints a new one"
            raise UdiError(f"the image gateway at {self.address} says: {message}", hint)
        return found


def _some(reply: Reply) -> bytes:
    """Return some bytes; b"" at the end, or where the connection broke."""
    try:
        return reply.read_some(1 << 18)
    except (OSError, http.client.HTTPException):
        return b""


def _path(reference: Reference) -> str:
    """Return an image as the interface has it: its type and its name, or its digest."""
    if reference.kind == "store":
        return f"id/{reference.digest.partition(':')[2]}"
    if reference.kind != "registry":
        raise UdiError(
            f"{reference.canonical} is not in a registry, where the gateway could fetch it",
            "udi pull puts it into a store of your own",
        )
    return f"docker/{urllib.parse.quote(reference.canonical, safe='/:@')}"


def encoded(payload: bytes, socket_path: str = "") -> str:
    """Return a new munge credential of the caller's with `payload` in it. Raises UdiError."""
    argv = ["munge", *(["--socket", socket_path] if socket_path else [])]
    try:
        done = subprocess.run(argv, input=payload, capture_output=True, timeout=_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UdiError(
            f"making a munge credential failed: {error}",
            "the gateway's address is not a socket of this host: " + _PROVE,
        ) from None
    if done.returncode:
        why = done.stderr.decode(errors="replace").strip()
        raise UdiError(f"making a munge credential failed: {why}", _PROVE)
    return done.stdout.decode().strip()
