"""Choose the state directory, where a node's records are.

All ranks of a job on a node must choose the same directory, even if somebody else tries to prevent
that by making a directory of that name first. The candidates and their order depend only on the
user, the node and the job's environment. A candidate that exists and is not the caller's with mode
0700 is skipped, by every rank alike:

- In folders where others can write (/tmp, /dev/shm), a foreign directory that is skipped now may be
  gone when the next rank looks. So of these candidates none is made if one of them is the caller's
  already; and if several are, the last is used, since that one was made last.
- Two ranks may still choose two directories, if somebody else makes and removes his between their
  looks. So a rank that is to build holds the locks of all candidates that are the caller's, in this
  order, and looks for a container in each (`rootless_udi.node.election`); of two such ranks one
  sees the other's directory. It publishes where there is room.
- If all candidates are taken by others, the site's configuration may name more; the very last is
  below HOME, one for each node. Only in this case does a rank that joins read the configuration.
"""

import os
from errno import EACCES, EDQUOT, ELOOP, ENAMETOOLONG, ENOENT, ENOSPC, ENOTDIR, EPERM, EROFS
from stat import S_ISDIR, S_ISLNK

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError, disk_hint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

_LATER = (ENOENT, ENOTDIR, EACCES, EPERM, EROFS, ENAMETOOLONG, ELOOP)
"""Errors for which the next candidate is tried."""
_FULL = (ENOSPC, EDQUOT)
"""Errors for which the next candidate is tried in folders that everybody may write: ranks look
there for an existing directory first, so all find that one. In a folder of the user's own a later
rank would make the directory when there is room again, and be alone in it."""


def directories(environ: "Mapping[str, str]", uid: int) -> list[str]:
    """Return the places that need no configuration, in the order in which they are tried."""
    found = [f"/run/user/{uid}/rootless_udi", f"/tmp/udi-{uid}", f"/dev/shm/udi-{uid}"]
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    if runtime.startswith("/"):
        # Under a batch system it is often unset, or names a directory that does not exist.
        found.insert(0, f"{runtime}/rootless_udi")
    return found


def further(environ: "Mapping[str, str]") -> list[str]:
    """Return the places for when all of `directories` are taken: the site's, and one below HOME."""
    from rootless_udi.config import load

    found = list(load.load(environ).state_directories)
    home = environ.get("HOME", "")
    if home.startswith("/"):
        found.append(f"{home}/.local/state/rootless_udi/{os.uname().nodename}")
    return found


def find(environ: "Mapping[str, str]", make: bool) -> tuple[str, int]:
    """Return the state directory and a descriptor of it; ("", -1) where there is none.

    With `make` it is made where it is missing. Raises UdiError where there is no room for it.
    """
    near = directories(environ, os.getuid())
    found = state(near, make)
    if found[1] < 0 and (make or any(map(refusal, near))):
        far = further(environ)
        if make and far:
            try:
                trust.make(os.path.dirname(far[-1]), 0o700)
            except OSError:
                # Then it can't be made either.
                pass
        found = state(far, make)
    return found


def final(environ: "Mapping[str, str]", path: str) -> bool:
    """Tell whether `find` with `make` returns `path` too, which it has returned without: no place
    before that can be made."""
    for group in _groups(directories(environ, os.getuid())):
        if path in group or os.path.isdir(os.path.dirname(group[0])):
            return path in group
    return False


def state(paths: "Iterable[str]", make: bool) -> tuple[str, int]:
    """Return the one of `paths` that is used, and a descriptor of it; ("", -1) for none.

    With `make` it is made where none exists.
    """
    for group in _groups(paths):
        found = _last(group)
        for path in group if make and found[1] < 0 else ():
            if _make(path, group[1:]):
                found = _last(group)
                if found[1] >= 0:
                    break
        if found[1] >= 0:
            return found
    return "", -1


def beside(paths: "Iterable[str]", path: str) -> list[str]:
    """Return the other places of the group of `path` that are the caller's, in their order.

    There may be several: if another user removes his directory between the looks of two ranks, each
    rank makes another one.
    """
    return [one for one in _with(paths, path) if not refusal(one) and os.path.lexists(one)]


def another(paths: "Iterable[str]", path: str) -> bool:
    """Make another place in the group of `path`, which is full; tell whether that was possible.

    All ranks find it: those that look later use the last place of a group, and a rank that builds
    looks in all of them.
    """
    for one in _with(paths, path):
        if not os.path.lexists(one) and _make(one, [path]) and not refusal(one):
            return True
    return False


def _with(paths: "Iterable[str]", path: str) -> list[str]:
    for group in _groups(paths):
        if path in group:
            return [one for one in group if one != path]
    return []


def opened(path: str) -> int:
    """Return a descriptor of a place; -1 where it can't be used any more."""
    return _last([path])[1]


def seen(paths: "Iterable[str]") -> str:
    """Return the path that `state` would return, without opening or making it; "" for none."""
    for group in _groups(paths):
        for path in reversed(group):
            if not refusal(path) and os.path.lexists(path):
                return path
    return ""


def refusal(path: str) -> str:
    """Return why `path` can't be a state directory; "" where it can, or nothing is there."""
    try:
        return _judge(os.lstat(path))
    except OSError:
        return ""


def passed_over(paths: "Iterable[str]") -> "Iterator[str]":
    """Yield a sentence for each of `paths` that can't be a state directory."""
    for path in paths:
        why = refusal(path)
        if why:
            yield f"the state directory {path} is passed over: {why}"


def _judge(status: os.stat_result) -> str:
    if S_ISLNK(status.st_mode):
        return "it is a symbolic link"
    if not S_ISDIR(status.st_mode):
        return "it is no directory"
    if status.st_uid != os.getuid():
        return "it is somebody else's"
    return "it is open to others" if status.st_mode & 0o077 else ""


def _groups(paths: "Iterable[str]") -> "Iterator[list[str]]":
    """Yield the candidates in groups, in their order.

    A candidate in a folder of the user's own is a group by itself. All those in folders where
    others can write are one group, at the place of the first of them.
    """
    paths, done = list(paths), False
    for number, path in enumerate(paths):
        if not _open_to_all(path):
            yield [path]
        elif not done:
            done = True
            yield [path, *[one for one in paths[number + 1 :] if _open_to_all(one)]]


def _open_to_all(path: str) -> bool:
    """Tell whether others can make something at `path`."""
    try:
        return bool(trust.refusal(os.path.dirname(path)))
    except OSError:
        return False


def _last(group: list[str]) -> tuple[str, int]:
    for path in reversed(group):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in _LATER:
                continue
            raise _failed(path, error) from None
        if not _judge(os.fstat(fd)):
            return path, fd
        os.close(fd)
    return "", -1


def _make(path: str, others: list[str]) -> bool:
    """Make a place; tell whether it exists now. `others` of its group could be used instead."""
    # With the caller's umask the owner might have no access.
    mask = os.umask(0o077)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno in _LATER or (others and error.errno in _FULL):
            return False
        raise _failed(path, error) from None
    finally:
        os.umask(mask)
    return True


def failed(path: str, error: OSError) -> UdiError:
    """Return the error that a record in the state directory `path` can't be written."""
    return UdiError(
        f"writing a record in the state directory {path} failed: {error.strerror}",
        disk_hint(error.errno, "set XDG_RUNTIME_DIR to another directory, or use --share=off"),
    )


def _failed(path: str, error: OSError) -> UdiError:
    return UdiError(
        f"making the state directory {path} failed: {error.strerror}",
        disk_hint(error.errno, "set XDG_RUNTIME_DIR, or run with --share=off"),
    )
