"""Squashfs images that are small files and claim to hold much, written by hand.

Metadata is gzip, so that what repeats costs nothing. Each function writes one image and is named
after the quantity that it makes as large as the format lets it be.
"""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

METADATA = 8192
NONE32, NONE64 = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
DIR, REG, LINK, LDIR, LREG = 1, 2, 3, 8, 9
RAW = 1 << 24
HOLE = 0


def metadata(data: bytes) -> tuple[bytes, list[int]]:
    """Return a table's blocks as they are stored, and where each starts."""
    stored, starts, known = bytearray(), [], {}
    for at in range(0, len(data), METADATA):
        piece = data[at : at + METADATA]
        if piece not in known:
            packed = zlib.compress(piece, 9)
            small = len(packed) < len(piece)
            known[piece] = struct.pack("<H", len(packed) if small else len(piece) | 0x8000) + (
                packed if small else piece
            )
        starts.append(len(stored))
        stored += known[piece]
    return bytes(stored), starts


class Bomb:
    """An image that is being made: add inodes to the root directory, then `write` it."""

    def __init__(self, block_log: int = 17) -> None:
        self.block_log = block_log
        self.data = b""
        self.inodes = bytearray()
        self.entries: list[tuple[int, int, int, bytes]] = []
        self.listing: bytes | None = None
        self.pairs = b""
        self.sets: list[tuple[int, int, int]] = []
        self.owners = [0]
        self.fragments: list[tuple[int, int]] = []
        self.marker = b""
        self.count = 0

    def header(self, kind: int, mode: int = 0o755) -> bytes:
        self.count += 1
        return struct.pack("<HHHHII", kind, mode, 0, 0, 0, self.count)

    def add(self, name: bytes, kind: int, body: bytes) -> None:
        """Add an inode to the root directory."""
        at = len(self.inodes)
        self.inodes += self.header(kind) + body
        self.entries.append((at, self.count, (kind - 1) % 7 + 1, name))

    def file(self, name: bytes, size: int, sizes: bytes, start: int = 96) -> None:
        """Add a file with that list of blocks (4 bytes each)."""
        fixed = struct.pack("<QQQIIII", start, size, 0, 1, NONE32, 0, NONE32)
        self.add(name, LREG, fixed + sizes)

    def folder(self, name: bytes, body: bytes, index: bytes = b"", count: int = 0) -> None:
        """Add a folder whose listing is `body`; for the root to share, it is put behind it."""
        fixed = struct.pack("<IIIIHHI", 2, len(body) + 3, 0, 1, count, 0, NONE32)
        self.add(name, LDIR, fixed + index)
        self.listing = body

    def write(self, path: Path, xattr: int = NONE32) -> Path:
        """Write the image; the root has the set `xattr` of extended attributes."""
        first = 96 + len(self.marker)
        stored, starts = metadata(bytes(self.inodes) + bytes(METADATA))
        own = self.listing or b""
        parts = []
        for at, number, kind, name in self.entries:
            parts.append(struct.pack("<III", 0, starts[at // METADATA], number))
            parts.append(struct.pack("<HhHH", at % METADATA, 0, kind, len(name) - 1) + name)
        listing = b"".join(parts)
        packed, places = metadata(own + listing)
        at = len(own)
        where = places[at // METADATA] if listing else 0
        root = self.header(LDIR) + struct.pack(
            "<IIIIHHI", 2, len(listing) + 3, where, 1, 0, at % METADATA, xattr
        )
        # The root's inode in a block of its own, so that its place is known.
        root_ref = len(stored) << 16
        stored += metadata(root)[0]
        out = bytearray(self.marker + self.data)

        def put(data: bytes) -> int:
            out.extend(data)
            return 96 + len(out) - len(data)

        def indexed(data: bytes, head: Callable[[], bytes] = lambda: b"") -> int:
            blocks, begins = metadata(data)
            base = put(blocks)
            return put(head() + b"".join(struct.pack("<Q", base + b) for b in begins))

        inode_table, directory_table = put(stored), put(packed)
        fragment_table = xattr_table = NONE64
        if self.fragments:
            fragment_table = indexed(b"".join(struct.pack("<QII", *f, 0) for f in self.fragments))
        if self.sets:
            blocks, begins = metadata(self.pairs)
            base = put(blocks)
            rows = b"".join(
                struct.pack("<QII", begins[p // METADATA] << 16 | p % METADATA, n, size)
                for p, n, size in self.sets
            )
            xattr_table = indexed(rows, lambda: struct.pack("<QII", base, len(self.sets), 0))
        id_table = indexed(struct.pack(f"<{len(self.owners)}I", *self.owners))
        used = 96 + len(out)
        head = struct.pack(
            "<5I6H8Q",
            *(0x73717368, self.count, 0, 1 << self.block_log, len(self.fragments)),
            *(1, self.block_log, 0, len(self.owners), 4, 0, root_ref, used),
            *(id_table, xattr_table, inode_table, directory_table, fragment_table, NONE64),
        )
        assert first <= used
        path.write_bytes(head + out + bytes(-used % 4096))
        return path


def xattr_sum(path: Path, pairs: int = 5000, length: int = 65536) -> Path:
    """One inode with thousands of xattrs, whose one value of 64 KiB is kept out of line."""
    one = Bomb()
    value = struct.pack("<I", length) + b"v" * length
    names = [b"%04x" % n for n in range(pairs)]
    one.pairs = value + b"".join(
        struct.pack("<HH", 0x100, 4) + name + struct.pack("<IQ", 8, 0) for name in names
    )
    one.sets = [(len(value), pairs, 1000)]
    return one.write(path, xattr=0)


def xattr_count(path: Path) -> Path:
    """More xattrs at one inode than listxattr(2) could ever give."""
    return xattr_sum(path, pairs=65535, length=1)


def xattr_inline(path: Path) -> Path:
    """Values of 64 KiB in a row: 512 MiB of metadata lie before the last name."""
    one = Bomb()
    pair = struct.pack("<HH", 0, 4) + b"name" + struct.pack("<I", 65536) + b"v" * 65536
    one.pairs = pair * 64
    one.pairs += bytes(-len(one.pairs) % METADATA)
    one.sets = [(0, 8000, 1000)]
    return one.write(path, xattr=0)


def xattr_table_damaged(path: Path) -> Path:
    """A table of xattrs that ends beyond the image."""
    data = bytearray(xattr_sum(path, pairs=1).read_bytes())
    used = int.from_bytes(data[40:48], "little")
    data[56:64] = (used - 8).to_bytes(8, "little")
    path.write_bytes(data)
    return path


def block_list(path: Path) -> Path:
    """A file of terabytes, all holes: 8 million sizes of blocks in an inode."""
    one = Bomb()
    count = 1 << 22
    one.file(b"large", count << 17, bytes(4 * count))
    return one.write(path)


def programs(path: Path) -> Path:
    """Programs of 8 MiB in blocks of 4 KiB, which share their blocks: each asks for 2048 jobs."""
    one = Bomb(12)
    block = zlib.compress(b"\x7fELF" + bytes(4092), 9)
    one.data = block * 2048
    for number in range(40):
        sizes = struct.pack("<I", len(block)) * 2048
        one.file(b"%04d" % number, 8 << 20, sizes)
    return one.write(path)


def listing_size(path: Path) -> Path:
    """A folder of 40 MiB of names without an index, 128 bytes each."""
    one = Bomb()
    one.add(b"file", REG, struct.pack("<IIII", 96, NONE32, 0, 0))
    entry = struct.pack("<HhHH", 0, 0, REG, 119) + b"n" * 120
    run = struct.pack("<III", 255, 0, 1) + entry * 256
    one.folder(b"large", run * ((40 << 20) // len(run)))
    return one.write(path)


def listing_index(path: Path) -> Path:
    """A folder with an index of 65,535 rows, all of them the same."""
    one = Bomb()
    entry = struct.pack("<HhHH", 0, 0, REG, 119) + b"n" * 120
    run = struct.pack("<III", 255, 0, 1) + entry * 256
    row = struct.pack("<III", 0, 0, 255) + b"i" * 256
    one.folder(b"large", run * 8, row * 65535, 65535)
    return one.write(path)


def inodes(path: Path) -> Path:
    """100,000 inodes, each with numbers as large as they can be, in one folder."""
    one = Bomb()
    for number in range(100_000):
        one.file(b"%06d-" % number + b"n" * 60, (1 << 63) - 1, b"", (1 << 62) + number)
    return one.write(path)


def target_length(path: Path) -> Path:
    """Links to 64 KiB."""
    one = Bomb()
    for number in range(200):
        one.add(b"%03d" % number, LINK, struct.pack("<II", 1, 65535) + b"t" * 65535)
    return one.write(path)


def owners(path: Path) -> Path:
    """As many owners as the table can count."""
    one = Bomb()
    one.owners = [n << 15 for n in range(65535)]
    return one.write(path)


def fragments(path: Path) -> Path:
    """Fragments of 1 MiB, each of another file of one byte."""
    one = Bomb(20)
    block = zlib.compress(bytes(1 << 20), 9)
    one.data = block * 400
    for number in range(400):
        one.fragments.append((96 + number * len(block), len(block)))
        one.add(b"%03d" % number, REG, struct.pack("<IIII", 0, number, 0, 1))
    return one.write(path)


def blocks(path: Path) -> Path:
    """Blocks of 1 MiB out of 1 KiB each, a thousand of them."""
    one = Bomb(20)
    block = zlib.compress(bytes(1 << 20), 9)
    one.data = block * 200
    for number in range(20):
        one.file(b"%03d" % number, 200 << 20, struct.pack("<I", len(block)) * 200)
    return one.write(path)


def start_order(path: Path) -> Path:
    """What `udi optimize` leaves to be read ahead: a terabyte of a sparse file."""
    one = Bomb()
    one.marker = struct.pack("<8s4Q", b"udi-hot1", 4096, 1 << 40, 96, 100)
    data = bytearray(one.write(path).read_bytes())
    data[40:48] = ((1 << 40) + (1 << 30)).to_bytes(8, "little")
    path.write_bytes(data)
    with open(path, "r+b") as file:
        file.truncate((1 << 40) + (1 << 30))
    return path


BOMBS: dict[str, Callable[[Path], Path]] = {
    one.__name__: one
    for one in (
        *(xattr_sum, xattr_count, xattr_inline, xattr_table_damaged, block_list, programs),
        *(listing_size, listing_index, inodes, target_length, owners, fragments, blocks),
        start_order,
    )
}
