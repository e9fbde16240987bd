"""The image's metadata, read as it is needed: inodes, directories, links, xattrs, owners.

An inode's *reference* says where it lies: (its metadata block's position, counted from the inode
table) << 16 | (its offset in that block, decompressed). Directory entries hold it, and all hard
links of a file have the same one. It is all that is needed to answer for a file, so that no table
of the files that the kernel knows is kept.

Only one thread may call a `Reader`. File data is read by `blocks`, which several threads share.
"""

from _struct import unpack_from

from rootless_udi.fuse.bounded_cache import Cache
from rootless_udi.fuse.decompress import decompressor
from rootless_udi.fuse.format import (
    DIR_INDEX,
    INODE_FIXED,
    LENGTH,
    LONGEST_RUN,
    LONGEST_TARGET,
    METADATA,
    NO_XATTRS,
    NONE32,
    NONE64,
    STORED,
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
from rootless_udi.fuse.imagefile import Opener, plain

WHOLE = 64 << 10
"""Bytes. A listing up to this size is parsed whole, a larger one in segments of about _SEGMENT."""
_SEGMENT = 16 << 10
LARGEST_LISTING = 64 << 20
"""Most bytes of a directory's listing."""
_WINDOW = 64 << 10
"""Bytes of a table that are read from the image at once."""
XATTR_NAMES, XATTR_VALUE = 64 << 10, 64 << 10
"""Most bytes of the names of an inode's xattrs, each with a zero, and of a value (xattr(7))."""
XATTR_PAIRS, XATTR_WALK = 16384, 16 << 20
"""Most xattrs of an inode, and most bytes of metadata that are passed for them."""
_XATTR_PREFIXES = (b"user.", b"trusted.", b"security.")
"""By the number that stands for them; the low byte of `XATTR_ENTRY`'s type."""
_OUT_OF_LINE = 0x100
"""Set in that type where only the place of the value is there."""
_IDS, _SETS = 2048, 512
"""Rows in a metadata block: of the table of owners (4 bytes each), of xattr sets (16 bytes)."""
MIB = 1 << 20

Segment = tuple[int, int, int, bytes]
"""A part of a listing: its metadata block, offset in that, length in bytes, first name."""
_Value = tuple[int, int, bool]
"""An xattr's value: its metadata block, offset in that; whether only its place is there."""


class Reader:
    """The metadata of a squashfs 4.0 image; see the module's docstring.

    All methods raise Corrupt where the image is damaged, and OSError.
    """

    def __init__(
        self, fd: int, name: str, cache_bytes: int = 18 * MIB, opener: Opener = plain, base: int = 0
    ) -> None:
        """Read the superblock of the image at byte `base` of the file at `fd`, in errors `name`.

        `cache_bytes` is how many bytes of metadata are cached. Raises UdiError where the file is no
        image, cut short, or can't be decompressed here; OSError, and what `opener` raises.
        """
        self.name, self.super = name, superblock(fd, name, base)
        self.decompress = decompressor(self.super.compressor)
        self.source = opener(fd, self.super, name)
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
        self._sets: Cache[dict[bytes, _Value]] = Cache(
            2 * MIB, lambda d: 300 + 260 * len(d) + sum(map(len, d))
        )

    # -- metadata blocks

    def block(self, at: int) -> tuple[bytes, int]:
        """Return the metadata block at position `at`, decompressed, and the next one's position."""
        found = self._blocks.get(at)
        if found is None:
            head = self._bytes(at, 2)
            header = head[0] | head[1] << 8
            size = header & LENGTH
            if not 0 < size <= METADATA:
                raise Corrupt(f"the metadata block at {at} claims {size} bytes")
            data = self._bytes(at + 2, size)
            if not header & STORED:
                data = self.decompress(data, METADATA)
            found = (data, at + 2 + size)
            self._blocks.put(at, found)
        return found

    def _bytes(self, at: int, size: int) -> bytes:
        """Return a few bytes of a table; more are read at once, for the next small blocks."""
        which = at >= self.super.directory_table
        start, data = self._raw.get(which, (0, b""))
        if not start <= at <= start + len(data) - size:
            if at + size > self.super.bytes_used:
                raise Corrupt(f"it points at {at}, beyond its end at {self.super.bytes_used}")
            start, data = at, self.source.some(at, _WINDOW)
            self._raw[which] = (start, data)
        return data[at - start : at - start + size]

    def span(self, at: int, offset: int, size: int) -> bytes:
        """Return `size` bytes from `offset` in the block at `at`, and in the blocks after it."""
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
        """Return block and offset of what is `count` bytes behind `offset` in the block `at`."""
        offset += count
        while offset >= METADATA:
            data, at = self.block(at)
            if len(data) != METADATA:  # a damaged image may have millions of empty ones
                raise Corrupt(f"the metadata block before {at} holds {len(data)} bytes")
            offset -= METADATA
        return at, offset

    # -- inodes

    def inode(self, ref: int) -> Inode:
        """Return the inode at reference `ref`."""
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
        """Return `size` bytes from `start` of what follows an inode's fixed part (`Inode.tail`)."""
        at, offset = self.behind(node, start + size)
        return self.span(*self.skip(at, offset, start), size)

    def behind(self, node: Inode, size: int) -> tuple[int, int]:
        """Return block and offset of what follows an inode's fixed part.

        Raises Corrupt where the inode table is too short for `size` bytes of it.
        """
        base, end = self.super.inode_table, self.super.directory_table
        if (node.tail + size) // METADATA * 3 > end - base:  # a block is 3 bytes or more
            raise Corrupt(f"inode {node.number}: its block list is longer than the inode table")
        return self.skip(base + (node.ref >> 16), node.ref & 0xFFFF, node.tail)

    def target(self, node: Inode) -> bytes:
        """Return a symbolic link's target."""
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
        blocks = -(-count // _IDS)
        raw = b"".join(
            self.block(at)[0]
            for at in unpack_from(f"<{blocks}Q", self.source.read(self.super.id_table, 8 * blocks))
        )
        if len(raw) < 4 * count:
            raise Corrupt("the table of owners is cut short")
        return unpack_from(f"<{count}I", raw)

    # -- directories

    def lookup(self, node: Inode, name: bytes) -> int:
        """Return the entry (`format.listing`) of `name` in a directory, or 0."""
        segments = self.segments(node)
        if not segments:
            return 0
        number = _last_not_after(segments, name) if len(segments) > 1 else 0
        return self.entries(node, number).get(name, 0)

    def entries(self, node: Inode, number: int) -> dict[bytes, int]:
        """Return name -> entry of a directory's segment."""
        key = node.ref << 24 | number
        found = self._names.get(key)
        if found is None:
            at, offset, size, _ = self.segments(node)[number]
            found = listing(self.span(at, offset, size))
            self._names.put(key, found)
        return found

    def segments(self, node: Inode) -> list[Segment]:
        """Return the parts in which a listing is parsed, in order; none for an empty one."""
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
        """Return the segments of a large listing, by its index or, without one, its headers."""
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
        """Return what `_own_index` does, but from the listing's headers, read in pieces."""
        starts: list[tuple[int, int, bytes]] = []
        at, offset, done = base, node.offset, 0
        while done < size:
            piece = self.span(at, offset, min(2 * LONGEST_RUN, size - done))
            end = 0
            for header, name, after in listing_headers(piece):
                if not starts or done + header - starts[-1][0] >= _SEGMENT:
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
        at, offset = self.behind(node, 0)
        for _ in range(node.count):
            where, start, size = DIR_INDEX.unpack(self.span(at, offset, 12))
            if size > 255:
                raise Corrupt(f"inode {node.number}: an index name of {size + 1} bytes")
            at, offset = self.skip(at, offset, 12)
            if where - found[-1][0] >= _SEGMENT:
                place = (self.super.directory_table + start) << 16
                name = self.span(at, offset, size + 1)
                found.append((where, place | (node.offset + where) % METADATA, name))
            at, offset = self.skip(at, offset, size + 1)
        return found

    # -- xattrs

    def _xattrs_at(self) -> tuple[int, int]:
        """Return the position where names and values start, and the number of sets of xattrs."""
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
        """Whether a file of the image may have an extended attribute."""
        try:
            return bool(self._xattrs_at()[1])
        except Corrupt:
            return True  # the table is damaged: whoever asks for an xattr gets the error

    def xattr_names(self, node: Inode) -> list[bytes]:
        """Return the full names (`user.x`) of an inode's extended attributes."""
        return list(self._set(node))

    def xattr(self, node: Inode, name: bytes) -> bytes | None:
        """Return the value of the extended attribute with that full name, or None."""
        where = self._set(node).get(name)
        if where is None:
            return None
        at, offset, elsewhere = where
        if elsewhere:  # stored once for several inodes
            base = self._xattrs_at()[0]
            (place,) = unpack_from("<Q", self.span(*self.skip(at, offset, 4), 8))
            at, offset = base + (place >> 16), place & 0xFFFF
        (length,) = unpack_from("<I", self.span(at, offset, 4))
        if length > XATTR_VALUE:
            raise Corrupt(f"an xattr of {length} bytes")
        return self.span(*self.skip(at, offset, 4), length)

    def _set(self, node: Inode) -> dict[bytes, _Value]:
        """Return name -> place of the value, of an inode's extended attributes.

        The values are not read yet: a bad image may give an inode 64 KiB of them 65,536 times.
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
            where = self.super.xattr_table + XATTR_TABLE.size + number // _SETS * 8
            block = int.from_bytes(self._bytes(where, 8), "little")
            ref, pairs, _ = XATTR_ID.unpack(self.span(block, number % _SETS * 16, 16))
            if pairs > XATTR_PAIRS:
                raise Corrupt(f"inode {node.number}: {pairs} xattrs (at most {XATTR_PAIRS})")
            found = self._pairs(start + (ref >> 16), ref & 0xFFFF, pairs, node.number)
            self._sets.put(number, found)
        return found

    def _pairs(self, at: int, offset: int, pairs: int, number: int) -> dict[bytes, _Value]:
        found: dict[bytes, _Value] = {}
        names, walk = 0, 0
        for _ in range(pairs):
            kind, size = XATTR_ENTRY.unpack(self.span(at, offset, 4))
            at, offset = self.skip(at, offset, 4)
            if size > 255:
                raise Corrupt(f"inode {number}: an xattr with a name of {size} bytes")
            name = self.span(at, offset, size)
            at, offset = self.skip(at, offset, size)
            if kind & 0xFF < len(_XATTR_PREFIXES):
                name = _XATTR_PREFIXES[kind & 0xFF] + name
                names += len(name) + 1
                found[name] = at, offset, bool(kind & _OUT_OF_LINE)
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
