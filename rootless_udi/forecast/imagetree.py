"""An image's files, read without mounting it: of a squashfs file, or of a root directory.

with imagetree.opened(path) as tree:
    for entry, content in tree.walk(): ...
    entry = tree.find("/usr/bin/python3")     symbolic links followed within the image
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rootless_udi.base.errors import UdiError
from rootless_udi.forecast.needs import FileContent, ImageEntry, Unreadable
from rootless_udi.fuse import format as squashfs
from rootless_udi.fuse.blocks import HOLE, Blocks
from rootless_udi.fuse.format import Corrupt, Inode
from rootless_udi.fuse.reader import Reader

HEAD = 4096
MOST_ENTRIES = 4_000_000
"""Most entries of an image that are looked at; a hostile one may name the same folder without end.
"""
MOST_READ = 64 << 20
"""Most bytes of one `read`."""
_LINKS = 40
_DEPTH = 200

_KINDS = {
    squashfs.DIR: "directory",
    squashfs.REG: "file",
    squashfs.SYMLINK: "link",
    squashfs.FIFO: "fifo",
    squashfs.SOCKET: "socket",
}


class ImageTree(Protocol):
    """An image that is open."""

    def walk(self) -> Iterator[tuple[ImageEntry, FileContent | None]]:
        """Yield every entry but "/", folders before what is in them, and a regular file's content.

        Raises Unreadable where the image is damaged so that it can't go on.
        """
        ...

    def at(self, path: str) -> ImageEntry | None:
        """Return the entry at a path of which no folder is a link; None where there is none."""
        ...

    def content(self, path: str) -> FileContent | None:
        """Return the content of the regular file there; None where there is none."""
        ...

    def names(self, path: str) -> list[str]:
        """Return the names in a folder, in any order; [] where there is no folder."""
        ...


@contextmanager
def opened(path: str, offset: int = 0) -> Iterator[ImageTree]:
    """Open an image by its file's or directory's path; `offset` is where in the file it begins.

    Raises UdiError where it can't be read.
    """
    if os.path.isdir(path):
        yield _Folder(path)
        return
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UdiError(f"opening image {path} failed: {error.strerror}") from None
    try:
        yield _Squashfs(fd, path, offset)
    finally:
        os.close(fd)


def find(tree: ImageTree, path: str) -> ImageEntry | None:
    """Return what is at a path of the image with all links followed; None where there is nothing.

    The entry's path is the real one. Raises Unreadable.
    """
    done, rest, links = "", [part for part in path.split("/") if part and part != "."], 0
    found: ImageEntry | None = ImageEntry("/", "directory", 0o755, 0, 0, 0)
    while rest:
        part = rest.pop(0)
        if part == "..":
            done = done.rpartition("/")[0]
            continue
        found = tree.at(f"{done}/{part}")
        if found is None:
            return None
        if found.kind == "link":
            links += 1
            if links > _LINKS:
                return None
            done = "" if found.target.startswith("/") else done
            rest[:0] = [p for p in found.target.split("/") if p and p != "."]
            found = ImageEntry(done or "/", "directory", 0o755, 0, 0, 0)
            continue
        done = f"{done}/{part}"
    return found


class _Pieces:
    """The content of a file in a squashfs image."""

    def __init__(self, tree: "_Squashfs", node: Inode) -> None:
        self._tree, self._node = tree, node
        self._head: bytes | None = None

    @property
    def head(self) -> bytes:
        if self._head is None:
            self._head = self.read(0, HEAD)
        return self._head

    def read(self, at: int, size: int) -> bytes:
        if self._head is not None and at >= 0 and at + size <= len(self._head):
            return self._head[at : at + size]
        try:
            return self._read(at, size)
        except (Corrupt, OSError) as error:
            raise Unreadable(str(error)) from None

    def _read(self, at: int, size: int) -> bytes:
        node, blocks = self._node, self._tree.blocks
        end = min(at + size, node.size)
        if at < 0 or size < 0 or size > MOST_READ:
            raise Unreadable(f"{size} bytes at {at} of {node.size}")
        parts = []
        while at < end:
            index = at >> blocks.log
            length, place = blocks.length(node, index), blocks.place(node, index)
            inside = at - (index << blocks.log)
            count = min(length - inside, end - at)
            if place == HOLE:
                parts.append(bytes(count))
            else:
                data = blocks.get(place)
                begin = inside + (node.offset if index >= blocks.count(node) else 0)
                if begin + count > len(data):
                    raise Corrupt(f"block {index} holds {len(data)} bytes")
                parts.append(data[begin : begin + count])
            at += count
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _Squashfs:
    def __init__(self, fd: int, path: str, offset: int = 0) -> None:
        try:
            self.reader = Reader(fd, path, base=offset)
            self.blocks = Blocks(self.reader, 16 << 20)
            self._owners: dict[int, int] = {}
        except (Corrupt, OSError) as error:
            raise UdiError(f"reading image {path} failed: {error}") from None

    def walk(self) -> Iterator[tuple[ImageEntry, FileContent | None]]:
        left = MOST_ENTRIES
        todo = [("", self.reader.super.root, 0)]
        try:
            while todo:
                folder, ref, depth = todo.pop()
                inner = []
                for name, below in self._names(self.reader.inode(ref)):
                    left -= 1
                    if left < 0:
                        raise Unreadable(f"more than {MOST_ENTRIES} entries")
                    path = f"{folder}/{name}"
                    node = self.reader.inode(below)
                    content = _Pieces(self, node) if node.kind == squashfs.REG else None
                    yield self._entry(path, node), content
                    if node.kind == squashfs.DIR and depth < _DEPTH:
                        inner.append((path, below, depth + 1))
                todo += reversed(inner)
        except (Corrupt, OSError) as error:
            raise Unreadable(str(error)) from None

    def _names(self, node: Inode) -> Iterator[tuple[str, int]]:
        for number in range(len(self.reader.segments(node))):
            for name, entry in self.reader.entries(node, number).items():
                yield os.fsdecode(name), entry >> 36

    def _entry(self, path: str, node: Inode) -> ImageEntry:
        link = node.kind == squashfs.SYMLINK
        target = os.fsdecode(self.reader.target(node)) if link else ""
        size = node.size if node.kind == squashfs.REG else 0
        kind = _KINDS.get(node.kind, "device")
        owners = self.reader.owner(node.uid), self.reader.owner(node.gid)
        return ImageEntry(path, kind, node.mode & 0o7777, *owners, size, target)

    def _node(self, path: str) -> Inode | None:
        try:
            node = self.reader.inode(self.reader.super.root)
            for part in filter(None, path.split("/")):
                if node.kind != squashfs.DIR:
                    return None
                entry = self.reader.lookup(node, os.fsencode(part))
                if not entry:
                    return None
                node = self.reader.inode(entry >> 36)
        except (Corrupt, OSError) as error:
            raise Unreadable(str(error)) from None
        return node

    def at(self, path: str) -> ImageEntry | None:
        node = self._node(path)
        try:
            return self._entry(path, node) if node else None
        except (Corrupt, OSError) as error:
            raise Unreadable(str(error)) from None

    def content(self, path: str) -> FileContent | None:
        node = self._node(path)
        return _Pieces(self, node) if node and node.kind == squashfs.REG else None

    def names(self, path: str) -> list[str]:
        node = self._node(path)
        try:
            return (
                [name for name, _ in self._names(node)]
                if node and node.kind == squashfs.DIR
                else []
            )
        except (Corrupt, OSError) as error:
            raise Unreadable(str(error)) from None


class _File:
    """The content of a file in a root directory; opened for each read, and never through a link."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._head: bytes | None = None

    @property
    def head(self) -> bytes:
        if self._head is None:
            self._head = self.read(0, HEAD)
        return self._head

    def read(self, at: int, size: int) -> bytes:
        if at < 0 or not 0 <= size <= MOST_READ:
            raise Unreadable(f"{size} bytes at {at}")
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                parts = []
                while size > 0 and (part := os.pread(fd, size, at)):
                    parts.append(part)
                    at, size = at + len(part), size - len(part)
                return b"".join(parts)
            finally:
                os.close(fd)
        except OSError as error:
            raise Unreadable(f"{error.strerror}") from None


