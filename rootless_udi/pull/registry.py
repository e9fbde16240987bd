"""A client for registries (OCI distribution-spec 1.1): manifests and blobs of one repository.

Pulls only. Calls block; they are made from worker threads. All that a registry sends has a bound in
bytes, and is checked against its digest where that is known.
"""

import hashlib
import http.client
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from email.message import Message

from rootless_udi.base.errors import UdiError, amount, counted
from rootless_udi.plan.reference import DOCKER_HUB
from rootless_udi.pull import credentials, parties
from rootless_udi.pull.authorizer import Authorizer, Lookup, said
from rootless_udi.pull.http import ANSWER_SECONDS, Reply, Transport
from rootless_udi.pull.manifest import ACCEPT, DOCUMENT_MAX, Descriptor
from rootless_udi.pull.proxies import is_loopback
from rootless_udi.pull.retry import TRANSIENT, GaveUp, Patience, Tries, lasting, reason, retry_after

_API_HOSTS = {DOCKER_HUB: "registry-1.docker.io"}
_ERROR_MAX = 1 << 16
_CHUNK = 1 << 18
_SLOW_BYTES = 1 << 16
PAGES = 1000
"""Most pages of a list of tags or repositories that are read."""
RENEWALS = 2
"""How often a request is repeated with another Authorization: the first had none, the second one
that had expired."""

Note = Callable[[str], None]


class Missing(UdiError):
    """The registry or mirror has no such manifest or blob; another one may have it."""


class WrongContent(UdiError):
    """What was sent is not what its digest or size says."""


