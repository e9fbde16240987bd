"""Find and read the configuration's files, and check that only trusted users may write them."""

import os

from rootless_udi.base import trust
from rootless_udi.base.digest import digest
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


_SITE_DIRECTORY = "/etc/rootless_udi"
COMPILED = "udi.cache"
"""The name of the flattened copy beside the site's files."""
FORMAT = 2
"""The format of the flattened copy; one of another number is made again from TOML."""


class ConfigFile(Record):
    """A configuration file that exists.

    `kind` is "site" or "user", with "-module" or "-mpi" for the file of a module or an MPI profile.
    `mtime` is in nanoseconds, `size` in bytes.
    """

    path: str
    kind: str
    mtime: int
    size: int
    inode: int
    owner: int = 0
    """The user who may write it besides the caller and root."""


def site_directory(environ: "Mapping[str, str]") -> str:
    """Return the directory of the site's files."""
    return environ.get("UDI_SITE_DIR") or _SITE_DIRECTORY


def user_directory(environ: "Mapping[str, str]") -> str:
    """Return the directory of the user's files; empty where there is no HOME."""
    return _xdg(environ, "XDG_CONFIG_HOME", ".config")


def find(environ: "Mapping[str, str]") -> list[ConfigFile]:
    """Return the configuration files that exist, in the order in which they are merged.

    Raises UdiError where $UDI_CONFIG names no readable file, and for a file or folder that others
    than the caller and root may write. _SITE_DIRECTORY and its files may also belong to a third
    user, whom root has given that folder.
    """
    found: list[ConfigFile] = []
    site = site_directory(environ)
    owner = _keeper(site) if site == _SITE_DIRECTORY else 0
    if _look(site, owner) is not None:
        found += _files(site, "udi.toml", "conf.d", "site", owner)
    user = user_directory(environ)
    if user and _look(user) is not None:
        found += _files(user, "config.toml", "", "user", os.getuid())
    extra = environ.get("UDI_CONFIG", "")
    if extra:
        info = _look(os.path.abspath(extra))
        if info is None:
            raise UdiError(
                f"configuration {extra} (from UDI_CONFIG): no such file",
                "correct or unset UDI_CONFIG",
            )
        found.append(_source(os.path.abspath(extra), "user", info, os.getuid()))
    return found


def _files(root: str, main: str, more: str, kind: str, owner: int) -> list[ConfigFile]:
    names = [main]
    names += [f"{more}/{name}" for name in _listing(root, more, owner)] if more else []
    found = []
    for folder, suffix in ((".", ""), ("mpi.d", "-mpi"), ("modules.d", "-module")):
        if suffix:
            names = [f"{folder}/{name}" for name in _listing(root, folder, owner)]
        for name in names:
            info = _look(f"{root}/{name}", owner)
            if info is not None:
                found.append(_source(f"{root}/{name}", kind + suffix, info, owner))
    return found


def _source(path: str, kind: str, info: os.stat_result, owner: int) -> ConfigFile:
    return ConfigFile(path, kind, info.st_mtime_ns, info.st_size, info.st_ino, owner)


def _listing(root: str, folder: str, owner: int) -> list[str]:
    path = f"{root}/{folder}"
    try:
        names = sorted(name for name in os.listdir(path) if name.endswith(".toml"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise _unreadable(path, error) from error
    _look(path, owner)
    return [name for name in names if not name.startswith(".")]


def _keeper(site: str) -> int:
    """Return the third user who may own the site's folder (`trust.keeper`); 0 for none."""
    try:
        return (*trust.keeper(site), 0)[0]
    except OSError:
        return 0


def _look(path: str, owner: int = 0) -> os.stat_result | None:
    """Return the stat(2) of a file or folder, None where there is none.

    Raises UdiError where others than the caller, root and `owner` may write it. This checks by
    path, since a start that has the flattened copy opens no other file; `read` checks by
    descriptor.
    """
    try:
        info = os.stat(path)
        why = trust.refusal(path, (owner,))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise _unreadable(path, error) from error
    if why:
        hint = f"as its owner: chmod go-w {path}" if "written" in why else "write one of your own"
        raise trust.Untrusted(f"configuration {path} is not trusted: {why}", hint)
    return info


def _unreadable(path: str, error: OSError) -> UdiError:
    return UdiError(f"configuration {path}: {os.strerror(error.errno or 0)}", "make it readable")


def read(source: ConfigFile) -> str:
    """Return the text of a file.

    Raises UdiError where it can't be read, others may have written it, or it is not UTF-8.
    """
    try:
        return trust.read(source.path, (source.owner,), "configuration").decode()
    except OSError as error:
        raise _unreadable(source.path, error) from error
    except UnicodeDecodeError as error:
        raise UdiError(f"configuration {source.path}: not UTF-8: {error.reason}") from error


def cache_file(sources: list[ConfigFile], environ: "Mapping[str, str]") -> str:
    """Return the path of the user's flattened copy of these files; "" without a HOME."""
    folder = _xdg(environ, "XDG_CACHE_HOME", ".cache")
    paths = "\0".join(source.path for source in sources)
    name = digest(paths.encode("utf-8", "surrogateescape"))
    return f"{folder}/config-{name}.json" if folder else ""


def _xdg(environ: "Mapping[str, str]", variable: str, below: str) -> str:
    """Return our folder in an XDG base directory; a relative path in `variable` does not count."""
    base = environ.get(variable, "")
    if base.startswith("/"):
        return f"{base}/rootless_udi"
    home = environ.get("HOME", "")
    return f"{home}/{below}/rootless_udi" if home.startswith("/") else ""