class _Folder:
    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/") or "/"

    def walk(self) -> Iterator[tuple[ImageEntry, FileContent | None]]:
        todo = [("", 0)]
        while todo:
            folder, depth = todo.pop()
            try:
                names = sorted(os.listdir(f"{self._root}{folder}"))
            except OSError:
                continue  # The folder's entry has said that it can't be read.
            inner = []
            for name in names:
                path = f"{folder}/{name}"
                entry = self.at(path)
                if entry is None:
                    continue
                content = _File(f"{self._root}{path}") if entry.kind == "file" else None
                yield entry, content
                if entry.kind == "directory" and depth < _DEPTH:
                    inner.append((path, depth + 1))
            todo += reversed(inner)

    def at(self, path: str) -> ImageEntry | None:
        try:
            found = os.lstat(f"{self._root}{path}")
            target = os.readlink(f"{self._root}{path}") if stat.S_ISLNK(found.st_mode) else ""
        except OSError:
            return None
        kinds = (
            (stat.S_ISREG, "file"),
            (stat.S_ISDIR, "directory"),
            (stat.S_ISLNK, "link"),
            (stat.S_ISFIFO, "fifo"),
            (stat.S_ISSOCK, "socket"),
        )
        kind = next((word for test, word in kinds if test(found.st_mode)), "device")
        size = found.st_size if kind == "file" else 0
        mode = found.st_mode & 0o7777
        return ImageEntry(path, kind, mode, found.st_uid, found.st_gid, size, target)

    def names(self, path: str) -> list[str]:
        entry = self.at(path)
        try:
            return os.listdir(f"{self._root}{path}") if entry and entry.kind == "directory" else []
        except OSError as error:
            raise Unreadable(f"{error.strerror}") from None

    def content(self, path: str) -> FileContent | None:
        entry = self.at(path)
        return _File(f"{self._root}{path}") if entry and entry.kind == "file" else None
