"""The FUSE kernel protocol, versions 7.23 and newer: layouts and numbers (linux/fuse.h).

The layouts that a read-only server needs are the same in all these versions. Only the request INIT
became longer in 7.36 (flags2); this server reads its older part. Numbers are in native byte order.
"""

from _struct import Struct

MAJOR, MINOR = 7, 45
OLDEST = 23
"""The first minor version with today's answer to INIT, of 64 bytes, and with files that are opened
without a message (Linux 3.16)."""

IN_HEADER = Struct("=IIQQIIIHH")
"""length, opcode, unique, nodeid, uid, gid, pid, total_extlen, padding; the arguments follow."""
OUT_HEADER = Struct("=IiQ")
"""length, error (-errno), unique; the answer follows."""
ENTRY = Struct("=4QII6Q10I")
"""nodeid, generation, entry_valid, attr_valid, their nsec, then ATTR's fields."""
ATTR = Struct("=QII6Q10I")
"""attr_valid, its nsec, padding; ino, size, blocks, atime, mtime, ctime, their nsec, mode, nlink,
uid, gid, rdev, blksize, flags."""
DIRENT = Struct("=QQII")
"""ino, off (the cookie of what follows), length of the name, type; the name follows."""
READ = Struct("=QQI")
"""fh, offset, size."""
GETXATTR = Struct("=I")
INIT_IN = Struct("=4I")
INIT_OUT = Struct("=4IHHIIHHI7I")
"""major, minor, max_readahead, flags, max_background, congestion_threshold, max_write, time_gran,
max_pages, map_alignment, flags2; unused."""
OPEN_OUT = Struct("=QII")
STATFS = Struct("=5Q4I6I")
SIZE_OUT = Struct("=II")
STORE = Struct("=QQII")
"""fuse_notify_store_out: nodeid, offset, size, padding; the data follows."""
NOTIFY_STORE = 4
"""A message to the kernel that it did not ask for has this number in the place of an answer's
error, and 0 as `unique`."""

LOOKUP, FORGET, GETATTR, READLINK, OPEN, READ_OP, STATFS_OP = 1, 2, 3, 5, 14, 15, 17
GETXATTR_OP, LISTXATTR, FLUSH, INIT, OPENDIR, READDIR = 22, 23, 25, 26, 27, 28
RELEASE, RELEASEDIR, ACCESS, INTERRUPT, DESTROY, IOCTL = 18, 29, 34, 36, 38, 39
BATCH_FORGET, READDIRPLUS, STATX = 42, 44, 52
NAMES = {
    1: "LOOKUP",
    2: "FORGET",
    3: "GETATTR",
    4: "SETATTR",
    5: "READLINK",
    14: "OPEN",
    15: "READ",
    17: "STATFS",
    18: "RELEASE",
    22: "GETXATTR",
    23: "LISTXATTR",
    25: "FLUSH",
    26: "INIT",
    27: "OPENDIR",
    28: "READDIR",
    29: "RELEASEDIR",
    34: "ACCESS",
    36: "INTERRUPT",
    38: "DESTROY",
    39: "IOCTL",
    40: "POLL",
    42: "BATCH_FORGET",
    44: "READDIRPLUS",
    46: "LSEEK",
    52: "STATX",
}
"""Operations for counters and logs; one that is not here is shown by its number."""

ASYNC_READ = 1 << 0
DO_READDIRPLUS = 1 << 13
READDIRPLUS_AUTO = 1 << 14
NO_OPEN_SUPPORT = 1 << 17
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22
CACHE_SYMLINKS = 1 << 23
NO_OPENDIR_SUPPORT = 1 << 24
EXPLICIT_INVAL_DATA = 1 << 25
WANTED = (
    ASYNC_READ
    | DO_READDIRPLUS
    | READDIRPLUS_AUTO
    | NO_OPEN_SUPPORT
    | PARALLEL_DIROPS
    | MAX_PAGES
    | CACHE_SYMLINKS
    | NO_OPENDIR_SUPPORT
    | EXPLICIT_INVAL_DATA
)
"""Abilities that this server asks for, as far as the kernel offers them (flags of INIT)."""

KEEP_CACHE, CACHE_DIR = 1 << 1, 1 << 3
"""Flags of the answer to OPEN and OPENDIR: keep the file's pages and the directory's listing."""
FOREVER = 1 << 30
"""Seconds for which the kernel may keep an entry or attributes: 34 years."""
PAGES = 256
"""max_pages: reads of 1 MiB."""
BUFFER = 16384
"""Bytes of the buffer for a request. The kernel wants at least 8192, and max_write and 80 more."""
MAX_WRITE = 4096
"""Bytes of a write; nothing is ever written, and this is the least that the kernel takes."""
MAX_BACKGROUND, CONGESTED = 256, 192
"""Requests of its own, as for reading ahead, that the kernel may send before it waits for answers;
and how many make it hold back."""
