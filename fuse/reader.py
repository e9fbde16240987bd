"""The image's metadata, parsed when it is asked for: inodes, directories, links, xattrs, owners.

Names: an inode's *reference* is where it lies, (metadata block counted from the inode table) << 16
| (offset in it decompressed). It is what directory entries hold, the same for every hard link, and
all that this server needs to answer for a file: so it keeps no table of what the kernel knows.
Only one thread may be in here at a time; `blocks` reads file data and is what threads share.
"""

from _struct import unpack_from

from rootless_udi.fuse.bounded_cache import Cache
from rootless_udi.fuse.decompress import decompressor
from rootless_udi.fuse.format import (
    DIR_INDEX,
    INODE_FIXED,
    LONGEST_RUN,
    LONGEST_TARGET,
    METADATA,
    NO_XATTRS,
    NONE32,
    NONE64,
    SYMLINK,
    XATTR_ENTRY,
    XATTR_ID,
    XATTR_TABLE,
    Corrupt,
    Inode,
    inode,
    listing,
    listing_headers,
    superblock,
)
from rootless_udi.fuse.imagefile import ImageFile

WHOLE = 64 << 10
"""Listings up to this size are parsed as one; larger ones in segments of about SEGMENT bytes."""
SEGMENT = 16 << 10
LARGEST_LISTING = 64 << 20
WINDOW = 64 << 10
XATTR_NAMES = 64 << 10
"""Bytes of the names of one inode's xattrs, each with a zero: what listxattr(2) can give."""
XATTR_VALUE = 64 << 10
XATTR_PAIRS = 16384
XATTR_WALK = 16 << 20
"""Bytes of metadata gone through for one inode's xattrs: a thousand values in a row."""
XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")
MIB = 1 << 20

Segment = tuple[int, int, int, bytes]
"""A part of a directory listing: metadata block, offset in it, length, first name."""
Value = tuple[int, int, bool]
"""Where an xattr's value is: metadata block, offset in it; whether only its place is there."""


