"""One pair of user namespaces for all ranks of a launcher on a node, whatever they ask for.

Ranks in different user namespaces can't reach each other's memory (ptrace(2)), which MPI's
transports need. But ranks of one job may ask for different things: the images of two coupled codes,
a volume with the rank's number. Each request is a container, with a mount namespace of its own; the
user namespaces are the launcher's: an outer one, in which its containers are built, and an inner
one, in which its commands run. The first builder makes both before it plans, and writes a file
NAME.pair into the state directory, which later builders read:

    udi-pair 1 NUMBER           the format, and the inner namespace's inode number
    PID START                   builders: process id and start time (proc(5), stat, field 22)

A builder has a descriptor of the inner namespace until it is in it. When all builders have ended
there are still the ranks that joined their containers: they are found by the containers' records.
So the pair lives as long as somebody is in it or builds in it, and no process is there for it.

The file is its own lock, flock(2), which is held while a pair is looked for or made. NAME stands
for this format too: another version has pairs of its own.
"""

import fcntl
import os
from errno import EDQUOT, ENOSPC

from rootless_udi.base import trust
from rootless_udi.base.digest import digest
from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import started
from rootless_udi.node.election import Election, is_named, wait_for
from rootless_udi.node.launcher import scope
from rootless_udi.node.places import failed
from rootless_udi.node.record import FORMAT as RECORD_FORMAT
from rootless_udi.node.record import PAIR, alive, member, read_record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pair = tuple[int, int]
    """Descriptors of the outer and the inner user namespace."""

FORMAT = 1
_FIRST = b"udi-pair %d " % FORMAT
_MOST = 1 << 20
"""Bytes that are read: a line is 20 bytes at most, and dead ones are removed."""
_DEAD = 16
"""Lines from which on those of dead builders are removed."""
_TAKEN: "list[tuple[int, str]]" = []
"""Directory and name of the files that this process has looked at, for `give_up`: in the outer
namespace its group has another number, which is part of the name."""
_NS_GET_PARENT = 0xB702
"""ioctl_ns(2): a descriptor of a user namespace's parent."""


def take(election: Election, who: str, make: "Callable[[], Pair]") -> "Pair | None":
    """Return the pair of the launcher `who`, found or made by `make`; the caller becomes a builder.

    `election` is the caller's, whose places are looked at. None where a pair lives that the caller
    can't enter: it is inside a container itself, or the command of the one builder that lives may
    not be read. Raises UdiError; what `make` raises.
    """
    part = scope(who)
    name = digest(f"pair {FORMAT}\0{part}".encode("utf-8", "surrogateescape")) + PAIR
    files: list[tuple[int, Election]] = []
    try:
        for one in sorted((election, *election.along), key=lambda one: one.path):
            fd = _locked(one, name, one is election)
            if fd >= 0:
                files.append((fd, one))
                _TAKEN.append((one.directory, name))
        for fd, one in files:
            data = os.pread(fd, _MOST, 0)
            number, lines = _number(data), _members(data.split(b"\n"))
            if not number:
                _check(data)
                continue
            try:
                found = _find(one.directory, part, number, lines)
            except PermissionError:
                return None
            if found is not None:
                _add(fd, one.path, number, lines)
                return found
        made = make()
        fd = next(fd for fd, one in files if one is election)
        _add(fd, election.path, os.fstat(made[1]).st_ino, [])
        return made
    finally:
        for fd, _ in files:
            os.close(fd)


def give_up() -> None:
    """Leave the pair that was taken, after a failure; where nobody else has it, its file goes."""
    if not os.path.exists("/proc/self/stat"):
        try:
            # In the midst of making a container the host's tree is there (`launch.execute`).
            os.chroot("/host")
        except OSError:
            # Without /proc nobody can be seen: the file stays until the next start.
            return
    me = os.getpid(), started(os.getpid())
    for directory, file in _TAKEN:
        sweep(directory, file, me)


def sweep(directory: int, file: str, ended: tuple[int, int]) -> None:
    """Remove the file of a pair in which nobody is any more; one that is in use stays.

    `directory` is a descriptor of the state directory. `ended` is a builder, as (pid, start), whose
    container has ended, and who is about to end: it is taken out of the file.
    """
    try:
        fd = os.open(file, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return
    try:
        # Of two containers that end at once the second waits, since the first has seen it live.
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if ended[0] else fcntl.LOCK_NB))
        data = os.pread(fd, _MOST, 0)
        # Of an unknown format only this much is known.
        lines = [one for one in _members(data.split(b"\n")) if one != ended and _lives(*one)]
        number = _number(data)
        if lines or (number and any(True for _ in _joined(directory, "", number))):
            if number and ended[0]:
                _write(fd, number, lines)
        elif is_named(fd, file, directory):
            os.unlink(file, dir_fd=directory)
    except OSError:
        # Somebody is looking for the pair.
        pass
    finally:
        os.close(fd)


