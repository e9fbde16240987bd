"""Check that only the caller, root or a known owner can have written a file.

What we read from files (configuration, facts of images, records) becomes environment variables,
mounts and commands of the caller. So whoever can write such a file can run programs as the caller.
SECURITY.md lists these files, and who may write each. A file is checked by the descriptor that is
then read, since a path may mean another file a moment later. The launcher scripts (bin/udi-run) do
the same for code, before this module can be imported.
"""

import os
from errno import EBADF, EEXIST, EINVAL, EISDIR, ELOOP, ENODATA, ENOTSUP
from stat import S_ISDIR, S_ISLNK, S_ISREG, S_ISVTX

from rootless_udi.base.errors import UdiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NOBODY = 65534
"""The owner that stat(2) shows if the real one has no id here (user_namespaces(7))."""
_ACL = "system.posix_acl_access"
_USER, _GROUP_OBJ, _GROUP = 2, 4, 8
"""Tags of an access control list's entries (linux/posix_acl.h): a user by number, the file's group,
a group by number."""
_LINKS = 40
"""Links that the kernel follows in one path (path_resolution(7))."""
_ROOTS = ("/etc/rootless_udi", "/etc/cdi", "/run/cdi", "/var/run/cdi")
"""Folders that only root can make: of files that show NOBODY, those in here can be root's."""


class Untrusted(UdiError):
    """The error for a file that others may have written."""


def opened(path: str, owners: "Iterable[int]" = (), what: str = "") -> int:
    """Open a regular file for reading, if only the caller, root and `owners` can have written it.

    A symbolic link at `path` must belong to one of these too. Return the descriptor. Raises
    Untrusted, with a message that begins with `what`, and OSError. It never blocks, as opening a
    FIFO would.
    """
    owners, target = tuple(owners), path
    for _ in range(_LINKS):
        try:
            fd = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if error.errno != ELOOP:
                raise
            target = os.path.join(os.path.dirname(target), link(target, owners, what))
            continue
        try:
            check(fd, path, owners, what)
        except BaseException:
            os.close(fd)
            raise
        return fd
    raise OSError(ELOOP, os.strerror(ELOOP), path)


def regular(path: str) -> int:
    """Open a regular file for reading, whoever may have written it; return the descriptor.

    Raises OSError, also for anything else than a regular file. It never blocks, as opening a FIFO
    would.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if S_ISREG(mode):
        return fd
    os.close(fd)
    if S_ISDIR(mode):
        raise OSError(EISDIR, os.strerror(EISDIR), path)
    raise OSError(EINVAL, "It is no regular file", path)


def read(path: str, owners: "Iterable[int]" = (), what: str = "") -> bytes:
    """Return the content of a file; arguments and errors are those of `opened`."""
    with open(opened(path, owners, what), "rb", buffering=0) as file:
        return file.readall()


def link(path: str, owners: "Iterable[int]" = (), what: str = "") -> str:
    """Return the target of a symbolic link that belongs to the caller, root or one of `owners`.

    Raises Untrusted for another one's link, and OSError, with EINVAL for what is no link.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # First: for what is no link, this raises EINVAL.
        text = os.readlink("", dir_fd=fd)
        why = refusal(fd, owners, path)
        if why:
            raise _untrusted(what, path, why)
        return text
    finally:
        os.close(fd)


def destination(path: str, what: str = "") -> str:
    """Return the path at which to write a file: `path`, or the one that symbolic links lead to.

    The file need not be there yet. Raises Untrusted for a link that belongs neither to the caller
    nor to root, and where other users could replace the file, since they may write its folder. A
    sticky folder of root's like /tmp is allowed: there they can't.
    """
    for _ in range(_LINKS):
        folder = os.path.dirname(os.path.abspath(path))
        try:
            path = os.path.join(folder, link(path, what=what))
        except FileNotFoundError:
            break
        except OSError as error:
            if error.errno != EINVAL:
                raise
            # It is no link.
            break
    else:
        raise OSError(ELOOP, os.strerror(ELOOP), path)
    if os.path.isdir(folder):
        why = refusal(folder)
        if why and not ("written" in why and os.stat(folder).st_mode & S_ISVTX):
            raise _untrusted(what, folder, why)
    return path


def check(fd: int, path: str, owners: "Iterable[int]" = (), what: str = "") -> None:
    """Raise Untrusted if others than the caller, root and `owners` may have written an open file.

    Also if it is no regular file. `path` is its name. Raises OSError.
    """
    why = refusal(fd, owners, path)
    if not why and not S_ISREG(os.fstat(fd).st_mode):
        why = "it is no regular file"
    if why:
        raise _untrusted(what, path, why)


def _untrusted(what: str, path: str, why: str) -> Untrusted:
    hint = "remove it, or have it written by its user"
    if "written" in why:
        hint = f"as its owner: chmod go-w {path}"
    return Untrusted(f"{what + ' ' if what else ''}{path} is not trusted: {why}", hint)


