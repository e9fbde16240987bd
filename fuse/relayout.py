"""Rewrite an image (`udi optimize`) so that what a program's start reads comes first, in order.

Blocks that a profile reads are *hot*. They are stored first, uncompressed, in the order of the
reads; the ends of hot files go into fragments of their own. Inodes and directory listings are
stored uncompressed too. All other blocks are copied as they are. So nothing is compressed here, and
no compressor is needed. Content, attributes and inode numbers stay the same, which
`relayout_check.verify` checks.
"""

import os
from struct import pack

from rootless_udi.base import trust
from rootless_udi.base.records import Record
from rootless_udi.fuse import format, format_writer
from rootless_udi.fuse.blocks import HOLE, Place
from rootless_udi.fuse.filesystem import ROOT, FileSystem
from rootless_udi.fuse.format import LENGTH, METADATA, NONE32, NONE64, RAW, STORED, Corrupt, Inode
from rootless_udi.fuse.profile import Read
from rootless_udi.fuse.reader import Reader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO


_EXPORTABLE = 0x80
"""Flag of the superblock: it has a table of inodes by number, for NFS. None is written here."""
_METADATA_AHEAD = 8 << 20
"""Most bytes of the inode and directory tables that are read ahead at a start."""
_PADDING = 4096
"""An image's size is a multiple of this many bytes, as mksquashfs makes it."""
_XATTR_SETS = 512
"""Rows of the table of xattr sets in a metadata block."""


class Result(Record):
    """What was written: the image's `size` in bytes, the number of hot `files`, the `hot` bytes."""

    size: int
    files: int
    hot: int


