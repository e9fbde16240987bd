"""Do by older system calls what newer ones do, for kernels without them and filters that refuse
them.

This module is imported only where such a call was refused. What it does protects as well as the
newer call; where it can't, it raises an error. `newcalls` has the table of these calls.
"""

import os
from errno import EACCES, EAGAIN, ELOOP, ENOENT, ENOTDIR
from stat import S_ISDIR, S_ISLNK, S_ISVTX, S_IWOTH

from rootless_udi.base.errors import NOT_FOUND, UdiError
from rootless_udi.base.syscalls import (
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_NOSYMFOLLOW,
    MS_RDONLY,
    MS_REMOUNT,
    CallError,
    mount,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    Table = dict[int, tuple[int, str, str]]

_MOST_LINKS = 40  # followed in one path, as by the kernel (path_resolution(7))
_PART = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
_ATTEMPTS = 16
_FLAGS = {
    "ro": MS_RDONLY,
    "nosuid": MS_NOSUID,
    "nodev": MS_NODEV,
    "noexec": MS_NOEXEC,
    "nosymfollow": MS_NOSYMFOLLOW,
}


def inside(root: int, path: str, flags: int) -> int:
    """Open `path` (O_PATH) with the directory `root` as root directory, and return the descriptor.

    In place of openat2(2) with RESOLVE_IN_ROOT. Each part of the path is opened by its name in the
    descriptor of the part before. The kernel follows no link: the link itself is opened, and its
    text is read from that descriptor. ".." returns to the descriptor that the walk came from. So no
    link and no rename by somebody else leads out of `root`, whenever it is made. A magic link of
    /proc is taken as the text that it shows. Raises OSError.
    """
    if not path:
        raise CallError(ENOENT, os.strerror(ENOENT), "open", path)
    trail, names, links = [os.dup(root)], path.split("/")[::-1], 0
    try:
        while names:
            name = names.pop()
            if name in ("", ".", ".."):
                if not S_ISDIR(os.fstat(trail[-1]).st_mode):
                    raise CallError(ENOTDIR, os.strerror(ENOTDIR), "open", path)
                if name == ".." and len(trail) > 1:
                    os.close(trail.pop())
                continue
            found = _part(trail[-1], name, bool(names))
            trail.append(found)
            status = os.fstat(found)
            if not S_ISLNK(status.st_mode) or (not names and flags & os.O_NOFOLLOW):
                continue
            trail.pop()
            try:
                _may_follow(os.fstat(trail[-1]), status.st_uid, path)
                text = os.readlink("", dir_fd=found)
            finally:
                os.close(found)
            links += 1
            if links > _MOST_LINKS:
                raise CallError(ELOOP, os.strerror(ELOOP), "open", path)
            if text.startswith("/"):
                while len(trail) > 1:
                    os.close(trail.pop())
            names += text.split("/")[::-1]
        if flags & os.O_DIRECTORY and not S_ISDIR(os.fstat(trail[-1]).st_mode):
            raise CallError(ENOTDIR, os.strerror(ENOTDIR), "open", path)
        return trail.pop()
    finally:
        for fd in trail:
            os.close(fd)


def _part(parent: int, name: str, directory: bool) -> int:
    """Open one part of a path. With `directory`, first as a directory: that makes autofs mount what
    it has there, as when the kernel follows the path."""
    if directory:
        try:
            return os.open(name, _PART | os.O_DIRECTORY, dir_fd=parent)
        except OSError as error:
            if error.errno not in (ENOTDIR, ELOOP):
                raise
    return os.open(name, _PART, dir_fd=parent)


def _may_follow(folder: os.stat_result, owner: int, path: str) -> None:
    """Raise OSError for a link of another user in a folder like /tmp, as fs.protected_symlinks
    does.

    The kernel would follow a link of the folder's owner. Here that is refused too: an owner without
    an id in this user namespace looks like any other such user.
    """
    shared = S_ISVTX | S_IWOTH
    if folder.st_mode & shared == shared and owner != os.geteuid():
        raise CallError(EACCES, os.strerror(EACCES), "open", path)


def restrict(path: str, flags: int, below: bool) -> None:
    """Add flags to the mount at `path` and, with `below`, to all mounts that are visible below it.

    Each is remounted (MS_REMOUNT) with its own flags and the new ones, as bubblewrap does. Call
    this while the host's tree is at /host. Raises UdiError where a mount is to become read-only and
    lies below a directory that the caller can't enter: it would stay writable. Raises OSError.
    """
    top = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        number = _mount_of(top)
        for attempt in range(_ATTEMPTS):
            table = _table()
            _remount(top, table[number], flags)
            if not below or _restrict_below(top, number, table, flags):
                return
            if attempt == _ATTEMPTS - 1:
                raise CallError(EAGAIN, "mounts are moved below it", "mount_setattr", path)
    finally:
        os.close(top)


def _restrict_below(top: int, number: int, table: "Table", flags: int) -> bool:
    """Remount what is visible below mount `number`; return False if mounts changed meanwhile."""
    start = len(table[number][1].rstrip("/"))
    for one in _visible(number, table):
        where = table[one][1]
        try:
            fd = _walk(top, where[start:])
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR):
                return False
            if error.errno != EACCES:
                raise
            if flags & MS_RDONLY:
                raise UdiError(
                    f"making the mount at {where[start:]} below a read-only one read-only failed: "
                    "a directory above it is closed to you, and mount_setattr(2) is refused here",
                    "mount only the part that you need; `udi doctor` says more of the call",
                ) from None
            # Nobody inside can reach it either (bubblewrap leaves it alone too).
            continue
        try:
            if _mount_of(fd) != one:
                return False
            _remount(fd, table[one], flags)
        finally:
            os.close(fd)
    return True


