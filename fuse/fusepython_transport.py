"""Serve an image through fuse-python (libfuse 2): the extra `[fuse2]`.

Other transports are given a connection that somebody has mounted already. libfuse 2 can't use one:
it opens /dev/fuse and mounts by itself. So this server runs as root of a user namespace, where
mount(2) needs no fusermount; `rootless_udi.serve.detached` passes its mount to the container. The
server ends when it is unmounted everywhere, or by SIGTERM.

libfuse 2 names files by paths. Each operation would look up every part of its path, so the nodes of
paths are cached. That two names are hard links of one file shows by the inode number (`use_ino`).
"""

import os
from collections.abc import Callable, Iterator
from errno import ENODATA, ENOENT, EOPNOTSUPP, ERANGE
from importlib import import_module
from typing import Any

from rootless_udi.fuse.bounded_cache import Cache
from rootless_udi.fuse.failures import Complaints, to_stderr
from rootless_udi.fuse.filesystem import CACHE_BYTES, ROOT, FileSystem
from rootless_udi.fuse.protocol import FOREVER
from rootless_udi.fuse.raw_transport import opened, ready
from rootless_udi.fuse.reader import Reader

fuse: Any = import_module("fuse")  # fuse-python; for a type checker `fuse` is our own folder
if not hasattr(fuse, "Fuse"):
    raise ModuleNotFoundError("a folder of that name is in the way", name="fuse")

OPTIONS = (
    "ro,nosuid,nodev,allow_other,default_permissions,use_ino,readdir_ino,kernel_cache,fsname=udi,"
    f"subtype=udi,entry_timeout={FOREVER},negative_timeout={FOREVER},attr_timeout={FOREVER},"
    "max_read=131072"
)


def serve(
    image: "str | int",
    where: str,
    *,
    cache_bytes: int = CACHE_BYTES,
    threads: int | None = None,
    log: Callable[[str], None] = to_stderr,
    filesystem: Callable[[Reader, int, int], FileSystem] = FileSystem,
    ready_fd: int | None = None,
    base: int = 0,
) -> None:
    """Mount `image` at the folder `where` and serve it until it is unmounted.

    The other arguments are those of `raw_transport.serve`.
    """
    fs = opened(image, cache_bytes, threads, filesystem, base=base)
    fuse.fuse_python_api = (0, 2)
    server = LibfuseServer(fs, Complaints(fs.reader.name, log))
    server.ready_fd = ready_fd
    server.multithreaded = False
    server.parse([where, "-f", "-s", "-o", OPTIONS])
    server.main()


class LibfuseServer(fuse.Fuse):  # type: ignore[misc]
    """fuse-python's request handlers: each finds a path's node and calls a method of `fs`."""

    ready_fd: int | None = None

    def __init__(self, fs: FileSystem, complain: Complaints) -> None:
        super().__init__(dash_s_do="setsingle")
        self.fs = fs
        self._complain = complain
        self._paths: Cache[int] = Cache(8 << 20, lambda _: 200)

    def fsinit(self) -> None:
        """Say that requests will be answered; libfuse calls this when it has mounted."""
        ready(self.ready_fd)

    def _node(self, path: str) -> int:
        raw = os.fsencode(path)
        found = self._paths.get(raw)
        if found is None:
            found = ROOT
            for part in raw.split(b"/"):
                if part:
                    found = self.fs.lookup(found, part)
                    if not found:
                        raise OSError(ENOENT, "no such file")
            self._paths.put(raw, found)
        return found

    def _ask(self, what: str, path: str, call: Callable[[int], Any]) -> Any:
        """Return `call(node)` for the node of `path`; -errno for an error (fuse-python's way)."""
        node = ROOT
        try:
            node = self._node(path)
            return call(node)
        except OSError as error:
            if error.errno == ENOENT:
                return -ENOENT
            return -self._complain.errno(error, what, node)
        except Exception as error:
            return -self._complain.errno(error, what, node)

    def getattr(self, path: str) -> Any:
        return self._ask("GETATTR", path, self._stat)

    def _stat(self, node: int) -> Any:
        number, size, blocks, time, mode, links, uid, gid, rdev = self.fs.attributes(node)
        return fuse.Stat(
            st_ino=number,
            st_mode=mode,
            st_nlink=links,
            st_uid=uid,
            st_gid=gid,
            st_size=size,
            st_blocks=blocks,
            st_rdev=rdev,
            st_blksize=4096,
            st_atime=time,
            st_mtime=time,
            st_ctime=time,
        )

    def readlink(self, path: str) -> Any:
        found = self._ask("READLINK", path, self.fs.readlink)
        return os.fsdecode(found) if isinstance(found, bytes) else found

    def readdir(self, path: str, offset: int) -> Iterator[Any]:
        found = self._ask("READDIR", path, lambda node: list(self.fs.entries(node, 0)))
        if isinstance(found, int):
            raise OSError(-found, "listing failed")
        for name, _, number, kind, _ in found:
            yield fuse.Direntry(os.fsdecode(name), ino=number, type=kind << 12)

    def open(self, path: str, flags: int) -> None:
        """Do nothing: there is nothing to open. `kernel_cache` lets the kernel keep the pages."""

    def read(self, path: str, size: int, offset: int) -> Any:
        return self._ask("READ", path, lambda node: b"".join(self.fs.read(node, offset, size)))

    def statfs(self) -> Any:
        size, blocks, files, longest = self.fs.statfs()
        return fuse.StatVfs(
            f_bsize=size,
            f_frsize=size,
            f_blocks=blocks,
            f_files=files,
            f_namemax=longest,
        )

    def getxattr(self, path: str, name: str, size: int) -> Any:
        if not self.fs.reader.has_xattrs:
            return -EOPNOTSUPP
        found = self._ask("GETXATTR", path, lambda node: self.fs.xattr(node, os.fsencode(name)))
        if size == 0 and isinstance(found, bytes):
            return len(found)
        if isinstance(found, bytes):
            return -ERANGE if len(found) > size else found.decode("latin-1")
        return found

    def listxattr(self, path: str, size: int) -> Any:
        if not self.fs.reader.has_xattrs:
            return -EOPNOTSUPP
        found = self._ask("LISTXATTR", path, self.fs.xattrs)
        if isinstance(found, int):
            return -ENODATA if found == -ENODATA else found
        names = [os.fsdecode(name) for name in found]
        return sum(len(os.fsencode(name)) + 1 for name in names) if size == 0 else names