class Endpoint:
    """A repository at one registry or mirror.

    `host` is HOST[:PORT], or a URL with a scheme and perhaps a path before the repository's name.
    Plain http is tried on loopback and on `insecure` hosts, and used for http:// URLs.
    `scope` is what a token is asked for; without it, to pull the repository, or nothing if there is
    none.
    """

    mirrored = True
    """Whether a mirror may have what is asked for: for a pull."""

    def __init__(
        self,
        host: str,
        repository: str,
        transport: Transport,
        patience: Patience | None = None,
        insecure: bool = False,
        note: Note = lambda text: None,
        lookup: Lookup = credentials.find,
        scope: str = "",
    ) -> None:
        scheme, mark, rest = host.partition("://")
        rest = (rest if mark else host).rstrip("/")
        self.host, _, prefix = rest.partition("/")
        self.repository = f"{prefix}/{repository}" if prefix else repository
        self.insecure = insecure
        self.patience = patience or Patience()
        self.note = note
        self._api = _API_HOSTS.get(self.host, self.host)
        self._hostname = urllib.parse.urlsplit(f"//{self._api}").hostname or ""
        self._schemes = [scheme] if mark else self._usual_schemes()
        self._transport = transport
        scope = scope or (f"repository:{self.repository}:pull" if self.repository else "")
        self._authorizer = Authorizer(
            self.host, self.repository, transport, insecure, lookup, scope
        )
        self._lock = threading.Lock()
        self._base = ""

    def _usual_schemes(self) -> list[str]:
        if is_loopback(self._hostname):
            return ["http", "https"]
        return ["https", "http"] if self.insecure else ["https"]

    def __str__(self) -> str:
        return f"{self.host}/{self.repository}"

    def verify(self, what: str) -> None:
        """Raise UdiError unless the registry answers, and takes the credentials if it asks."""
        self._answer("", {}, self._tries(), what).close()

    def manifest(self, reference: str, doing: str = "pulling") -> tuple[bytes, str]:
        """Return a manifest's or an index's bytes and its Content-Type.

        `reference` is a tag or a digest; by digest the content is checked. `doing` is what an error
        says of it. Raises Missing.
        """
        digest = reference if ":" in reference else ""
        what = f"{doing} {self}{'@' if digest else ':'}{reference}"
        body, headers = self._whole(f"manifests/{reference}", DOCUMENT_MAX, what)
        if digest:
            check(body, digest, what)
        return body, headers.get("Content-Type", "")

    def document(self, descriptor: Descriptor, part: str) -> bytes:
        """Return a small blob (a config) whole and checked."""
        what = f"pulling {part} of {self}"
        body, _ = self._whole(f"blobs/{descriptor.digest}", descriptor.size, what)
        if len(body) != descriptor.size:
            raise WrongContent(
                f"{what}: has {counted(len(body), 'byte')}, its descriptor says {descriptor.size}"
            )
        check(body, descriptor.digest, what)
        return body

    def listing(self, path: str, what: str, query: str = "") -> Iterator[bytes]:
        """Yield the pages of a list as bytes: "tags/list", or "_catalog" without a repository.

        A page names the next one by a URL (Link, rel="next"). Of that only the query is used, so
        that it is a page of this list at this registry. Raises UdiError, also after PAGES of them.
        """
        for _ in range(PAGES):
            body, headers = self._whole(path + query, DOCUMENT_MAX, what)
            yield body
            link = headers.get("Link", "")
            _, mark, rest = link.partition(">")[0].partition("?")
            if not mark or 'rel="next"' not in link or not all("!" <= c <= "~" for c in rest):
                return
            query = f"?{rest}"
        raise UdiError(f"{what}: {self.host} has no end of pages")

    def _whole(self, path: str, most: int, what: str) -> tuple[bytes, Message]:
        tries = self._tries()
        while True:
            reply = self._answer(path, {"Accept": ACCEPT}, tries, what)
            try:
                return reply.read_all(most, what), reply.headers
            except (OSError, http.client.HTTPException) as error:
                self._transport.stop.check()
                why = reason(error)
            finally:
                reply.close()
            tries.failed(what, why)

    def blob(
        self,
        descriptor: Descriptor,
        have: int,
        write: Callable[[bytes, int], None],
        restart: Callable[[], None],
    ) -> None:
        """Send a blob's bytes from offset `have` on to write(data, offset), up to its size.

        After a broken connection it asks for the rest (Range), as long as each attempt brings some
        progress; `restart` is called where the registry can only send all of it again. The caller
        checks the digest. Raises Missing, WrongContent for a blob that is too long, and whatever
        `write` raises.
        """
        what = f"pulling blob {descriptor.digest} of {self}"
        tries = self._tries()
        done = have
        while done < descriptor.size:
            headers = {"Range": f"bytes={done}-"} if done else {}
            reply = self._answer(f"blobs/{descriptor.digest}", headers, tries, what)
            try:
                if done and (reply.status != 206 or not _starts_at(reply, done)):
                    restart()
                    done = 0
                    if reply.status != 200:
                        reply.close()
                        reply = self._answer(f"blobs/{descriptor.digest}", {}, tries, what)
                self._announced(reply, descriptor, done, what)
                begun, since, slow = time.monotonic(), done, False
                while True:
                    if done - since >= _SLOW_BYTES:
                        begun, since = time.monotonic(), done
                    elif time.monotonic() - begun > ANSWER_SECONDS:
                        slow = True
                        break
                    data = self._read(reply, min(_CHUNK, descriptor.size - done + 1))
                    if not data:
                        break
                    if done + len(data) > descriptor.size:
                        raise WrongContent(
                            f"{what}: is longer than {counted(descriptor.size, 'byte')}"
                        )
                    write(data, done)
                    done += len(data)
                    tries.progressed(done, descriptor.size)
            finally:
                reply.close()
            if done < descriptor.size:
                how = "it comes too slowly:" if slow else "the connection broke after"
                why = f"{how} {amount(done)} of {amount(descriptor.size)}"
                tries.failed(what, why)

    def part(self, digest: str, headers: dict[str, str], what: str) -> Reply:
        """Return the answer to one request for a blob, whatever its status; the caller closes it.

        A token is fetched first, and a new one where it is refused. Raises OSError and
        HTTPException of the network, UdiError where access is denied.
        """
        renewals = 0
        while True:
            base = self._find_base(what)
            right = self._authorizer.right(what, base)
            url = f"{base}/v2/{self.repository}/blobs/{digest}"
            reply = self._transport.get(url, headers, right, self.insecure)
            if reply.status in (200, 206, 416):
                self._authorizer.accepted(right)
                return reply
            if reply.status not in (400, 401, 403) or not parties.at_home(reply.visited, base):
                return reply
            body = self._error_body(reply)
            renewals += 1
            if renewals > RENEWALS or not self._authorizer.refused(reply, base, right):
                raise self._refusal(what, reply, body)

    def _read(self, reply: Reply, most: int) -> bytes:
        """Return some bytes; b"" at the end, or where the connection broke."""
        try:
            data = reply.read_some(most)
        except (OSError, http.client.HTTPException):
            data = b""
        self._transport.stop.check()
        return data

    def _announced(self, reply: Reply, descriptor: Descriptor, done: int, what: str) -> None:
        length = reply.length()
        if length is not None and length != descriptor.size - done:
            raise WrongContent(
                f"{what}: it is announced with {counted(length + done, 'byte')}, its descriptor "
                f"says {descriptor.size}",
                "the registry's copy is damaged: push it again, or use a mirror",
            )

    def _tries(self) -> Tries:
        hint = "; a mirror may serve the image meanwhile" if self.mirrored else ""
        return Tries(self.patience, self._transport.stop, self.note, f"try again later{hint}")

    def _answer(self, path: str, headers: dict[str, str], tries: Tries, what: str) -> Reply:
        """Return an answer with status 200, 206 or 416; wait and ask again where that may help."""
        renewals = 0
        while True:
            try:
                base = self._find_base(what)
                right = self._authorizer.right(what, base)
                below = f"{self.repository}/{path}".lstrip("/") if path else ""
                url = f"{base}/v2/{below}"
                reply = self._transport.get(url, headers, right, self.insecure)
            except (OSError, http.client.HTTPException) as error:
                self._network(error, tries, what)
                continue
            if reply.status in (200, 206) or (reply.status == 416 and "Range" in headers):
                self._authorizer.accepted(right)
                return reply
            body = self._error_body(reply)
            if not parties.at_home(reply.visited, base):
                self._elsewhere(reply, body, tries, what)
                continue
            if reply.status in (400, 401, 403) and renewals < RENEWALS:
                renewals += 1
                if self._authorizer.refused(reply, base, right):
                    continue
            if reply.status not in TRANSIENT:
                raise self._refusal(what, reply, body)
            hint = ""
            if reply.status == 429:
                instead = ", or use a mirror" if self.mirrored else ""
                hint = f"its limit is reached: `udi login {self.host}`{instead}"
            why = f"{self.host} answers {reply.status}{said(body)}"
            tries.failed(what, why, retry_after(reply.headers.get("Retry-After")), hint)

    def _elsewhere(self, reply: Reply, body: str, tries: Tries, what: str) -> None:
        """Handle an error that the target of a redirect answers.

        That server is not sent anything else. If the signature in its URL has expired, the registry
        has to make a new one: the registry is asked again.
        """
        there = urllib.parse.urlsplit(reply.url).netloc.rpartition("@")[2]
        why = f"{self.host} redirects to {there}, which answers {reply.status}{said(body)}"
        if reply.status == 404:
            raise Missing(f"{what}: {why}")
        if reply.status not in (*TRANSIENT, 400, 401, 403, 407, 410):
            raise UdiError(f"{what}: {why}")
        tries.failed(what, why, retry_after(reply.headers.get("Retry-After")))

    def _network(self, error: Exception, tries: Tries, what: str) -> None:
        self._transport.stop.check()
        final = lasting(error, self._hostname in self._transport.reached)
        if final:
            raise GaveUp(f"{what}: {final[0]}", final[1]) from None
        tries.failed(what, reason(error))

    def _error_body(self, reply: Reply) -> str:
        try:
            return reply.read_all(_ERROR_MAX, "error").decode("utf-8", "replace")
        except (OSError, http.client.HTTPException, UdiError):
            return ""
        finally:
            reply.close()

    def _refusal(self, what: str, reply: Reply, body: str) -> UdiError:
        status = reply.status
        if status == 407 and reply.proxy:
            return UdiError(
                f"{what}: the proxy {reply.proxy.rpartition('@')[2]} refuses it (407)",
                "give it a name and a password: http_proxy=http://USER:PASSWORD@HOST:PORT",
            )
        if status in (401, 403):
            return self._authorizer.denied(what, body)
        if status == 404:
            return Missing(
                f"{what}: not found{said(body)}",
                "check the name and the tag; a private one needs `udi login`",
            )
        return UdiError(f"{what}: {self.host} answers {status}{said(body)}")

    def _find_base(self, what: str) -> str:
        """Return SCHEME://HOST, found by GET /v2/, whose answer also says how to authenticate."""
        with self._lock:
            if self._base:
                return self._base
            failure: Exception | None = None
            for scheme in self._schemes:
                base = f"{scheme}://{self._api}"
                try:
                    reply = self._transport.get(f"{base}/v2/", {}, parties.NOTHING, self.insecure)
                except (OSError, http.client.HTTPException) as error:
                    # If all schemes fail, the first one's error is shown: it is the likely one.
                    failure = failure or error
                    continue
                self._error_body(reply)
                if reply.status == 400 and scheme != self._schemes[-1]:
                    continue  # "Client sent an HTTP request to an HTTPS server"
                if reply.status == 401:
                    self._authorizer.pinged(reply, base)
                self._base = base
                return base
            if failure is None:
                raise UdiError(f"{what}: {self.host} is no registry")
            raise failure


def check(body: bytes, digest: str, what: str) -> None:
    """Raise WrongContent unless `body` has this digest."""
    algorithm = digest.partition(":")[0]
    matches(f"{algorithm}:{hashlib.new(algorithm, body).hexdigest()}", digest, what)


def matches(found: str, wanted: str, what: str) -> None:
    """Raise WrongContent unless the two digests are equal."""
    if found != wanted:
        raise WrongContent(
            f"{what}: its digest is {found}, wanted is {wanted}",
            "the copy there is damaged or was tampered with",
        )


def _starts_at(reply: Reply, offset: int) -> bool:
    return reply.headers.get("Content-Range", "").strip().startswith(f"bytes {offset}-")
