"""One container per node and job step: find it, join it, publish it, forget it.

Ranks in different user namespaces can't reach each other's memory, which MPI's shared-memory
transports need; so all ranks that one launcher starts on a node share one container. Its record is
a file NAME.2 in the user's state directory, which C reads as safely as Python (joiner/record.c):

    udi 2 BYTES                 the format, and the length of the head in decimal
    LENGTH:KEY=VALUE            the head: fields, each with its length; repeated keys make a list
    PID START                   members: process id and start time (proc(5), stat, field 22)

Keys: request (all that the container depends on), token (of this container), image, digest, job,
started (seconds), user and mnt (inode numbers of the namespaces), server (PID START), rung
(its name), before, after (op, name and value of an operation on the environment, with NUL
between), entrypoint, cmd, workdir. `dead` says how the image server has ended while members live.
A kept container (`node.kept`) has `keep` (seconds), `pin` (PID START of the process that keeps it,
its first member) and `same`: kind, path and state of a file, with NUL between; or a variable's name
and value. Where one of these is not in that state any more, nobody joins.
Among the members there are lines that begin with `told`: the rank of the first one has said that
the ranks' folder is not inside.

A joiner reads this file and nothing else. Each one adds itself as a member, so that any living one
can be joined when the first has gone. Nothing here imports what a joiner does not need.

A node may run two versions while a site upgrades. The format's number is part of the file's name
and of what the name stands for, so none finds the other's. In every format the members are lines
"PID START": a record of a format that is not known here is left alone as long as one of them lives.
"""

import os
from errno import EDQUOT, EINVAL, ENOENT, ENOSPC

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError, disk_hint
from rootless_udi.base.process import start_and_parent, started
from rootless_udi.base.syscalls import CLONE_NEWNS, CLONE_NEWUSER, protect, setns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


FORMAT = 2
PAIR = ".pair"
"""How the files of `node.pair` end, which lie beside the records."""
TOLD = b"told"
OPERATIONS = ("set", "unset", "clear", "append", "prepend")
MOST = 1 << 26
"""Bytes of the longest record that is read: a request has 2 MB at most, a member 20 bytes."""
LONG = 1 << 16
"""Bytes of members' lines from which on a rank that joins first writes the record anew
(`node.compact`): 4,000 joins, which are read in 10 microseconds."""
_LENGTH = 8
"""Most digits of a length."""


class NodeRecord:
    """A container's record as read.

    `lists` has the values by key. `before` and `after` are operations on the environment, as
    (op, name, value). `spaces` are the inode numbers of its user and mount namespace
    (namespaces(7)). Raises ValueError for what is no record.
    """

    def __init__(self, data: bytes) -> None:
        first, _, _ = data[:32].partition(b"\n")
        words = first.split(b" ")
        if words[:2] != [b"udi", b"%d" % FORMAT] or len(words) != 3:
            raise ValueError(f"a record that begins with {first!r}")
        at = len(first) + 1
        self.tail_at = end = at + _number(words[2], _LENGTH)
        self.lists: dict[str, list[str]] = {}
        while at < end:
            colon = data.find(b":", at, at + _LENGTH + 1)
            begin = colon + 1
            stop = begin + _number(data[at : max(at, colon)], _LENGTH)
            key, equals, value = data[begin:stop].partition(b"=")
            if not equals or stop >= end or data[stop : stop + 1] != b"\n":
                raise ValueError(f"a field at byte {at} that does not fit")
            self.lists.setdefault(_text(key), []).append(_text(value))
            at = stop + 1
        if at != end or end > len(data):
            raise ValueError("a head that is cut off")
        self.spaces = tuple(_number(self.get(kind).encode(), 20) for kind in ("user", "mnt"))
        self.before, self.after = self._operations("before"), self._operations("after")
        self._tail = data[end:]
        self.long = len(self._tail) > LONG

    def get(self, key: str) -> str:
        """Return the one value of `key`, "" where it is missing."""
        return self.lists.get(key, [""])[0]

    def lost(self) -> str:
        """Say how the image server has ended; "" while it lives, or where there is none.

        A stopped server is normal once all members have ended. If it dies before, its helper notes
        that in the record, unless the helper was killed as well.
        """
        server = member(self.get("server").encode("utf-8", "surrogateescape"))
        if server is not None and not alive(*server):
            return self.get("dead") or "it has ended"
        return self.get("dead")

    def changed(self) -> str:
        """Return the first file that is not as it was when the container was made; "" for none."""
        for text in self.lists.get("same", []):
            kind, _, rest = text.partition("\0")
            path, _, was = rest.partition("\0")
            if state_of(kind, path) != was:
                # A damaged record may name nothing, which has changed all the same.
                return path or "?"
        return ""

    def _operations(self, key: str) -> list[tuple[str, str, str]]:
        split = [line.split("\0", 2) for line in self.lists.get(key, [])]
        if any(one[0] not in OPERATIONS for one in split):
            raise ValueError(f"an unknown operation in {key}")
        return [(op, name, value) for op, name, value in split]

    def newest(self) -> "Iterator[tuple[int, int]]":
        """Yield the members as (pid, start), who came last first.

        An iterator, since there may be thousands of dead ones, of short commands that have joined.
        A line that is no member (cut off by a full disk) is ignored.
        """
        return self._backwards(len(self._tail))

    def likely(self) -> "Iterator[tuple[int, int]]":
        """Yield members to try: the last, then the builder, of which one mostly lives; then all."""
        newest = next(self.newest(), None)
        if newest is not None:
            yield newest
            yield from self._backwards(self._tail.find(b"\n"))
        yield from self.newest()

    def _backwards(self, end: int) -> "Iterator[tuple[int, int]]":
        while end > 0:
            begin = self._tail.rfind(b"\n", 0, end) + 1
            pair = member(self._tail[begin:end])
            end = begin - 1
            if pair is not None and pair[1]:
                yield pair


