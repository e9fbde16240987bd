"""An image as a read-only file system: names, attributes, listings and the content of files.

A transport (`raw_transport`, `pyfuse3_transport`, `fusepython_transport`) speaks FUSE with the
kernel and calls the methods of `FileSystem`. Nothing here knows of FUSE.

A *node* is a number that stands for an inode. All hard links of a file have the same node, ROOT is
the root directory's. A node that a method has returned stays valid as long as the image is open:
the transport need not count references to it. The image never changes, so the transport may let the
kernel keep every answer for ever.

Methods raise OSError for a mistake of the caller (ENOTDIR, EISDIR, EINVAL, ENAMETOOLONG, ENODATA)
and where reading the image's file fails, `Corrupt` where the image is damaged. For the last two a
transport answers EIO and writes a line to its log (`failures`). Only one thread may call the
methods; `read` starts others by itself.
"""

import os
from errno import EINVAL, EISDIR, ENAMETOOLONG, ENODATA, ENOSYS, ENOTDIR

from rootless_udi.fuse.blocks import HOLE, Blocks, Place
from rootless_udi.fuse.format import DIR, RAW, REG, SYMLINK, Corrupt, Inode
from rootless_udi.fuse.reader import Reader
from rootless_udi.fuse.workers import Workers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterator


Buffer = bytes | memoryview
ROOT = 1
CACHE_BYTES = 32 << 20
"""Most bytes of decompressed blocks that are kept."""
_PARALLEL = 256 << 10
"""Bytes. A read that has this much to decompress is shared among several threads."""
LONGEST_NAME = 256
"""Bytes of a name in squashfs."""
_AHEAD = 6
"""Blocks decompressed ahead of a sequential reader."""
_STREAMS = 64
"""Files of which it is known where they were read last, to find sequential readers."""

ELF = b"\x7fELF"
PROGRAM = 8 << 20
"""Bytes. A program or library up to this size is decompressed whole once its start has been read:
most of its pages will be needed, in any order, and each that is not ready makes somebody wait."""

Attributes = tuple[int, int, int, int, int, int, int, int, int]
"""inode number, size, 512-byte blocks, mtime (s), mode, links, uid, gid, rdev, as stat(2)."""


