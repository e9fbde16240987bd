"""Serve an image over /dev/fuse itself, with the standard library alone. The default server.

The kernel is told to remember all that it can, since an image never changes: entries and attributes
for ever, names that do not exist too (a node of 0 with a timeout), links' targets, listings, pages.
It is also told never to ask some things at all, by ENOSYS: OPEN, OPENDIR, FLUSH, RELEASE, ACCESS,
xattrs of an image that has none, INTERRUPT (answers come at once), LSEEK, STATX. Nodes are where
inodes lie in the image, so FORGET has nothing to do. After the first process has started from an
image, the next ones cost this server nothing.
"""

import os
from errno import EAGAIN, ECONNABORTED, EINTR, ENODEV, ENOENT, ENOSYS, EPROTO, ERANGE

from rootless_udi.base.errors import UdiError
from rootless_udi.fuse import protocol as p
from rootless_udi.fuse.failures import Complaints, to_stderr
from rootless_udi.fuse.filesystem import CACHE_BYTES, FileSystem
from rootless_udi.fuse.format import Corrupt
from rootless_udi.fuse.reader import Reader
from rootless_udi.fuse.recorder import Notes
from rootless_udi.fuse.warmup import steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rootless_udi.fuse.recorder import Question

    Reply = tuple[bytes | memoryview, ...] | None


