"""The FUSE kernel protocol, versions 7.23 and newer: layouts and numbers (linux/fuse.h).

What a read-only server needs has not changed its layout since 7.23 but for INIT, whose request
grew in 7.36 (flags2) and whose answer is 64 bytes long since 7.23. Native byte order.
"""

from _struct import Struct

MAJOR, MINOR = 7, 45
OLDEST = 23
"""The first minor version with zero-message opens and today's INIT answer (Linux 3.16)."""

IN_HEADER = Struct("=IIQQIIIHH")
OUT_HEADER = Struct("=IiQ")
ENTRY = Struct("=4QII6Q10I")
"""nodeid, generation, entry_valid, attr_valid, their nsec, then ATTR's fields."""
ATTR = Struct("=QII6Q10I")
DIRENT = Struct("=QQII")
READ = Struct("=QQI")
GETXATTR = Struct("=I")
INIT_IN = Struct("=4I")
INIT_OUT = Struct("=4IHHIIHHI7I")
OPEN_OUT = Struct("=QII")
STATFS = Struct("=5Q4I6I")
SIZE_OUT = Struct("=II")
STORE = Struct("=QQII")
"""fuse_notify_store_out: node, offset, size, padding; the data follows."""
NOTIFY_STORE = 4
"""Where an answer has its error; `unique` is 0 then."""

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
"""For counters and logs; an operation that is not here goes by its number."""

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
"""Of these, what the kernel offers is asked for."""

KEEP_CACHE, CACHE_DIR = 1 << 1, 1 << 3
FOREVER = 1 << 30
"""Seconds for which the kernel may keep an entry or attributes: 34 years."""
PAGES = 256
"""max_pages: reads of 1 MiB."""
BUFFER = 16384
"""Bytes for a request. The kernel insists on 8192 and on max_write, which is 4096 here, plus 80."""
