"""Elect the builder of a node's container; the others join what it built.

The builder holds a lock, flock(2) on NAME.lock, from before it plans until the record is written;
ranks that waited for the lock then find the record. The kernel releases a lock when its holder
dies, so a killed builder blocks nobody. NAME.lock is made only once there is a helper that will
remove it, even if the builder is killed. Until then the builder locks the state directory itself,
and so does everybody while looking for NAME.lock.
"""

import _signal
import fcntl
import os
import sys
from errno import EDQUOT, ENOSPC
from time import sleep

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain
from rootless_udi.node import places
from rootless_udi.node.places import failed
from rootless_udi.node.record import NodeRecord, entering, file_of, read_record

_SILENT = 5.0
"""Seconds after which a rank that waits for the builder prints a message."""
_ROOM = 1 << 14
"""Bytes of a record and its first members; few have more than 2,000."""
_PATIENCE = 20
"""How often a rank looks, a millisecond apart, whether a member has entered; then it builds
itself."""


class Election:
    """The right to build the container `name`: of a node's ranks one has it at a time."""

    def __init__(self, path: str, directory: int, name: str, lock: int | None = None) -> None:
        """Wait for the lock. `path` and `directory` are the state directory's.

        `lock` is given by who has the lock already: a descriptor of NAME.lock, -1 for the
        directory's.
        """
        self.path, self.directory, self.name = path, directory, name
        self.lock = -1 if lock is None else lock
        self.along: list[Election] = []
        while lock is None and not self._locked():
            pass

    def _locked(self) -> bool:
        """Wait for the lock; tell whether this process now holds it, or the directory's."""
        try:
            fcntl.flock(self.directory, fcntl.LOCK_EX)
            make = 0
        except OSError:
            # Not on NFS (flock(2)): there the file is made at once.
            make = os.O_CREAT
        try:
            self.lock = self._open(make)
        except FileNotFoundError:
            return True
        except OSError as error:
            raise failed(self.path, error) from None
        self._let_go()
        wait_for(self.lock)
        # Whoever ends a container removes its lock file. Then this lock is of a file without a
        # name, and the next rank would lock another.
        if is_named(self.lock, f"{self.name}.lock", self.directory):
            return True
        os.close(self.lock)
        self.lock = -1
        return False

    def _open(self, make: int, ending: str = ".lock") -> int:
        flags = os.O_RDWR | make | os.O_NOFOLLOW | os.O_CLOEXEC
        mask = os.umask(0o077)
        try:
            return os.open(self.name + ending, flags, 0o600, dir_fd=self.directory)
        finally:
            os.umask(mask)

    def _let_go(self) -> None:
        try:
            fcntl.flock(self.directory, fcntl.LOCK_UN)
        except OSError:
            pass

    def make(self) -> None:
        """Lock NAME.lock in place of the directory, now that a helper will remove it.

        The file is locked before it has its name: udi-run in C opens it without the directory's
        lock, and one that got the new file's lock first would build a second container.
        """
        if self.lock >= 0:
            return
        at = {"src_dir_fd": self.directory, "dst_dir_fd": self.directory}
        try:
            self.lock = self._open(os.O_CREAT, ".new")
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            os.rename(f"{self.name}.new", f"{self.name}.lock", **at)
        except OSError as error:
            raise failed(self.path, error) from None
        self._let_go()

    def record(self) -> tuple[NodeRecord | None, int]:
        """Return the record as it is now, waiting a moment for a member that is still entering."""
        for _ in range(_PATIENCE):
            record, fd = read_record(self.directory, self.name)
            if record is None or record.lost() or not entering(record):
                return record, fd
            os.close(fd)
            sleep(0.001)
        return read_record(self.directory, self.name)

    def room(self) -> bool:
        """Tell whether a record can be written here, by writing one to a file without a name."""
        flags = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
        try:
            fd = os.open(".", flags, 0o600, dir_fd=self.directory)
            try:
                return os.write(fd, bytes(_ROOM)) == _ROOM
            finally:
                os.close(fd)
        except OSError as error:
            # Other errors (not every file system has O_TMPFILE) are for the record's writer.
            return error.errno not in (ENOSPC, EDQUOT)

    def release(self) -> None:
        """Release the lock, here and in the other places: the next rank then looks for a record."""
        for other in self.along:
            other.release()
            os.close(other.directory)
        self.along = []
        if self.lock >= 0:
            os.close(self.lock)
        else:
            self._let_go()
        self.lock = -1

    def give_up(self) -> None:
        """Release after a failure; the lock file is removed where there is no record."""
        try:
            if self.lock >= 0:
                os.stat(file_of(self.name), dir_fd=self.directory)
        except FileNotFoundError:
            try:
                os.unlink(f"{self.name}.lock", dir_fd=self.directory)
            except OSError:
                pass
        self.release()


