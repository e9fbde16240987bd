"""A directory behind a network that takes 1 ms for each metadata operation: an NFS-like backing.

    slowfs.py [--ms=1] [--reads] [--no-sparse] [--quota=BYTES] [--read-only-while=FILE]
        BACKING MOUNTPOINT COMMAND [ARG...]

runs COMMAND in namespaces of its own, as the caller, with BACKING at MOUNTPOINT through a FUSE
server that sleeps before each look-up, stat, create, open, rename and remove; data passes freely,
or with --reads at the same cost for each read of a file or of a folder. Locks are those of a node:
two such mounts of one directory are two nodes whose locks don't meet. With --no-sparse files have
no holes; with --quota no more bytes than these can be written. While FILE is there nothing can be
written, as while a server exports read-only: to files that are open neither.
It speaks the raw protocol (linux/fuse.h), since fuse libraries need more to be installed.
"""

import ctypes
import errno
import os
import signal
import stat
import struct
import sys
import time
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
IN_HEADER = struct.Struct("<IIQQIIIHH")
OUT_HEADER = struct.Struct("<IiQ")
ATTR = struct.Struct("<6Q10I")
MS_NOSUID, MS_NODEV, MS_REC, MS_PRIVATE = 2, 4, 16384, 1 << 18
BIG_WRITES, WRITEBACK_CACHE, MAX_PAGES = 1 << 5, 1 << 16, 1 << 22
WRITES = (4, 6, 9, 10, 11, 12, 16, 35)
"""Requests that change something, beside an open(2) that is to write."""
VALID = 3
"""Seconds that names and attributes are kept: nfs(5)'s acregmin. Data is kept and written back, as
an NFS client does."""
LARGEST = 1 << 20
PR_SET_PDEATHSIG = 1


def check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def readable(flags: int) -> int:
    """Return flags for a kernel that writes back: it reads what it completes, and knows the end."""
    if flags & os.O_ACCMODE == os.O_WRONLY:
        flags = flags & ~os.O_ACCMODE | os.O_RDWR
    return flags & ~os.O_APPEND


