"""Who may read an image's files, as the kernel enforces it: their mode, or a POSIX access list.

A list is the extended attribute system.posix_acl_access (acl(5); linux/posix_acl_xattr.h): a
version of 4 bytes, then tag, rights and id of each entry, of 2, 2 and 4 bytes, sorted by tag. What
is taken away reaches neither copies nor files that are open.
"""

import errno
import os
import pwd
import struct
import tempfile
from collections.abc import Iterable

from rootless_udi.base.errors import UdiError
from rootless_udi.store import find
from rootless_udi.store.store import Store, stem

_ACL = "system.posix_acl_access"
_VERSION = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 1, 2, 4, 8, 16, 32
_READ, _WRITE = 4, 2
_NO_ID = 0xFFFFFFFF
_NO_LISTS = (errno.ENOTSUP, errno.ENOSYS)
MOST = 500
"""Most entries of a list. ext4 keeps about 500 in a block of 4096 bytes; XFS has more."""


class NoId(UdiError):
    """A user or group that has no id here."""


class NoLists(UdiError):
    """The file system has no access lists, and what is asked for needs one."""


def allow(
    store: Store, digest: str, public: bool, users: Iterable[int], groups: Iterable[int]
) -> None:
    """Let everybody read the image `digest`, or its owner, these users and these groups alone.

    Raises UdiError where the file system refuses it.
    """
    base = store.path("images", stem(digest))
    users, groups = sorted(set(users)), sorted(set(groups))
    data = _list(users, groups)
    # The facts last: who finds an image looks at its own file first.
    for path in (base + find.OPTIMIZED, f"{base}.sqfs", f"{base}.json"):
        try:
            _apply(path, public, data)
        except FileNotFoundError:
            continue
        except OSError as error:
            if error.errno in _NO_LISTS:
                _apply_group(path, group_for(users, groups))
                continue
            raise UdiError(
                f"setting who may read image {digest} failed on {path}: {error.strerror}",
                "the file system must have POSIX access lists (acl(5)) with room for this one",
            ) from None


def _apply(path: str, public: bool, data: bytes) -> None:
    if not public and data:
        os.setxattr(path, _ACL, data)
        return
    # With a list, the group's bits of the mode are its mask: nothing may be given meanwhile.
    if not public:
        os.chmod(path, 0o600)
    try:
        os.removexattr(path, _ACL)
    except OSError as error:
        if error.errno not in (errno.ENODATA, errno.ENOTSUP):
            raise
    os.chmod(path, 0o644 if public else 0o600)


def check_ids(users: Iterable[int], groups: Iterable[int]) -> None:
    """See that users and groups are ones that a list here can have. Raises NoId.

    In a user namespace (a container) only what is mapped there is an id (user_namespaces(7)).
    """
    for kind, ids in (("user", users), ("group", groups)):
        with open(f"/proc/self/{kind[0]}id_map") as file:
            ranges = [(int(at), int(count)) for at, _, count in map(str.split, file)]
        for one in ids:
            if not any(at <= one < at + count for at, count in ranges):
                raise NoId(
                    f"{kind} {one} has no id in the user namespace in which the gateway runs",
                    "name others, or run the gateway outside of a container",
                )


def group_for(users: Iterable[int], groups: Iterable[int]) -> int:
    """Return the group whose right to read does what a list would, -1 for the owner's alone.

    That is how files are closed on a file system without lists: one group, of which the gateway's
    account is a member (chown(2) lets it give files to such), with all these users in it. Raises
    UdiError where there is none.
    """
    others = {*users} - {os.getuid()}
    wanted = {*groups}
    if not others and not wanted:
        return -1
    (group,) = wanted if len(wanted) == 1 else (-1,)
    if group not in {os.getgid(), *os.getgroups()} or any(group not in _of(u) for u in others):
        raise NoLists(
            "the store's file system has no access lists: there an image can be kept for one group "
            "of the gateway's own account, with its members, and for nobody else",
            "name one such group and no users, or pull into a store of your own",
        )
    return group


def _of(uid: int) -> set[int]:
    """Return the groups of an account."""
    try:
        found = pwd.getpwuid(uid)
        return {*os.getgrouplist(found.pw_name, found.pw_gid)}
    except KeyError:
        return set()


def _apply_group(path: str, group: int) -> None:
    try:
        os.chmod(path, 0o600)
        if group >= 0:
            os.chown(path, -1, group)
            os.chmod(path, 0o640)
    except OSError as error:
        raise UdiError(f"giving {path} to group {group} failed: {error.strerror}") from None


def _list(users: list[int], groups: list[int]) -> bytes:
    """Return the attribute's value; empty where the owner alone may read."""
    if not users and not groups:
        return b""
    entries = [(_USER_OBJ, _READ | _WRITE, _NO_ID)]
    entries += [(_USER, _READ, one) for one in users]
    entries += [(_GROUP_OBJ, 0, _NO_ID)]
    entries += [(_GROUP, _READ, one) for one in groups]
    entries += [(_MASK, _READ, _NO_ID), (_OTHER, 0, _NO_ID)]
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *one) for one in entries)


def works(store: Store) -> bool:
    """Tell whether the store's file system keeps access lists. Raises UdiError."""
    try:
        with tempfile.NamedTemporaryFile(dir=store.path("gateway")) as file:
            os.setxattr(file.name, _ACL, _list([os.getuid()], []))
    except OSError as error:
        if error.errno in _NO_LISTS:
            return False
        raise store.refused("trying access lists", error) from None
    return True


def public(path: str) -> bool:
    """Tell whether everybody may read a file. Raises OSError."""
    return bool(os.stat(path).st_mode & 0o004)