def default_threads() -> int:
    """Return how many threads decompress beside the server's own, by the CPUs it may use.

    None on two: the reader and this process fill them, and handing a block over costs 50 us.
    """
    return min(4, (len(os.sched_getaffinity(0)) - 1) // 2)


def opened(
    image: "str | int",
    cache_bytes: int,
    threads: "int | None",
    filesystem: "Callable[[Reader, int, int], FileSystem]",
) -> FileSystem:
    """Return the file system of `image`, by the arguments of `serve`. Raises UdiError, OSError."""
    if isinstance(image, int):
        fd, name = image, f"descriptor {image}"
        try:
            name = os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass
    else:
        fd, name = os.open(image, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), image
    helpers = default_threads() if threads is None else threads
    try:
        return filesystem(Reader(fd, name), cache_bytes, helpers)
    except Corrupt as error:
        raise UdiError(f"mounting failed on {name}: {error}") from None


def ready(fd: "int | None") -> None:
    """Tell whoever waits at the other end of `fd`, if anybody, that requests will be answered."""
    if fd is not None:
        os.write(fd, b"\0")
        os.close(fd)


def serve(
    image: "str | int",
    fuse_fd: "int | Callable[[bool], int]",
    *,
    cache_bytes: int = CACHE_BYTES,
    threads: int | None = None,
    log: "Callable[[str], None]" = to_stderr,
    filesystem: "Callable[[Reader, int, int], FileSystem]" = FileSystem,
    ready_fd: int | None = None,
    counts: "dict[int, int] | None" = None,
    program: bytes = b"",
    keep: "Callable[[list[Question]], object] | None" = None,
) -> None:
    """Serve `image` (a path or an open descriptor) to the kernel over `fuse_fd`; return at its end.

    `fuse_fd` is /dev/fuse, opened and mounted by somebody in the mount's own user namespace; the
    end is when the last process of that mount namespace is gone. It may be a function that returns
    it, or -1 where it is not there yet and need not be waited for (the argument says); the image is
    opened before that is asked. `cache_bytes` bounds the
    decompressed data kept, `threads` those that help (default: by CPUs). A byte is written to
    `ready_fd` once requests will be answered, and it is closed. `counts` gets the number of
    messages by opcode. `program` is the first word of the command that will be run, if that is
    known; `keep` gets what its start has asked, once that is over.
    Raises UdiError where `image` can't be served; OSError.
    """
    server = Server(opened(image, cache_bytes, threads, filesystem), log, program)
    server.notes = Notes(keep) if keep is not None else None
    server.fd = fuse_fd if isinstance(fuse_fd, int) else server.await_connection(fuse_fd)
    ready(ready_fd)
    try:
        server.run(counts)
    finally:
        server.end_notes()
        server.fs.close()


class Server:
    """One connection: reads requests from `fd` and answers them from `fs`, one at a time."""

    fd = -1
    notes: Notes | None = None

    def __init__(self, fs: FileSystem, log: "Callable[[str], None]", program: bytes = b"") -> None:
        self.fs = fs
        fs.offer_to(self._store)
        self._early = steps(fs, program)
        self._complain = Complaints(fs.reader.name, log)
        self._handlers: list[Callable[[int, bytes], Reply] | None] = [None] * 64
        for opcode, handler in (
            (p.LOOKUP, self._lookup),
            (p.GETATTR, self._getattr),
            (p.READLINK, self._readlink),
            (p.READ_OP, self._read),
            (p.STATFS_OP, self._statfs),
            (p.READDIR, self._readdir),
            (p.READDIRPLUS, self._readdirplus),
            (p.INIT, self._init),
            (p.DESTROY, self._nothing),
            (p.FORGET, self._silence),
            (p.BATCH_FORGET, self._silence),
        ):
            self._handlers[opcode] = handler
        if fs.reader.has_xattrs:
            self._handlers[p.GETXATTR_OP] = self._getxattr
            self._handlers[p.LISTXATTR] = self._listxattr

    def await_connection(self, connect: "Callable[[bool], int]") -> int:
        """Return the descriptor that `connect` does (see `serve`), not idle meanwhile."""
        while True:
            fd = connect(not self._went_on())
            if fd >= 0:
                return fd

    def _went_on(self) -> bool:
        """Do one more step of what may be done early; tell whether there was one."""
        try:
            return next(self._early, self) is None
        except Exception:
            return False  # a damaged image: who asks for that part hears of it

    def end_notes(self) -> None:
        """Hand the notes of the start over, if there are any."""
        notes, self.notes = self.notes, None
        if notes is not None:
            notes.close(self.fs)

    def run(self, counts: "dict[int, int] | None" = None) -> None:
        """Answer until the kernel ends the connection."""
        read, header, handlers, fd = os.read, p.IN_HEADER.unpack_from, self._handlers, self.fd
        answer, complain, notes = self._answer, self._complain, self.notes
        # For as long as there is something to do without a request, or something to wait for.
        os.set_blocking(fd, False)
        while True:
            try:
                request = read(fd, p.BUFFER)
            except OSError as error:
                if error.errno == EAGAIN:
                    if self._went_on():
                        continue
                    if notes is not None and notes.worth:
                        if notes.wait(fd):
                            continue
                        self.end_notes()
                        notes = None
                    os.set_blocking(fd, True)
                    continue
                if error.errno in (EINTR, ENOENT):  # ENOENT: interrupted before we had it
                    continue
                if error.errno in (ENODEV, ECONNABORTED):
                    return
                raise
            if not request:
                return
            _, opcode, unique, node = header(request)[:4]
            if counts is not None:
                counts[opcode] = counts.get(opcode, 0) + 1
            if notes is not None and notes.take(opcode, node, request):
                os.set_blocking(fd, False)
            handler = handlers[opcode] if opcode < 64 else None
            if handler is None:
                answer(unique, -ENOSYS, ())
                continue
            try:
                reply = handler(node, request)
            except Exception as error:
                what = p.NAMES.get(opcode, str(opcode))
                answer(unique, -complain.errno(error, what, node), ())
                continue
            if reply is not None:
                answer(unique, 0, reply)

    def _answer(self, unique: int, error: int, parts: "tuple[bytes | memoryview, ...]") -> None:
        size = 16
        for part in parts:
            size += len(part)
        try:
            os.writev(self.fd, (p.OUT_HEADER.pack(size, error, unique), *parts))
        except OSError as failure:
            if failure.errno not in (ENOENT, ENODEV, ECONNABORTED):  # gone while we worked on it
                self._complain.note(f"answering request {unique} failed: {failure}")

    def _store(self, node: int, offset: int, data: "bytes | memoryview") -> None:
        """Put file data into the kernel's page cache, unasked (FUSE_NOTIFY_STORE).

        Never in the thread of `run`: this waits for pages that a reader has locked, whom that
        thread has yet to answer.
        """
        head = p.OUT_HEADER.pack(p.STORE.size + 16 + len(data), p.NOTIFY_STORE, 0)
        os.writev(self.fd, (head, p.STORE.pack(node, offset, len(data), 0), data))
        if self.notes is not None:
            self.notes.stored(node, offset, len(data))

    def _nothing(self, node: int, request: bytes) -> "Reply":
        return ()

    def _silence(self, node: int, request: bytes) -> "Reply":
        return None

    def _init(self, node: int, request: bytes) -> "Reply":
        major, minor, readahead, flags = p.INIT_IN.unpack_from(request, 40)
        if major > p.MAJOR:  # the kernel then asks again with ours
            return (p.INIT_OUT.pack(p.MAJOR, p.MINOR, *[0] * 16),)
        if major < p.MAJOR or minor < p.OLDEST:
            self._complain.note(
                f"this kernel speaks FUSE {major}.{minor}, and 7.{p.OLDEST} is the oldest"
            )
            raise OSError(EPROTO, "protocol too old")
        if not flags & p.NO_OPEN_SUPPORT:
            self._handlers[p.OPEN] = self._open
            self._handlers[p.RELEASE] = self._nothing
        if not flags & p.NO_OPENDIR_SUPPORT:
            self._handlers[p.OPENDIR] = self._open
            self._handlers[p.RELEASEDIR] = self._nothing
        wanted = flags & p.WANTED
        reply = (p.MAJOR, min(minor, p.MINOR), readahead, wanted, 256, 192, 4096, 1, p.PAGES)
        return (p.INIT_OUT.pack(*reply, 0, 0, *[0] * 7),)

    def _open(self, node: int, request: bytes) -> "Reply":
        return (p.OPEN_OUT.pack(0, p.KEEP_CACHE | p.CACHE_DIR, 0),)

    def _entry(self, node: int) -> bytes:
        number, size, blocks, time, mode, links, uid, gid, rdev = self.fs.attributes(node)
        ever = p.FOREVER
        return p.ENTRY.pack(
            *(node, 0, ever, ever, 0, 0, number, size, blocks, time, time, time),
            *(0, 0, 0, mode, links, uid, gid, rdev, 4096, 0),
        )

    def _lookup(self, node: int, request: bytes) -> "Reply":
        found = self.fs.lookup(node, request[40:-1])
        return (self._entry(found) if found else ABSENT,)

    def _getattr(self, node: int, request: bytes) -> "Reply":
        number, size, blocks, time, mode, links, uid, gid, rdev = self.fs.attributes(node)
        return (
            p.ATTR.pack(
                *(p.FOREVER, 0, 0, number, size, blocks, time, time, time),
                *(0, 0, 0, mode, links, uid, gid, rdev, 4096, 0),
            ),
        )

    def _readlink(self, node: int, request: bytes) -> "Reply":
        return (self.fs.readlink(node),)

    def _read(self, node: int, request: bytes) -> "Reply":
        _, offset, size = p.READ.unpack_from(request, 40)
        return tuple(self.fs.read(node, offset, size))

    def _statfs(self, node: int, request: bytes) -> "Reply":
        size, blocks, files, longest = self.fs.statfs()
        return (p.STATFS.pack(blocks, 0, 0, files, 0, size, longest, size, *[0] * 7),)

    def _readdir(self, node: int, request: bytes) -> "Reply":
        return self._listing(node, request, False)

    def _readdirplus(self, node: int, request: bytes) -> "Reply":
        return self._listing(node, request, True)

    def _listing(self, node: int, request: bytes, plus: bool) -> "Reply":
        _, cookie, room = p.READ.unpack_from(request, 40)
        parts: list[bytes] = []
        fixed = p.DIRENT.size + (p.ENTRY.size if plus else 0)
        for name, child, number, kind, after in self.fs.entries(node, cookie):
            length = len(name)
            padding = -length % 8
            room -= fixed + length + padding
            if room < 0:
                break
            if plus:
                parts.append(self._plus(child))
            parts.append(p.DIRENT.pack(number, after, length, kind))
            parts.append(name + bytes(padding))
        return (b"".join(parts),)

    def _plus(self, child: int) -> bytes:
        """Return an entry to list, an empty one for a damaged inode: its neighbours must show."""
        if child == 0:
            return NO_ENTRY
        try:
            return self._entry(child)
        except Corrupt as error:
            self._complain.errno(error, "READDIRPLUS", child)
            return NO_ENTRY

    def _getxattr(self, node: int, request: bytes) -> "Reply":
        (size,) = p.GETXATTR.unpack_from(request, 40)
        return _sized(self.fs.xattr(node, request[48 : request.index(0, 48)]), size)

    def _listxattr(self, node: int, request: bytes) -> "Reply":
        (size,) = p.GETXATTR.unpack_from(request, 40)
        return _sized(b"".join(name + b"\0" for name in self.fs.xattrs(node)), size)


def _sized(value: bytes, size: int) -> "Reply":
    """Answer getxattr(2)'s two questions: how long (size 0), and what."""
    if size == 0:
        return (p.SIZE_OUT.pack(len(value), 0),)
    if size < len(value):
        raise OSError(ERANGE, "the attribute is longer")
    return (value,)


ABSENT = p.ENTRY.pack(0, 0, p.FOREVER, 0, 0, 0, *[0] * 16)
NO_ENTRY = bytes(p.ENTRY.size)
