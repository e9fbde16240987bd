"""Serve an image through pyfuse3 (libfuse 3) and trio: the extra `[fuse]`.

It answers half as many look-ups a second as `raw_transport`, and importing trio takes 150 ms at its
start. pyfuse3 passes `read` the handle that `open` returned and not the inode, so that each open
and each release of a file costs a message, which `raw_transport` spares.
"""

from collections.abc import Callable
from errno import ENOSYS
from importlib import import_module
from typing import Any

import trio

from rootless_udi.fuse.failures import Complaints, to_stderr
from rootless_udi.fuse.filesystem import CACHE_BYTES, FileSystem
from rootless_udi.fuse.protocol import FOREVER
from rootless_udi.fuse.raw_transport import opened, ready
from rootless_udi.fuse.reader import Reader

pyfuse3: Any = import_module("pyfuse3")  # its types are there only where it is installed


def serve(
    image: "str | int",
    fuse_fd: int,
    *,
    cache_bytes: int = CACHE_BYTES,
    threads: int | None = None,
    log: Callable[[str], None] = to_stderr,
    filesystem: Callable[[Reader, int, int], FileSystem] = FileSystem,
    ready_fd: int | None = None,
    base: int = 0,
) -> None:
    """Serve as `raw_transport.serve` does, with its arguments.

    Mount options are given by whoever has mounted `fuse_fd`.
    """
    fs = opened(image, cache_bytes, threads, filesystem, base=base)
    operations = Operations(fs, Complaints(fs.reader.name, log))
    pyfuse3.init(operations, f"/dev/fd/{fuse_fd}", {"fsname=udi"})
    ready(ready_fd)
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=False)


class Operations(pyfuse3.Operations):  # type: ignore[misc]
    """pyfuse3's request handlers: each calls a method of `fs`."""

    enable_acl = False
    enable_writeback_cache = False
    supports_dot_lookup = False

    def __init__(self, fs: FileSystem, complain: Complaints) -> None:
        super().__init__()
        self.fs = fs
        self._complain = complain

    def _ask(self, what: str, node: int, call: Callable[..., Any], *args: object) -> Any:
        try:
            return call(*args)
        except Exception as error:
            raise pyfuse3.FUSEError(self._complain.errno(error, what, node)) from None

    def _attributes(self, node: int) -> Any:
        _, size, blocks, time, mode, links, uid, gid, rdev = self.fs.attributes(node)
        found = pyfuse3.EntryAttributes()
        # pyfuse3 has one number for node and inode number. Hard links still have the same one.
        found.st_ino, found.generation = node, 0
        found.entry_timeout = found.attr_timeout = FOREVER
        found.st_mode, found.st_nlink, found.st_uid, found.st_gid = mode, links, uid, gid
        found.st_rdev, found.st_size, found.st_blksize, found.st_blocks = rdev, size, 4096, blocks
        found.st_atime_ns = found.st_mtime_ns = found.st_ctime_ns = time * 1_000_000_000
        return found

    async def lookup(self, parent: int, name: bytes, ctx: object) -> Any:
        """Answer inode 0 for a name that does not exist, so that the kernel may remember that."""
        node = self._ask("LOOKUP", parent, self.fs.lookup, parent, name)
        if node:
            return self._ask("LOOKUP", node, self._attributes, node)
        absent = pyfuse3.EntryAttributes()
        absent.st_ino, absent.entry_timeout = 0, FOREVER
        return absent

    async def getattr(self, node: int, ctx: object) -> Any:
        return self._ask("GETATTR", node, self._attributes, node)

    async def forget(self, nodes: object) -> None:
        """Do nothing: a node says where an inode lies, and nothing is stored for it."""

    async def readlink(self, node: int, ctx: object) -> Any:
        return self._ask("READLINK", node, self.fs.readlink, node)

    async def open(self, node: int, flags: int, ctx: object) -> Any:
        return pyfuse3.FileInfo(fh=node, keep_cache=True)

    async def opendir(self, node: int, ctx: object) -> int:
        return node

    async def release(self, handle: int) -> None:
        """Do nothing: a handle is the file's node."""

    async def releasedir(self, handle: int) -> None:
        """Do nothing: a handle is the directory's node."""

    async def flush(self, handle: int) -> None:
        raise pyfuse3.FUSEError(ENOSYS)

    async def read(self, handle: int, offset: int, size: int) -> bytes:
        return b"".join(self._ask("READ", handle, self.fs.read, handle, offset, size))

    async def readdir(self, handle: int, start: int, token: object) -> None:
        fs = self.fs
        entries = fs.entries(handle, start)
        while entry := self._ask("READDIR", handle, next, entries, None):
            name, node, _, _, after = entry
            if node == 0:
                continue  # "." and "..", which have no node
            attributes = self._ask("READDIR", node, self._attributes, node)
            if not pyfuse3.readdir_reply(token, name, attributes, after):
                return

    async def statfs(self, ctx: object) -> Any:
        size, blocks, files, longest = self.fs.statfs()
        found = pyfuse3.StatvfsData()
        found.f_bsize = found.f_frsize = size
        found.f_blocks, found.f_bfree, found.f_bavail = blocks, 0, 0
        found.f_files, found.f_ffree, found.f_favail, found.f_namemax = files, 0, 0, longest
        return found

    async def getxattr(self, node: int, name: bytes, ctx: object) -> Any:
        if not self.fs.reader.has_xattrs:
            raise pyfuse3.FUSEError(ENOSYS)
        return self._ask("GETXATTR", node, self.fs.xattr, node, name)

    async def listxattr(self, node: int, ctx: object) -> list[bytes]:
        if not self.fs.reader.has_xattrs:
            raise pyfuse3.FUSEError(ENOSYS)
        return list(self._ask("LISTXATTR", node, self.fs.xattrs, node))

    async def access(self, node: int, mode: int, ctx: object) -> bool:
        raise pyfuse3.FUSEError(ENOSYS)
