"""Upload to a repository of a registry: blobs in chunks, manifests (distribution-spec, "Push").

A chunk that was cut is gone on with, also by another process after a kill (`unfinished`): the
registry is asked how far it came. Where an upload goes, a
Location says: credentials go there only if it is the registry itself (`parties`), and what asks for
some elsewhere is not answered.
"""

import contextlib
import http.client
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from typing import Protocol

from rootless_udi.base.errors import UdiError, amount
from rootless_udi.base.records import Record
from rootless_udi.pull import credentials, parties
from rootless_udi.pull.authorizer import Lookup, said
from rootless_udi.pull.http import Body, Reply, Transport, target
from rootless_udi.pull.manifest import Descriptor, sha256
from rootless_udi.pull.registry import RENEWALS, Endpoint, Missing, Note
from rootless_udi.pull.retry import (
    TRANSIENT,
    GaveUp,
    Patience,
    Tries,
    lasting,
    reason,
    retry_after,
)
from rootless_udi.pull.unfinished import Unfinished

_CHUNK, _LARGEST, _SMALLEST = 64 << 20, 1 << 30, 4 << 20
"""Bytes of the first chunk, of the largest, and of the smallest, after some that were cut. A
registry syncs its disk after each, in which time nothing is sent."""
_QUICK, _MORE = 10.0, 16
"""Seconds, and how many times as many bytes the next chunk has after one that took less: each ends
long before ANSWER_SECONDS."""
_WAIT_FOR = 64 << 20
"""Of a blob of fewer bytes the digest is waited for before anything is sent."""

Report = Callable[[int], None]