def state_of(kind: str, path: str) -> str:
    """Return what tells a file at `path` from another one, and a changed one; "-" for none.

    `kind` is "file", "exact" where also owner and mode count, "opened" where besides a network
    file system is to ask its server (nfs(5), close-to-open), "link" for the link itself, and
    "place" for what may change within. For a "variable" it is the value of the one that `path`
    names.
    """
    if kind == "variable":
        return os.environ.get(path, "")
    try:
        if kind == "opened":
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            found = os.fstat(fd)
            os.close(fd)
        else:
            found = os.lstat(path) if kind == "link" else os.stat(path)
    except OSError:
        return "-"
    state = f"{found.st_dev} {found.st_ino}"
    if kind != "place":
        state += f" {found.st_size} {found.st_mtime_ns}"
    return f"{state} {found.st_ctime_ns}" if kind in ("exact", "opened") else state


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _number(text: bytes, digits: int) -> int:
    """Return a decimal number of at most so many digits. Raises ValueError."""
    if not text.isdigit() or len(text) > digits:
        raise ValueError(f"no number: {text!r}")
    return int(text)


def member(line: bytes) -> tuple[int, int] | None:
    """Return "PID START" as numbers; None for what is none, or no process id."""
    pid, _, start = line.partition(b" ")
    if not (pid.isdigit() and start.isdigit() and len(pid) <= 10 and len(start) <= 18):
        return None
    return (int(pid), int(start)) if 0 < int(pid) < 1 << 31 else None


def file_of(name: str) -> str:
    """Return the name of the record's file of the container `name`."""
    return f"{name}.{FORMAT}"


def alive(pid: int, start: int) -> bool:
    """Tell whether the process of that start time lives.

    Sometimes /proc can't tell: a process in another user namespace may be hidden (proc(5),
    hidepid), and a /proc of another PID namespace has other numbers. Then any process of the
    caller's that has this id counts as the one.
    """
    try:
        if start_and_parent(pid)[0] == start:
            return True
        if os.readlink("/proc/self") == str(os.getpid()):
            return False
    except (FileNotFoundError, PermissionError):
        pass
    except OSError:
        return False
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True