def refusal(what: "int | str", owners: "Iterable[int]" = (), named: str = "") -> str:
    """Say why others than the caller, root and `owners` may have written a file or folder; "" if
    not.

    `what` is a descriptor or a path; `named` is the descriptor's path. Of a symbolic link only the
    owner counts. Raises OSError.
    """
    status = os.stat(what)
    trusted = (os.getuid(), 0, *owners)
    if status.st_uid == NOBODY and not _zero_is_mapped():
        if not _is_roots(what, named if isinstance(what, int) else what):
            return "it belongs to a user who is not known here"
    elif status.st_uid not in trusted:
        return f"it belongs to user {status.st_uid}"
    if S_ISLNK(status.st_mode):
        return ""
    if status.st_mode & 0o002:
        return "it may be written by everybody"
    if status.st_mode & 0o020:
        return _writer(what, trusted)
    return ""


def closed(status: os.stat_result) -> bool:
    """Tell whether only the caller and root can enter a folder, by its `stat`.

    Then only they can have written what is in it.
    """
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & 0o077


def _writer(what: "int | str", trusted: "tuple[int, ...]") -> str:
    """Say who may write a file whose mode lets its group write; "" if only `trusted` users may.

    On a file with an access control list (acl(5)), the group's bits of the mode are only the most
    that any entry of the list can give, and the entries say who may write. The format of the list
    (linux/posix_acl_xattr.h) is a version of 4 bytes, then for each entry tag, rights and id, of 2,
    2 and 4 bytes. Raises OSError.
    """
    try:
        data = os.getxattr(what, _ACL)
    except OSError as error:
        if error.errno == EBADF:
            # The descriptor was opened with O_PATH, which fgetxattr(2) does not take.
            return _writer(f"/proc/self/fd/{what}", trusted)
        if error.errno not in (ENOTSUP, ENODATA):
            raise
        return "it may be written by its group"
    for at in range(4, len(data) - 7, 8):
        tag, rights = (int.from_bytes(data[i : i + 2], "little") for i in (at, at + 2))
        who = int.from_bytes(data[at + 4 : at + 8], "little")
        if rights & 2 and tag == _USER and who not in trusted:
            return f"it may be written by user {who}"
        if rights & 2 and tag == _GROUP_OBJ:
            return "it may be written by its group"
        if rights & 2 and tag == _GROUP:
            return f"it may be written by group {who}"
    return ""


def _zero_is_mapped() -> bool:
    """Tell whether id 0 is mapped in this user namespace: then root's files show root as owner."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return any(line.split()[0] == "0" for line in file)
    except OSError:
        return True


def _is_roots(what: "int | str", named: str) -> bool:
    """Tell whether a file that shows the owner NOBODY is root's, in a namespace that has no id 0.

    Files of any other user without an id here show the same owner. So the file must lie in one of
    _ROOTS, all folders on the way must show NOBODY too, and neither others nor this process may
    write them.
    """
    path = os.path.abspath(named)
    if not any(f"{path}/".startswith(f"{one}/") for one in _ROOTS):
        return False
    unknown = all(os.stat(folder).st_uid == NOBODY for folder in _folders(path))
    itself = f"/proc/self/fd/{what}" if isinstance(what, int) else what
    return unknown and not _writable(path) and not os.access(itself, os.W_OK)


def _writable(path: str) -> str:
    """Return the first folder on the way to `path` that others or we may write; "" for none."""
    for folder in _folders(path):
        if os.stat(folder).st_mode & 0o022 or os.access(folder, os.W_OK):
            return folder
    return ""


def above(path: str, owners: "Iterable[int]" = ()) -> str:
    """Return "FOLDER: WHY" for the first folder on the way to `path` that others may write.

    Others are all but the caller, root and `owners`. Return "" if there is none: then nobody else
    can have made what is at `path`. A sticky folder like /tmp counts as well, since anybody can
    make new files in it. Raises OSError.
    """
    owners = tuple(owners)
    for folder in _folders(path):
        why = refusal(folder, owners)
        if why:
            return f"{folder}: {why}"
    return ""


def keeper(path: str) -> tuple[int, ...]:
    """Return the users, besides the caller and root, who may own files in a folder of the site.

    `path` is a folder that the site's configuration names. Its owner is trusted if nobody but he
    and root can have made it at that path. Raises OSError.
    """
    owner = os.stat(path).st_uid
    if owner in (os.getuid(), 0, NOBODY) or above(path, (owner,)):
        return ()
    return (owner,)


def _folders(path: str) -> "Iterator[str]":
    """Yield the folders on the kernel's way to `path`, from "/" on, links followed."""
    parts, here, links = os.path.abspath(path).split("/")[:0:-1], "/", 0
    yield here
    while parts:
        part = parts.pop()
        if part in ("", "."):
            continue
        if part == "..":
            here = os.path.dirname(here)
            continue
        one = os.path.join(here, part)
        try:
            target = os.readlink(one)
        except OSError:
            if parts:
                here = one
                yield here
            continue
        links += 1
        if links > _LINKS:
            raise OSError(ELOOP, os.strerror(ELOOP), path)
        parts += target.split("/")[::-1]
        here = "/" if target.startswith("/") else here


def make(path: str, mode: int = 0o755) -> int:
    """Make a folder, and the missing ones above it with mode 0755 less the umask; return its owner.

    It gets `mode` less the umask. If it was there before, it may belong to anybody: that is what
    the returned uid tells. Raises OSError: also what a file server that does not answer is met
    with, which is no missing folder.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        parent = os.path.dirname(path.rstrip("/"))
        if parent:
            make(parent)
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
        found = os.stat(path)
    if not S_ISDIR(found.st_mode):
        raise FileExistsError(EEXIST, os.strerror(EEXIST), path)
    return found.st_uid