def _locked(one: Election, file: str, make: bool) -> int:
    """Return the locked file of a pair, which `make` makes; -1 where there is none."""
    flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | (os.O_CREAT if make else 0)
    while True:
        mask = os.umask(0o077)
        try:
            fd = os.open(file, flags, 0o600, dir_fd=one.directory)
        except FileNotFoundError:
            return -1
        except OSError as error:
            raise failed(one.path, error) from None
        finally:
            os.umask(mask)
        try:
            trust.check(fd, file, what="the record")
            wait_for(fd)
        except BaseException:
            os.close(fd)
            raise
        if is_named(fd, file, one.directory):
            return fd
        # Whoever swept it has removed it meanwhile.
        os.close(fd)


def _number(data: bytes) -> int:
    """Return the inner namespace's inode number; 0 for what is no pair of this format."""
    first, newline, _ = data[:64].partition(b"\n")
    number = first.removeprefix(_FIRST)
    known = first.startswith(_FIRST) and newline and number.isdigit() and len(number) < 20
    return int(number) if known else 0


def _check(data: bytes) -> None:
    """Raise UdiError for the pair of another version that lives."""
    if data.startswith(b"udi-pair ") and any(_lives(*one) for one in _members(data.split(b"\n"))):
        raise UdiError(
            "the record of this launcher's user namespaces is of a format that this version does "
            "not know, and it lives",
            "--share=off starts without it",
        )


def _members(lines: list[bytes]) -> list[tuple[int, int]]:
    return [found for line in lines if (found := member(line)) and found[1]]


def _find(directory: int, part: str, number: int, lines: "list[tuple[int, int]]") -> "Pair | None":
    """Return the pair, found through any process that has it; None where nobody has.

    Raises PermissionError where the caller can't enter it.
    """
    refused = None
    for one in (*reversed(lines), *_joined(directory, part, number)):
        try:
            inner = _through(*one, number)
        except PermissionError as error:
            refused = error if alive(*one) else refused
            continue
        if inner >= 0:
            # From within a container this is refused.
            outer = fcntl.ioctl(inner, _NS_GET_PARENT)
            os.set_inheritable(outer, False)
            return outer, inner
    if refused:
        raise refused
    return None


def _through(pid: int, start: int, number: int) -> int:
    """Return a descriptor of the namespace that a process is in or has a descriptor of; -1.

    Raises PermissionError.
    """
    for path in _names(pid, number):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except PermissionError:
            raise
        except OSError:
            continue
        # Who has this start time after the open has had the id all the time.
        if os.fstat(fd).st_ino == number and alive(pid, start):
            return fd
        os.close(fd)
    return -1


def _names(pid: int, number: int) -> "Iterator[str]":
    """Yield the paths in /proc by which the process may have the namespace.

    The first once more at the end: it may have entered it between, and closed its descriptor.
    """
    yield f"/proc/{pid}/ns/user"
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except FileNotFoundError:
        return
    for name in names:
        try:
            if os.readlink(f"/proc/{pid}/fd/{name}") == f"user:[{number}]":
                yield f"/proc/{pid}/fd/{name}"
        except FileNotFoundError:
            pass
    yield f"/proc/{pid}/ns/user"


def _joined(directory: int, part: str, number: int) -> "Iterator[tuple[int, int]]":
    """Yield the living members of the launcher's containers, from their records."""
    for file in os.listdir(directory):
        name = file.removesuffix(f".{RECORD_FORMAT}")
        if name == file:
            continue
        try:
            record, fd = read_record(directory, name)
        except UdiError:
            continue
        if record is None:
            continue
        os.close(fd)
        if record.spaces[0] == number and record.get("request").startswith(part):
            yield from (one for one in record.newest() if alive(*one))


def _add(fd: int, path: str, number: int, lines: "list[tuple[int, int]]") -> None:
    """Write the file's content, with the caller as the last of the builders. Raises UdiError."""
    living = lines if len(lines) <= _DEAD else [one for one in lines if alive(*one)]
    me = os.getpid()
    try:
        _write(fd, number, [*living, (me, started(me))])
    except OSError as error:
        # With a full disk, a pair that is there already is found through others.
        if not lines or error.errno not in (ENOSPC, EDQUOT):
            raise failed(path, error) from None


def _write(fd: int, number: int, builders: "list[tuple[int, int]]") -> None:
    data = b"%s%d\n" % (_FIRST, number) + b"".join(b"%d %d\n" % one for one in builders)
    if os.pwrite(fd, data, 0) != len(data):
        raise OSError(ENOSPC, os.strerror(ENOSPC))
    # Cut off afterwards: who is killed between leaves some lines too many.
    os.ftruncate(fd, len(data))


def _lives(pid: int, start: int) -> bool:
    """Tell whether a process lives and is not about to end: then it has no mount namespace."""
    try:
        os.readlink(f"/proc/{pid}/ns/mnt")
    except FileNotFoundError:
        return False
    except OSError:
        pass
    return alive(pid, start)