class _Metadata:
    """A table that is stored uncompressed, so that each byte's place is known when it is added."""

    def __init__(self) -> None:
        self.data = bytearray()

    def ref(self, at: int) -> int:
        """Return the reference (block << 16 | offset) of the byte at `at`."""
        return (at // METADATA * (METADATA + 2)) << 16 | at % METADATA

    def blocks(self) -> list[bytes]:
        """Return the metadata blocks, each with its header of 2 bytes."""
        pieces = range(0, len(self.data), METADATA)
        parts = [bytes(self.data[at : at + METADATA]) for at in pieces]
        return [(STORED | len(part)).to_bytes(2, "little") + part for part in parts]


class _Tail:
    """Where a file's data was written: its first block's position, the blocks' sizes, and its end's
    fragment (NONE32 for none) and offset in that."""

    __slots__ = ("fragment", "offset", "sizes", "start")

    def __init__(self, start: int, sizes: list[int], fragment: int, offset: int) -> None:
        self.start = start
        self.sizes = sizes
        self.fragment = fragment
        self.offset = offset


def relayout(fs: FileSystem, reads: list[Read], target: "BinaryIO", raw: bool = True) -> Result:
    """Write the image of `fs` to `target` anew, for `reads` in order (those of `profile.merge`).

    Without `raw`, hot blocks stay compressed and only their order changes. Raises Corrupt where the
    image is damaged; OSError.
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
    for node in sorted((n for n in tree.values() if n.kind == format.REG), key=lambda n: n.start):
        writer.file(node, None)
    writer.flush_tails()
    size = writer.metadata(tree, begin, end)
    return Result(size, len(hot), end - begin)


def _tree(fs: FileSystem) -> dict[int, Inode]:
    """Return reference -> inode of all files, those in a directory before the directory."""
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
            if node.kind == format.DIR:
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
        """Leave room for the superblock and the marker; copy the compressor's options."""
        reader = self.fs.reader
        options = b""
        if reader.super.flags & format.COMPRESSOR_OPTIONS:
            size = int.from_bytes(reader.source.read(format.SUPERBLOCK_SIZE, 2), "little") & LENGTH
            options = reader.source.read(format.SUPERBLOCK_SIZE, 2 + size)
        self.out.write(bytes(format.SUPERBLOCK_SIZE) + options + bytes(format.HOT_SIZE))
        self._marker = format.SUPERBLOCK_SIZE + len(options)

    def hot(self, reads: list[Read]) -> dict[int, set[int]]:
        """Return reference -> indices of the blocks that `reads` touch, in order; regular files."""
        found: dict[int, set[int]] = {}
        for one in reads:
            node = ROOT if one.length else 0
            for part in one.path.split(b"/"):
                if part and node:
                    node = self.fs.lookup(node, part)
            inode = self.fs.inode(node) if node else None
            if inode is None or inode.kind != format.REG:
                continue  # the profile is of another version of the image
            last = min(one.offset + one.length, inode.size) - 1
            touched = range(one.offset >> self.blocks.log, (last >> self.blocks.log) + 1)
            found.setdefault(inode.ref, set()).update(touched)
        return found

    def file(self, node: Inode, hot: "set[int] | None") -> None:
        """Write a file's blocks and its end, unless that was done before.

        `hot` are the blocks to store uncompressed; None for a file that is not hot.
        """
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
        """Write the blocks. Equal files that are not hot share them, as in the old image."""
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
        """Write the fragment that the ends of hot files are collected in."""
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
        """Write the tables, the superblock and the marker; return the image's size in bytes.

        `begin` and `end` are the positions of the hot data.
        """
        inodes, listings = _Metadata(), _Metadata()
        where: dict[int, int] = {}
        for ref, node in tree.items():
            body = self._directory(node, where, listings) if node.kind == format.DIR else b""
            where[ref] = inodes.ref(len(inodes.data))
            inodes.data += body or self._inode(node)
        out, supers = self.out, self.fs.reader.super
        inode_table = out.tell()
        out.writelines(inodes.blocks())
        directory_table = out.tell()
        out.writelines(listings.blocks())
        fragment_table = self._indexed(
            b"".join(format.FRAGMENT.pack(*p, 0) for p in self.fragments)
        )
        owners = [self.fs.reader.owner(n) for n in range(supers.id_count)]
        id_table = self._indexed(pack(f"<{len(owners)}I", *owners))
        xattr_table = self._xattrs()
        used = out.tell()
        out.write(bytes(-used % _PADDING))
        out.seek(0)
        out.write(
            format_writer.superblock(
                supers,
                fragment_count=len(self.fragments),
                flags=supers.flags & ~_EXPORTABLE,
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
        tables = min(fragment_table - inode_table, _METADATA_AHEAD)
        out.write(format_writer.hot(((inode_table, tables), (begin, end - begin))))
        return used + -used % _PADDING

    def _indexed(self, data: bytes) -> int:
        """Write a table's metadata blocks, then the array of their positions; return its own."""
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
        """Copy the xattr tables; return the position of the last one, or NONE64.

        Positions in them count from their own start, but for one array, which is corrected.
        """
        reader = self.fs.reader
        if not reader.has_xattrs:
            return NONE64
        table = reader.super.xattr_table
        start, count, _ = format.XATTR_TABLE.unpack(
            reader.source.read(table, format.XATTR_TABLE.size)
        )
        blocks = -(-count // _XATTR_SETS)
        array = reader.source.read(table + format.XATTR_TABLE.size, 8 * blocks)
        places = [int.from_bytes(array[at : at + 8], "little") for at in range(0, 8 * blocks, 8)]
        if not start <= min(places) <= max(places) < table:
            raise Corrupt("its xattr tables are in an order that no writer uses")
        moved = self.out.tell() - start
        for at in range(start, table, 1 << 20):
            self.out.write(reader.source.read(at, min(1 << 20, table - at)))
        at = self.out.tell()
        self.out.write(format.XATTR_TABLE.pack(start + moved, count, 0))
        self.out.write(pack(f"<{blocks}Q", *(place + moved for place in places)))
        return at

    def _inode(self, node: Inode) -> bytes:
        if node.kind == format.REG:
            new = self.files[node.ref]
            return format_writer.file(node, new.start, new.fragment, new.offset, new.sizes)
        if node.kind == format.SYMLINK:
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
                index.append(format.DIR_INDEX.pack(here - begin, place, len(name) - 1) + name)
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
    """Return the entries from `at` on that can stand below one header of a listing."""
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


def reading(path: str, offset: int = 0) -> FileSystem:
    """Return the file system of the image at byte `offset` of a file, for `relayout` and `verify`.

    The caller closes `reader.source.fd`. Raises UdiError where it is no image; OSError.
    """
    fd = trust.regular(path)
    try:
        return FileSystem(Reader(fd, path, base=offset), threads=1)
    except BaseException:
        os.close(fd)
        raise
