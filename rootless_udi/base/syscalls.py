"""System calls that `os` lacks, through the C library. Each raises OSError naming call and path.

It uses the extension module `_ctypes` directly: importing the package `ctypes` costs a start 4.5 ms
and opens 5 files (measured with Python 3.11), `_ctypes` alone 0.8 ms and 2. The names used here are
those that `ctypes/__init__.py` uses, the same in Python 3.11 to 3.14. Besides this module only
`fuse.decompress` calls C.
"""

import _ctypes
import os
from errno import EACCES, EBADF, EINVAL, ENOSYS, EOPNOTSUPP, EPERM
from sys import byteorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


# mount(2), linux/mount.h
MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_NOSYMFOLLOW = 256  # Linux 5.10
MS_BIND = 4096
MS_MOVE = 8192
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MNT_DETACH = 2

# clone(2), linux/sched.h
CLONE_NEWNS = 0x20000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

# open_tree(2), move_mount(2), Linux 5.2; the numbers are the same on every architecture
_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_OPEN_TREE_CLONE = 1
_BOTH_EMPTY_PATH = 0x4 | 0x40  # MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH

# prctl(2)
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38

# openat2(2), Linux 5.6
RESOLVE_NO_MAGICLINKS = 2
RESOLVE_IN_ROOT = 16

# openat(2)
AT_FDCWD = -100

REFUSED = (ENOSYS, EPERM, EINVAL, EACCES, EOPNOTSUPP)
"""Errors by which an older kernel or a seccomp filter refuses a newer system call (`newcalls`).

Some of them may also be the call's own answer. Then the older way is tried, and fails likewise."""

# inotify(7)
IN_CLOEXEC = os.O_CLOEXEC
IN_MODIFY = 0x2
IN_DELETE_SELF = 0x400
IN_ONLYDIR = 0x01000000
IN_UNMOUNT = 0x2000


# statfs(2), f_type of file systems of one node: tmpfs, ramfs, ext, xfs, btrfs, overlayfs, f2fs, zfs
_LOCAL = {
    *(0x01021994, 0x858458F6, 0xEF53, 0x58465342),
    *(0x9123683E, 0x794C7630, 0xF2F52010, 0x2FC12FC1),
}

_CAPABILITIES = 64
"""Numbers to try: capget(2) has 64 bits, of which the kernel uses some 40."""


class _Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "l"


class _Function(_ctypes.CFuncPtr):
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Long


_RTLD_NOW = 2  # dlopen(3)
_LIBC = _ctypes.dlopen(None, _RTLD_NOW)  # type: ignore[arg-type]
_FUNCTIONS: "dict[str, Any]" = {}


def _call(name: str, *args: "int | bytes | None", path: str | None = None) -> int:
    """Call the function `name` of the C library and return its int. Raises CallError for -1.

    Integers are passed as long, bytes as char *, None as NULL. `path` is for the error.
    """
    result: int = _function(name)(*[_Long(a) if isinstance(a, int) else a for a in args])
    # These functions return int: of the register only the lower 32 bits count.
    if result & 0xFFFFFFFF == 0xFFFFFFFF:
        errno = _ctypes.get_errno()
        raise CallError(errno, os.strerror(errno), name, path)
    return result & 0xFFFFFFFF


def _function(name: str) -> "Any":
    function = _FUNCTIONS.get(name)
    if function is None:
        address = _ctypes.dlsym(_LIBC, name)
        function = _FUNCTIONS[name] = _Function(address)
    return function


def numbered(name: str, number: int, *args: "int | bytes | None", path: str | None = None) -> int:
    """Make the system call `number`, for which the C library may have no function.

    `name` is for the error. Raises CallError.
    """
    try:
        return _call("syscall", number, *args, path=path)
    except CallError as error:
        error.call = name
        raise


class CallError(OSError):
    """A system call failed: `call` is its name, `filename` the path it was about, or None."""

    def __init__(self, errno: int, text: str, call: str, path: str | None = None) -> None:
        super().__init__(errno, text, path)
        self.call = call

    def __str__(self) -> str:
        about = f" {self.filename}" if self.filename else ""
        return f"{self.call}{about}: {self.strerror}"


