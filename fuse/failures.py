"""What a transport does with an error: the errno that it answers, and the line that it logs."""

import os
from errno import EINVAL, EIO, EISDIR, ENAMETOOLONG, ENODATA, ENOTDIR, EPROTO, ERANGE

from rootless_udi.base.errors import plain
from rootless_udi.fuse.format import Corrupt, WrongWindow

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    Log = Callable[[str], None]

LINES = 100
"""Most lines that one server logs: a damaged image must not fill the disk with messages."""
_CALLERS = (EINVAL, EISDIR, ENAMETOOLONG, ENODATA, ENOTDIR, EPROTO, ERANGE)
"""Errors that are the caller's own mistakes: they are answered and not logged."""


def to_stderr(line: str) -> None:
    """Write a log line to standard error, in one write. Where that fails, serving goes on."""
    try:
        os.write(2, f"{plain(line)}\n".encode())
    except OSError:
        return


class Complaints:
    """The log of one server, for the image called `name`."""

    def __init__(self, name: str, log: "Log") -> None:
        self.name = name
        self._log = log
        self._lines = 0
        self._damaged: set[int] = set()

    def errno(self, error: Exception, what: str, node: int) -> int:
        """Return the errno to answer for `error`; log it where it is not the caller's mistake.

        `what` is the operation in which it was raised, `node` what that was about.
        """
        if isinstance(error, OSError):
            if error.errno in _CALLERS:
                return error.errno
            why = f"reading the image failed: {error}"
        elif isinstance(error, WrongWindow):
            # Once for each window, and not for each file and each page that needs it.
            if error.number not in self._damaged:
                self._damaged.add(error.number)
                self.note(f"the image is damaged: {error}; `udi verify` checks all of it")
            return EIO
        elif isinstance(error, Corrupt):
            why = f"the image is damaged: {error}"
        else:
            why = f"{type(error).__name__}: {error}"
        self.note(f"{what} of inode {place(node)}: {why}")
        return EIO

    def note(self, line: str) -> None:
        """Log a line about the image, unless there were LINES of them."""
        self._lines += 1
        if self._lines <= LINES:
            last = "; no more such lines" if self._lines == LINES else ""
            self._log(f"udi-image: {self.name}: {line}{last}")


def place(node: int) -> str:
    """Return where a node's inode is, for a log line: metadata block and offset."""
    return "root" if node == 1 else f"{(node - 2) >> 16}:{(node - 2) & 0xFFFF}"
