"""Compare a new layout of an image with the old one, file by file."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.fuse import format
from rootless_udi.fuse.filesystem import ROOT, FileSystem


def verify(old: FileSystem, new: FileSystem) -> int:
    """Compare all names, attributes, targets, xattrs and bytes; return the number of inodes.

    Raises UdiError at the first difference: then the new image must not be used.
    """
    stack = [(b"", ROOT, ROOT)]
    seen: dict[int, int] = {}
    while stack:
        path, a, b = stack.pop()
        if a in seen:
            _same(path, seen[a], b)
            continue
        seen[a] = b
        one = old.inode(a)
        _same(path, _attributes(old, a), _attributes(new, b))
        _same(path, old.xattrs(a), new.xattrs(b))
        for name in old.xattrs(a):
            _same(path, old.xattr(a, name), new.xattr(b, name))
        if one.kind == format.SYMLINK:
            _same(path, old.readlink(a), new.readlink(b))
        elif one.kind == format.REG:
            for at in range(0, one.size, 1 << 20):
                _same(path, b"".join(old.read(a, at, 1 << 20)), b"".join(new.read(b, at, 1 << 20)))
        elif one.kind == format.DIR:
            left = [(e[0], e[2], e[3], e[1]) for e in old.entries(a, 0)]
            right = [(e[0], e[2], e[3], e[1]) for e in new.entries(b, 0)]
            _same(path, [e[:3] for e in left], [e[:3] for e in right])
            for x, y in zip(left, right, strict=True):
                if x[3]:
                    stack.append((path + b"/" + x[0], x[3], y[3]))
    return len(seen)


def _attributes(fs: FileSystem, node: int) -> tuple[int, ...]:
    """Return the attributes; of a directory without the size, which is that of its listing."""
    found = fs.attributes(node)
    return (*found[:1], *found[2:]) if fs.inode(node).kind == format.DIR else found


def _same(path: bytes, one: object, other: object) -> None:
    if one != other:
        raise UdiError(
            f"optimizing failed on {os.fsdecode(path) or '/'}: the new image differs there",
            "keep the old image, and report this",
        )