def unshare(flags: int) -> None:
    """unshare(2): move the caller into new namespaces."""
    _call("unshare", flags)


def setns(fd: int, flags: int) -> None:
    """setns(2): join the namespace of an open /proc/PID/ns/* file or (Linux 5.8) of a pidfd."""
    _call("setns", fd, flags)


def mount(
    source: str | None, target: str, fstype: str | None, flags: int, data: str | None = None
) -> None:
    """mount(2); `data` is the file system's own comma-separated options."""
    encode = os.fsencode
    _call(
        "mount",
        None if source is None else encode(source),
        encode(target),
        None if fstype is None else encode(fstype),
        flags,
        None if data is None else encode(data),
        path=target,
    )


def open_tree(path: str) -> int:
    """open_tree(2) with OPEN_TREE_CLONE: return a copy of the mount at `path`, attached nowhere."""
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    return numbered("open_tree", _SYS_OPEN_TREE, AT_FDCWD, os.fsencode(path), flags, path=path)


def move_mount(tree: int, target: int) -> None:
    """move_mount(2): attach `tree`, a mount of `open_tree`, to the open directory `target`."""
    numbered("move_mount", _SYS_MOVE_MOUNT, tree, b"", target, b"", _BOTH_EMPTY_PATH)


def moves_mounts() -> bool:
    """Tell whether open_tree(2) and move_mount(2) can be used; the caller must be allowed to mount.

    move_mount(2) is called with descriptors that do not exist: the kernel answers EBADF then.
    """
    try:
        fd = numbered("open_tree", _SYS_OPEN_TREE, AT_FDCWD, b"/", os.O_CLOEXEC)
    except CallError:
        return False
    os.close(fd)
    try:
        move_mount(-1, -1)
    except CallError as error:
        return error.errno == EBADF
    return True


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _call("umount2", os.fsencode(target), flags, path=target)


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    _call("pivot_root", os.fsencode(new), os.fsencode(old), path=new)


def prctl(option: int, argument: "int | bytes" = 0) -> None:
    """prctl(2) with one argument."""
    _call("prctl", option, argument, 0, 0, 0)


def is_local(fd: int) -> bool:
    """Tell whether an open file is on a file system of this node alone (fstatfs(2))."""
    found = bytes(256)
    _call("fstatfs", fd, found)
    return int.from_bytes(found[:8], byteorder) & 0xFFFFFFFF in _LOCAL


def poke(address: int, data: bytes) -> None:
    """Overwrite this process's memory at `address` with `data` (memcpy(3))."""
    _call("memcpy", address, data, len(data))


def set_affinity(mask: bytes) -> None:
    """Let the calling process run on the CPUs of `mask` (sched_setaffinity(2)). Raises OSError.

    `mask` has a bit for each CPU. os.sched_setaffinity takes their numbers, which for all CPUs that
    a machine can have takes 60 microseconds.
    """
    _call("sched_setaffinity", 0, len(mask), mask)


def _drop_bounding_set() -> None:
    """Empty the capability bounding set, so that no execve(2) can give a capability back.

    This needs CAP_SETPCAP (capabilities(7)). A process that has made or joined a user namespace has
    it until execve(2). The loop ends at the first number that the kernel does not know.
    """
    # Not by `prctl`, which for 41 calls takes 0.15 ms more.
    function, drop, none = _function("prctl"), _Long(PR_CAPBSET_DROP), _Long(0)
    for capability in range(_CAPABILITIES):
        if function(drop, _Long(capability), none, none, none) & 0xFFFFFFFF:
            break


def protect() -> None:
    """Make sure that execve(2) adds no privilege: no_new_privs, and an empty bounding set.

    Raises OSError.
    """
    _drop_bounding_set()
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def inotify_init() -> int:
    """inotify_init1(2) with close-on-exec."""
    return _call("inotify_init1", IN_CLOEXEC)


def inotify_add_watch(fd: int, path: str, mask: int) -> int:
    """inotify_add_watch(2)."""
    return _call("inotify_add_watch", fd, os.fsencode(path), mask, path=path)
