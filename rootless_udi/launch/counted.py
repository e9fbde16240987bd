"""Tell the site's gateway that a container was made: one datagram, sent and never waited for.

Only who builds a container does so; ranks that join are no further starts. A datagram that is lost
is lost. It has a number of its own, so that one which arrives twice is counted once.
"""

import _socket
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.plan.site import Site

WORD = "udi-start/1"
"""What a datagram begins with: WORD ID UID DIGEST NAME, with spaces between; UID may be "-"."""
_MOST = 1200
"""Most bytes: whatever the network, it is one packet."""


class Count:
    """A socket that is connected to who counts, and what is said of the user."""

    def __init__(self, socket: "_socket.socket", who: str) -> None:
        self._socket = socket
        self._who = who

    def send(self, digest: str, name: str) -> None:
        """Send the datagram, or don't: a start is worth more than its count."""
        data = f"{WORD} {os.urandom(12).hex()} {self._who} {digest or '-'} {name}"
        try:
            self._socket.send(data.encode(errors="replace")[:_MOST])
        except OSError:
            pass
        self._socket.close()


def begin(site: "Site") -> "Count | None":
    """Return what sends the datagram; None where the address can't be reached.

    Before pivot_root(2): the path of a Unix socket is the host's.
    """
    address = site.gateway_starts
    kind = _socket.SOCK_DGRAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
    try:
        if address.startswith("unix:"):
            one = _socket.socket(_socket.AF_UNIX, kind)
            one.connect(address[len("unix:") :])
        else:
            host, _, port = address.rpartition(":")
            host = host.strip("[]")
            one = _socket.socket(_socket.AF_INET6 if ":" in host else _socket.AF_INET, kind)
            one.connect((host, int(port)))
    except OSError:
        return None
    return Count(one, str(os.getuid()) if site.gateway_starts_user else "-")
