"""Give up root's rights for good, for those of an account.

A process that has done so shares nothing with root that would help the account's other processes:
ptrace(2) lets them do with it as they like.
"""

import os
import pwd

from rootless_udi.base import syscalls
from rootless_udi.base.calls import close_others
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record

_SYS_KEYCTL = {"x86_64": 250, "ppc64le": 271, "s390x": 280}
_SYS_KEYCTL_GENERIC = 219
_JOIN_SESSION_KEYRING = 1
PR_SET_PDEATHSIG = 1
_SIGTERM = 15


class Account(Record):
    """Whose rights a process gets: never root's, and never those of group 0."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def account(who: int | str) -> Account:
    """Return the account with this uid or name; raises UdiError for none, and for root's."""
    try:
        found = pwd.getpwnam(who) if isinstance(who, str) else pwd.getpwuid(who)
    except KeyError:
        what = f"user {who}" if isinstance(who, str) else f"uid {who}"
        raise UdiError(
            f"{what} has no account on this machine", "getent passwd lists those that have"
        ) from None
    if found.pw_uid == 0 or found.pw_gid == 0:
        raise UdiError(
            f"account {found.pw_name} is root's or of group 0, and has rights to lose",
            "name another one",
        )
    groups = os.getgrouplist(found.pw_name, found.pw_gid)
    return Account(
        found.pw_name,
        found.pw_uid,
        found.pw_gid,
        tuple(one for one in groups if one != 0),
        found.pw_dir,
    )


def become(one: Account) -> None:
    """Turn this process of root's into one of `one`'s, for good. For a child; raises OSError.

    It leaves the terminal (TIOCSTI types into the one that a process is controlled by), root's open
    files and session keyring, and ends with its parent.
    """
    os.setsid()
    close_others()
    os.setgroups(one.groups)
    os.setresgid(one.gid, one.gid, one.gid)
    os.setresuid(one.uid, one.uid, one.uid)
    _check(one)
    syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    syscalls.prctl(PR_SET_PDEATHSIG, _SIGTERM)
    _leave_keyring()
    os.umask(0o022)


def _check(one: Account) -> None:
    """Raise OSError unless nothing of root's is left: securebits(7) can keep capabilities."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        rows = dict(line.split(":", 1) for line in file if ":" in line)
    # Effective, permitted and ambient; what files may give no_new_privs forbids.
    held = any(int(rows[name], 16) for name in ("CapEff", "CapPrm", "CapAmb") if name in rows)
    ids = {*os.getresuid()} == {one.uid} and {*os.getresgid()} == {one.gid}
    if held or not ids or set(os.getgroups()) - {*one.groups, one.gid}:
        raise PermissionError(1, f"root's rights can't be given up for those of {one.name}")


def _leave_keyring() -> None:
    """Take an empty session keyring (keyrings(7)): the keys in root's would be the account's."""
    number = _SYS_KEYCTL.get(os.uname().machine, _SYS_KEYCTL_GENERIC)
    try:
        syscalls.numbered("keyctl", number, _JOIN_SESSION_KEYRING, None)
    except OSError as error:
        # A kernel without keys, or a filter, which the account's processes inherit.
        if error.errno not in syscalls.REFUSED:
            raise
