"""The older ways of newer system calls, for kernels without them and filters that refuse them.

Imported where such a call was refused and not before: the usual start pays nothing for it. None
protects less than the call would: what can't be done as well is refused. `newcalls` has the table.
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

_MOST_LINKS = 40  # of one path, as the kernel counts them (path_resolution(7))
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
    """Open `path` (O_PATH) with the directory `root` as its root: openat2(2), RESOLVE_IN_ROOT.

    Each part is opened by its name in the descriptor of the one before, and no link is followed by
    the kernel: its text is read from the very descriptor. ".." goes back to the descriptor that the
    walk came through. So nobody's renames and links lead it out, whenever they are made. A magic
    link of /proc is the text that it shows. Raises OSError.
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
    """Open one part of a path. As a directory where it has to be one: that mounts what autofs has
    there, as the kernel's own walk would."""
    if directory:
        try:
            return os.open(name, _PART | os.O_DIRECTORY, dir_fd=parent)
        except OSError as error:
            if error.errno not in (ENOTDIR, ELOOP):
                raise
    return os.open(name, _PART, dir_fd=parent)


def _may_follow(folder: os.stat_result, owner: int, path: str) -> None:
    """Raise OSError for somebody else's link in a folder like /tmp, as fs.protected_symlinks does.

    The folder's owner may be in no id map, and looks like anybody then: so not even his are taken.
    """
    shared = S_ISVTX | S_IWOTH
    if folder.st_mode & shared == shared and owner != os.geteuid():
        raise CallError(EACCES, os.strerror(EACCES), "open", path)


def restrict(path: str, flags: int, below: bool) -> None:
    """Add flags to the mount at `path` and, with `below`, to all that show below it.

    By MS_REMOUNT of each, with the flags that it has, as bubblewrap does it. To be called while
    the host's tree is at /host. Raises UdiError where read-only is asked for and a mount can't be
    reached (it is below a directory that is closed to the caller): it must not stay writable.
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
    """Remount what shows below the mount `number`; False where another was found in a place."""
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
    """Yield the mounts below a mount that no other one covers."""
    children = {one: row[1] for one, row in table.items() if row[0] == number and one != number}
    for one, where in children.items():
        if where.endswith("//deleted"):
            continue
        if not any(where.startswith(f"{other}/") for other in children.values()):
            if not any(row[0] == one and row[1] == where for row in table.values()):
                yield one
            yield from _visible(one, table)


def _walk(top: int, path: str) -> int:
    """Open `path` below `top`, following nothing."""
    fd = os.dup(top)
    for name in filter(None, path.split("/")):
        try:
            below = os.open(name, _PART, dir_fd=fd)
        finally:
            os.close(fd)
        fd = below
    return fd


def _remount(fd: int, row: "tuple[int, str, str]", flags: int) -> None:
    """Times of access stay as they are where no flag speaks of them (mount(2), MS_REMOUNT)."""
    kept = 0
    for word in row[2].split(","):
        kept |= _FLAGS.get(word, 0)
    if kept | flags != kept:
        mount(None, f"/host/proc/self/fd/{fd}", None, MS_REMOUNT | MS_BIND | kept | flags)


def _mount_of(fd: int) -> int:
    """Return the number of the mount that a descriptor is on (proc(5), fdinfo)."""
    for line in _read(f"/host/proc/self/fdinfo/{fd}").splitlines():
        key, _, value = line.partition(":")
        if key == "mnt_id":
            return int(value)
    raise AssertionError("fdinfo has no mnt_id")


def _table() -> "Table":
    """Return the mounts by number: (number of the one that it is on, where, options)."""
    found = {}
    for line in _read("/host/proc/self/mountinfo").splitlines():
        fields = line.split(" ", 6)
        found[int(fields[0])] = int(fields[1]), _unescaped(fields[4]), fields[5]
    return found


def _unescaped(text: str) -> str:
    """Undo proc(5)'s escapes: a backslash and three octal digits for a space, a newline, ..."""
    head, *rest = text.split("\\")
    return head + "".join(chr(int(part[:3], 8)) + part[3:] for part in rest)


def _read(path: str) -> str:
    with open(path, "rb", buffering=0) as file:
        return (file.readall() or b"").decode("utf-8", "surrogateescape")


def close_others(keep: "Sequence[int]") -> None:
    """Close all descriptors but the standard ones and those to `keep`: close_range(2)."""
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:
                # That of the listing itself.
                pass


def spawn(
    program: str,
    argv: "list[str]",
    env: "dict[str, str]",
    files: "Sequence[tuple[int, int]]",
    setsid: bool,
) -> int:
    """fork(2) and execve(2) in place of posix_spawn(3), which the C library makes by clone3(2)."""
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