class Server:
    """Pass requests through to `root`; nodes are remembered by path."""

    sparse = True
    quota: int | None = None
    frozen = ""

    def __init__(self, root: str, seconds: float) -> None:
        self.seconds = seconds
        self.paths = {1: root}
        self.nodes = {root: 1}
        self.open_files: dict[int, list[int]] = {}
        self.listings: dict[int, bytes] = {}
        self.last = 1
        self.quick: dict[int, Callable[[int, bytes], bytes]] = {
            15: self.read,
            16: self.write,
            17: self.statfs,
            18: self.release,
            20: lambda node, data: b"",
            25: lambda node, data: b"",
            26: self.init,
            28: self.readdir,
            29: lambda node, data: b"",
        }
        self.slow: dict[int, Callable[[int, bytes], bytes]] = {
            1: lambda node, data: self.entry(self.below(node, data)),
            3: lambda node, data: self.attributes(node),
            4: self.setattr,
            5: lambda node, data: os.fsencode(os.readlink(self.paths[node])),
            6: self.symlink,
            9: self.mkdir,
            10: self.unlink,
            11: self.rmdir,
            12: self.rename,
            14: self.open,
            27: self.opendir,
            35: self.create,
        }

    def slow_reads(self) -> None:
        for opcode in (15, 28):
            self.slow[opcode] = self.quick.pop(opcode)

    def serve(self, fuse: int) -> None:
        while True:
            try:
                request = os.read(fuse, LARGEST + 4096)
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.EINTR):
                    if error.errno == errno.ENODEV:
                        return
                    continue
                raise
            _, opcode, unique, node, *_ = IN_HEADER.unpack_from(request)
            if opcode in (2, 36, 42):
                continue
            body, number = b"", 0
            try:
                if self.frozen:
                    self.check_frozen(opcode, request[40:])
                if opcode in self.slow:
                    time.sleep(self.seconds)
                    body = self.slow[opcode](node, request[40:])
                elif opcode in self.quick:
                    body = self.quick[opcode](node, request[40:])
                else:
                    number = errno.ENOSYS
            except OSError as error:
                number = error.errno or errno.EIO
            try:
                os.write(fuse, OUT_HEADER.pack(16 + len(body), -number, unique) + body)
            except OSError as error:
                if error.errno != errno.ENOENT:
                    raise

    def check_frozen(self, opcode: int, data: bytes) -> None:
        opens = opcode == 14 and struct.unpack_from("<I", data)[0] & os.O_ACCMODE != os.O_RDONLY
        if (opcode in WRITES or opens) and os.path.exists(self.frozen):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    def init(self, node: int, data: bytes) -> bytes:
        _, _, ahead, flags = struct.unpack_from("<4I", data)
        flags &= BIG_WRITES | WRITEBACK_CACHE | MAX_PAGES
        if self.quota is not None or self.frozen:
            # Who writes is told at once.
            flags &= ~WRITEBACK_CACHE
        head = struct.pack("<4I2H2I2H", 7, 31, ahead, flags, 16, 12, LARGEST, 1, 256, 0)
        return head.ljust(64, b"\0")

    def below(self, node: int, data: bytes) -> str:
        return self.paths[node] + "/" + os.fsdecode(data.partition(b"\0")[0])

    def pack(self, info: os.stat_result, node: int) -> bytes:
        times = [info.st_atime_ns, info.st_mtime_ns, info.st_ctime_ns]
        return ATTR.pack(
            node,
            info.st_size,
            info.st_blocks,
            *(t // 10**9 for t in times),
            *(t % 10**9 for t in times),
            info.st_mode,
            info.st_nlink,
            # The kernel lets nobody write to what belongs to an id that the namespace has not.
            os.getuid(),
            os.getgid(),
            0,
            4096,
            0,
        )

    def stat(self, node: int) -> os.stat_result:
        files = self.open_files.get(node)
        return os.fstat(files[-1]) if files else os.lstat(self.paths[node])

    def entry(self, path: str) -> bytes:
        info = os.lstat(path)
        if path not in self.nodes:
            self.last += 1
            self.nodes[path], self.paths[self.last] = self.last, path
        node = self.nodes[path]
        return struct.pack("<4Q2I", node, 0, VALID, VALID, 0, 0) + self.pack(info, node)

    def attributes(self, node: int) -> bytes:
        return struct.pack("<Q2I", VALID, 0, 0) + self.pack(self.stat(node), node)

    def setattr(self, node: int, data: bytes) -> bytes:
        valid, _, _, size = struct.unpack_from("<2I2Q", data)
        mode = struct.unpack_from("<I", data, 68)[0]
        files = self.open_files.get(node)
        path = f"/proc/self/fd/{files[-1]}" if files else self.paths[node]
        if valid & 1:
            os.chmod(path, stat.S_IMODE(mode))
        if valid & 8:
            os.truncate(path, size)
            if size and not self.sparse:
                fd = os.open(path, os.O_WRONLY)
                os.posix_fallocate(fd, 0, size)
                os.close(fd)
        return self.attributes(node)

    def symlink(self, node: int, data: bytes) -> bytes:
        name, text, _ = data.split(b"\0", 2)
        path = self.below(node, name)
        os.symlink(os.fsdecode(text), path)
        return self.entry(path)

    def mkdir(self, node: int, data: bytes) -> bytes:
        path = self.below(node, data[8:])
        os.mkdir(path, struct.unpack_from("<I", data)[0] & 0o7777)
        return self.entry(path)

    def forget(self, path: str) -> None:
        self.nodes.pop(path, None)

    def unlink(self, node: int, data: bytes) -> bytes:
        path = self.below(node, data)
        os.unlink(path)
        self.forget(path)
        return b""

    def rmdir(self, node: int, data: bytes) -> bytes:
        path = self.below(node, data)
        os.rmdir(path)
        self.forget(path)
        return b""

    def rename(self, node: int, data: bytes) -> bytes:
        folder = struct.unpack_from("<Q", data)[0]
        old, new, _ = data[8:].split(b"\0", 2)
        source = f"{self.paths[node]}/{os.fsdecode(old)}"
        target = f"{self.paths[folder]}/{os.fsdecode(new)}"
        os.rename(source, target)
        number = self.nodes.pop(source, 0)
        if number:
            self.nodes[target], self.paths[number] = number, target
        return b""

    def opened(self, node: int, fd: int) -> bytes:
        self.open_files.setdefault(node, []).append(fd)
        return struct.pack("<Q2I", fd, 0, 0)

    def open(self, node: int, data: bytes) -> bytes:
        flags = readable(struct.unpack_from("<I", data)[0])
        flags &= ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
        files = self.open_files.get(node)
        path = f"/proc/self/fd/{files[-1]}" if files else self.paths[node]
        return self.opened(node, os.open(path, flags))

    def create(self, node: int, data: bytes) -> bytes:
        flags, mode = struct.unpack_from("<2I", data)
        path = self.below(node, data[16:])
        fd = os.open(path, readable(flags) | os.O_CREAT, mode & 0o7777)
        entry = self.entry(path)
        return entry + self.opened(self.nodes[path], fd)

    def release(self, node: int, data: bytes) -> bytes:
        fd = struct.unpack_from("<Q", data)[0]
        self.open_files[node].remove(fd)
        os.close(fd)
        return b""

    def read(self, node: int, data: bytes) -> bytes:
        fd, offset, size = struct.unpack_from("<2QI", data)
        return os.pread(fd, size, offset)

    def write(self, node: int, data: bytes) -> bytes:
        fd, offset, size = struct.unpack_from("<2QI", data)
        if self.quota is not None:
            if size > self.quota:
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
            self.quota -= size
        return struct.pack("<2I", os.pwrite(fd, memoryview(data)[40 : 40 + size], offset), 0)

    def statfs(self, node: int, data: bytes) -> bytes:
        s = os.statvfs(self.paths[1])
        numbers = (s.f_blocks, s.f_bfree, s.f_bavail, s.f_files, s.f_ffree)
        return struct.pack("<5Q4I", *numbers, s.f_bsize, 255, s.f_frsize, 0) + bytes(24)

    def opendir(self, node: int, data: bytes) -> bytes:
        out = b""
        for at, name in enumerate([".", "..", *os.listdir(self.paths[node])], 1):
            text = os.fsencode(name)
            out += struct.pack("<2Q2I", at, at, len(text), 0) + text + bytes(-len(text) % 8)
        self.listings[node] = out
        return struct.pack("<Q2I", node, 0, 0)

    def readdir(self, node: int, data: bytes) -> bytes:
        _, offset, size = struct.unpack_from("<2QI", data)
        listing, at = self.listings[node], 0
        for _ in range(offset):
            at += 24 + -(-struct.unpack_from("<I", listing, at + 16)[0] // 8) * 8
        end = at
        while end < len(listing):
            step = 24 + -(-struct.unpack_from("<I", listing, end + 16)[0] // 8) * 8
            if end + step - at > size:
                break
            end += step
        return listing[at:end]


def main() -> None:
    words = sys.argv[1:]
    given = {}
    while words[0].startswith("--"):
        name, _, value = words.pop(0)[2:].partition("=")
        given[name] = value
    seconds = float(given.get("ms", "1")) / 1000
    backing, mountpoint, *command = words
    uid, gid = os.getuid(), os.getgid()
    root = os.open(backing, os.O_RDONLY | os.O_DIRECTORY)
    check(LIBC.unshare(0x10000000 | 0x20000), "unshare")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    check(LIBC.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "mount")
    fuse = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={fuse},rootmode=40000,user_id={uid},group_id={gid},max_read={LARGEST}"
    check(
        LIBC.mount(
            b"slowfs", mountpoint.encode(), b"fuse.slowfs", MS_NOSUID | MS_NODEV, data.encode()
        ),
        "mount",
    )
    if os.fork() == 0:
        os.setsid()
        os.set_inheritable(root, False)
        # It lives in the mount's own namespace, so only the command's end can end it.
        check(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL), "prctl")
        server = Server(f"/proc/self/fd/{root}/.", seconds)
        server.sparse = "no-sparse" not in given
        server.quota = int(given["quota"]) if "quota" in given else None
        server.frozen = given.get("read-only-while", "")
        if "reads" in given:
            server.slow_reads()
        server.serve(fuse)
        os._exit(0)
    os.close(fuse)
    os.close(root)
    # Until it is asked for, the root's owner is 0, which the namespace has not.
    os.stat(mountpoint)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