def elect(environ: "dict[str, str]", name: str) -> Election:
    """Take part in the election for the container `name`, in all places that are the caller's.

    In their order, so that of two ranks none waits for the other; and again where there are others
    by then. Mostly there is one. Raises UdiError where there is none.
    """
    while True:
        path, directory = places.find(environ, make=True)
        if directory < 0:
            tried = [*places.directories(environ, os.getuid()), *places.further(environ)]
            raise UdiError(
                f"no state directory for the node's shared container: tried {', '.join(tried)}",
                "set XDG_RUNTIME_DIR to a directory of your own on this node, or use --share=off",
            )
        paths = _list(environ, path)
        others = places.beside(paths, path)
        along = [(one, fd) for one in others if (fd := places.opened(one)) >= 0]
        held = [Election(one, fd, name) for one, fd in along]
        election = Election(path, directory, name)
        election.along = held
        if places.beside(paths, path) == others and places.seen(paths) == path:
            return election
        election.give_up()
        os.close(directory)


def inherited(environ: "dict[str, str]", name: str) -> Election | None:
    """Return the lock that this process was started with; None where there is none that fits.

    udi-run in C takes or waits for it, and executes Python only as the one that has it, by -X
    lock=DIRECTORY.LOCK.NAME: two descriptors, of which the second is -1 where it is the directory
    that is locked.
    """
    given = sys._xoptions.get("lock")
    if not isinstance(given, str):
        return None
    numbers = [int(word) for word in given.split(".")[:2]]
    for fd in numbers:
        if fd >= 0:
            os.set_inheritable(fd, False)
    path, directory = places.find(environ, make=False)
    same = directory >= 0 and os.path.samestat(os.fstat(directory), os.fstat(numbers[0]))
    if directory >= 0:
        os.close(directory)
    if same and given.split(".")[2] == name:
        return Election(path, numbers[0], name, numbers[1])
    for fd in numbers:
        if fd >= 0:
            os.close(fd)
    return None


def _list(environ: "dict[str, str]", path: str) -> list[str]:
    near = places.directories(environ, os.getuid())
    return near if path in near else places.further(environ)


def with_room(environ: "dict[str, str]", election: Election) -> Election | None:
    """Return the election in a place where a record can be written, of those that are held.

    Where there is no room in any, another place is made for the next election, and None returned:
    anybody can fill a /tmp. Where none can be made it is the same one: its error says why.
    """
    for one in (election, *election.along):
        if one.room():
            if one is not election:
                one.along = [election, *(x for x in election.along if x is not one)]
                election.along = []
            return one
    if not places.another(_list(environ, election.path), election.path):
        return election
    election.give_up()
    os.close(election.directory)
    return None


def wait_for(lock: int) -> None:
    """Take the lock; if another process keeps it for long, one of the waiting ranks says so."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    except BlockingIOError:
        pass
    alarm = _signal.SIGALRM
    if any(_signal.getitimer(_signal.ITIMER_REAL)) or alarm in _signal.pthread_sigmask(0, ()):
        # Whoever started this has set an alarm, or blocked it, for the command: leave it alone.
        fcntl.flock(lock, fcntl.LOCK_EX)
        return
    before = _signal.signal(alarm, lambda *_: _tell(lock))
    _signal.setitimer(_signal.ITIMER_REAL, _SILENT, _SILENT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
    finally:
        _signal.setitimer(_signal.ITIMER_REAL, 0)
        _signal.signal(alarm, before or _signal.SIG_DFL)
    fcntl.lockf(lock, fcntl.LOCK_UN)


def _tell(lock: int) -> None:
    """Say who is waited for, once on a node.

    It is said by the waiting rank that first gets a record lock (fcntl(2)) on the same file. Such a
    lock has nothing to do with the flock(2).
    """
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return
    _signal.setitimer(_signal.ITIMER_REAL, 0)
    pid, stopped = _holder(lock)
    who = f"process {pid}" if pid else "another process"
    hint = "--share=off starts without it"
    if stopped:
        hint = f"kill -CONT {pid} lets it go on, kill -KILL {pid} lets another rank build"
    what = f"waiting for {who}, which builds this node's container"
    complain("udi-run", what + (" and is stopped" if stopped else ""), hint)


def _holder(lock: int) -> tuple[int, bool]:
    """Return the process that has the flock(2), 0 for none, and whether it is stopped.

    From proc_locks(5); a process of another pid namespace is 0 or negative there.
    """
    found = os.fstat(lock)
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        with open("/proc/locks") as file:
            for line in file:
                _, kind, _, _, pid, where, *_ = line.split()
                if kind == "FLOCK" and where == device and int(pid) > 0:
                    with open(f"/proc/{pid}/stat", "rb") as stat:
                        state = stat.read().rpartition(b")")[2].split()[0]
                    return int(pid), state in (b"T", b"t")
    except (OSError, ValueError):
        pass
    return 0, False


def is_named(fd: int, name: str, directory: int) -> bool:
    """Tell whether an open file is still the one of that name in the directory."""
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), status)


def say_passed_over(environ: "dict[str, str]", chosen: str) -> None:
    """Say which state directories came before the `chosen` one, and why they are not used."""
    for text in places.passed_over(places.directories(environ, os.getuid())):
        complain("udi-run", text, f"{chosen} is used in its place; have it removed")
