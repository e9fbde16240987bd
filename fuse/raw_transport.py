"""Serve an image over /dev/fuse itself, with the standard library alone. The default server.

An image never changes, so the kernel is told to keep for ever all that it can keep: entries,
attributes, names that do not exist (an answer with node 0 and a timeout), links' targets, listings
and the pages of files. To some operations the answer is ENOSYS, after which the kernel never sends
that one again: OPEN, OPENDIR, FLUSH, RELEASE, ACCESS, LSEEK, STATX, INTERRUPT (answers come at
once), and the xattr operations for an image without any. A node says where its inode lies in the
image, so that nothing is stored for it and FORGET needs no work. Once a process has started from an
image, the next ones on the node need hardly any answer of this server.
"""

import os
from errno import EAGAIN, ECONNABORTED, EINTR, ENODEV, ENOENT, ENOSYS, EPROTO, ERANGE

from rootless_udi.base.errors import UdiError
from rootless_udi.fuse import protocol
from rootless_udi.fuse.failures import Complaints, to_stderr
from rootless_udi.fuse.filesystem import CACHE_BYTES, FileSystem
from rootless_udi.fuse.format import Corrupt
from rootless_udi.fuse.imagefile import plain
from rootless_udi.fuse.reader import Reader
from rootless_udi.fuse.recorder import Notes
from rootless_udi.fuse.warmup import steps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rootless_udi.fuse.imagefile import Opener
    from rootless_udi.fuse.recorder import Question

    Reply = tuple[bytes | memoryview, ...] | None


_ARGUMENTS = protocol.IN_HEADER.size
"""Where an operation's arguments begin in a request."""


def _default_threads() -> int:
    """Return how many threads decompress besides the server's own, by the CPUs that it may use.

    None with two CPUs: the process that reads and this one fill these, and passing a block to a
    thread costs 50 microseconds.
    """
    return min(4, (len(os.sched_getaffinity(0)) - 1) // 2)


def opened(
    image: "str | int",
    cache_bytes: int,
    threads: "int | None",
    filesystem: "Callable[[Reader, int, int], FileSystem]",
    opener: "Opener" = plain,
    called: str = "",
    base: int = 0,
    metadata: int = 18 << 20,
) -> FileSystem:
    """Return the file system of `image`, by the arguments of `serve`; `metadata` bytes of that are
    cached. Raises UdiError, OSError."""
    if isinstance(image, int):
        fd, name = image, called or f"descriptor {image}"
        try:
            name = called or os.readlink(f"/proc/self/fd/{fd}")
        except OSError:
            pass
    else:
        fd, name = os.open(image, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), image
    helpers = _default_threads() if threads is None else threads
    try:
        return filesystem(Reader(fd, name, metadata, opener, base), cache_bytes, helpers)
    except Corrupt as error:
        raise UdiError(f"mounting failed on {name}: {error}") from None


def ready(fd: "int | None") -> None:
    """Say that requests will be answered: write a byte to the pipe `fd`, if any, and close it."""
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
    opener: "Opener" = plain,
    called: str = "",
    base: int = 0,
) -> None:
    """Serve `image` (a path or an open descriptor) to the kernel until it is unmounted everywhere.

    That is when the last process of the mount's namespace has ended.

    - `fuse_fd`: a descriptor of /dev/fuse, opened in the user namespace of the mount and mounted.
      Or a function that returns it: `fuse_fd(wait)` waits for the descriptor or, where `wait` is
      false, may return -1. It is called when the image has been opened.
    - `cache_bytes`: most bytes of decompressed data to cache.
    - `threads`: further threads that decompress; None: by the number of CPUs.
    - `log`: is called with each line for the log.
    - `filesystem`: makes the file system to serve of a reader, `cache_bytes` and `threads`.
    - `ready_fd`: a byte is written to it once requests will be answered, and it is closed.
    - `counts`: opcode -> number of messages, counted here.
    - `program`: the first word of the command that will be run, if it is known.
    - `keep`: is called with what that command's start has asked, once the start is over.
    - `opener`: returns what reads the image's file (`reader.Reader`), as `checkedfile.opener` does.
    - `called`: what an open descriptor is called in the log.
    - `base`: where in its file the image begins, in bytes.

    Raises UdiError where `image` can't be served; OSError.
    """
    fs = opened(image, cache_bytes, threads, filesystem, opener, called, base)
    server = Server(fs, log, program)
    server.notes = Notes(keep) if keep is not None else None
    server.fd = fuse_fd if isinstance(fuse_fd, int) else server.await_connection(fuse_fd)
    ready(ready_fd)
    try:
        server.run(counts)
    finally:
        server.end_notes()
        server.fs.close()


