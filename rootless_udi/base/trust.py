"""Whose files are believed: those that nobody but the caller, root or a named owner may write.

What is read from a file of ours becomes environment, mounts and commands of the caller, so that who
may write it may run code as him. SECURITY.md lists every such file with who may have written it.
They are judged by the descriptor that is then read, never by a path that may mean another file by
then. The launcher scripts do the same for code (bin/udi-run), before this can be imported.
"""

import os
from errno import EBADF, EINVAL, EISDIR, ELOOP, ENODATA, ENOTSUP
from stat import S_ISDIR, S_ISLNK, S_ISREG, S_ISVTX

from rootless_udi.base.errors import UdiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NOBODY = 65534
"""As whom files show whose owner has no id here (user_namespaces(7))."""
_ACL = "system.posix_acl_access"
_USER, _GROUP_OBJ, _GROUP = 2, 4, 8
_LINKS = 40
_ROOTS = ("/etc/rootless_udi", "/etc/cdi", "/run/cdi", "/var/run/cdi")
"""What nobody but root can put there: all that is believed of it where its owner can't be seen."""


class Untrusted(UdiError):
    """A file that others may have written."""


def opened(path: str, owners: "Iterable[int]" = (), what: str = "") -> int:
    """Open a regular file for reading that only the caller, root and `owners` may have written.

    A link to it must be theirs too. Raises Untrusted, beginning with `what`, and OSError. Something
    else in its place is opened without waiting for anybody (a FIFO's writer).
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
    """Open a regular file for reading, whoever wrote it. Raises OSError for what is none, without
    waiting for anybody: a FIFO's open would wait for its writer."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if S_ISREG(mode):
        return fd
    os.close(fd)
    if S_ISDIR(mode):
        raise OSError(EISDIR, os.strerror(EISDIR), path)
    raise OSError(EINVAL, "It is no regular file", path)


def read(path: str, owners: "Iterable[int]" = (), what: str = "") -> bytes:
    """Return the content of a file; as `opened`."""
    with open(opened(path, owners, what), "rb", buffering=0) as file:
        return file.readall()


def link(path: str, owners: "Iterable[int]" = (), what: str = "") -> str:
    """Return the text of a symbolic link that is the caller's, root's or one of `owners`'.

    Raises Untrusted, and OSError where there is none.
    """
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        # Of what is no link EINVAL comes first.
        text = os.readlink("", dir_fd=fd)
        why = refusal(fd, owners, path)
        if why:
            raise _untrusted(what, path, why)
        return text
    finally:
        os.close(fd)


def destination(path: str, what: str = "") -> str:
    """Return where a file lies that is to be written anew: `path`, or what links of the caller's or
    root's lead to. It need not be there.

    Raises Untrusted for a link of somebody else's, and where others could take away what is
    written: a sticky folder of root's will do, since they can't there.
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
    """Raise Untrusted where the open file `fd`, named `path`, is no regular file of theirs."""
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
    """Say why a file or folder (a descriptor, or a path that is only looked at) may be another's
    work; "" where only the caller, root and `owners` may write it. A link's owner counts alone.

    `named` is the path of a descriptor. Raises OSError.
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
    """Tell whether nobody but the caller and root gets into a folder: what is in it is theirs."""
    return status.st_uid in (os.getuid(), 0) and not status.st_mode & 0o077


def _writer(what: "int | str", trusted: "tuple[int, ...]") -> str:
    """Say who else may write, where the mode's middle bits say that somebody may.

    With an access control list (acl(5)) these bits are its mask, and its entries say who. Its
    format is linux/posix_acl_xattr.h's: a version, then (tag, rights, id) of 2, 2 and 4 bytes.
    """
    try:
        data = os.getxattr(what, _ACL)
    except OSError as error:
        if error.errno == EBADF:
            # A descriptor of O_PATH.
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
    """Tell whether 0 is an id of this user namespace: then root's files show as its own."""
    try:
        with open("/proc/self/uid_map", encoding="ascii") as file:
            return any(line.split()[0] == "0" for line in file)
    except OSError:
        return True


def _is_roots(what: "int | str", named: str) -> bool:
    """Tell whether a file of NOBODY can be taken for root's, in a namespace that does not know 0.

    Any other unknown user's shows so too, and his folder. So the name must be one that only root
    can give away, and on the way there no known user may write, nor this one.
    """
    path = os.path.abspath(named)
    if not any(f"{path}/".startswith(f"{one}/") for one in _ROOTS):
        return False
    unknown = all(os.stat(folder).st_uid == NOBODY for folder in _folders(path))
    itself = f"/proc/self/fd/{what}" if isinstance(what, int) else what
    return unknown and not _writable(path) and not os.access(itself, os.W_OK)


def _writable(path: str) -> str:
    """Return the first folder on the way to `path` that others may write, or this process."""
    for folder in _folders(path):
        if os.stat(folder).st_mode & 0o022 or os.access(folder, os.W_OK):
            return folder
    return ""


def above(path: str, owners: "Iterable[int]" = ()) -> str:
    """Say which folder on the way to `path` others than the caller, root and `owners` may write.

    "" for none: then nobody else can have put there what is at `path`. A sticky folder counts:
    anybody can make in it what is not there yet. Raises OSError.
    """
    owners = tuple(owners)
    for folder in _folders(path):
        why = refusal(folder, owners)
        if why:
            return f"{folder}: {why}"
    return ""


def keeper(path: str) -> tuple[int, ...]:
    """Return who besides the caller and root is believed in a folder that the site names.

    That is its owner, where nobody else could have put a folder of his own there. Raises OSError.
    """
    owner = os.stat(path).st_uid
    if owner in (os.getuid(), 0, NOBODY) or above(path, (owner,)):
        return ()
    return (owner,)


def _folders(path: str) -> "Iterator[str]":
    """Yield the folders that the kernel goes through to `path`, from / on, also through links."""
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
    """Make a folder and those above it that are missing, whatever the umask allows to others.

    The last one gets `mode`, less the umask. Returns its owner: what was there already may be
    anybody's. Raises OSError.
    """
    if not os.path.isdir(path):
        parent = os.path.dirname(path.rstrip("/"))
        if parent:
            make(parent)
        try:
            os.mkdir(path, mode)
        except FileExistsError:
            if not os.path.isdir(path):
                raise
    return os.stat(path).st_uid
