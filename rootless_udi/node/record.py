"""One container per node and job step: find it, join it, publish it, forget it.

Ranks in different user namespaces can't reach each other's memory, which MPI's shared-memory
transports need; so all ranks that one launcher starts on a node share one container. Its record is
a file in the user's state directory, of lines:

    udi 1                       the format
    KEY=VALUE                   "\n", "\t" and "\\" escaped; repeated keys make a list
                                (an empty line)
    PID START                   members: process id and start time (proc(5), stat, field 22)

Keys: request (all that the container depends on), token (of this container), image, digest, job,
started (seconds), user and mnt (inode numbers of the namespaces), server (PID START), rung
(its name), before, after ("op TAB name TAB value" on the environment), entrypoint, cmd, workdir.
`dead` says how the image server has ended while members live. Among the members there are lines
that begin with `told`: the rank of the first one has said that the ranks' folder is not inside.

A joiner reads this file and nothing else. Each one adds itself as a member, so that any living one
can be joined when the first has gone. Nothing here imports what a joiner does not need.
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


FORMAT = "udi 1"
TOLD = "told"


class NodeRecord:
    """A container's record as read.

    `lists` has the values by key. `before` and `after` are operations on the environment, as
    (op, name, value). `spaces` are the inode numbers of its user and mount namespace
    (namespaces(7)). Raises ValueError for what is no record.
    """

    def __init__(self, data: str) -> None:
        head, _, tail = data.partition("\n\n")
        lines = head.split("\n")
        if lines[0] != FORMAT:
            raise ValueError(f"a record of format {lines[0]!r}, not {FORMAT!r}")
        self.lists: dict[str, list[str]] = {}
        for line in lines[1:]:
            key, _, value = line.partition("=")
            self.lists.setdefault(key, []).append(_unescape(value) if "\\" in value else value)
        self.spaces = int(self.get("user")), int(self.get("mnt"))
        self.before, self.after = self._operations("before"), self._operations("after")
        self._tail = tail

    def get(self, key: str) -> str:
        """Return the one value of `key`, "" where it is missing."""
        return self.lists.get(key, [""])[0]

    def lost(self) -> str:
        """Say how the image server has ended; "" while it lives, or where there is none.

        A stopped server is normal once all members have ended. If it dies before, its helper notes
        that in the record, unless the helper was killed as well.
        """
        pid, _, start = self.get("server").partition(" ")
        if pid.isdecimal() and start.isdecimal() and not alive(int(pid), int(start)):
            return self.get("dead") or "it has ended"
        return self.get("dead")

    def _operations(self, key: str) -> list[tuple[str, str, str]]:
        split = [line.split("\t", 2) for line in self.lists.get(key, [])]
        return [(op, name, value) for op, name, value in split]

    def newest(self) -> "Iterator[tuple[int, int]]":
        """Yield the members as (pid, start), who came last first.

        Lazily: a container that many short commands pass through has thousands of dead ones. A line
        that is no member (a full disk cut it off) is passed over.
        """
        return self._backwards(len(self._tail))

    def likely(self) -> "Iterator[tuple[int, int]]":
        """Yield members to try: the last, then the builder, of which one mostly lives; then all."""
        newest = next(self.newest(), None)
        if newest is not None:
            yield newest
            yield from self._backwards(self._tail.find("\n"))
        yield from self.newest()

    def _backwards(self, end: int) -> "Iterator[tuple[int, int]]":
        while end > 0:
            begin = self._tail.rfind("\n", 0, end) + 1
            pid, _, start = self._tail[begin:end].partition(" ")
            end = begin - 1
            if pid.isdecimal() and start.isdecimal() and start != "0":
                yield int(pid), int(start)


def _unescape(text: str) -> str:
    out, at = [], 0
    while at < len(text):
        c = text[at]
        if c == "\\":
            at += 1
            c = {"n": "\n", "t": "\t"}.get(text[at : at + 1], text[at : at + 1])
        out.append(c)
        at += 1
    return "".join(out)


def escape(text: str) -> str:
    """Return `text` on one line without tabs; `NodeRecord` reads it back."""
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace("\t", "\\t")


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
    """Return the record `name` of a state directory and its descriptor, for appending.

    (None, -1) where there is none, or none that this version understands. Raises UdiError for
    something else of that name, and for one that others may have written.
    """
    try:
        fd = os.open(name, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    except OSError as error:
        if error.errno != ENOENT:
            raise _failed(
                "reading", os.readlink(f"/proc/self/fd/{directory}"), name, error
            ) from None
        return None, -1
    chunks = []
    try:
        trust.check(fd, name, what="the record")
        while chunk := os.read(fd, 1 << 16):
            chunks.append(chunk)
    except BaseException:
        os.close(fd)
        raise
    try:
        return NodeRecord(b"".join(chunks).decode("utf-8", "surrogateescape")), fd
    except ValueError:
        os.close(fd)
        return None, -1


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
    for pid, start in record.likely():
        spaces = _namespaces(pid, start, record.spaces)
        if spaces is None:
            continue
        me = os.getpid()
        try:
            os.write(fd, b"%d %d\n" % (me, started(me)))
        except OSError as error:
            # Without room this one is inside as well; whoever comes goes in through another member.
            if error.errno not in (ENOSPC, EDQUOT):
                folder, _, name = os.readlink(f"/proc/self/fd/{fd}").rpartition("/")
                raise _failed("joining", folder, name, error) from None
        user, mnt = spaces
        try:
            setns(user, CLONE_NEWUSER)
            setns(mnt, CLONE_NEWNS)
        except OSError as error:
            # What setns(2) says to a udi-run inside the container: it is there already.
            if error.errno != EINVAL:
                raise
        os.close(user)
        os.close(mnt)
        protect()
        return True
    return False


def first_to_tell(fd: int) -> bool:
    """Tell whether the caller is the first of the node's ranks to say that its folder is missing.

    Each adds a line to the record; whose is first, speaks. `fd` is the record's, open for both.
    """
    mine = f"{TOLD} {os.getpid()}\n".encode()
    try:
        os.write(fd, b"\n" + mine)
        data, at = b"", 0
        while chunk := os.pread(fd, 1 << 16, at):
            data, at = data + chunk, at + len(chunk)
    except OSError:
        return True
    first = data.find(b"\n" + TOLD.encode())
    return first < 0 or data.startswith(mine, first + 1)


def _namespaces(pid: int, start: int, numbers: tuple[int, int]) -> tuple[int, int] | None:
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
    return [pid for pid, start in record.newest() if alive(pid, start)][::-1]


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