class Server:
    """A connection to the kernel: reads requests from `fd` and answers them, one by one."""

    fd = -1
    notes: Notes | None = None

    def __init__(
        self,
        fs: FileSystem,
        log: "Callable[[str], None]",
        program: bytes = b"",
        warm: bool = True,
    ) -> None:
        self.fs = fs
        fs.offer_to(self._store)
        self._early = steps(fs, program) if warm else iter(())
        self._complain = Complaints(fs.reader.name, log)
        self._handlers: list[Callable[[int, bytes], Reply] | None] = [None] * 64
        for opcode, handler in (
            (protocol.LOOKUP, self._lookup),
            (protocol.GETATTR, self._getattr),
            (protocol.READLINK, self._readlink),
            (protocol.READ_OP, self._read),
            (protocol.STATFS_OP, self._statfs),
            (protocol.READDIR, self._readdir),
            (protocol.READDIRPLUS, self._readdirplus),
            (protocol.INIT, self._init),
            (protocol.DESTROY, self._nothing),
            (protocol.FORGET, self._silence),
            (protocol.BATCH_FORGET, self._silence),
        ):
            self._handlers[opcode] = handler
        if fs.reader.has_xattrs:
            self._handlers[protocol.GETXATTR_OP] = self._getxattr
            self._handlers[protocol.LISTXATTR] = self._listxattr

    def await_connection(self, connect: "Callable[[bool], int]") -> int:
        """Return what `connect` (the `fuse_fd` of `serve`) returns at last; warm up meanwhile."""
        while True:
            fd = connect(not self._went_on())
            if fd >= 0:
                return fd

    def _went_on(self) -> bool:
        """Do one more step of `warmup`; tell whether there was one left."""
        try:
            return next(self._early, self) is None
        except Exception:
            return False  # a damaged image: whoever reads that part gets the error

    def end_notes(self) -> None:
        """Pass the notes of the start to `keep`, if there are any."""
        notes, self.notes = self.notes, None
        if notes is not None:
            notes.close(self.fs)

    def run(self, counts: "dict[int, int] | None" = None) -> None:
        """Answer until the kernel ends the connection."""
        read, header, handlers, fd = (
            os.read,
            protocol.IN_HEADER.unpack_from,
            self._handlers,
            self.fd,
        )
        answer, complain, notes = self._answer, self._complain, self.notes
        # Not blocking while there is something to do without a request: steps of `warmup`, or to
        # look whether the start that is recorded is over.
        os.set_blocking(fd, False)
        while True:
            try:
                request = read(fd, protocol.BUFFER)
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
                if error.errno in (EINTR, ENOENT):  # ENOENT: the request was withdrawn before
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
                what = protocol.NAMES.get(opcode, str(opcode))
                answer(unique, -complain.errno(error, what, node), ())
                continue
            if reply is not None:
                answer(unique, 0, reply)

    def _answer(self, unique: int, error: int, parts: "tuple[bytes | memoryview, ...]") -> None:
        size = protocol.OUT_HEADER.size
        for part in parts:
            size += len(part)
        try:
            os.writev(self.fd, (protocol.OUT_HEADER.pack(size, error, unique), *parts))
        except OSError as failure:
            if failure.errno not in (ENOENT, ENODEV, ECONNABORTED):  # the asker is gone
                self._complain.note(f"answering request {unique} failed: {failure}")

    def _store(self, node: int, offset: int, data: "bytes | memoryview") -> None:
        """Put file data into the kernel's page cache before it asks (FUSE_NOTIFY_STORE).

        Never call this in the thread of `run`: the kernel waits for a page that somebody reads just
        now, and it is that thread which has to answer the read.
        """
        size = protocol.OUT_HEADER.size + protocol.STORE.size + len(data)
        head = protocol.OUT_HEADER.pack(size, protocol.NOTIFY_STORE, 0)
        os.writev(self.fd, (head, protocol.STORE.pack(node, offset, len(data), 0), data))
        if self.notes is not None:
            self.notes.stored(node, offset, len(data))

    def _nothing(self, node: int, request: bytes) -> "Reply":
        return ()

    def _silence(self, node: int, request: bytes) -> "Reply":
        return None

    def _init(self, node: int, request: bytes) -> "Reply":
        major, minor, readahead, flags = protocol.INIT_IN.unpack_from(request, _ARGUMENTS)
        if major > protocol.MAJOR:  # the kernel then asks again with our number
            return (protocol.INIT_OUT.pack(protocol.MAJOR, protocol.MINOR, *[0] * 16),)
        if major < protocol.MAJOR or minor < protocol.OLDEST:
            self._complain.note(
                f"this kernel speaks FUSE {major}.{minor}, and 7.{protocol.OLDEST} is the oldest"
            )
            raise OSError(EPROTO, "protocol too old")
        if not flags & protocol.NO_OPEN_SUPPORT:
            self._handlers[protocol.OPEN] = self._open
            self._handlers[protocol.RELEASE] = self._nothing
        if not flags & protocol.NO_OPENDIR_SUPPORT:
            self._handlers[protocol.OPENDIR] = self._open
            self._handlers[protocol.RELEASEDIR] = self._nothing
        wanted = flags & protocol.WANTED
        reply = (
            protocol.MAJOR,
            min(minor, protocol.MINOR),
            readahead,
            wanted,
            protocol.MAX_BACKGROUND,
            protocol.CONGESTED,
            protocol.MAX_WRITE,
            1,  # nanoseconds: the unit of times
            protocol.PAGES,
        )
        return (protocol.INIT_OUT.pack(*reply, 0, 0, *[0] * 7),)

    def _open(self, node: int, request: bytes) -> "Reply":
        return (protocol.OPEN_OUT.pack(0, protocol.KEEP_CACHE | protocol.CACHE_DIR, 0),)

    def _entry(self, node: int) -> bytes:
        number, size, blocks, time, mode, links, uid, gid, rdev = self.fs.attributes(node)
        ever = protocol.FOREVER
        return protocol.ENTRY.pack(
            *(node, 0, ever, ever, 0, 0, number, size, blocks, time, time, time),
            *(0, 0, 0, mode, links, uid, gid, rdev, 4096, 0),
        )

    def _lookup(self, node: int, request: bytes) -> "Reply":
        found = self.fs.lookup(node, request[_ARGUMENTS:-1])
        return (self._entry(found) if found else _ABSENT,)

    def _getattr(self, node: int, request: bytes) -> "Reply":
        number, size, blocks, time, mode, links, uid, gid, rdev = self.fs.attributes(node)
        return (
            protocol.ATTR.pack(
                *(protocol.FOREVER, 0, 0, number, size, blocks, time, time, time),
                *(0, 0, 0, mode, links, uid, gid, rdev, 4096, 0),
            ),
        )

    def _readlink(self, node: int, request: bytes) -> "Reply":
        return (self.fs.readlink(node),)

    def _read(self, node: int, request: bytes) -> "Reply":
        _, offset, size = protocol.READ.unpack_from(request, _ARGUMENTS)
        return tuple(self.fs.read(node, offset, size))

    def _statfs(self, node: int, request: bytes) -> "Reply":
        size, blocks, files, longest = self.fs.statfs()
        return (protocol.STATFS.pack(blocks, 0, 0, files, 0, size, longest, size, *[0] * 7),)

    def _readdir(self, node: int, request: bytes) -> "Reply":
        return self._listing(node, request, False)

    def _readdirplus(self, node: int, request: bytes) -> "Reply":
        return self._listing(node, request, True)

    def _listing(self, node: int, request: bytes, plus: bool) -> "Reply":
        _, cookie, room = protocol.READ.unpack_from(request, _ARGUMENTS)
        parts: list[bytes] = []
        fixed = protocol.DIRENT.size + (protocol.ENTRY.size if plus else 0)
        for name, child, number, kind, after in self.fs.entries(node, cookie):
            length = len(name)
            padding = -length % 8
            room -= fixed + length + padding
            if room < 0:
                break
            if plus:
                parts.append(self._plus(child))
            parts.append(protocol.DIRENT.pack(number, after, length, kind))
            parts.append(name + bytes(padding))
        return (b"".join(parts),)

    def _plus(self, child: int) -> bytes:
        """Return a listing's entry; an empty one for a damaged inode, so that others are listed."""
        if child == 0:
            return _NO_ENTRY
        try:
            return self._entry(child)
        except Corrupt as error:
            self._complain.errno(error, "READDIRPLUS", child)
            return _NO_ENTRY

    def _getxattr(self, node: int, request: bytes) -> "Reply":
        (size,) = protocol.GETXATTR.unpack_from(request, _ARGUMENTS)
        at = _ARGUMENTS + 8  # fuse_getxattr_in: size, padding
        return _sized(self.fs.xattr(node, request[at : request.index(0, at)]), size)

    def _listxattr(self, node: int, request: bytes) -> "Reply":
        (size,) = protocol.GETXATTR.unpack_from(request, _ARGUMENTS)
        return _sized(b"".join(name + b"\0" for name in self.fs.xattrs(node)), size)


def _sized(value: bytes, size: int) -> "Reply":
    """Return the answer to getxattr(2) and listxattr(2): the length where `size` is 0, else the
    value.

    Raises OSError (ERANGE) for a value longer than `size`.
    """
    if size == 0:
        return (protocol.SIZE_OUT.pack(len(value), 0),)
    if size < len(value):
        raise OSError(ERANGE, "the attribute is longer")
    return (value,)


_ABSENT = protocol.ENTRY.pack(0, 0, protocol.FOREVER, 0, 0, 0, *[0] * 16)
_NO_ENTRY = bytes(protocol.ENTRY.size)
