"""A job's folder for ssh, which all its nodes see: its key, and a block for each node.

    config                  Include of all blocks, for `ssh -F` outside
    key/id, key/id.pub      the key that the job's sshd take
    nodes/NODE.conf, .key   where a node's sshd listens, and its own public key

It lies below the user's home directory, which a cluster's nodes share as no local folder is. Each
node writes its own files, and takes them away when its container ends; the last takes the folder.
"""

import os
import shutil
import subprocess
from stat import S_ISDIR

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError, disk_hint
from rootless_udi.node.record import alive
from rootless_udi.ssh import texts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rootless_udi.ssh.texts import SshNode

_MOST = 4096
"""Bytes of a node's block."""


def parent(environ: "Mapping[str, str]", asked: str | None) -> str:
    """Return the folder of all jobs' folders. Raises UdiError where no home directory is known."""
    if asked:
        return texts.plain(os.path.abspath(asked), "--folder:")
    home = environ.get("HOME", "")
    base = environ.get("XDG_STATE_HOME") or (f"{home}/.local/state" if home else "")
    if not base.startswith("/"):
        raise UdiError(
            "udi sshd: no folder that the job's nodes share is known, since HOME is not set",
            "--folder=DIR names one",
        )
    return texts.plain(f"{base}/rootless_udi/ssh-jobs", "the folder")


def job(above: str, name: str) -> str:
    """Make the folder of the job `name`, or take it as another node has made it; return its path.

    Raises UdiError where it can't be written, or is open to others.
    """
    path = f"{above}/{name}"
    try:
        trust.make(above, 0o700)
        for one in (path, f"{path}/nodes"):
            trust.make(one, 0o700)
        status = os.lstat(path)
        if not S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
            raise UdiError(
                f"the folder {path} of the job's key is open to others, or somebody else's",
                "chmod 700, or --folder=DIR",
            )
        write(f"{path}/config", f"Include {path}/nodes/*.conf\n")
    except OSError as error:
        raise _failed("making", path, error) from None
    return path


def key(path: str, keygen: str) -> str:
    """Return the job's public key, "TYPE BASE64", which the first of its nodes makes."""
    partial = f"{path}/key.{os.uname().nodename}.{os.getpid()}"
    if not os.path.exists(f"{path}/key/id.pub"):
        try:
            os.mkdir(partial, 0o700)
            generate(f"{partial}/id", keygen)
            os.rename(partial, f"{path}/key")
        except OSError as error:
            # The name is taken if another node was faster: its key is the job's.
            if not os.path.exists(f"{path}/key/id.pub"):
                raise _failed("making the key in", path, error) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    return public(f"{path}/key/id")


def generate(path: str, keygen: str) -> None:
    """Make a pair of keys without a passphrase: `path` and `path`.pub. Raises UdiError."""
    said = ""
    for kind in ("ed25519", "ecdsa"):
        # The second for machines that may not use the first (FIPS).
        argv = [keygen, "-q", "-t", kind, "-N", "", "-C", "udi", "-f", path]
        try:
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        except OSError as error:
            raise UdiError(f"starting {keygen} failed: {error.strerror}") from None
        if done.returncode == 0:
            return
        said = said or (done.stderr or done.stdout).strip()
    raise UdiError(f"making a key failed on {path}: {said}")


def public(path: str) -> str:
    """Return the public key beside the private one at `path`, "TYPE BASE64"."""
    try:
        with open(f"{path}.pub", encoding="utf-8", errors="replace") as file:
            return " ".join(file.read(_MOST).split()[:2])
    except OSError as error:
        raise _failed("reading", f"{path}.pub", error) from None


def register(path: str, node: "SshNode") -> None:
    """Write a node's files: its key first, so that who finds the block finds the key."""
    base = f"{path}/nodes/{node.names[0]}"
    try:
        write(f"{base}.key", texts.known(node))
        write(f"{base}.conf", texts.block(node, path))
    except OSError as error:
        raise _failed("writing", f"{base}.conf", error) from None


def nodes(path: str) -> "Iterator[tuple[int, str]]":
    """Yield (rank, node) of the nodes whose sshd is up."""
    for found in _found(path):
        yield found[0], found[4]


def leave(path: str, node: str, owner: tuple[int, int]) -> None:
    """Remove a node's files, and the folder with the last of them. Never raises.

    `owner` is who wrote them, (pid, start): another one may have taken the place meanwhile.
    """
    if any(found[4] == node and found[1:3] != owner for found in _found(path)):
        return
    for ending in (".conf", ".key"):
        try:
            os.unlink(f"{path}/nodes/{node}{ending}")
        except OSError:
            pass
    try:
        os.rmdir(f"{path}/nodes")
    except OSError:
        return
    shutil.rmtree(path, ignore_errors=True)
    try:
        os.rmdir(os.path.dirname(path))
    except OSError:
        # Other jobs have theirs in it.
        pass


def sweep(above: str) -> None:
    """Remove what sshd on this node have left that were killed together with who cleans up."""
    here = os.uname().nodename
    try:
        jobs = os.listdir(above)
    except OSError:
        return
    for name in jobs:
        for _, pid, start, host, node in list(_found(f"{above}/{name}")):
            if host == here and not alive(pid, start):
                leave(f"{above}/{name}", node, (pid, start))


def _found(path: str) -> "Iterator[tuple[int, int, int, str, str]]":
    try:
        files = [file for file in os.listdir(f"{path}/nodes") if file.endswith(".conf")]
    except OSError:
        return
    for file in files:
        try:
            with open(f"{path}/nodes/{file}", encoding="utf-8", errors="replace") as block:
                found = texts.read(block.read(_MOST))
        except OSError:
            continue
        if found is not None and file == f"{found[4]}.conf":
            yield found


def write(path: str, text: str, mode: int = 0o600) -> None:
    """Write a file that appears whole under its name. Raises OSError."""
    partial = f"{path}.{os.uname().nodename}.{os.getpid()}.new"
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, mode)
    try:
        with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
        os.rename(partial, path)
    except BaseException:
        os.unlink(partial)
        raise


def _failed(what: str, path: str, error: OSError) -> UdiError:
    return UdiError(
        f"{what} {path} failed: {error.strerror}",
        disk_hint(error.errno, "--folder=DIR takes another one that the job's nodes share"),
    )