def read_record(directory: int, name: str) -> tuple[NodeRecord | None, int]:
    """Return the record of the container `name` and its descriptor, for appending.

    (None, -1) where there is none, or a damaged one. Raises UdiError for something else of that
    name, for one that others may have written, and for a living one of another version's.
    """
    file = file_of(name)
    try:
        fd = os.open(file, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno != ENOENT:
            raise _failed(
                "reading", os.readlink(f"/proc/self/fd/{directory}"), file, error
            ) from None
        return None, -1
    data = b""
    try:
        trust.check(fd, file, what="the record")
        data = _read(fd)
        return NodeRecord(data), fd
    except ValueError:
        os.close(fd)
    except BaseException:
        os.close(fd)
        raise
    if _foreign(data):
        raise UdiError(
            f"the record {file} is of a format that this version does not know, and it lives",
            "--share=off starts without it, and so does --share=NAME",
        )
    return None, -1


def _read(fd: int, at: int = 0) -> bytes:
    """Return what an open record holds from byte `at` on. Raises OSError, ValueError."""
    chunks = []
    while chunk := os.pread(fd, 1 << 16, at):
        chunks.append(chunk)
        at += len(chunk)
        if at > MOST:
            raise ValueError(f"a record of more than {MOST} bytes")
    return b"".join(chunks)


def _foreign(data: bytes) -> bool:
    """Tell whether this is a record of another format, of which a member lives."""
    if not data.startswith(b"udi ") or data.startswith(b"udi %d " % FORMAT):
        return False
    return any(pair and pair[1] and alive(*pair) for pair in map(member, data.split(b"\n")))


def _failed(what: str, folder: str, name: str, error: OSError) -> UdiError:
    return UdiError(
        f"{what} the record {name} in the state directory {folder} failed: {error.strerror}",
        disk_hint(error.errno, "remove what is no record of ours there, or use --share=off"),
    )


def join(record: NodeRecord, fd: int) -> bool:
    """Enter the container of `record` through any living member; tell whether that was possible.

    The caller is then inside, at "/", without privilege. It becomes a member before it enters, so
    that a peer that comes meanwhile finds a living one. Raises UdiError where that can't be
    written.
    """
    tries = 0
    for pid, start in record.likely():
        spaces = _namespaces(pid, start, record.spaces)
        tries += 1
        if spaces is None:
            continue
        me = os.getpid()
        line = b"%d %d\n" % (me, started(me))
        if tries > 2:
            # Behind thousands that have ended: the next one shall find it as the last at once.
            line += b"%d %d\n" % (pid, start)
        try:
            os.write(fd, line)
        except OSError as error:
            # With a full disk it enters as well; later ranks join through other members.
            if error.errno not in (ENOSPC, EDQUOT):
                folder, _, name = os.readlink(f"/proc/self/fd/{fd}").rpartition("/")
                raise _failed("joining", folder, name, error) from None
        if not os.fstat(fd).st_nlink:
            # Written anew meanwhile, or removed: nobody reads this file.
            return False
        user, mnt = spaces
        inside = False
        try:
            setns(user, CLONE_NEWUSER)
        except OSError as error:
            # EINVAL of setns(2): this udi-run is in that user namespace already, in this container
            # or in another one of its launcher's.
            if error.errno != EINVAL:
                raise
            inside = os.stat("/proc/self/ns/mnt").st_ino == record.spaces[1]
        if not inside:
            setns(mnt, CLONE_NEWNS)
        os.close(user)
        os.close(mnt)
        protect()
        return True
    return False


def first_to_tell(fd: int, tail_at: int) -> bool:
    """Tell whether the caller is the first of the node's ranks to say that its folder is missing.

    Each adds a line to the record; the rank whose line is first says it. `fd` is the record's, open
    for both; `tail_at` is where its members begin.
    """
    mine = b"%s %d\n" % (TOLD, os.getpid())
    try:
        os.write(fd, b"\n" + mine)
        data = _read(fd, tail_at)
    except (OSError, ValueError):
        return True
    first = data.find(b"\n" + TOLD)
    return first < 0 or data.startswith(mine, first + 1)


def _namespaces(pid: int, start: int, numbers: tuple[int, ...]) -> tuple[int, int] | None:
    """Return open descriptors of a member's namespaces; None where it is no member any more."""
    fds: list[int] = []
    try:
        for kind in ("user", "mnt"):
            fds.append(os.open(f"/proc/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC))
        # Checked after the opens: a process with this start time has had the id all the time, so
        # the descriptors are of its namespaces and not of a later process with the same id.
        if tuple(os.fstat(fd).st_ino for fd in fds) == numbers and alive(pid, start):
            return fds[0], fds[1]
    except OSError:
        pass
    for fd in fds:
        os.close(fd)
    return None


def living(record: NodeRecord) -> list[int]:
    """Return the members that are alive, whether or not they have entered yet."""
    # Each once: who joins through an old one repeats it.
    pairs = [*dict.fromkeys(record.newest())]
    return [pid for pid, start in pairs if alive(pid, start)][::-1]


def joinable(record: NodeRecord) -> bool:
    """Tell whether a living member is inside."""
    for pid, start in record.likely():
        spaces = _namespaces(pid, start, record.spaces)
        if spaces is not None:
            for fd in spaces:
                os.close(fd)
            return True
    return False


def entering(record: NodeRecord) -> bool:
    """Tell whether no member can be joined now, but one is alive and may be on its way in."""
    return not joinable(record) and bool(living(record))
