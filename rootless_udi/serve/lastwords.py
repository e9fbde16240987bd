"""Tell the command's user that a part of the container is lost, from a process outside.

Such a process has closed the caller's descriptors (`outside`): whoever reads the command's output
would wait for it too. So it opens the command's standard error through /proc, at that moment. It
imports this only then.
"""

import os
from stat import S_IWUSR

from rootless_udi.base.messages import receive
from rootless_udi.base.process import complain, started

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket


def gone(sock: "_socket.socket") -> bool:
    """Tell whether udi-run has closed its end: it has become the command, or has ended."""
    try:
        sock.setblocking(False)
        return not receive(sock)[0]
    except BlockingIOError:
        return False
    except OSError:
        return True


def say(command: int, text: str, hint: str) -> None:
    """Print a message and a hint to the standard error of the process `command`, which started us.

    Nothing is printed if that process has ended and another one has its id, which then started
    later than this one. Nor if its standard error is not open for writing, or is a socket, which
    can't be opened through /proc.
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