class Content(Protocol):
    """Bytes to upload. `size` is known, `digest` is being made meanwhile."""

    size: int

    def digest(self, wait: bool) -> str:
        """Return the digest; "" where it is not made yet and `wait` is false. Raises UdiError."""
        ...

    def pieces(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to `stop`. Raises UdiError."""
        ...


class _Range:
    """A part of a content as a request's body, which may have to be sent twice."""

    def __init__(self, content: Content, start: int, stop: int) -> None:
        self._content, self._start, self._stop = content, start, stop

    def __iter__(self) -> Iterator[bytes]:
        return self._content.pieces(self._start, self._stop)


class _Cut(Exception):
    """A request with a body was not answered; how far it came, the registry must say."""

    def __init__(self, why: str, wait: float | None = None) -> None:
        super().__init__(why)
        self.wait = wait


class _Gone(Exception):
    """The registry has forgotten the upload."""


class _Begun(Record):
    """An upload: where it goes on, the least bytes of a chunk, and how many have come already."""

    place: str
    least: int
    done: int = 0


class Uploading(Endpoint):
    """A repository to push to. `beside` is another repository of the registry, "" for none, whose
    blobs are asked for before any is sent."""

    mirrored = False

    def __init__(
        self,
        host: str,
        repository: str,
        transport: Transport,
        patience: Patience | None = None,
        insecure: bool = False,
        note: Note = lambda text: None,
        lookup: Lookup = credentials.find,
        beside: str = "",
    ) -> None:
        scopes = [f"repository:{repository}:pull,push"]
        scopes += [f"repository:{beside}:pull"] if beside else []
        super().__init__(
            host, repository, transport, patience, insecure, note, lookup, " ".join(scopes)
        )
        self._beside = beside

    def has(self, digest: str) -> bool:
        """Tell whether the repository has a blob."""
        what = f"looking for blob {digest} of {self}"
        try:
            self._ask("HEAD", f"blobs/{digest}", what, (200,)).close()
        except Missing:
            return False
        return True

    def mounted(self, digest: str) -> bool:
        """Have the blob from the other repository, if it is there and may be had; tell whether."""
        if not self._beside:
            return False
        words = urllib.parse.urlencode({"mount": digest, "from": self._beside})
        what = f"mounting blob {digest} from {self.host}/{self._beside} into {self}"
        try:
            reply = self._ask("POST", f"blobs/uploads/?{words}", what, (201, 202))
        except UdiError:
            return False  # it may refuse what it does not know
        with contextlib.closing(reply):
            if reply.status == 201:
                return True
            self._cancel(self._location(reply, what), what)
            return False

    def put_manifest(self, reference: str, body: bytes, media: str) -> Message:
        """Push a manifest or an index under a tag or its digest; return the answer's headers."""
        what = f"pushing {self}{'@' if ':' in reference else ':'}{reference}"
        headers = {"Content-Type": media}
        path = f"manifests/{reference}"
        reply = self._ask("PUT", path, what, (200, 201, 202), headers, body)
        reply.read_all(1 << 16, what)
        reply.close()
        return reply.headers

    def put_blob(self, data: bytes, media: str) -> Descriptor:
        """Push a small blob in one piece, unless it is there; return its descriptor."""
        digest = sha256(data)
        what = f"pushing a blob to {self}"
        if not self.has(digest) and not self.mounted(digest):
            with contextlib.closing(self._ask("POST", "blobs/uploads/", what, (202,))) as reply:
                place = _finally(self._location(reply, what), digest)
            headers = {"Content-Type": "application/octet-stream"}
            self._ask("PUT", place, what, (201, 204), headers, data).close()
        return Descriptor(media, digest, len(data))

    def upload(
        self,
        content: Content,
        report: Report = lambda done: None,
        unfinished: Unfinished | None = None,
    ) -> str:
        """Push a blob; return its digest. What is there is not sent.

        `unfinished` says where an earlier process was, and is told how far this one is.
        """
        if content.size < _WAIT_FOR:
            content.digest(True)
        unfinished = unfinished or Unfinished(None)
        tries = self._tries()
        looked = False
        while True:
            what = f"pushing a blob to {self}"
            if not looked and (digest := content.digest(False)):
                looked = True
                if self.has(digest) or self.mounted(digest):
                    unfinished.forget()
                    report(content.size)
                    return digest
            begun = self._begun(content.size, what, unfinished)
            try:
                digest = self._send(begun, content, report, tries, looked, unfinished)
            except _Gone as gone:
                unfinished.forget()
                tries.failed(what, str(gone))
                continue
            unfinished.forget()
            return digest

    def _begun(self, size: int, what: str, unfinished: Unfinished) -> "_Begun":
        """Begin an upload, or find the one that an earlier process has begun."""
        noted, least = unfinished.read()
        if noted:
            try:
                base = self._find_base(what)
                noted = target(f"{base}/", noted, self.insecure, base, "GET")
                place, done = self._came(noted, what, size)
                return _Begun(place, max(_SMALLEST, least), done)
            except GaveUp:
                raise
            except (OSError, http.client.HTTPException, UdiError, _Gone):
                unfinished.forget()
        with contextlib.closing(self._ask("POST", "blobs/uploads/", what, (202,))) as reply:
            text = reply.headers.get("OCI-Chunk-Min-Length", "")
            known = text.isascii() and text.isdigit() and len(text) <= 18
            least = max(_SMALLEST, int(text) if known else 0)
            place = self._location(reply, what)
        unfinished.write(place, least)
        return _Begun(place, least)

    def _send(
        self,
        begun: "_Begun",
        content: Content,
        report: Report,
        tries: Tries,
        looked: bool,
        unfinished: Unfinished,
    ) -> str:
        what = f"pushing a blob to {self}"
        place, least, done = begun.values()
        chunk = max(_CHUNK, least)
        report(done)
        while done < content.size:
            if not looked and (digest := content.digest(False)):
                looked = True
                if self.has(digest) or self.mounted(digest):
                    self._cancel(place, what)
                    report(content.size)
                    return digest
            stop = min(done + chunk, content.size)
            since = time.monotonic()
            try:
                place = self._chunk(place, content, done, stop, what)
                done = stop
                if time.monotonic() - since < _QUICK:
                    chunk = min(_MORE * chunk, max(_LARGEST, chunk))
            except _Cut as cut:
                # Before: else a registry that is starting anew is asked in vain.
                tries.failed(what, str(cut), cut.wait)
                place, done = self._came(place, what, content.size)
                chunk = max(chunk // 4, least)
            unfinished.write(place, least)
            tries.progressed(done, content.size)
            report(done)
        digest = content.digest(True)
        try:
            self._ask(
                "PUT", _finally(place, digest), what, (201, 204), {"Content-Length": "0"}, b""
            ).close()
        except Missing:
            # An answer that was lost, perhaps: then the blob is there.
            if not self.has(digest):
                raise _Gone("the registry has forgotten the upload") from None
        except GaveUp:
            raise
        except UdiError as error:
            if not begun.done:
                raise
            # What the earlier process has sent was not this.
            raise _Gone(error.message) from None
        return digest

    def _chunk(self, place: str, content: Content, start: int, stop: int, what: str) -> str:
        """Send a chunk; return where the next one goes. Raises _Cut, _Gone."""
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Range": f"{start}-{stop - 1}",
            "Content-Length": str(stop - start),
        }
        try:
            body = _Range(content, start, stop)
            reply = self._ask("PATCH", place, what, (202, 204), headers, body)
        except Missing:
            raise _Gone("the registry has forgotten the upload") from None
        reply.close()
        came = _came(reply)
        if came is not None and came != stop:
            raise _Cut(f"it has {amount(came)} of {amount(stop)}")
        return self._location(reply, what)

    def _came(self, place: str, what: str, size: int) -> tuple[str, int]:
        """Ask how far an upload came; return where it goes on, and the bytes that are there."""
        try:
            reply = self._ask("GET", place, what, (204,))
        except Missing:
            raise _Gone("the registry has forgotten the upload") from None
        reply.close()
        came = _came(reply) or 0
        if came > size:
            raise _Gone(f"the registry has {amount(came)} of {amount(size)}")
        where = reply.headers.get("Location", "")
        return (self._location(reply, what) if where else place), came

    def _cancel(self, place: str, what: str) -> None:
        """Have the registry forget an upload; if it does not, it does so by itself one day."""
        with contextlib.suppress(UdiError, _Cut):
            self._ask("DELETE", place, what, (200, 202, 204)).close()

    def _location(self, reply: Reply, what: str) -> str:
        try:
            base = self._find_base(what)
        except (OSError, http.client.HTTPException) as error:
            raise UdiError(f"{what}: {reason(error)}") from None
        return target(reply.url, reply.headers.get("Location", ""), self.insecure, base, "POST")

    def _ask(
        self,
        method: str,
        where: str,
        what: str,
        fine: tuple[int, ...],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> Reply:
        """Return an answer with a status of `fine`; `where` is a URL or a path of the repository.

        Raises Missing for 404, UdiError, and _Cut for a body that may have come in part.
        """
        tries, renewals = self._tries(), 0
        partly = isinstance(body, _Range)
        while True:
            try:
                base = self._find_base(what)
                right = self._authorizer.right(what, base)
                url = where if "://" in where else f"{base}/v2/{self.repository}/{where}"
                reply = self._transport.get(url, headers or {}, right, self.insecure, method, body)
            except (OSError, http.client.HTTPException) as error:
                if partly and not lasting(error, True):
                    raise _Cut(reason(error)) from None
                self._network(error, tries, what)
                continue
            if reply.status in fine:
                self._authorizer.accepted(right)
                return reply
            text = self._error_body(reply)
            why = f"{self.host} answers {reply.status}{said(text)}"
            if not parties.at_home(reply.visited, base):
                there = urllib.parse.urlsplit(reply.url).netloc.rpartition("@")[2]
                why = f"{self.host} sends it to {there}, which answers {reply.status}"
            elif reply.status in (400, 401, 403) and renewals < RENEWALS:
                renewals += 1
                if self._authorizer.refused(reply, base, right):
                    continue
            wait = retry_after(reply.headers.get("Retry-After"))
            if partly and (reply.status in TRANSIENT or reply.status == 416):
                raise _Cut(why, wait)
            if reply.status in TRANSIENT:
                tries.failed(what, why, wait)
            elif parties.at_home(reply.visited, base):
                raise self._refusal(what, reply, text)
            elif reply.status == 404:
                raise Missing(f"{what}: {why}")
            else:
                raise UdiError(f"{what}: {why}")


def _finally(place: str, digest: str) -> str:
    """Return the URL that ends an upload."""
    mark = "&" if "?" in place else "?"
    return f"{place}{mark}{urllib.parse.urlencode({'digest': digest})}"


def _came(reply: Reply) -> int | None:
    """Return how many bytes an upload has, as its Range says; None where there is none."""
    first, mark, last = reply.headers.get("Range", "").removeprefix("bytes=").partition("-")
    if not mark or first != "0" or not (last.isascii() and last.isdigit() and len(last) <= 18):
        return None
    return int(last) + 1 if last != "0" else 0
