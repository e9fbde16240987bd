"""Users and groups as --user and --group name them: NAME,NAME or their numbers."""

import grp
import pwd
from collections.abc import Callable, Iterable

from rootless_udi.base.errors import UdiError


def users(texts: Iterable[str]) -> list[int]:
    """Return the ids of users. Raises UdiError for one that this machine does not know."""
    return _ids(texts, lambda name: pwd.getpwnam(name).pw_uid)


def groups(texts: Iterable[str]) -> list[int]:
    """Return the ids of groups. Raises UdiError for one that this machine does not know."""
    return _ids(texts, lambda name: grp.getgrnam(name).gr_gid)


def _ids(texts: Iterable[str], find: Callable[[str], int]) -> list[int]:
    found = []
    for name in filter(None, (word for text in texts for word in text.split(","))):
        if name.isascii() and name.isdecimal():
            found.append(int(name))
            continue
        try:
            found.append(find(name))
        except KeyError:
            raise UdiError(
                f"{name} is no user or group of this machine", "id NAME shows it"
            ) from None
    return found