class Reader:
    """A squashfs 4.0 image; see the module's docstring."""

    def __init__(self, fd: int, name: str, cache_bytes: int = 18 * MIB) -> None:
        """Read the superblock of the image open at `fd`; `name` is for errors.

        `cache_bytes` bounds the metadata remembered. Raises UdiError where it is no image, is cut
        short, or has a compressor that this machine can't undo; OSError.
        """
        self.name = name
        self.super = superblock(fd, name)
        self.decompress = decompressor(self.super.compressor)
        self.source = ImageFile(fd, self.super.bytes_used)
        third = cache_bytes // 3
        self._blocks: Cache[tuple[bytes, int]] = Cache(third, lambda pair: len(pair[0]) + 200)
        self._inodes: Cache[Inode] = Cache(third, lambda _: 600)
        self._names: Cache[dict[bytes, int]] = Cache(
            third, lambda d: 300 + 140 * len(d) + sum(map(len, d))
        )
        self._segments: Cache[list[Segment]] = Cache(
            2 * MIB, lambda found: 200 + sum(220 + len(one[3]) for one in found)
        )
        self._raw: dict[bool, tuple[int, bytes]] = {}
        self._owners: tuple[int, ...] = ()
        self._xattr_ids: tuple[int, int] | None = None
        self._sets: Cache[dict[bytes, Value]] = Cache(
            2 * MIB, lambda d: 300 + 260 * len(d) + sum(map(len, d))
        )

    # -- metadata blocks

    def block(self, at: int) -> tuple[bytes, int]:
        """Return the metadata block at position `at`, decompressed, and where the next one is."""
        found = self._blocks.get(at)
        if found is None:
            head = self._bytes(at, 2)
            header = head[0] | head[1] << 8
            size = header & 0x7FFF
            if not 0 < size <= METADATA:
                raise Corrupt(f"the metadata block at {at} claims {size} bytes")
            data = self._bytes(at + 2, size)
            if not header & 0x8000:
                data = self.decompress(data, METADATA)
            found = (data, at + 2 + size)
            self._blocks.put(at, found)
        return found

    def _bytes(self, at: int, size: int) -> bytes:
        """Read a few bytes of a table, through a window: blocks are small and asked in a row."""
        which = at >= self.super.directory_table
        start, data = self._raw.get(which, (0, b""))
        if not start <= at <= start + len(data) - size:
            if at + size > self.super.bytes_used:
                raise Corrupt(f"it points at {at}, beyond its end at {self.super.bytes_used}")
            start, data = at, self.source.some(at, WINDOW)
            self._raw[which] = (start, data)
        return data[at - start : at - start + size]

    def span(self, at: int, offset: int, size: int) -> bytes:
        """Return `size` bytes of metadata from `offset` in the block at `at`, over many blocks."""
        data, after = self.block(at)
        if offset + size <= len(data):
            return data[offset : offset + size]
        parts, have = [data[offset:]], max(len(data) - offset, 0)
        while have < size:
            if len(data) != METADATA:
                raise Corrupt(f"the metadata block before {after} holds {len(data)} bytes")
            data, after = self.block(after)
            parts.append(data)
            have += len(data)
        return b"".join(parts)[:size]

    def skip(self, at: int, offset: int, count: int) -> tuple[int, int]:
        """Return the block and offset that lie `count` bytes of metadata further on."""
        offset += count
        while offset >= METADATA:
            data, at = self.block(at)
            if len(data) != METADATA:  # else a stretch of empty ones is gone through at each step
                raise Corrupt(f"the metadata block before {at} holds {len(data)} bytes")
            offset -= METADATA
        return at, offset

    # -- inodes

    def inode(self, ref: int) -> Inode:
        """Return the inode at reference `ref`. Raises Corrupt; OSError."""
        found = self._inodes.get(ref)
        if found is None:
            found = self._parse(ref)
            self._inodes.put(ref, found)
        return found

    def _parse(self, ref: int) -> Inode:
        at, offset = self.super.inode_table + (ref >> 16), ref & 0xFFFF
        if at >= self.super.directory_table or offset >= METADATA:
            raise Corrupt(f"an inode's reference {at}:{offset} lies outside of the inode table")
        data, after = self.block(at)
        if offset + INODE_FIXED > len(data) and after < self.super.directory_table:
            data, offset = data[offset:] + self.block(after)[0][:INODE_FIXED], 0
        found = inode(ref, data, offset)
        if found.kind == SYMLINK:
            if found.size > 65535:
                raise Corrupt(f"inode {found.number}: a link's target of {found.size} bytes")
            if data[offset] == SYMLINK + 7:
                found.xattr = int.from_bytes(self.tail(found, found.size, 4), "little")
        return found

    def tail(self, node: Inode, start: int, size: int) -> bytes:
        """Return bytes of what follows the inode's fixed part (link target, block list, index)."""
        at, offset = self.behind(node, start + size)
        return self.span(*self.skip(at, offset, start), size)

    def behind(self, node: Inode, size: int) -> tuple[int, int]:
        """Return block and offset of what follows the inode's fixed part.

        Raises Corrupt where the inode table can't have `size` bytes of it.
        """
        base, end = self.super.inode_table, self.super.directory_table
        if (node.tail + size) // METADATA * 3 > end - base:  # a block is 3 bytes or more
            raise Corrupt(f"inode {node.number}: its block list is longer than the inode table")
        return self.skip(base + (node.ref >> 16), node.ref & 0xFFFF, node.tail)

    def target(self, node: Inode) -> bytes:
        """Return where a symbolic link points."""
        if node.size > LONGEST_TARGET:
            raise Corrupt(f"inode {node.number}: a link's target of {node.size} bytes")
        return self.tail(node, 0, node.size)

    def owner(self, index: int) -> int:
        """Return the uid or gid at `index` of the table of owners."""
        if not self._owners:
            self._owners = self._read_owners()
        if index >= len(self._owners):
            raise Corrupt(f"owner {index} of {len(self._owners)} does not exist")
        return self._owners[index]

    def _read_owners(self) -> tuple[int, ...]:
        count = self.super.id_count
        blocks = -(-count // 2048)
        raw = b"".join(
            self.block(at)[0]
            for at in unpack_from(f"<{blocks}Q", self.source.read(self.super.id_table, 8 * blocks))
        )
        if len(raw) < 4 * count:
            raise Corrupt("the table of owners is cut short")
        return unpack_from(f"<{count}I", raw)

    # -- directories

    def lookup(self, node: Inode, name: bytes) -> int:
        """Return the packed entry (format.pack_entry) of `name` in a directory, or 0."""
        segments = self.segments(node)
        if not segments:
            return 0
        number = _last_not_after(segments, name) if len(segments) > 1 else 0
        return self.entries(node, number).get(name, 0)

    def entries(self, node: Inode, number: int) -> dict[bytes, int]:
        """Return name -> packed entry of the segment `number` of a directory."""
        key = node.ref << 24 | number
        found = self._names.get(key)
        if found is None:
            at, offset, size, _ = self.segments(node)[number]
            found = listing(self.span(at, offset, size))
            self._names.put(key, found)
        return found

    def segments(self, node: Inode) -> list[Segment]:
        """Return the parts in which a directory's listing is parsed, in order; none where empty."""
        found = self._segments.get(node.ref)
        if found is None:
            size = node.size - 3  # counts "." and "..", which are not stored
            if size > LARGEST_LISTING:
                raise Corrupt(f"inode {node.number}: a listing of {size} bytes")
            at = self.super.directory_table + node.start
            if size <= 0:
                found = []
            elif node.offset >= METADATA:
                raise Corrupt(f"inode {node.number}: a listing outside of the directory table")
            elif size <= WHOLE:
                found = [(at, node.offset, size, b"")]
            else:
                found = self._index(node, at, size)
            self._segments.put(node.ref, found)
        return found

    def _index(self, node: Inode, base: int, size: int) -> list[Segment]:
        """Cut a large listing where its own index says, or else where its headers are."""
        from itertools import pairwise  # 0.3 ms that few images need

        try:
            starts = self._own_index(node)
        except Corrupt:
            starts = []
        edges = [at for at, _, _ in starts] + [size]
        if not starts or any(not 0 < b - a <= WHOLE for a, b in pairwise(edges)):
            starts = self._headers(node, base, size)
            edges = [at for at, _, _ in starts] + [size]
        return [
            (place >> 16, place & 0xFFFF, after - at, name)
            for (at, place, name), after in zip(starts, edges[1:], strict=True)
        ]

    def _headers(self, node: Inode, base: int, size: int) -> list[tuple[int, int, bytes]]:
        """Return what `_own_index` does, by the headers themselves, a piece of them at a time."""
        starts: list[tuple[int, int, bytes]] = []
        at, offset, done = base, node.offset, 0
        while done < size:
            piece = self.span(at, offset, min(2 * LONGEST_RUN, size - done))
            end = 0
            for header, name, after in listing_headers(piece):
                if not starts or done + header - starts[-1][0] >= SEGMENT:
                    place, inside = self.skip(at, offset, header)
                    starts.append((done + header, place << 16 | inside, name))
                end = after
            if not end:
                raise Corrupt("a directory listing is cut short")
            at, offset = self.skip(at, offset, end)
            done += end
        return starts

    def _own_index(self, node: Inode) -> list[tuple[int, int, bytes]]:
        """Return (position in the listing, block << 16 | offset, first name), by the index."""
        found = [(0, (self.super.directory_table + node.start) << 16 | node.offset, b"")]
        at, offset = self.skip(
            self.super.inode_table + (node.ref >> 16), node.ref & 0xFFFF, node.tail
        )
        for _ in range(node.count):
            where, start, size = DIR_INDEX.unpack(self.span(at, offset, 12))
            if size > 255:
                raise Corrupt(f"inode {node.number}: an index name of {size + 1} bytes")
            at, offset = self.skip(at, offset, 12)
            if where - found[-1][0] >= SEGMENT:
                place = (self.super.directory_table + start) << 16
                name = self.span(at, offset, size + 1)
                found.append((where, place | (node.offset + where) % METADATA, name))
            at, offset = self.skip(at, offset, size + 1)
        return found

    # -- xattrs

    def _xattrs_at(self) -> tuple[int, int]:
        """Return where names and values start and how many sets of xattrs there are."""
        if self._xattr_ids is None:
            table = self.super.xattr_table
            start = count = 0
            if table != NONE64 and not self.super.flags & NO_XATTRS:
                raw = self.source.read(table, XATTR_TABLE.size)
                start, count, _ = XATTR_TABLE.unpack(raw)
            self._xattr_ids = start, count
        return self._xattr_ids

    @property
    def has_xattrs(self) -> bool:
        """Whether any file of the image has an extended attribute, or the table is damaged."""
        try:
            return bool(self._xattrs_at()[1])
        except Corrupt:
            return True  # all else can be served: who asks for an xattr hears of it

    def xattr_names(self, node: Inode) -> list[bytes]:
        """Return the names of an inode's extended attributes, in full (`user.x`)."""
        return list(self._set(node))

    def xattr(self, node: Inode, name: bytes) -> bytes | None:
        """Return the value of the extended attribute of that full name, or None."""
        where = self._set(node).get(name)
        if where is None:
            return None
        at, offset, elsewhere = where
        if elsewhere:  # kept once, for several inodes
            base = self._xattrs_at()[0]
            (place,) = unpack_from("<Q", self.span(*self.skip(at, offset, 4), 8))
            at, offset = base + (place >> 16), place & 0xFFFF
        (length,) = unpack_from("<I", self.span(at, offset, 4))
        if length > XATTR_VALUE:
            raise Corrupt(f"an xattr of {length} bytes")
        return self.span(*self.skip(at, offset, 4), length)

    def _set(self, node: Inode) -> dict[bytes, Value]:
        """Return name -> where the value is, of an inode. Values are read when they are asked for.

        An image may give one inode the same 64 KiB value 65,536 times.
        """
        number = node.xattr
        if number == NONE32:
            return {}
        start, count = self._xattrs_at()
        if not count:
            return {}
        if number >= count:
            raise Corrupt(f"inode {node.number}: xattrs {number} of {count}")
        found = self._sets.get(number)
        if found is None:
            where = self.super.xattr_table + XATTR_TABLE.size + number // 512 * 8
            block = int.from_bytes(self._bytes(where, 8), "little")
            ref, pairs, _ = XATTR_ID.unpack(self.span(block, number % 512 * 16, 16))
            if pairs > XATTR_PAIRS:
                raise Corrupt(f"inode {node.number}: {pairs} xattrs (at most {XATTR_PAIRS})")
            found = self._pairs(start + (ref >> 16), ref & 0xFFFF, pairs, node.number)
            self._sets.put(number, found)
        return found

    def _pairs(self, at: int, offset: int, pairs: int, number: int) -> dict[bytes, Value]:
        found: dict[bytes, Value] = {}
        names, walk = 0, 0
        for _ in range(pairs):
            kind, size = XATTR_ENTRY.unpack(self.span(at, offset, 4))
            at, offset = self.skip(at, offset, 4)
            if size > 255:
                raise Corrupt(f"inode {number}: an xattr with a name of {size} bytes")
            name = self.span(at, offset, size)
            at, offset = self.skip(at, offset, size)
            if kind & 0xFF < len(XATTR_PREFIXES):
                name = XATTR_PREFIXES[kind & 0xFF] + name
                names += len(name) + 1
                found[name] = at, offset, bool(kind & 0x100)
            (length,) = unpack_from("<I", self.span(at, offset, 4))
            walk += length
            if names > XATTR_NAMES or walk > XATTR_WALK:
                raise Corrupt(f"inode {number}: more xattrs than a file can have")
            at, offset = self.skip(at, offset, 4 + length)
        return found


def _last_not_after(segments: list[Segment], name: bytes) -> int:
    """Return the last segment whose first name is not after `name` (names are in byte order)."""
    low, high = 0, len(segments)
    while high - low > 1:
        middle = (low + high) // 2
        if segments[middle][3] <= name:
            low = middle
        else:
            high = middle
    return low