def _visible(number: int, table: "Table") -> "Iterator[int]":
    """Yield the mounts below a mount, without those that another mount hides."""
    children = {one: row[1] for one, row in table.items() if row[0] == number and one != number}
    for one, where in children.items():
        if where.endswith("//deleted"):
            continue
        if not any(where.startswith(f"{other}/") for other in children.values()):
            if not any(row[0] == one and row[1] == where for row in table.values()):
                yield one
            yield from _visible(one, table)


def _walk(top: int, path: str) -> int:
    """Open `path` below `top` without following links. Raises OSError."""
    fd = os.dup(top)
    for name in filter(None, path.split("/")):
        try:
            below = os.open(name, _PART, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _remount(fd: int, row: "tuple[int, str, str]", flags: int) -> None:
    """Remount the mount open at `fd` with the flags that it has and `flags`.

    `row` is its row of `_table`. The flags about times of access (noatime) stay as they are, since
    none of them is given (mount(2), MS_REMOUNT).
    """
    kept = 0
    for word in row[2].split(","):
        kept |= _FLAGS.get(word, 0)
    if kept | flags != kept:
        mount(None, f"/host/proc/self/fd/{fd}", None, MS_REMOUNT | MS_BIND | kept | flags)


def _mount_of(fd: int) -> int:
    """Return the mount id of a descriptor (proc(5), fdinfo)."""
    for line in _read(f"/host/proc/self/fdinfo/{fd}").splitlines():
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return int(value)
    raise AssertionError("fdinfo has no mnt_id")


def _table() -> "Table":
    """Return mount id -> (parent's id, mount point, options), from mountinfo (proc(5))."""
    found = {}
    for line in _read("/host/proc/self/mountinfo").splitlines():
        fields = line.split(" ", 6)
        found[int(fields[0])] = int(fields[1]), _unescaped(fields[4]), fields[5]
    return found


def _unescaped(text: str) -> str:
    """Undo the escapes of mountinfo, a backslash and three octal digits (proc(5))."""
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def _read(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return (file.readall() or b"").decode("utf-8", "surrogateescape")


def close_others(keep: "Sequence[int]") -> None:
    """Close all descriptors but the standard ones and `keep`, in place of close_range(2)."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                # The descriptor by which os.listdir read the folder is closed already.
                pass


def spawn(
    program: str,
    argv: "list[str]",
    env: "dict[str, str]",
    files: "Sequence[tuple[int, int]]",
    setsid: bool,
) -> int:
    """Start a program by fork(2) and execve(2); arguments and result as `calls.spawn`.

    In place of posix_spawn(3), for which the C library calls clone3(2). Raises OSError.
    """
    mine, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if setsid:
                os.setsid()
            for fd, number in files:
                os.dup2(fd, number)
                os.set_inheritable(number, True)
            os.execve(program, argv, env)
        except OSError as error:
            os.write(theirs, str(error.errno).encode())
        finally:
            os._exit(NOT_FOUND)
    os.close(theirs)
    said = os.read(mine, 16)
    os.close(mine)
    if said:
        os.waitpid(child, 0)
        raise OSError(int(said), os.strerror(int(said)), program)
    return child
