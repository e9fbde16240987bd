"""udi-run's side of the process that fetches a remote image's windows (`remote.process`)."""

import os

from rootless_udi.base.calls import spawn
from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import pair, receive

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

NAME = "udi-remote"
"""The process's name in ps(1)."""
GET, AGAIN = b"g", b"a"
"""What the image server asks for a window: to have it, and to have it anew."""


def opened(
    url: str, timeout: int, insecure: bool, folder: str = ""
) -> "tuple[int, _socket.socket]":
    """Have a process fetch windows of the image at `url`; return its file and the socket to it.

    In `folder`, if it is there and can be written, it keeps them for the next start.

    The file is as long as the image's, and has its first window and what is behind the squashfs.
    Raises UdiError.
    """
    from rootless_udi.base import program

    ours, theirs = pair()
    words = url, str(timeout), "insecure" if insecure else "", folder
    argv = program.argv("from rootless_udi.remote.process import main; main()", *words, site=False)
    try:
        pid = spawn(argv[0], argv, dict(os.environ), [(theirs.fileno(), 3)])
    except OSError as error:
        raise UdiError(f"starting a process failed: {error.strerror}") from None
    finally:
        theirs.close()
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        pass  # the caller ignores SIGCHLD: the kernel has reaped it
    text, fds = receive(ours)
    if text == "ok" and fds:
        return fds[0], ours
    ours.close()
    kind, _, rest = text.partition("\0")
    message, _, hint = rest.partition("\0")
    raise UdiError(
        message if kind == "!" else f"reading {url} failed: the process that fetches it has ended",
        hint,
    )
