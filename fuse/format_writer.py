"""Write what `format` reads, the squashfs 4.0 format: values in, bytes out. For `relayout`."""

from struct import pack

from rootless_udi.base.superblock import COMPRESSORS, MAGIC, OPTIMIZED
from rootless_udi.fuse import format
from rootless_udi.fuse.format import NONE32, Inode, Superblock

_EXTENDED = 7
"""Added to an inode's type for its extended form (`format.DIR`)."""

_ORDER = (
    *("inode_count", "mtime", "block_size", "fragment_count"),
    *("block_log", "flags", "id_count"),
    *("root", "bytes_used", "id_table", "xattr_table", "inode_table", "directory_table"),
    *("fragment_table", "export_table"),
)


def superblock(old: Superblock, **changes: int) -> bytes:
    """Return a superblock like `old` with these fields changed."""
    values = {name: getattr(old, name) for name in _ORDER} | changes
    number = next(n for n, name in COMPRESSORS.items() if name == old.compressor)
    fields = [values[name] for name in _ORDER]
    return format.SUPERBLOCK.pack(MAGIC, *fields[:4], number, *fields[4:7], 4, 0, *fields[7:])


def hot(ranges: "tuple[tuple[int, int], tuple[int, int]]") -> bytes:
    """Return the marker that says what to read ahead (`format.Superblock.hot`): two ranges of
    bytes, each (position, length)."""
    return format.HOT.pack(OPTIMIZED, *ranges[0], *ranges[1])


def _header(node: Inode, kind: int) -> bytes:
    mode = node.mode & 0o7777
    return pack("<HHHHII", kind, mode, node.uid, node.gid, node.mtime, node.number)


def file(node: Inode, start: int, fragment: int, offset: int, sizes: list[int]) -> bytes:
    """Return a regular file's inode: the short form where that can hold it, else the extended one.

    `start` is the position of its first block, `sizes` the list of its blocks' sizes, `fragment`
    and `offset` where its end lies.
    """
    blocks = pack(f"<{len(sizes)}I", *sizes)
    plain = node.nlink == 1 and node.xattr == NONE32 and not node.sparse
    if plain and start < 1 << 32 and node.size < 1 << 32:
        return (
            _header(node, format.REG) + pack("<IIII", start, fragment, offset, node.size) + blocks
        )
    fields = (start, node.size, node.sparse, node.nlink, fragment, offset, node.xattr)
    return _header(node, format.REG + _EXTENDED) + pack("<QQQIIII", *fields) + blocks


def symlink(node: Inode, target: bytes) -> bytes:
    """Return a symbolic link's inode."""
    body = pack("<II", node.nlink, len(target)) + target
    if node.xattr == NONE32:
        return _header(node, format.SYMLINK) + body
    return _header(node, format.SYMLINK + _EXTENDED) + body + pack("<I", node.xattr)


def special(node: Inode) -> bytes:
    """Return the inode of a device, FIFO or socket."""
    body = pack("<I", node.nlink)
    if node.kind in (format.BLOCK, format.CHAR):
        body += pack("<I", node.rdev)
    if node.xattr == NONE32:
        return _header(node, node.kind) + body
    return _header(node, node.kind + _EXTENDED) + body + pack("<I", node.xattr)


def directory(node: Inode, listing: int, size: int, index: list[bytes]) -> bytes:
    """Return a directory's inode.

    `listing` is the reference of its listing, `size` that one's bytes and 3, `index` its index's
    rows.
    """
    start, offset = listing >> 16, listing & 0xFFFF
    if node.xattr == NONE32 and not index and size < 1 << 16:
        body = pack("<IIHHI", start, node.nlink, size, offset, node.parent)
        return _header(node, format.DIR) + body
    count = min(len(index), 0xFFFF)
    fields = (node.nlink, size, start, node.parent, count, offset, node.xattr)
    return (
        _header(node, format.DIR + _EXTENDED) + pack("<IIIIHHI", *fields) + b"".join(index[:count])
    )


def listing(entries: list[tuple[bytes, int, int, int]]) -> bytes:
    """Return a header and its entries, each (name, inode's reference, inode's number, type)."""
    block, number = entries[0][1] >> 16, entries[0][2]
    parts = [pack("<III", len(entries) - 1, block, number)]
    for name, ref, other, kind in entries:
        parts.append(pack("<HhHH", ref & 0xFFFF, other - number, kind, len(name) - 1) + name)
    return b"".join(parts)
