"""The squashfs 4.0 on-disk format: superblock, inodes, directory listings. Bytes in, values out.

Source: Documentation/filesystems/squashfs.rst and fs/squashfs/squashfs_fs.h of Linux. All numbers
are little-endian. `superblock` reads the image's first bytes; nothing else here reads a file.
Data that contradicts itself raises `Corrupt`. `_struct` is the C module behind Python's `struct`;
importing it directly saves a file.
"""

from _struct import Struct
from _struct import error as StructError  # type: ignore[attr-defined]

from rootless_udi.base.errors import UdiError
from rootless_udi.base.superblock import COMPRESSORS, HEAD, MAGIC, OPTIMIZED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

METADATA = 8192
"""Bytes of a metadata block once decompressed; only the last one of a table may have fewer."""
STORED, LENGTH = 0x8000, 0x7FFF
"""Of a metadata block's header, 2 bytes: set where the block is stored uncompressed; its length."""
NONE32 = 0xFFFFFFFF
NONE64 = 0xFFFFFFFFFFFFFFFF
RAW = 1 << 24
"""Set in a data block's size where the block is stored uncompressed."""
NO_XATTRS, COMPRESSOR_OPTIONS = 0x200, 0x400
"""Flags of the superblock."""

DIR, REG, SYMLINK, BLOCK, CHAR, FIFO, SOCKET = range(1, 8)
"""Inode types; an inode of type N + 7 is the extended form of type N."""
_FORMAT_BITS = (0, 0o040000, 0o100000, 0o120000, 0o060000, 0o020000, 0o010000, 0o140000)
"""S_IFMT bits (inode(7)) by type."""

SUPERBLOCK = Struct("<5I6H8Q")
_HEADER = Struct("<HHHHII")
_DIR = Struct("<IIHHI")
_LDIR = Struct("<IIIIHHI")
_REG = Struct("<IIII")
_LREG = Struct("<QQQIIII")
_SYMLINK = Struct("<II")
_DEVICE = Struct("<II")
_LDEVICE = Struct("<III")
_IPC = Struct("<I")
_LIPC = Struct("<II")
_LISTING = Struct("<III")
_ENTRY = Struct("<HhHH")
DIR_INDEX = Struct("<III")
FRAGMENT = Struct("<QII")
XATTR_TABLE = Struct("<QII")
XATTR_ID = Struct("<QII")
XATTR_ENTRY = Struct("<HH")

INODE_FIXED = 16 + _LREG.size
"""Most bytes of an inode before its list of blocks, its index or its target."""


LONGEST_RUN = 12 + 256 * (8 + 256)
"""Most bytes of a directory's header and its entries: up to 256, with names of up to 256 bytes."""
LONGEST_TARGET = 4095
"""Most bytes of a link's target (symlink(2)); the kernel's squashfs reads none that is longer."""


class Corrupt(Exception):
    """The image is damaged; the message says what is wrong and where. Readers get EIO."""


class WrongWindow(Corrupt):
    """A window of the image (`imagefile`) is not what its list says; `number` is the window's."""

    def __init__(self, number: int, where: str) -> None:
        super().__init__(f"window {number} of 1 MiB ({where}) is not what its list says")
        self.number = number


