"""Write an image anew so that what a start-up reads lies first, in order, and is cheap to read.

Nothing is compressed here, so no compressor is needed: blocks that no profile reads are copied as
they are, blocks that one reads are stored uncompressed (`raw`) in the order of the reads, with the
tails of hot files in fragments of their own, and inodes and listings are uncompressed too. Every
attribute, inode number and byte stays what it was; `verify` makes sure.
"""

import os
from struct import pack

from rootless_udi.base import trust
from rootless_udi.base.records import Record
from rootless_udi.fuse import format as f
from rootless_udi.fuse import format_writer
from rootless_udi.fuse.blocks import HOLE, Place
from rootless_udi.fuse.filesystem import ROOT, FileSystem
from rootless_udi.fuse.format import METADATA, NONE32, NONE64, RAW, Corrupt, Inode
from rootless_udi.fuse.profile import Read
from rootless_udi.fuse.reader import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO


EXPORTABLE = 0x80
METADATA_AHEAD = 8 << 20
"""Of the inode and directory tables at most this much is read ahead at a start."""


class Result(Record):
    """What was written: bytes of the image, hot files, hot bytes at its start."""

    size: int
    files: int
    hot: int


class _Metadata:
    """A table of uncompressed metadata blocks: where each byte lands is known at once."""

    def __init__(self) -> None:
        self.data = bytearray()

    def ref(self, at: int) -> int:
        """Return the reference (block << 16 | offset) of the byte at `at`."""
        return (at // METADATA * (METADATA + 2)) << 16 | at % METADATA

    def blocks(self) -> list[bytes]:
        """Return the blocks as they are written, each with its header."""
        pieces = range(0, len(self.data), METADATA)
        parts = [bytes(self.data[at : at + METADATA]) for at in pieces]
        return [(0x8000 | len(part)).to_bytes(2, "little") + part for part in parts]


class _Tail:
    """Where a file's last part went: fragment and offset, NONE32 where it has none."""

    __slots__ = ("fragment", "offset", "sizes", "start")

    def __init__(self, start: int, sizes: list[int], fragment: int, offset: int) -> None:
        self.start = start
        self.sizes = sizes
        self.fragment = fragment
        self.offset = offset


def relayout(
    fs: FileSystem, reads: list[Read], target: "BinaryIO", raw: bool = True, tail: bytes = b""
) -> Result:
    """Write the image of `fs` to `target` for `reads` (profile.merge's, in order).

    Without `raw`, hot blocks stay as they are compressed and only their order changes. `tail` is
    written behind the image, where no reader of squashfs looks. Raises Corrupt where the image does
    not hold together; OSError.
    """
    writer = _Writer(fs, target, raw)
    writer.start()
    hot = writer.hot(reads)
    begin = target.tell()
    for ref in hot:
        writer.file(fs.reader.inode(ref), hot[ref])
    writer.flush_tails()
    end = target.tell()
    tree = _tree(fs)
    for node in sorted((n for n in tree.values() if n.kind == f.REG), key=lambda n: n.start):
        writer.file(node, None)
    writer.flush_tails()
    size = writer.metadata(tree, begin, end)
    target.seek(size)
    target.write(tail)
    return Result(size + len(tail), len(hot), end - begin)


def _tree(fs: FileSystem) -> dict[int, Inode]:
    """Return ref -> inode of everything, children before the directories that hold them."""
    found: dict[int, Inode] = {}
    open_: set[int] = set()
    stack = [(fs.reader.super.root, False)]
    while stack:
        ref, done = stack.pop()
        node = fs.reader.inode(ref)
        if done:
            open_.discard(ref)
            found[ref] = node
        elif ref in open_:
            raise Corrupt(f"inode {node.number}: a directory that contains itself")
        elif ref not in found:
            if node.kind == f.DIR:
                open_.add(ref)
                stack.append((ref, True))
                stack += [(entry >> 36, False) for _, entry in reversed(_listing(fs, node))]
            else:
                found[ref] = node
    return found


def _listing(fs: FileSystem, node: Inode) -> list[tuple[bytes, int]]:
    reader = fs.reader
    parts = range(len(reader.segments(node)))
    return [item for n in parts for item in reader.entries(node, n).items()]


class _Writer:
    def __init__(self, fs: FileSystem, target: "BinaryIO", raw: bool) -> None:
        self.fs = fs
        self.blocks = fs.blocks
        self.out = target
        self.raw = raw
        self.files: dict[int, _Tail] = {}
        self.fragments: list[Place] = []
        self._copied: dict[int, int] = {}  # old fragment -> new
        self._runs: dict[tuple[int, tuple[int, ...]], tuple[int, list[int]]] = {}
        self._tails = bytearray()

    def start(self) -> None:
        """Leave room for the superblock and the marker, keep the compressor's options."""
        reader = self.fs.reader
        options = b""
        if reader.super.flags & f.COMPRESSOR_OPTIONS:
            size = int.from_bytes(reader.source.read(f.SUPERBLOCK_SIZE, 2), "little") & 0x7FFF
            options = reader.source.read(f.SUPERBLOCK_SIZE, 2 + size)
        self.out.write(bytes(f.SUPERBLOCK_SIZE) + options + bytes(f.HOT_SIZE))
        self._marker = f.SUPERBLOCK_SIZE + len(options)

    def hot(self, reads: list[Read]) -> dict[int, set[int]]:
        """Return ref -> indices of the blocks that `reads` touch, of regular files, in order."""
        found: dict[int, set[int]] = {}
        for one in reads:
            node = ROOT if one.length else 0
            for part in one.path.split(b"/"):
                if part and node:
                    node = self.fs.lookup(node, part)
            inode = self.fs.inode(node) if node else None
            if inode is None or inode.kind != f.REG:
                continue  # a profile of another version of the image: what is gone is not hot
            last = min(one.offset + one.length, inode.size) - 1
            touched = range(one.offset >> self.blocks.log, (last >> self.blocks.log) + 1)
            found.setdefault(inode.ref, set()).update(touched)
        return found

    def file(self, node: Inode, hot: "set[int] | None") -> None:
        """Write a file's blocks and tail, unless that was done; `hot`: the blocks to store raw."""
        if node.ref in self.files:
            return
        count = self.blocks.count(node)
        start, sizes = self._data(node, count, hot)
        fragment, offset = NONE32, 0
        if node.fragment != NONE32:
            if hot is not None:
                fragment, offset = self._hot_tail(node, count)
            else:
                fragment, offset = self._fragment(node.fragment), node.offset
        self.files[node.ref] = _Tail(start, sizes, fragment, offset)

    def _data(self, node: Inode, count: int, hot: "set[int] | None") -> tuple[int, list[int]]:
        """Write the blocks; files that share theirs (duplicates) go on sharing them."""
        places = [self.blocks.place(node, index) for index in range(count)]
        key = (node.start, tuple(size for _, size in places))
        known = self._runs.get(key)
        if known is not None and hot is None:
            return known
        start: int = self.out.tell()
        sizes: list[int] = []
        for index, place in enumerate(places):
            if place == HOLE:
                sizes.append(0)
                continue
            stored = self.blocks.stored(place)
            size = place[1]
            if hot is not None and self.raw and index in hot and not size & RAW:
                stored = self.blocks.decode(place, stored, self.blocks.size)
                size = len(stored) | RAW
            self.out.write(stored)
            sizes.append(size)
        if hot is None:
            self._runs[key] = (start, sizes)
        return start, sizes

    def _hot_tail(self, node: Inode, count: int) -> tuple[int, int]:
        offset = count << self.blocks.log
        tail = b"".join(self.fs.read(self.fs.node(node.ref), offset, node.size - offset))
        if len(self._tails) + len(tail) > self.blocks.size:
            self.flush_tails()
        self._tails += tail
        return len(self.fragments), len(self._tails) - len(tail)

    def flush_tails(self) -> None:
        """Write the hot fragment that is being filled."""
        if self._tails:
            self.fragments.append((self.out.tell(), len(self._tails) | RAW))
            self.out.write(self._tails)
            self._tails = bytearray()

    def _fragment(self, number: int) -> int:
        new = self._copied.get(number)
        if new is None:
            place = self.blocks.fragment(number)
            new = self._copied[number] = len(self.fragments)
            self.fragments.append((self.out.tell(), place[1]))
            self.out.write(self.blocks.stored(place))
        return new

    def metadata(self, tree: dict[int, Inode], begin: int, end: int) -> int:
        """Write the tables, then the superblock; return the image's size."""
        inodes, listings = _Metadata(), _Metadata()
        where: dict[int, int] = {}
        for ref, node in tree.items():
            body = self._directory(node, where, listings) if node.kind == f.DIR else b""
            where[ref] = inodes.ref(len(inodes.data))
            inodes.data += body or self._inode(node)
        out, supers = self.out, self.fs.reader.super
        inode_table = out.tell()
        out.writelines(inodes.blocks())
        directory_table = out.tell()
        out.writelines(listings.blocks())
        fragment_table = self._indexed(b"".join(f.FRAGMENT.pack(*p, 0) for p in self.fragments))
        owners = [self.fs.reader.owner(n) for n in range(supers.id_count)]
        id_table = self._indexed(pack(f"<{len(owners)}I", *owners))
        xattr_table = self._xattrs()
        used = out.tell()
        out.write(bytes(-used % 4096))
        out.seek(0)
        out.write(
            format_writer.superblock(
                supers,
                fragment_count=len(self.fragments),
                flags=supers.flags & ~EXPORTABLE,
                root=where[supers.root],
                bytes_used=used,
                id_table=id_table,
                xattr_table=xattr_table,
                inode_table=inode_table,
                directory_table=directory_table,
                fragment_table=fragment_table,
                export_table=NONE64,
            )
        )
        out.seek(self._marker)
        tables = min(fragment_table - inode_table, METADATA_AHEAD)
        out.write(format_writer.hot(((inode_table, tables), (begin, end - begin))))
        return used + -used % 4096

    def _indexed(self, data: bytes) -> int:
        """Write a table of metadata blocks and the array of their positions; return its place."""
        table = _Metadata()
        table.data += data
        places = []
        for block in table.blocks():
            places.append(self.out.tell())
            self.out.write(block)
        at = self.out.tell()
        self.out.write(pack(f"<{len(places)}Q", *places))
        return at

    def _xattrs(self) -> int:
        """Copy the xattr tables, which hold positions relative to themselves but for one array."""
        reader = self.fs.reader
        if not reader.has_xattrs:
            return NONE64
        table = reader.super.xattr_table
        start, count, _ = f.XATTR_TABLE.unpack(reader.source.read(table, f.XATTR_TABLE.size))
        blocks = -(-count // 512)
        array = reader.source.read(table + f.XATTR_TABLE.size, 8 * blocks)
        places = [int.from_bytes(array[at : at + 8], "little") for at in range(0, 8 * blocks, 8)]
        if not start <= min(places) <= max(places) < table:
            raise Corrupt("its xattr tables are in an order that no writer uses")
        moved = self.out.tell() - start
        for at in range(start, table, 1 << 20):
            self.out.write(reader.source.read(at, min(1 << 20, table - at)))
        at = self.out.tell()
        self.out.write(f.XATTR_TABLE.pack(start + moved, count, 0))
        self.out.write(pack(f"<{blocks}Q", *(place + moved for place in places)))
        return at

    def _inode(self, node: Inode) -> bytes:
        if node.kind == f.REG:
            new = self.files[node.ref]
            return format_writer.file(node, new.start, new.fragment, new.offset, new.sizes)
        if node.kind == f.SYMLINK:
            return format_writer.symlink(node, self.fs.reader.target(node))
        return format_writer.special(node)

    def _directory(self, node: Inode, where: dict[int, int], listings: _Metadata) -> bytes:
        """Write a directory's listing; return its inode."""
        entries = _listing(self.fs, node)
        begin = len(listings.data)
        index: list[bytes] = []
        at = 0
        indexed = begin // METADATA
        while at < len(entries):
            group = _group(entries, at, where)
            here = len(listings.data)
            if here // METADATA != indexed:
                indexed = here // METADATA
                name = entries[at][0]
                place = listings.ref(here) >> 16
                index.append(f.DIR_INDEX.pack(here - begin, place, len(name) - 1) + name)
            listings.data += format_writer.listing(
                [
                    (name, where[entry >> 36], entry >> 4 & NONE32, entry & 15)
                    for name, entry in group
                ]
            )
            at += len(group)
        size = len(listings.data) - begin + 3
        return format_writer.directory(node, listings.ref(begin), size, index)


def _group(
    entries: list[tuple[bytes, int]], at: int, where: dict[int, int]
) -> list[tuple[bytes, int]]:
    """Return the entries from `at` that one listing header may cover."""
    block = where[entries[at][1] >> 36] >> 16
    number = entries[at][1] >> 4 & NONE32
    stop = at
    while stop < len(entries) and stop - at < 256:
        entry = entries[stop][1]
        delta = (entry >> 4 & NONE32) - number
        if where[entry >> 36] >> 16 != block or not -32768 <= delta <= 32767:
            break
        stop += 1
    return entries[at:stop]


def reading(path: str) -> FileSystem:
    """Return the file system of the image at `path`, for relayout and verify.

    Raises UdiError where it is no image; OSError. Close its reader's source.fd when done.
    """
    fd = trust.regular(path)
    try:
        return FileSystem(Reader(fd, path), threads=1)
    except BaseException:
        os.close(fd)
        raise
