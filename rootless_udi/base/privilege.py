"""Refuse to run with more privilege than the caller's own."""

import os

from rootless_udi.base.errors import UdiError


def refuse_privilege(program: str = "udi-run") -> None:
    """Raise UdiError if the caller is root, or the program is setuid or setgid."""
    uid, gid = os.getuid(), os.getgid()
    if uid != os.geteuid() or gid != os.getegid():
        raise UdiError(
            f"{program} is setuid or setgid, and refuses to run so",
            "it needs no privilege: chmod ug-s it",
        )
    if uid == 0 or gid == 0:
        what = "root" if uid == 0 else "a member of group 0 (root)"
        raise UdiError(
            f"{program} runs as an ordinary user, and this is {what}",
            f"become one: setpriv --reuid=USER --regid=GROUP --init-groups {program} ...",
        )