class Superblock:
    """The first 96 bytes of an image.

    The fields that end in `_table` are positions in the image in bytes, NONE64 where there is none.
    `root` is the root directory's reference (see `reader`), `head` the bytes that were parsed.
    `base` is where in its file the image begins, as one in a SIF file does.
    """

    __slots__ = (
        "base",
        "block_log",
        "block_size",
        "bytes_used",
        "compressor",
        "directory_table",
        "export_table",
        "flags",
        "fragment_count",
        "fragment_table",
        "head",
        "id_count",
        "id_table",
        "inode_count",
        "inode_table",
        "mtime",
        "root",
        "xattr_table",
    )
    compressor: str
    root: int
    block_size: int
    bytes_used: int

    def __init__(self, data: bytes) -> None:
        """Parse `data`. Raises Corrupt, naming what is wrong with it."""
        if len(data) < SUPERBLOCK.size:
            raise Corrupt(f"{len(data)} bytes are too few for a squashfs image")
        self.head, self.base = data, 0
        (
            magic,
            self.inode_count,
            self.mtime,
            self.block_size,
            self.fragment_count,
            compressor,
            self.block_log,
            self.flags,
            self.id_count,
            major,
            minor,
            self.root,
            self.bytes_used,
            self.id_table,
            self.xattr_table,
            self.inode_table,
            self.directory_table,
            self.fragment_table,
            self.export_table,
        ) = SUPERBLOCK.unpack_from(data)
        if magic != MAGIC:
            raise Corrupt("not a squashfs image (no squashfs magic at its start)")
        if (major, minor) != (4, 0):
            raise Corrupt(f"squashfs version {major}.{minor}, and only 4.0 is known")
        if not 12 <= self.block_log <= 20 or self.block_size != 1 << self.block_log:
            raise Corrupt(f"block size {self.block_size} (log {self.block_log}) is not possible")
        self.compressor = COMPRESSORS.get(compressor, "")
        if not self.compressor:
            raise Corrupt(f"compressor number {compressor} is not known")
        used = self.bytes_used
        if not SUPERBLOCK.size <= self.inode_table < self.directory_table <= used:
            raise Corrupt("its inode and directory tables lie outside of it")
        if self.id_table >= used or not self.id_count:
            raise Corrupt("its table of owners lies outside of it")
        if self.fragment_count and self.fragment_table >= used:
            raise Corrupt("its fragment table lies outside of it")
        if self.xattr_table != NONE64 and self.xattr_table >= used:
            raise Corrupt("its xattr table lies outside of it")
        if self.root >> 16 >= self.directory_table - self.inode_table:
            raise Corrupt("its root directory lies outside of its inode table")

    def hot(self) -> "tuple[tuple[int, int], ...]":
        """Return (position, length) of what to read ahead, in order; () if no marker says it.

        `udi optimize` writes the marker between the compressor's options and the first data block.
        Other readers of squashfs never look there, since they find blocks by their positions alone.
        """
        at = SUPERBLOCK.size
        if self.flags & COMPRESSOR_OPTIONS:
            at += 2 + (int.from_bytes(self.head[at : at + 2], "little") & LENGTH)
        if self.head[at : at + 8] != OPTIMIZED or len(self.head) < at + HOT_SIZE:
            return ()
        values = HOT.unpack_from(self.head, at)[1:]
        pairs = zip(values[::2], values[1::2], strict=True)
        return tuple(p for p in pairs if p[1] and p[0] + p[1] <= self.bytes_used)


SUPERBLOCK_SIZE = SUPERBLOCK.size
HOT = Struct("<8s4Q")
HOT_SIZE = HOT.size
EXPECTED = 4096
"""Most windows of 1 MiB, 4 GiB, that a marker (`Superblock.hot`) may name; a damaged one names
terabytes."""


def superblock(fd: int, name: str, base: int = 0) -> Superblock:
    """Return the superblock of the image at byte `base` of the file at `fd`, in errors `name`.

    Raises UdiError where it is no squashfs 4.0 image, or is cut short; OSError.
    """
    import os

    hint = "pull or copy it again; `udi doctor IMAGE` checks it"
    try:
        found = Superblock(os.pread(fd, HEAD, base))
    except Corrupt as error:
        raise UdiError(f"mounting failed on {name}: {error}", hint) from None
    found.base = base
    size = os.lseek(fd, 0, os.SEEK_END) - base
    if size < found.bytes_used:
        why = f"it is cut short ({size} of {found.bytes_used} bytes)"
        raise UdiError(f"mounting failed on {name}: {why}", hint)
    return found


class Inode:
    """An inode, of any type.

    - `kind`: a type from DIR to SOCKET. `mode`: with the S_IFMT bits (inode(7)). `mtime`: seconds.
    - `ref`: where the inode lies, its reference (see `reader`). `number`: its inode number.
    - `uid`, `gid`: indices into the table of owners. `xattr`: index into that of the extended
      attributes, or NONE32. `parent`: a directory's parent, by inode number.
    - `start`: a file's first data block, as a position in the image in bytes; or a directory's
      listing, as a metadata block's position counted from the directory table.
    - `fragment`: the fragment with a file's end, or NONE32. `offset`: where in the fragment that
      is; for a directory where in its metadata block the listing starts.
    - `size`: bytes of a file, a link's target or, with 3 more, a directory's listing. `sparse`: how
      many of a file's bytes lie in holes.
    - `tail`: how many bytes after the inode's start its list of blocks, its index or its target
      begins. `count`: rows of a directory's index.
    """

    __slots__ = (
        "count",
        "fragment",
        "gid",
        "kind",
        "mode",
        "mtime",
        "nlink",
        "number",
        "offset",
        "parent",
        "rdev",
        "ref",
        "size",
        "sparse",
        "start",
        "tail",
        "uid",
        "xattr",
    )
    fragment: int
    offset: int
    start: int
    parent: int
    count: int

    def __init__(self, ref: int, data: bytes, at: int) -> None:
        """Parse the inode at `data[at:]`; `ref` is its reference. Raises Corrupt."""
        self.ref = ref
        kind, mode, self.uid, self.gid, self.mtime, self.number = _HEADER.unpack_from(data, at)
        self.nlink, self.rdev, self.size, self.sparse, self.xattr, self.tail = 1, 0, 0, 0, NONE32, 0
        if not 1 <= kind <= 14:
            raise Corrupt(f"inode {self.number} has the unknown type {kind}")
        _PARSERS[kind](self, data, at + 16)
        self.kind = kind if kind < 8 else kind - 7
        self.mode = _FORMAT_BITS[self.kind] | mode & 0o7777


