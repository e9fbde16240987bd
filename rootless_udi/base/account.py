"""Turn a process of root's into one of an ordinary account, for good.

The account's other processes can then do with it what they like (ptrace(2)). So it keeps nothing of
root's that would help them: no open file, terminal, capability or key.
"""

import os
import pwd

from rootless_udi.base import syscalls
from rootless_udi.base.calls import close_others
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record

_SYS_KEYCTL = {"x86_64": 250, "ppc64le": 271, "s390x": 280}
_SYS_KEYCTL_GENERIC = 219
"""The number of keyctl(2) by uname(2)'s machine; the generic one is for aarch64, riscv64, ..."""
_JOIN_SESSION_KEYRING = 1
PR_SET_PDEATHSIG = 1
"""prctl(2): the signal to get when the parent ends."""
_SIGTERM = 15


class Account(Record):
    """An account whose rights a process gets. It is not root, and not in group 0.

    `groups` are the supplementary groups' ids, `home` is the home directory.
    """

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def account(who: int | str) -> Account:
    """Return the account with this uid or name.

    Raises UdiError where there is none, and for one of root or of group 0.
    """
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
    """Turn this process, a child of root's, into one of the account `one`. Raises OSError.

    It leaves root's terminal (with TIOCSTI it could type into that), open files and session
    keyring, and ends when its parent does.
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
    """Raise OSError if something of root's is left; securebits (capabilities(7)) may keep some."""
    with open("/proc/self/status", encoding="ascii", errors="replace") as file:
        rows = dict(line.split(":", 1) for line in file if ":" in line)
    # The inheritable set does not matter: with no_new_privs, no program's file adds to it.
    held = any(int(rows[name], 16) for name in ("CapEff", "CapPrm", "CapAmb") if name in rows)
    ids = {*os.getresuid()} == {one.uid} and {*os.getresgid()} == {one.gid}
    if held or not ids or set(os.getgroups()) - {*one.groups, one.gid}:
        raise PermissionError(1, f"root's rights can't be given up for those of {one.name}")


def _leave_keyring() -> None:
    """Join a new, empty session keyring (keyrings(7)): the account could use the keys in root's."""
    number = _SYS_KEYCTL.get(os.uname().machine, _SYS_KEYCTL_GENERIC)
    try:
        syscalls.numbered("keyctl", number, _JOIN_SESSION_KEYRING, None)
    except OSError as error:
        # REFUSED: the kernel has no keys, or a filter forbids the call to the account as well.
        if error.errno not in syscalls.REFUSED:
            raise
