"""Texts of ssh into a container: sshd's configuration, a node's block, what is printed. Pure."""

import shlex

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

SUBSYSTEM = "udi-sftp"
"""What a session is asked for by who wants SFTP: our own server, in the container."""
KEYS = ("ssh-ed25519", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521")
MORE_KEYS = ("ssh-rsa", "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com")
"""How the line of a public key begins."""
_PLAIN = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@="  # no "%" and no "~"
)


class SshNode(Record):
    """What others must know of a node's sshd: `names` of the node, the first is the job's own."""

    job: str
    names: tuple[str, ...]
    host: str
    port: int
    user: str
    key: str
    """The host's public key, "TYPE BASE64"."""
    rank: int
    pid: int
    start: int

    @property
    def alias(self) -> str:
        """The name by which the host's key is known: host and port may serve another job later."""
        return f"udi-{self.job}-{self.names[0]}"


def plain(path: str, what: str) -> str:
    """Return a path. Raises UdiError where OpenSSH's files could not name it: they have no quoting
    that all versions know."""
    if _PLAIN.issuperset(path):
        return path
    odd = next(c for c in path if c not in _PLAIN)
    raise UdiError(
        f"{what} {path}: OpenSSH's configuration can't name a path with {odd!r} in it",
        "set XDG_RUNTIME_DIR, or --folder=DIR",
    )


def server(folder: str, user: str, terminal: bool) -> str:
    """Return sshd_config(5) of a node: `folder` has its files.

    The login shell, which runs ForceCommand, gets an empty folder as HOME, so that no start-up file
    of the user's prints into SFTP or fails. `terminal`: whether sshd can give one (`pty`).
    """
    # A name with "@" would be taken for USER@HOST; sshd can become nobody else anyway.
    allowed = f"AllowUsers {user}\n" if _PLAIN.issuperset(user) and "@" not in user else ""
    return f"""\
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
{allowed}AuthenticationMethods publickey
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PidFile none
PermitUserRC no
PermitUserEnvironment no
PermitTTY {"yes" if terminal else "no"}
PermitTunnel no
X11Forwarding no
AllowStreamLocalForwarding yes
PrintMotd no
PrintLastLog no
UseDNS no
LoginGraceTime 120
ClientAliveInterval 60
ClientAliveCountMax 10
MaxSessions 64
AcceptEnv LANG LC_* COLORTERM
SetEnv HOME={folder}/empty
Subsystem sftp {SUBSYSTEM}
ForceCommand exec /bin/sh {folder}/enter
"""


def enter(argv: "list[str]") -> str:
    """Return the script that sshd starts for a session, by which a Python with `argv` starts.

    As bin/udi-run it says whether the client sent a locale: Python sets LC_CTYPE where there is
    none.
    """
    python, *words = map(shlex.quote, argv)
    rest = " ".join(words)
    return f"""\
[ "${{LC_CTYPE+set}}${{LC_ALL+set}}" ] && exec {python} -X utf8=1 {rest}
exec {python} -X utf8=1 -X lc_ctype=unset {rest}
"""


def block(node: SshNode, folder: str) -> str:
    """Return ssh_config(5) by which ssh finds a node of the job; `folder` is the job's.

    Its first line tells `read` who serves.
    """
    names = " ".join(dict.fromkeys((*node.names, node.alias)))
    return f"""\
# udi {node.rank} {node.pid} {node.start} {node.host} {node.names[0]}
Host {names}
    HostName {node.host}
    Port {node.port}
    User {node.user}
    HostKeyAlias {node.alias}
    UserKnownHostsFile {folder}/nodes/{node.names[0]}.key
    GlobalKnownHostsFile /dev/null
    StrictHostKeyChecking yes
    UpdateHostKeys no
    CheckHostIP no
    IdentityFile {folder}/key/id
    IdentitiesOnly yes
    PreferredAuthentications publickey
    BatchMode yes
    ControlMaster no
    ControlPath none
    ProxyCommand none
    ForwardX11 no
"""


def known(node: SshNode) -> str:
    """Return the line of known_hosts (sshd(8)) that pins a node's key."""
    return f"{node.alias} {node.key}\n"


def read(text: str) -> tuple[int, int, int, str, str] | None:
    """Return (rank, pid, start, host, node) of a block's first line; None for another's file."""
    words = text.partition("\n")[0].split()
    if words[:2] != ["#", "udi"] or len(words) != 7 or not all(w.isdecimal() for w in words[2:5]):
        return None
    rank, pid, start = map(int, words[2:5])
    return rank, pid, start, words[5], words[6]


def people(node: SshNode, folder: str, jump: str, own_key: bool) -> str:
    """Return what is printed for people: ssh from the cluster, and a block for their own computer.

    `jump` is the login node's name, `own_key` says whether a key of theirs is let in.
    """
    where = jump or "LOGIN"
    identity = "" if own_key else f"\n    IdentityFile ~/.ssh/{node.alias}\n    IdentitiesOnly yes"
    fetch = f"#   scp {where}:{folder}/key/id ~/.ssh/{node.alias}\n"
    return f"""\
# On the cluster:
#   ssh -F {folder}/config {node.names[0]}
# On your computer, in ~/.ssh/config{"" if jump else ", with the login node's name for LOGIN"}:
Host {node.alias}
    HostName {node.host}
    Port {node.port}
    User {node.user}
    ProxyJump {where}
    HostKeyAlias {node.alias}
    StrictHostKeyChecking yes{identity}
# and in ~/.ssh/known_hosts:
#   {known(node)}{"" if own_key else "# The key that is let in:" + chr(10) + fetch}"""


def keys(text: str, origin: str) -> "Iterable[str]":
    """Yield the public keys of a text, a line each. Raises UdiError for what is none.

    A line with options (`command=`, `from=`) is refused: this sshd would not do what they ask.
    """
    found = False
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.split()
        if words[0] not in KEYS + MORE_KEYS or len(words) < 2:
            raise UdiError(
                f"--authorize={origin}: line {number} is no public key without options",
                "a file like ~/.ssh/id_ed25519.pub",
            )
        found = True
        yield f"{words[0]} {words[1]}"
    if not found:
        raise UdiError(f"--authorize={origin}: no public key is in it")
