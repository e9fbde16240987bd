"""What a process outside says to the command's user as its part of the container is lost.

It has none of the caller's descriptors (`outside`), which the command's readers would wait for. So
the command's own standard error is opened as it is then, through /proc. Loaded by nobody before.
"""

import os
from stat import S_IWUSR

from rootless_udi.base.messages import receive
from rootless_udi.base.process import complain, started

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket


def gone(sock: "_socket.socket") -> bool:
    """Tell whether the launcher has closed its end: it has become the command, or is dead."""
    try:
        sock.setblocking(False)
        return not receive(sock)[0]
    except BlockingIOError:
        return False
    except OSError:
        return True


def say(command: int, text: str, hint: str) -> None:
    """Write two lines to the standard error of the process `command`, our starter once.

    Not where the id is another process's by now, one that is younger than we are; nor where its
    descriptor is not for writing, or is a socket, which nobody else can open.
    """
    if not 0 < started(command) <= started(os.getpid()):
        return
    path = f"/proc/{command}/fd/2"
    flags = os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        if os.lstat(path).st_mode & S_IWUSR:
            os.dup2(os.open(path, flags), 2)
            complain("udi-run", text, hint)
    except OSError:
        # It has ended, or its user may not write there: its own errors remain (ENOTCONN).
        pass
