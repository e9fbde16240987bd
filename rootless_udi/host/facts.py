"""Facts about the host and the caller, read and never changed. A launch gathers them once."""

import os
from stat import S_ISBLK, S_ISCHR, S_ISDIR, S_ISLNK, S_ISREG

from rootless_udi.plan.facts import Host, HostPath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


def gather(environ: "Mapping[str, str]", squashfuse: str = "") -> Host:
    """Return the facts; `squashfuse` is the path that the site sets, empty to search for it."""
    uid, gid = os.getuid(), os.getgid()
    user, gecos, home, shell = _account(uid, environ)
    system = os.uname()
    return Host(
        uid=uid,
        gid=gid,
        user=user,
        gecos=gecos,
        home=home,
        shell=shell,
        group=_group(gid, user),
        fuse=_fuse(),
        overlay=release(system.release) >= _OVERLAY_SINCE,
        squashfuse=squashfuse or which("squashfuse_ll", environ),
        unsquashfs=which("unsquashfs", environ),
        machine=system.machine,
    )


_OVERLAY_SINCE = (5, 11)
"""Linux that lets an ordinary user mount overlayfs (user_namespaces(7))."""

FUSE = os.makedev(10, 229)
"""Device number of /dev/fuse: Documentation/admin-guide/devices.txt of the kernel."""


def _fuse() -> bool:
    """Tell whether /dev/fuse exists, is device 10:229 and may be opened.

    Some container managers bind /dev/null over it.
    """
    try:
        device = os.stat("/dev/fuse").st_rdev
    except OSError:
        return False
    return device == FUSE and os.access("/dev/fuse", os.R_OK | os.W_OK)


def release(text: str) -> tuple[int, int]:
    """Return (major, minor) of a kernel release such as "5.14.0-427.el9.x86_64"."""
    numbers = []
    for part in text.split(".")[:2]:
        digits = ""
        for c in part:
            if not c.isdigit():
                break
            digits += c
        numbers.append(int(digits or 0))
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (0, 0)


def which(name: str, environ: "Mapping[str, str]") -> str:
    """Return the path of a program on PATH or in the system's usual folders, or ""."""
    folders = [*environ.get("PATH", "").split(":"), "/usr/local/bin", "/usr/bin", "/bin"]
    folders += ["/usr/sbin", "/sbin", f"{environ.get('HOME', '')}/.local/bin"]
    for folder in folders:
        path = f"{folder}/{name}"
        if folder.startswith("/") and os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    return ""


def look(paths: "Iterable[str]") -> dict[str, HostPath]:
    """Return what is at each of `paths`, followed through symbolic links."""
    folders: dict[str, str] = {"": ""}
    return {path: _look(path, folders) for path in paths}


def _look(path: str, folders: "dict[str, str]") -> HostPath:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return HostPath("missing", path)
    except NotADirectoryError as error:
        return HostPath("missing", path, str(error.strerror))
    except PermissionError:
        return HostPath("denied", path)
    except OSError as error:
        # Among others: a FUSE server that died, a stale file handle of NFS, a failing disk,
        # symbolic links in a circle.
        return HostPath("failed", path, str(error.strerror))
    if S_ISDIR(mode):
        kind = "directory"
    elif S_ISREG(mode):
        kind = "file"
    elif S_ISCHR(mode) or S_ISBLK(mode):
        kind = "device"
    else:
        kind = "special"
    return HostPath(kind, _real(path, folders))


def _real(path: str, folders: "dict[str, str]") -> str:
    """Do what os.path.realpath does, which looks at each folder on the way again for each path.

    `folders` are those that were looked at already: path -> path without links.
    """
    folder, _, name = path.rpartition("/")
    if not path.startswith("/") or name in ("", ".", ".."):
        return os.path.realpath(path)
    if folder not in folders:
        folders[folder] = _real(folder, folders)
    whole = f"{folders[folder]}/{name}"
    try:
        return os.path.realpath(path) if S_ISLNK(os.lstat(whole).st_mode) else whole
    except OSError:
        return os.path.realpath(path)


def _account(uid: int, environ: "Mapping[str, str]") -> tuple[str, str, str, str]:
    """Return name, full name, home and shell; for a uid without an account, by the environment."""
    import pwd

    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        name = environ.get("USER") or environ.get("LOGNAME") or "user"
        return name, "", environ.get("HOME") or "/", "/bin/sh"
    return entry.pw_name, entry.pw_gecos, entry.pw_dir, entry.pw_shell


def _group(gid: int, default: str) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return default
