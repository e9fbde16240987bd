"""Who may read an image's files, as the kernel enforces it: their mode, or a POSIX access list.

A list is the extended attribute system.posix_acl_access (acl(5); linux/posix_acl_xattr.h): a
version of 4 bytes, then tag, rights and id of each entry, of 2, 2 and 4 bytes, sorted by tag. What
is taken away reaches neither copies nor files that are open.
"""

import errno
import os
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
MOST = 500
"""Most entries of a list. ext4 keeps about 500 in a block of 4096 bytes; XFS has more."""


def allow(
    store: Store, digest: str, public: bool, users: Iterable[int], groups: Iterable[int]
) -> None:
    """Let everybody read the image `digest`, or its owner, these users and these groups alone.

    Raises UdiError where the file system refuses it.
    """
    base = store.path("images", stem(digest))
    data = _list(sorted(set(users)), sorted(set(groups)))
    # The facts last: who finds an image looks at its own file first.
    for path in (base + find.OPTIMIZED, f"{base}.sqfs", f"{base}.json"):
        try:
            _apply(path, public, data)
        except FileNotFoundError:
            continue
        except OSError as error:
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
        if error.errno in (errno.ENOTSUP, errno.ENOSYS):
            return False
        raise store.refused("trying access lists", error) from None
    return True


def public(path: str) -> bool:
    """Tell whether everybody may read a file. Raises OSError."""
    return bool(os.stat(path).st_mode & 0o004)
