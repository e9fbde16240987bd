"""Where a remote image's bytes come from: a web server's file, or a blob of a registry.

`ask` makes one request, with all redirects; what its answer is worth is judged in `remote.ranges`.
The target of a redirect is remembered, since a registry that sends to an object store would double
each round trip; when it refuses, as a signed URL does that has expired, the first place is asked
again. What is sent to whom is `pull.parties`'s: nothing to the target of a redirect.
"""

import os
from _thread import allocate_lock

from rootless_udi.base import windows
from rootless_udi.remote import plain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Protocol

    # What speaks to a registry takes as long to load as a file of a web server takes to open.
    from rootless_udi.pull.http import Reply, Transport
    from rootless_udi.pull.registry import Endpoint
    from rootless_udi.remote.plain import PlainReply
else:
    Protocol = object


class Origin(Protocol):
    """One file elsewhere. `shown` names it in messages, without a secret; `size` is its bytes, 0
    where that is not known; `pinned` says that each window is compared with a list that was made
    with the file, so that another version of the file need not be told by its headers; `others` is
    the number of further places that have it."""

    shown: str
    size: int
    pinned: bool
    others: int

    def ask(self, headers: "dict[str, str]") -> "Reply | PlainReply":
        """Return the answer to a GET. Raises OSError and HTTPException of the network, UdiError."""

    def failed(self) -> None:
        """Note that an attempt failed: the next one may be made elsewhere."""

    def reached(self) -> bool:
        """Tell whether a server has answered before."""


_PARTIAL = 206
_REDIRECTS = 301, 302, 303, 307, 308
"""HTTP statuses: of an answer to a range, and with which a server sends elsewhere."""


class _Remembered:
    """The target of the last redirect that led to bytes; safe for several threads."""

    def __init__(self, transport: "Transport") -> None:
        self._transport = transport
        self._url = ""
        self._asked = ""
        self._lock = allocate_lock()

    def ask(self, headers: "dict[str, str]", insecure: bool) -> "Reply | None":
        """Return the target's answer, None where there is no target that still answers."""
        with self._lock:
            url, asked = self._url, self._asked
        if not url:
            return None
        from http.client import HTTPException

        from rootless_udi.base.errors import UdiError
        from rootless_udi.pull import parties

        try:
            lenient = parties.lenient(insecure, url, asked)
            reply = self._transport.get(url, headers, insecure=lenient)
        except (OSError, HTTPException, UdiError):
            self._forget(url)
            return None
        if reply.status == _PARTIAL:
            return reply
        reply.read_some(1 << 16)
        reply.close()
        self._forget(url)
        return None

    def _forget(self, url: str) -> None:
        with self._lock:
            if self._url == url:
                self._url = ""

    def note(self, reply: "Reply") -> None:
        """Remember where a reply came from, if a redirect led there."""
        if reply.status == _PARTIAL and len(reply.visited) > 1:
            with self._lock:
                self._asked, self._url = reply.visited[0], reply.url


class Web:
    """The file at a URL. Raises UdiError for plain http to another machine, without `insecure`."""

    pinned = False
    others = 0

    def __init__(self, url: str, timeout: float, insecure: bool = False) -> None:
        self.size = 0
        self.shown = url.partition("?")[0]
        self._url, self._insecure, self._timeout = url, insecure, timeout
        self._lock = allocate_lock()
        self._by_http: tuple[Transport, _Remembered] | None = None
        self._unusual = False
        self._plain = plain.usual(url, insecure, timeout, os.environ)
        if self._plain is None:
            self._judge()
        else:
            self._plain.sent = windows.load

    def _judge(self) -> None:
        from urllib.parse import urlsplit, urlunsplit

        from rootless_udi.base.errors import UdiError
        from rootless_udi.pull import parties
        from rootless_udi.pull.proxies import is_loopback

        parts = urlsplit(self._url)
        netloc = parts.netloc.rpartition("@")[2]
        self.shown = urlunsplit((parts.scheme, netloc, parts.path, "", ""))
        scheme, host, _ = parties.origin(self._url)
        if scheme == "http" and not self._insecure and not is_loopback(host):
            raise UdiError(
                f"reading {self.shown} failed: nothing proves who answers by plain http",
                "use https, or --insecure",
            )

    def _usual(self) -> "tuple[Transport, _Remembered]":
        """Return what asks for everything that `remote.plain` doesn't."""
        with self._lock:
            if self._by_http is None:
                from rootless_udi.pull.http import Transport

                transport = Transport(answer=self._timeout)
                self._by_http = transport, _Remembered(transport)
            return self._by_http

    def ask(self, headers: "dict[str, str]") -> "Reply | PlainReply":
        location = ""
        if self._plain is not None and not self._unusual:
            found = self._plain.ask(headers)
            if found is not None and found.status not in _REDIRECTS:
                return found
            if found is not None:
                location = found.headers.get("Location")
                found.close()
            # It will be so again.
            self._unusual = True
        transport, target = self._usual()
        reply = target.ask(headers, self._insecure)
        if reply is None:
            insecure = self._insecure
            reply = transport.get(self._url, headers, insecure=insecure, located=location)
            target.note(reply)
        return reply

    def failed(self) -> None:
        """Do nothing: there is no other place."""

    def reached(self) -> bool:
        one, other = self._plain, self._by_http
        return (one is not None and one.reached) or (other is not None and bool(other[0].reached))


class Blob:
    """A blob of `size` bytes of a registry; `endpoints` are its mirrors and itself, in order.

    After a failure the next of them is asked: a mirror that dies stops no start.
    """

    pinned = True

    def __init__(
        self, endpoints: "Sequence[Endpoint]", transport: "Transport", digest: str, size: int
    ) -> None:
        self.size = size
        self.others = len(endpoints) - 1
        self.shown = f"blob {digest} of {endpoints[-1]}"
        self._digest = digest
        self._transport = transport
        self._lock = allocate_lock()
        self._places = [(endpoint, _Remembered(transport)) for endpoint in endpoints]

    def ask(self, headers: "dict[str, str]") -> "Reply":
        with self._lock:
            endpoint, target = self._places[0]
        reply = target.ask(headers, endpoint.insecure)
        if reply is None:
            reply = endpoint.part(self._digest, headers, f"reading {self.shown}")
            target.note(reply)
        return reply

    def failed(self) -> None:
        with self._lock:
            self._places.append(self._places.pop(0))

    def reached(self) -> bool:
        return bool(self._transport.reached)
