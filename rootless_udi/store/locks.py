"""Locks between the nodes that share a store, one for each digest.

flock(2) is tried first; on NFS, Lustre (mounted with -o flock) and GPFS it holds on all nodes.
Where the file system refuses it, an open file description lock (F_OFD_SETLK, fcntl(2)) does the
same. Where both are refused there is no lock: `Lock.works` is false, and the caller must do
without. Locks only prevent that two nodes do the same work. What a store holds is right without
them, since everything appears in it by rename(2).

Whoever can open a file can lock it, even one who may only read it. So other users can't open lock
files, and a lock file that they could open is replaced. The holder of a lock touches its file every
BEAT seconds. If it no longer does, because its node crashed or the process was stopped, the others
wait no longer (`Holder`).
"""

import errno
import fcntl
import os
import socket
import struct
import threading
import time
from collections.abc import Callable

from rootless_udi.base.process import started

BEAT = 5.0
"""Seconds between two times that a holder touches its file."""
PATIENCE = 60.0
"""Seconds. After so many without a touch a waiter goes on without the lock."""
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_BUSY = (errno.EAGAIN, errno.EACCES)
_STEP = 0.05
"""Seconds between two attempts to get a lock."""

_Method = Callable[[int, bool, bool], None]
"""(descriptor, shared, wait): lock the file or raise OSError."""


def by_flock(fd: int, shared: bool, wait: bool) -> None:
    """Lock with flock(2). Raises OSError."""
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(fd, kind if wait else kind | fcntl.LOCK_NB)


def by_fcntl(fd: int, shared: bool, wait: bool) -> None:
    """Lock the whole file with an open file description lock (Linux 3.15). Raises OSError."""
    kind = fcntl.F_RDLCK if shared else fcntl.F_WRLCK
    whole = struct.pack("@hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, whole)


class Lock:
    """A lock, shared or exclusive, on the file at `path`, held until `release` or the process's
    end.

    Two threads must not use the same Lock; each makes its own.
    """

    def __init__(self, path: str, methods: tuple[_Method, ...] = (by_flock, by_fcntl)) -> None:
        self.path = path
        self.works = True
        self.shared = False
        self._methods = methods
        self._fd = -1
        self._guard = threading.Lock()
        self._over = threading.Event()

    def acquire(self, shared: bool = False) -> bool:
        """Take the lock, or make a held one shared; return False where another process has it.

        Making it shared releases it for a moment (flock(2)): another may have changed what the lock
        stands for. After False it is not held. Raises OSError where the file can't be made.
        """
        while True:
            if self._fd < 0:
                self._open()
            try:
                self._take(shared)
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
            # The last holder has removed the file meanwhile: lock the one that is there now.
            self._close()

    def wait(self) -> None:
        """Wait for the exclusive lock and take it.

        If its holder shows no life any more (`Holder`), go on without it: `works` is false then.
        Raises OSError.
        """
        holder = Holder(self)
        while not self.acquire():
            if holder.gone():
                self.do_without()
                return
            time.sleep(_STEP)

    def do_without(self) -> None:
        """Go on without the lock, as on a file system that has none."""
        self._close()
        self.works = False

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        # At most twice, since some file systems do not keep modes.
        for again in (True, False):
            self._fd = os.open(self.path, flags, 0o600)
            if not again or not os.fstat(self._fd).st_mode & 0o077:
                return
            # A file that others can open, and so lock for ever; older versions made such.
            try:
                os.unlink(self.path)
            except OSError:
                pass
            self._close()

    def _take(self, shared: bool) -> None:
        for method in self._methods:
            try:
                method(self._fd, shared, False)
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
        """Write into the file who holds the lock, for others' messages, and begin to touch it.

        A full disk is no error here.
        """
        try:
            os.truncate(self._fd, 0)
            text = f"{socket.gethostname()}, process {os.getpid()}\n{started(os.getpid())}\n"
            os.pwrite(self._fd, text.encode(), 0)
        except OSError:
            pass
        self._over.set()
        if self.works:
            self._over = threading.Event()
            try:
                threading.Thread(target=self._live, args=(self._over,), daemon=True).start()
            except RuntimeError:
                # At a limit of threads: the lock is held, but others don't wait for it long.
                pass

    def _live(self, over: threading.Event) -> None:
        while not over.wait(BEAT):
            with self._guard:
                if over.is_set():
                    return
                try:
                    os.utime(self._fd)
                except OSError:
                    return

    def release(self) -> None:
        """Release the lock; remove the file if nobody else shares or has it."""
        if self._fd < 0:
            return
        try:
            if self.works:
                self._take(shared=False)
                if self._is_current():
                    os.unlink(self.path)
        except OSError:
            pass
        finally:
            self._close()

    def _close(self) -> None:
        self._over.set()
        with self._guard:
            if self._fd >= 0:
                os.close(self._fd)
                self._fd = -1


class Holder:
    """The process that holds a lock somebody waits for: does it still live?"""

    def __init__(self, lock: Lock) -> None:
        self._path = lock.path
        self._last = self._look()
        self._since = time.monotonic()
        self._beats = False

    def _look(self) -> tuple[int, int]:
        try:
            found = os.stat(self._path)
        except OSError:
            return 0, 0
        return found.st_ino, found.st_mtime_ns

    def gone(self) -> bool:
        """Tell whether the file was not touched for PATIENCE seconds."""
        last, now = self._look(), time.monotonic()
        if last != self._last:
            self._beats = self._last[0] == last[0]
            self._last, self._since = last, now
        return now - self._since >= PATIENCE

    def name(self) -> str:
        """Return "HOST, process PID"; "" where that is unknown or the process may be dead.

        A process on another node lives if the file was touched since this object was made.
        """
        try:
            with open(self._path, encoding="utf-8", errors="replace") as file:
                name, start = file.readline().strip(), file.readline().strip()
        except OSError:
            return ""
        host, _, pid = name.partition(", process ")
        if host != socket.gethostname():
            return name if self._beats else ""
        lives = pid.isdecimal() and start not in ("", "0") and str(started(int(pid))) == start
        return name if lives else ""