class FileSystem:
    """One image; see the module's docstring for what holds for every method."""

    def __init__(self, reader: Reader, cache_bytes: int = CACHE_BYTES, threads: int = 0) -> None:
        """`cache_bytes` bounds the decompressed data kept; `threads` decompress besides."""
        self.reader = reader
        self.blocks = Blocks(reader, cache_bytes)
        # At least one: it waits for slow reads of the image's file while this thread answers.
        self.workers = Workers(max(threads, 1), yielding=threads == 0)
        self._parallel = threads > 0
        # Prefetch at most a quarter of the cache per file, so that blocks in use are not evicted;
        # with one CPU nothing.
        self._early = cache_bytes // 4 if len(os.sched_getaffinity(0)) > 1 else 0
        reader.source.expect(reader.super.hot(), self.workers)
        self._shift = self.blocks.log
        self._zeros = bytes(self.blocks.size)
        self._offer: Callable[[int, int, Buffer], object] | None = None
        self._streams: dict[int, int] = {}  # node -> the block that a sequential reader is at

    def close(self) -> None:
        """End the threads; the image's descriptor is the caller's."""
        self.workers.close()

    def inode(self, node: int) -> Inode:
        """Return the inode of `node`."""
        return self.reader.inode(self.reader.super.root if node == ROOT else node - 2)

    def node(self, ref: int) -> int:
        """Return the node of the inode at reference `ref`."""
        return ROOT if ref == self.reader.super.root else ref + 2

    def lookup(self, parent: int, name: bytes) -> int:
        """Return the node of `name` in the directory `parent`, or 0 where there is none."""
        directory = self.inode(parent)
        if directory.kind != DIR:
            raise OSError(ENOTDIR, "not a directory")
        if len(name) > LONGEST_NAME:  # the kernel's FUSE lets up to 1024 bytes through
            raise OSError(ENAMETOOLONG, "name too long")
        entry = self.reader.lookup(directory, name)
        return self.node(entry >> 36) if entry else 0

    def attributes(self, node: int) -> Attributes:
        """Return the attributes of `node`."""
        one = self.inode(node)
        owner = self.reader.owner
        size = one.size
        return (
            one.number,
            size,
            (size - one.sparse + 511) >> 9 if one.kind == REG and one.sparse <= size else 0,
            one.mtime,
            one.mode,
            one.nlink,
            owner(one.uid),
            owner(one.gid),
            one.rdev,
        )

    def readlink(self, node: int) -> bytes:
        """Return where the symbolic link `node` points."""
        one = self.inode(node)
        if one.kind != SYMLINK:
            raise OSError(EINVAL, "not a symbolic link")
        return self.reader.target(one)

    def entries(self, node: int, cookie: int) -> "Iterator[tuple[bytes, int, int, int, int]]":
        """Yield (name, node, inode number, type, cookie) of a directory's entries after `cookie`.

        Type is S_IFMT >> 12 (readdir(3)'s d_type). Cookie 0 is the start; the cookie of an entry
        leads to what follows it. "." and ".." come first, with node 0.
        """
        directory = self.inode(node)
        if directory.kind != DIR:
            raise OSError(ENOTDIR, "not a directory")
        if cookie < 1:
            yield b".", 0, directory.number, _DT_DIR, 1
        if cookie < 2:
            # the root's parent is written as 0 by some tools, which readdir(3) takes for "deleted"
            parent = directory.number if node == ROOT else directory.parent
            yield b"..", 0, parent, _DT_DIR, 2
        reader, root = self.reader, self.reader.super.root
        number, done = divmod(max(cookie - 2, 0), 1 << 20)
        for segment in range(number, len(reader.segments(directory))):
            after = (segment << 20) + done + 2
            listed = reader.entries(directory, segment).items()
            for name, entry in list(listed)[done:] if done else listed:
                after += 1
                ref = entry >> 36
                child = ROOT if ref == root else ref + 2
                yield name, child, entry >> 4 & 0xFFFFFFFF, _DTYPE[entry & 15], after
            done = 0

    def xattrs(self, node: int) -> list[bytes]:
        """Return the full names of the extended attributes of `node`: at most 64 KiB of them."""
        return self.reader.xattr_names(self.inode(node))

    def xattr(self, node: int, name: bytes) -> bytes:
        """Return one extended attribute. ENODATA where there is none of that name."""
        found = self.reader.xattr(self.inode(node), name)
        if found is None:
            raise OSError(ENODATA, "no such attribute")
        return found

    def statfs(self) -> tuple[int, int, int, int]:
        """Return block size, blocks, inodes and the longest name, as statvfs(3) counts them."""
        one = self.reader.super
        return (
            one.block_size,
            ((one.bytes_used - 1) >> one.block_log) + 1,
            one.inode_count,
            LONGEST_NAME,
        )

    def read(self, node: int, offset: int, size: int) -> "list[Buffer]":
        """Return the `size` bytes of a regular file from `offset`, as buffers to be joined.

        They are fewer where the file ends before.
        """
        one = self.inode(node)
        if one.kind != REG:
            raise OSError(EISDIR if one.kind == DIR else EINVAL, "not a regular file")
        end = min(offset + size, one.size)
        if offset >= end:
            return []
        shift = self._shift
        first, last = offset >> shift, (end - 1) >> shift
        place = self.blocks.place
        places = [place(one, index) for index in range(first, last + 1)]
        if self._parallel:
            self._look_ahead(node, one, first, last, places)
        elif last > first:
            for where in places:
                self.workers.wait(where)
            self._fetch_together(places)
        base = first << shift
        parts = []
        for index, where in enumerate(places, first):
            start, stop = max(offset - base, 0), min(end - base, 1 << shift)
            parts.append(self._part(one, index, where, start, stop))
            base += 1 << shift
        if offset == 0 and last == 0 and parts[0][:4] == ELF and has_idle_cpu():
            try:
                self.expect(one, PROGRAM, end)
            except (Corrupt, OSError):
                pass  # another block is damaged: whoever reads that one gets the error
        return parts

    def offer_to(self, offer: "Callable[[int, int, Buffer], object]") -> None:
        """Have a worker call `offer(node, offset, data)` with file data that is needed soon.

        For a transport that can give data to the kernel before it asks (FUSE_NOTIFY_STORE). `offer`
        may wait until `read` has answered other requests, and may raise any error.
        """
        self._offer = offer

    def expect(self, one: Inode, most: int, known: int = 0) -> int:
        """Have a worker decompress a file before it is read.

        `known` is how many bytes from its start have been read already. If there are any, the file
        is in use: then the bytes behind them are offered to the transport, before all other jobs.
        Returns the file's size in bytes; 0 where nothing is done, because the file is larger than
        `most` or than a quarter of the cache, is no regular file, or there is only one CPU.
        """
        if one.kind != REG or one.size > min(most, self._early):
            return 0
        blocks, workers = self.blocks, self.workers
        indexes = range(known >> blocks.log, (one.size + blocks.size - 1) >> blocks.log)
        if known and self._offer is not None:
            for index in reversed(indexes):
                place, start = blocks.place(one, index), max(known - (index << blocks.log), 0)
                if place != HOLE and start < blocks.length(one, index):
                    job = self._offering(one, index, place, start)
                    workers.ask(job, (one.ref, index, "offer"), first=True)
            return one.size
        for index in indexes:
            place = blocks.place(one, index)
            if place != HOLE and not place[1] & RAW and place not in blocks.cache:
                workers.ask(blocks.get, place)
        return one.size

    def _offering(
        self, one: Inode, index: int, place: Place, start: int
    ) -> "Callable[[Hashable], None]":
        """Return a job that offers a file's block, from its byte `start` on, to the transport.

        For a worker: the thread that answers requests would wait for itself (see `offer_to`).
        """
        blocks = self.blocks

        def job(_: "Hashable") -> None:
            if self._offer is None:
                return
            data = self._part(one, index, place, start, blocks.length(one, index))
            try:
                self._offer(self.node(one.ref), (index << blocks.log) + start, data)
            except OSError as error:
                if isinstance(data, bytes):
                    blocks.cache.put(place, data)  # the kernel did not take it: it will read it
                if error.errno in (EINVAL, ENOSYS):
                    self._offer = None

        return job

    def _part(self, one: Inode, index: int, where: Place, start: int, stop: int) -> "Buffer":
        """Return the bytes start to stop of a file's block `index`, which lies at `where`."""
        blocks = self.blocks
        if where == HOLE:
            return memoryview(self._zeros)[: stop - start]
        self.workers.wait(where)
        length = blocks.length(one, index)
        # A block that is handed over whole is not cached here, since the kernel caches it. Its
        # memory is free for the next block then, which is cheaper than memory that was never used.
        whole = stop - start == length and index < blocks.count(one)
        data = blocks.take(where) if whole else blocks.get(where)
        skip = 0
        if index >= blocks.count(one):
            skip = one.offset
            if skip + length > len(data):
                raise Corrupt(
                    f"inode {one.number}: its tail ends at {skip + length} of its fragment at "
                    f"{where[0]}, which holds {len(data)} bytes"
                )
        elif len(data) != length:
            raise Corrupt(
                f"inode {one.number}: its block {index} at {where[0]} holds {len(data)} of "
                f"{length} bytes"
            )
        if stop - start == len(data):
            return data
        return memoryview(data)[skip + start : skip + stop]

    def _look_ahead(
        self, node: int, one: Inode, first: int, last: int, places: list[Place]
    ) -> None:
        """Have workers decompress this read's other blocks and a sequential reader's next ones."""
        workers = self.workers
        missing = [p for p in places if p != HOLE and p not in self.blocks.cache]
        if len(missing) << self._shift >= _PARALLEL and len(missing) > 1:
            for where in missing[1:]:
                workers.ask(self.blocks.get, where)
        elif len(missing) > 1:
            self._fetch_together(missing)
        streams = self._streams
        at = streams.pop(node, None)
        if at is None:
            if len(streams) > _STREAMS:
                del streams[next(iter(streams))]
        elif first <= at + 1 and last > at:
            blocks = self.blocks
            behind = (one.size - 1) >> self._shift
            for index in range(last + 1, min(last + 1 + _AHEAD, behind + 1)):
                where = blocks.place(one, index)
                if where != HOLE and where not in blocks.cache:
                    workers.ask(blocks.get, where)
        streams[node] = last

    def _fetch_together(self, places: list[Place]) -> None:
        """Read blocks that lie next to each other with one read of the image, and cache them.

        Blocks may be as small as 4 KiB: then one read of a file spans up to 32 of them.
        """
        blocks = self.blocks
        run: list[Place] = []
        for where in [*places, HOLE]:
            if run and (where[0] != run[-1][0] + blocks.checked(run[-1]) or where in blocks.cache):
                if len(run) > 1:
                    at = run[0][0]
                    stored = blocks.reader.source.read(
                        at, run[-1][0] + blocks.checked(run[-1]) - at
                    )
                    for one in run:
                        begin = one[0] - at
                        piece = stored[begin : begin + blocks.checked(one)]
                        data = blocks.decode(one, piece, blocks.size)
                        blocks.cache.put(one, data)
                run = []
            if where != HOLE and where not in blocks.cache:
                run.append(where)


_DT_DIR = 4
_DTYPE = (0, _DT_DIR, 8, 10, 6, 2, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0)
"""readdir(3)'s d_type by the inode's type in squashfs: DIR, REG, SYMLINK, BLOCK, CHAR, FIFO, SOCKET
of `format`; 0 (unknown) for other numbers, which an entry has 4 bits for."""


def has_idle_cpu() -> bool:
    """Tell whether a CPU is idle: there are as many CPUs as runnable tasks (proc(5), loadavg).

    Where all ranks of a node start at once, none is: then nothing is done that may not be needed.
    """
    try:
        fd = os.open("/proc/loadavg", os.O_RDONLY | os.O_CLOEXEC)
        text = os.read(fd, 128)
        os.close(fd)
        return int(text.split()[3].partition(b"/")[0]) <= len(os.sched_getaffinity(0))
    except (OSError, ValueError, IndexError):
        return False
