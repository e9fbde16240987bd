"""File data: where each block of a file lies in the image, and its decompressed bytes.

A file's blocks lie one after the other. The inode has a list of their sizes, not of their
positions: where block N lies is the sum of the sizes before it. A list may be long (an 8 GiB file
has 65,536 entries), so it is read in segments of LIST entries, one metadata block each, and added
up only as far as the file is read. A block of size 0 is a hole. The end of a file that fills no
whole block may lie in a *fragment*, a block that several files share.
"""

from _struct import unpack_from

from rootless_udi.fuse.bounded_cache import Cache
from rootless_udi.fuse.format import FRAGMENT, NONE32, RAW, Corrupt, Inode
from rootless_udi.fuse.reader import Reader

LIST = 2048
"""Sizes of blocks, of 4 bytes each, in a metadata block."""
MOST_BLOCKS = 1 << 25
"""Blocks of a file at most: 4 TiB in blocks of 128 KiB. Longer lists would need too much memory."""
HOLE = (0, 0)
_FRAGMENTS = 512
"""Rows of the fragment table, of 16 bytes each, in a metadata block."""

Place = tuple[int, int]
"""A block in the image: its position, and its size, with the bit format.RAW where it is stored
uncompressed; or HOLE."""


class Blocks:
    """The data of a Reader's files, with a cache of decompressed blocks.

    All methods raise Corrupt where the image is damaged, and OSError.
    """

    def __init__(self, reader: Reader, cache_bytes: int) -> None:
        self.reader = reader
        self.size: int = reader.super.block_size
        self.log: int = reader.super.block_log
        self.cache: Cache[bytes] = Cache(cache_bytes, len)
        self._places: Cache[list[Place]] = Cache(2 << 20, lambda p: 200 + 130 * len(p))
        self._starts: Cache[list[tuple[int, int, int]]] = Cache(
            2 << 20, lambda p: 200 + 180 * len(p)
        )

    def count(self, node: Inode) -> int:
        """Return how many blocks a file's list has; an end that lies in a fragment is not in it."""
        return (node.size if node.fragment != NONE32 else node.size + self.size - 1) >> self.log

    def length(self, node: Inode, index: int) -> int:
        """Return how many bytes of a file block `index` holds."""
        return min(self.size, node.size - (index << self.log))

    def place(self, node: Inode, index: int) -> Place:
        """Return where block `index` of a file lies.

        The index after the last one means the fragment with the file's end. Raises Corrupt,
        OSError.
        """
        if index >= self.count(node):
            return self.fragment(node.fragment)
        return self._segment(node, index // LIST)[index % LIST]

    def _segment(self, node: Inode, number: int) -> list[Place]:
        key = node.ref << 32 | number
        found = self._places.get(key)
        if found is None:
            starts = self._starts.get(node.ref)
            if starts is None:
                count = self.count(node)
                if count > MOST_BLOCKS:
                    raise Corrupt(f"inode {node.number}: a file of {count} blocks")
                starts = [(node.start, *self.reader.behind(node, 4 * count))]
            for n in range(len(starts) - 1, number):
                data, at, offset = starts[n]
                data += sum(size & (RAW - 1) for size in self._sizes(node, n, at, offset))
                starts.append((data, *self.reader.skip(at, offset, 4 * LIST)))
            self._starts.put(node.ref, starts)
            data, at, offset = starts[number]
            sizes, at, found = self._sizes(node, number, at, offset), data, []
            for size in sizes:
                if size:
                    found.append((at, size))
                    at += size & (RAW - 1)
                else:
                    found.append(HOLE)
            self._places.put(key, found)
        return found

    def _sizes(self, node: Inode, number: int, at: int, offset: int) -> "tuple[int, ...]":
        """Return the sizes in a segment of a file's list, which is at `offset` in block `at`."""
        count = min(LIST, self.count(node) - number * LIST)
        return unpack_from(f"<{count}I", self.reader.span(at, offset, count * 4))

    def fragment(self, number: int) -> Place:
        """Return where fragment `number` lies."""
        supers = self.reader.super
        if number >= supers.fragment_count:
            raise Corrupt(f"fragment {number} of {supers.fragment_count} does not exist")
        at = supers.fragment_table + number // _FRAGMENTS * 8
        block = int.from_bytes(self.reader.source.read(at, 8), "little")
        start, size, _ = FRAGMENT.unpack(self.reader.span(block, number % _FRAGMENTS * 16, 16))
        return start, size

    def stored(self, place: Place) -> bytes:
        """Return a block's bytes as they are stored."""
        return self.reader.source.read(place[0], self.checked(place))

    def checked(self, place: Place) -> int:
        """Return a block's stored size. Raises Corrupt where it is impossible."""
        size = place[1] & (RAW - 1)
        if size > self.size or place[1] >= 2 * RAW:
            raise Corrupt(f"the data block at {place[0]} claims {size} bytes")
        return size

    def decode(self, place: Place, stored: bytes, most: int) -> bytes:
        """Decompress `stored`, the bytes of the block at `place`, to `most` bytes or fewer.

        Any thread may call this.
        """
        if place[1] & RAW:
            return stored
        try:
            return self.reader.decompress(stored, most)
        except Corrupt as error:
            raise Corrupt(f"the data block at {place[0]}: {error}") from None

    def take(self, place: Place) -> bytes:
        """Return the decompressed block at `place` and do not cache it."""
        found = self.cache.take(place)
        if found is None:
            found = self.decode(place, self.stored(place), self.size)
        return found

    def get(self, place: Place) -> bytes:
        """Return the decompressed block at `place`, which is no HOLE, and cache it."""
        found = self.cache.get(place)
        if found is None:
            found = self.decode(place, self.stored(place), self.size)
            self.cache.put(place, found)
        return found