def inode(ref: int, data: bytes, at: int) -> Inode:
    """Return the inode at `data[at:]`, where `data` has INODE_FIXED bytes of it, or the table's
    last.

    `ref` is the inode's reference. Raises Corrupt.
    """
    try:
        return Inode(ref, data, at)
    except StructError:
        raise Corrupt(f"inode at {ref >> 16}:{ref & 0xFFFF} is cut short") from None


def _dir(self: Inode, data: bytes, at: int) -> None:
    self.start, self.nlink, size, self.offset, self.parent = _DIR.unpack_from(data, at)
    self.size, self.count = size, 0


def _ldir(self: Inode, data: bytes, at: int) -> None:
    self.nlink, self.size, self.start, self.parent, self.count, self.offset, self.xattr = (
        _LDIR.unpack_from(data, at)
    )
    self.tail = 16 + _LDIR.size


def _reg(self: Inode, data: bytes, at: int) -> None:
    self.start, self.fragment, self.offset, self.size = _REG.unpack_from(data, at)
    self.tail = 16 + _REG.size


def _lreg(self: Inode, data: bytes, at: int) -> None:
    self.start, self.size, self.sparse, self.nlink, self.fragment, self.offset, self.xattr = (
        _LREG.unpack_from(data, at)
    )
    self.tail = 16 + _LREG.size


def _symlink(self: Inode, data: bytes, at: int) -> None:
    self.nlink, self.size = _SYMLINK.unpack_from(data, at)
    self.tail = 16 + _SYMLINK.size


def _device(self: Inode, data: bytes, at: int) -> None:
    self.nlink, self.rdev = _DEVICE.unpack_from(data, at)


def _ldevice(self: Inode, data: bytes, at: int) -> None:
    self.nlink, self.rdev, self.xattr = _LDEVICE.unpack_from(data, at)


def _ipc(self: Inode, data: bytes, at: int) -> None:
    (self.nlink,) = _IPC.unpack_from(data, at)


def _lipc(self: Inode, data: bytes, at: int) -> None:
    self.nlink, self.xattr = _LIPC.unpack_from(data, at)


_PARSERS: "tuple[Callable[[Inode, bytes, int], None], ...]" = (
    _ipc,
    _dir,
    _reg,
    _symlink,
    _device,
    _device,
    _ipc,
    _ipc,
    _ldir,
    _lreg,
    _symlink,  # an extended one; its xattr index lies behind the target, where Reader reads it
    _ldevice,
    _ldevice,
    _lipc,
    _lipc,
)


def listing(data: bytes) -> "dict[bytes, int]":
    """Parse a directory listing, or the part of one that starts at a header.

    Returns name -> entry in the order of the listing. An entry is one integer, the inode's
    reference << 36 | its number << 4 | its type: that takes 36 bytes where a tuple takes 130.
    Raises Corrupt.
    """
    found: dict[bytes, int] = {}
    at, end = 0, len(data)
    entry_at = _ENTRY.unpack_from
    try:
        while at < end:
            count, start, number = _LISTING.unpack_from(data, at)
            if count > 255:
                raise Corrupt(f"a directory header counts {count + 1} entries")
            at += 12
            base = start << 16
            for _ in range(count + 1):
                offset, delta, kind, size = entry_at(data, at)
                stop = at + 9 + size
                name = data[at + 8 : stop]
                if size > 255 or not 1 <= kind <= 7 or b"/" in name or b"\0" in name:
                    raise Corrupt(f"a directory has the impossible entry {name[:60]!r}")
                if name == b"." or name == b"..":
                    raise Corrupt(f"a directory has an entry called {name!r}")
                found[name] = (base | offset) << 36 | ((number + delta) & NONE32) << 4 | kind
                at = stop
    except StructError:
        raise Corrupt("a directory listing is cut short") from None
    if at != end:
        raise Corrupt("a directory listing is cut short")
    return found


def listing_headers(data: bytes) -> "list[tuple[int, bytes, int]]":
    """Return (position, first name, end) of each header whose entries are all in `data`, in bytes.

    `data` is a piece of a listing that starts at a header. With LONGEST_RUN bytes or more, at least
    one header is whole. Raises Corrupt.
    """
    found: list[tuple[int, bytes, int]] = []
    at, have = 0, len(data)
    while at + 12 <= have:
        count = int.from_bytes(data[at : at + 4], "little")
        if count > 255:
            raise Corrupt(f"a directory header counts {count + 1} entries")
        header, at = at, at + 12
        first = b""
        for _ in range(count + 1):
            size = int.from_bytes(data[at + 6 : at + 8], "little") + 1
            if size > 256:
                raise Corrupt(f"a directory has a name of {size} bytes")
            first = first or data[at + 8 : at + 8 + size]
            at += 8 + size
        if at > have:
            break
        found.append((header, first, at))
    return found
