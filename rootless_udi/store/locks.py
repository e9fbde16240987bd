"""A lock per digest on a shared file system.

flock(2) first: Linux sends it over NFS, Lustre (mounted with -o flock) and GPFS to all nodes. Where
the file system refuses it, open file description locks (F_OFD_SETLK, fcntl(2)), which are as good.
Where both are refused there is no lock at all: `Lock.works` is false and the caller must not rely
on one. Locks spare work, they guard nothing: what a store holds is right thanks to renames alone.

Whoever can open a file can lock it, also one who may only read. So the files are their owner's
alone, and one that is open to others is replaced. A holder touches its file every BEAT seconds:
where that ends, as on a node that has crashed or for a process that was stopped, nobody waits on.
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
"""Seconds between two signs of life of a holder."""
PATIENCE = 60.0
"""Seconds without one after which a waiter goes on without the lock."""
_UNSUPPORTED = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
_BUSY = (errno.EAGAIN, errno.EACCES)
_STEP = 0.05

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
        self._guard = threading.Lock()
        self._over = threading.Event()

    def acquire(self, shared: bool = False) -> bool:
        """Take the lock, or change a held one to shared; False where it is busy.

        Raises OSError for a file that cannot be made. A change to shared lets others in between
        (flock(2)): look again at what the lock stands for. Where that fails it is not held.
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
            # Its last holder unlinked it meanwhile: take the lock that is there now.
            self._close()

    def wait(self) -> None:
        """Take the lock alone as soon as it is free, or go on without one (`works`): see `Holder`.

        Raises OSError.
        """
        holder = Holder(self)
        while not self.acquire():
            if holder.gone():
                self.do_without()
                return
            time.sleep(_STEP)

    def do_without(self) -> None:
        """Go on as where the file system has no locks."""
        self._close()
        self.works = False

    def _open(self) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        # A second time at most: not every file system keeps modes.
        for again in (True, False):
            self._fd = os.open(self.path, flags, 0o600)
            if not again or not os.fstat(self._fd).st_mode & 0o077:
                return
            # One of an older version, which others can lock for ever.
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
        """Say who has it, for the message of those who wait; a full disk is no reason to fail."""
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
                # At a limit of threads it holds what it holds, but none waits for it long.
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
        """Let go; the file is removed where nobody else has or shares the lock."""
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
    """Who has the lock that somebody waits for, as far as it shows that it lives."""

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
        """Tell whether it has given no sign of life for PATIENCE seconds."""
        last, now = self._look(), time.monotonic()
        if last != self._last:
            self._beats = self._last[0] == last[0]
            self._last, self._since = last, now
        return now - self._since >= PATIENCE

    def name(self) -> str:
        """Return "HOST, process PID" of a living one; "" where it did not say, or may be dead.

        One on another node is known to live when it has been seen to touch its file.
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
