"""Look into an image without mounting it: for --explain, which mounts nothing.

`opened` gives two functions: `look`, which is a `plan.covers.Look`, and `count`, which returns the
number of a directory's entries. Both take a path in the image, whose folders are no links. A
squashfs file is read by the code of our image server, whichever server the plan names.
Starts never import this.
"""

import os
from contextlib import contextmanager
from stat import S_ISDIR, S_ISLNK

from rootless_udi.base.errors import UdiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rootless_udi.fuse.format import Inode
    from rootless_udi.plan.covers import Look

    Asked = tuple[Look, Callable[[str], int]]


@contextmanager
def opened(path: str, offset: int = 0) -> "Iterator[Asked]":
    """Give (look, count) of the image at `path`, a squashfs file or a root directory.

    `offset` is where in the file the squashfs begins.

    The context raises OSError where the image can't be read, and UdiError where the file is not
    squashfs, is damaged (which `look` and `count` may find as well), or can't be decompressed here.
    """
    if os.path.isdir(path):
        yield _directory(path.rstrip("/"))
        return
    from rootless_udi.fuse.format import Corrupt

    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield _squashfs(fd, path, offset)
    except Corrupt as error:
        raise UdiError(f"it does not hold together: {error}") from None
    finally:
        os.close(fd)


def _directory(top: str) -> "Asked":
    def look(path: str) -> tuple[str, str]:
        try:
            mode = os.lstat(f"{top}{path}").st_mode
            if S_ISLNK(mode):
                return "link", os.readlink(f"{top}{path}")
        except OSError:
            return "", ""
        return ("directory" if S_ISDIR(mode) else "file"), ""

    def count(path: str) -> int:
        with os.scandir(f"{top}{path}") as listing:
            return sum(1 for _ in listing)

    return look, count


def _squashfs(fd: int, name: str, offset: int) -> "Asked":
    from rootless_udi.fuse.format import DIR, SYMLINK
    from rootless_udi.fuse.reader import Reader

    reader = Reader(fd, name, base=offset)

    def found(path: str) -> "Inode | None":
        at = reader.inode(reader.super.root)
        for part in filter(None, os.fsencode(path).split(b"/")):
            entry = reader.lookup(at, part) if at.kind == DIR else 0
            if not entry:
                return None
            at = reader.inode(entry >> 36)
        return at

    def look(path: str) -> tuple[str, str]:
        one = found(path)
        if one is None:
            return "", ""
        if one.kind == SYMLINK:
            return "link", os.fsdecode(reader.target(one))
        return ("directory" if one.kind == DIR else "file"), ""

    def count(path: str) -> int:
        one = found(path)
        if one is None or one.kind != DIR:
            return 0
        return sum(len(reader.entries(one, part)) for part in range(len(reader.segments(one))))

    return look, count
