"""A lock per digest on a shared file system.

flock(2) first: Linux sends it over NFS, Lustre (mounted with -o flock) and GPFS to all nodes. Where
the file system refuses it, open file description locks (F_OFD_SETLK, fcntl(2)), which are as good.
Where both are refused there is no lock at all: `Lock.works` is false and the caller must not rely
on one. Locks spare work, they guard nothing: what a store holds is right thanks to renames alone.
"""

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable

_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_BUSY = (errno.EAGAIN, errno.EACCES)

Method = Callable[[int, bool, bool], None]
"""(descriptor, shared, wait): lock or raise OSError."""


def by_flock(fd: int, shared: bool, wait: bool) -> None:
    """Lock with flock(2)."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)


def by_fcntl(fd: int, shared: bool, wait: bool) -> None:
    """Lock the whole file with an open file description lock (Linux 3.15)."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    whole = struct.pack("@hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, whole)


class Lock:
    """The lock that is the file at `path`, shared or exclusive, held until `release` or death.

    Not for two threads at once; each takes a Lock of its own.
    """

    def __init__(self, path: str, methods: tuple[Method, ...] = (by_flock, by_fcntl)) -> None:
        self.path = path
        self.works = True
        self.shared = False
        self._methods = methods
        self._fd = -1

    def acquire(self, shared: bool = False, wait: bool = True) -> bool:
        """Take the lock, or change a held one to shared; False where it is busy and not `wait`.

        Raises OSError for a file that cannot be made. A change to shared lets others in between
        (flock(2)): look again at what the lock stands for.
        """
        while True:
            if self._fd < 0:
                self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                self._take(shared, wait)
            except OSError as error:
                self._close()
                if error.errno in _BUSY:
                    return False
                raise
            except BaseException:
                self._close()
                raise
            if self._is_current():
                self.shared = shared
                if not shared:
                    self._sign()
                return True
            # Its last holder unlinked it while we waited: take the lock that is there now.
            self._close()

    def _take(self, shared: bool, wait: bool) -> None:
        for method in self._methods:
            try:
                method(self._fd, shared, wait)
            except OSError as error:
                if error.errno not in _UNSUPPORTED:
                    raise
            else:
                return
        self.works = False

    def _is_current(self) -> bool:
        ours = os.fstat(self._fd)
        try:
            there = os.stat(self.path)
        except OSError:
            return False
        return (ours.st_dev, ours.st_ino) == (there.st_dev, there.st_ino)

    def _sign(self) -> None:
        """Say who has it, for the message of those who wait; a full disk is no reason to fail."""
        try:
            os.truncate(self._fd, 0)
            os.pwrite(self._fd, f"{socket.gethostname()}, process {os.getpid()}\n".encode(), 0)
        except OSError:
            pass

    def holder(self) -> str:
        """Return "HOST, process PID" of the last exclusive holder, empty where it did not say."""
        try:
            with open(self.path, encoding="utf-8", errors="replace") as file:
                return file.readline().strip()
        except OSError:
            return ""

    def release(self) -> None:
        """Let go; the file is removed where nobody else has or shares the lock."""
        if self._fd < 0:
            return
        try:
            if self.works:
                self._take(shared=False, wait=False)
                if self._is_current():
                    os.unlink(self.path)
        except OSError:
            pass
        finally:
            self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
