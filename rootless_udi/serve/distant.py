"""udi-run's side of the process that fetches a remote image's windows (`remote.process`)."""

import gc
import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import pair, receive
from rootless_udi.base.records import Record
from rootless_udi.serve import outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

NAME = "udi-remote"
"""The process's name in ps(1)."""
GET, AGAIN = b"g", b"a"
"""What the image server asks for a window: to have it, and to have it anew."""
NONE, BROKEN, THERE = "none", "broken", "there"
"""Answers for an image of a registry: nothing is to be read in place; what is there is damaged, or
does not come in time; the store has the image."""


class Distant(Record):
    """An image whose windows a process fetches: its file, and the socket to the process.

    The file is as long as the image's, and has its first window and what is behind the squashfs.
    `path` is one by which the user's processes on this node can open it. `listed` is the digest of
    the list of its windows, "" for none; `digest` the image's, by which a store calls it; `shown`
    where it is, in words; `there` the numbers of windows that are in the file, and right; `facts`
    its facts as JSON, "" where they are in the file.
    """

    file: int
    sock: "_socket.socket"
    path: str
    listed: str
    digest: str
    shown: str
    there: str
    facts: str


def opened(
    image: str,
    timeout: int,
    insecure: bool,
    folder: str = "",
    fill: bool = False,
    platform: str = "",
) -> "Distant | str":
    """Have a process fetch windows of an image; or return NONE, BROKEN or THERE, with reasons
    after a NUL.

    `image` is a URL, or with `fill` a name of a registry. In `folder`, a store, if it can be
    written, it keeps them for the next start; with `fill` it goes on until the store has the image.
    Raises UdiError.
    """
    ours, theirs = pair()
    flags = "insecure" if insecure else "", "fill" if fill else ""
    outside.arguments()
    try:
        child = os.fork()
    except OSError as error:
        raise UdiError(f"starting a process failed: {error.strerror}") from None
    if child == 0:
        try:
            # The process that fetches is a child of this one, which ends: nobody waits for it.
            if os.fork() == 0:
                ours.close()
                _fetch(theirs, image, str(timeout), *flags, platform, folder)
        finally:
            os._exit(0)
    theirs.close()
    # As in `serve.helper`.
    os.sched_yield()
    text, fds = receive(ours)
    try:
        os.waitpid(child, 0)
    except ChildProcessError:
        pass  # the caller ignores SIGCHLD: the kernel has reaped it
    kind, _, rest = text.partition("\0")
    if kind == "ok" and fds:
        return Distant(fds[0], ours, *rest.split("\0", 5))
    ours.close()
    if kind in (NONE, BROKEN, THERE):
        return text
    message, _, hint = rest.partition("\0")
    shown = image.partition("?")[0]
    if kind != "!":
        message = f"reading {shown} failed: the process that fetches it has ended"
    raise UdiError(message, hint)


def _fetch(sock: "_socket.socket", *words: str) -> None:
    """Become the process that fetches. A Python of its own would take 10 ms more to begin, and load
    once more what is here."""
    # After fork(2), see `serve.server`.
    gc.freeze()
    gc.enable()
    # By its name: it is a program of its own, of which a start knows nothing else.
    __import__("rootless_udi.remote.process", fromlist=["main"]).main(sock, *words)
