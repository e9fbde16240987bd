"""What the site and the user configured, as one frozen record; and the quick way to read it.

TOML is read by `rootless_udi.configtoml`, at 18 ms of imports; a launch reads what that made of
the files before: a flattened copy (JSON) in the user's cache, or beside the site's files where
the administrator ran `udi config compile`. Without any file a launch looks at two paths and no
more. Nothing here is a privilege boundary: `UDI_SITE_DIR` names another site directory.
"""

import os

from rootless_udi import trust
from rootless_udi.errors import UdiError
from rootless_udi.records import Record
from rootless_udi.steps import Env

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

SITE_DIRECTORY = "/etc/rootless_udi"
COMPILED = "udi.cache"
"""The flattened copy beside the site's files."""
FORMAT = 1
"""Of the flattened copy: another number makes it read again from TOML."""
BUILT_IN = "built-in default"
_RACY = 2 * 10**9
"""A file changed less than this (ns) before the copy was made may have changed again unseen."""


class MountRow(Record):
    """A mount that every container gets: a bind of `source` (host) on `destination`.

    `options` as for a volume. Where `required` is false, a missing source leaves it out.
    """

    source: str
    destination: str
    options: tuple[str, ...] = ()
    required: bool = True
    origin: str = BUILT_IN


DEFAULT_MOUNTS = (
    # A fresh /proc needs a PID namespace, which MPI's shared memory transports can't live with.
    MountRow("/proc", "/proc", ("rec",)),
    MountRow("/sys", "/sys", ("rec",)),
    MountRow("/dev", "/dev", ("rec",)),
    MountRow("/tmp", "/tmp", ("rec",)),
    MountRow("/var/tmp", "/var/tmp", ("rec",), False),
)


class Site(Record):
    """The merged configuration; the defaults work without any file.

    `$NAME` in paths is expanded by `load` from the caller's environment ($UID is always known).
    `modules` maps a name to the module's checked TOML; `rootless_udi.modules.available` makes
    records of it; `mpi` a name to an MPI profile's table (`mpi_inject.profiles.from_dict`).
    `origins` are (key, "FILE:LINE") pairs for what a file gave; the rest is built in.
    """

    name: str = ""
    """The machine's name, as `shifterimg images` prints it."""
    store: str = ""
    """The user's own image store; empty: the default, see `rootless_udi.store_find`."""
    site_stores: tuple[str, ...] = ()
    registry: str = "docker.io"
    mirrors: tuple[tuple[str, tuple[str, ...]], ...] = ()
    insecure: tuple[str, ...] = ()
    """Registries that are spoken to over plain HTTP."""
    pull: str = "missing"
    """"missing", "never" or "always"."""
    compression: str = "zstd"
    compression_level: int = 3
    mounts: tuple[MountRow, ...] = DEFAULT_MOUNTS
    propagation: str = "private"
    """"private" or "slave": whether mounts that the host makes later appear inside (autofs)."""
    environment: tuple[Env, ...] = ()
    default_modules: tuple[str, ...] = ()
    if TYPE_CHECKING:
        modules: Mapping[str, Any] = {}
        mpi: Mapping[str, Any] = {}
    else:
        modules: dict = {}
        mpi: dict = {}
    cache_paths: tuple[str, ...] = ()
    """Where perNodeCache files are made; empty: in the volume's own source."""
    cache_method: str = "tmpfs"
    cache_limit: int = 0
    """Largest perNodeCache in bytes; 0: no limit but memory's or the file system's."""
    cdi_spec_dirs: tuple[str, ...] = ("/etc/cdi", "/var/run/cdi")
    """Where CDI specifications lie; a later directory wins over an earlier one, none: no CDI."""
    etc: tuple[tuple[str, str], ...] = (
        ("hosts", "/etc/hosts"),
        ("resolv.conf", "/etc/resolv.conf"),
    )
    """(name below the container's /etc, file of the host)."""
    server: str = "auto"
    """Who serves the image: see `rootless_udi.fuse`."""
    squashfuse: str = ""
    """Path of squashfuse_ll; empty: searched for."""
    server_options: tuple[str, ...] = ()
    state_directories: tuple[str, ...] = ()
    """Further places for a node's records: see `rootless_udi.places`."""
    origins: tuple[tuple[str, str], ...] = ()

    @property
    def host_etc(self) -> tuple[str, ...]:
        """The container's paths that `etc` fills."""
        return tuple(f"/etc/{name}" for name, _ in self.etc)

    def origin(self, key: str) -> str:
        """Return the file that gave a key ("cache.method"), or "built-in default"."""
        return dict(self.origins).get(key, BUILT_IN)


class Source(Record):
    """A configuration file that exists: `kind` is "site" or "user", with "-module" or "-mpi"."""

    path: str
    kind: str
    mtime: int
    size: int
    inode: int
    owner: int = 0
    """Who may write it, besides the caller and root."""


def load(environ: "Mapping[str, str]") -> Site:
    """Return the merged configuration for this environment, paths expanded.

    Raises UdiError for a file that is wrong (with its line), can't be read, or may be written by
    others.
    """
    sources = find(environ)
    site = from_flat(_flattened(sources, environ)) if sources else Site()
    return expanded(site, environ)


def site_directory(environ: "Mapping[str, str]") -> str:
    """Return the directory of the site's files."""
    return environ.get("UDI_SITE_DIR") or SITE_DIRECTORY


def user_directory(environ: "Mapping[str, str]") -> str:
    """Return the directory of the user's files; empty where there is no HOME."""
    return _xdg(environ, "XDG_CONFIG_HOME", ".config")


def find(environ: "Mapping[str, str]") -> list[Source]:
    """Return the configuration files that exist, in the order in which they are merged.

    Raises UdiError for a file or folder that others may write (the site's are also its owner's),
    and where $UDI_CONFIG names no readable file.
    """
    found: list[Source] = []
    site = site_directory(environ)
    info = _look(site, None)
    if info is not None:
        found += _files(site, "udi.toml", "conf.d", "site", info.st_uid)
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


def _files(root: str, main: str, more: str, kind: str, owner: int) -> list[Source]:
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


def _source(path: str, kind: str, info: os.stat_result, owner: int) -> Source:
    return Source(path, kind, info.st_mtime_ns, info.st_size, info.st_ino, owner)


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


def _look(path: str, owner: "int | None" = 0) -> os.stat_result | None:
    """Return stat(2) of a file or folder, None where there is none; judge who may write it.

    `owner` may besides the caller and root; None is whoever owns it. A launch that has the
    flattened copy opens no other file, so this one judges by path; `read` does by descriptor.
    """
    try:
        info = os.stat(path)
        why = trust.refusal(path, (info.st_uid if owner is None else owner,))
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


def read(source: Source) -> str:
    """Return the text of a file.

    Raises UdiError where that fails, others may have written it, or it is not UTF-8.
    """
    try:
        return trust.read(source.path, (source.owner,), "configuration").decode()
    except OSError as error:
        raise _unreadable(source.path, error) from error
    except UnicodeDecodeError as error:
        raise UdiError(f"configuration {source.path}: not UTF-8: {error.reason}") from error


def _flattened(sources: list[Source], environ: "Mapping[str, str]") -> "dict[str, Any]":
    own = cache_file(sources, environ)
    compiled = f"{site_directory(environ)}/{COMPILED}"
    for path in (compiled, own) if sources[0].kind.startswith("site") else (own,):
        flat = _from_cache(path, sources) if path else None
        if flat is not None:
            return flat
    from rootless_udi import configtoml

    texts = [read(source) for source in sources]
    flat = to_flat(configtoml.merged(sources, texts))
    if own:
        configtoml.write_cache(own, sources, texts, flat)
    return flat


def cache_file(sources: list[Source], environ: "Mapping[str, str]") -> str:
    """Return where the user's flattened copy of these files lives; empty without a HOME."""
    folder = _xdg(environ, "XDG_CACHE_HOME", ".cache")
    name = 0xCBF29CE484222325  # FNV-1a: hashlib would be an import
    for byte in "\0".join(source.path for source in sources).encode("utf-8", "surrogateescape"):
        name = (name ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return f"{folder}/config-{name:016x}.json" if folder else ""


def _from_cache(path: str, sources: list[Source]) -> "dict[str, Any] | None":
    """Return a flattened copy if it is of exactly these files, else None.

    A copy is good where every file has the time, size and inode that it had, or the very same
    text: nodes of one machine have their own /etc and share one HOME.
    """
    from rootless_udi.fastjson import loads

    try:
        with open(trust.opened(path, (sources[0].owner,)), "rb") as file:
            info = os.fstat(file.fileno())
            copy = loads(file.read().decode())
        rows = copy["files"]
        if copy["format"] != FORMAT or len(rows) != len(sources):
            return None
        again = False
        for source, row in zip(sources, rows, strict=True):
            if [source.path, source.kind] != row[:2]:
                return None
            same = [source.mtime, source.size, source.inode] == row[2:5]
            fresh = source.mtime > info.st_mtime_ns - _RACY
            if (fresh or not same) and read(source) != row[5]:
                return None
            again = again or (fresh and same)
        flat: dict[str, Any] = copy["site"]
        from_flat(flat)
    except (OSError, UdiError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    if again and info.st_uid == os.getuid():
        # Compared just now: once this has aged, the times alone will do.
        try:
            os.utime(path)
        except OSError:
            return flat
    return flat


def _xdg(environ: "Mapping[str, str]", variable: str, below: str) -> str:
    """XDG base directories: a relative path is to be ignored."""
    base = environ.get(variable, "")
    if base.startswith("/"):
        return f"{base}/rootless_udi"
    home = environ.get("HOME", "")
    return f"{home}/{below}/rootless_udi" if home.startswith("/") else ""


def to_flat(site: Site) -> "dict[str, Any]":
    """Return what JSON can hold of a Site that came from files."""
    flat = dict(zip(site.FIELDS, site.values(), strict=True))
    flat["mounts"] = [row.values() for row in site.mounts]
    flat["environment"] = [one.values() for one in site.environment]
    return flat


def from_flat(flat: "dict[str, Any]") -> Site:
    """Return the Site of `to_flat`'s value, after JSON made lists of its tuples."""
    values = {name: _tuples(value) for name, value in flat.items()}
    values["mounts"] = tuple(MountRow(*row) for row in values["mounts"])
    values["environment"] = tuple(Env(*one) for one in values["environment"])
    return Site(**values)


def _tuples(value: "Any") -> "Any":
    return tuple(_tuples(one) for one in value) if isinstance(value, list | tuple) else value


def expanded(site: Site, environ: "Mapping[str, str]") -> Site:
    """Return the Site with `$NAME` and `${NAME}` in its paths replaced, and mounts propagated.

    Where a variable is unset or empty, a candidate of a list and an optional mount are left out;
    a required mount raises UdiError.
    """
    known = {**environ, "UID": str(os.getuid())}

    def those(paths: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(path for path in (expand(one, known) for one in paths) if path)

    rows = []
    for row in site.mounts:
        if site.propagation == "slave" and not {"slave", "private"}.intersection(row.options):
            row = row.replace(options=(*row.options, "slave"))
        source, destination = expand(row.source, known), expand(row.destination, known)
        if source and destination:
            rows.append(
                row
                if source is row.source and destination is row.destination
                else row.replace(source=source, destination=destination)
            )
        elif row.required:
            raise UdiError(
                f"mount {row.source} on {row.destination} ({row.origin}): a variable is unset",
                "set it, or write required = false",
            )
    return site.replace(
        store=expand(site.store, known) or "",
        site_stores=those(site.site_stores),
        cache_paths=those(site.cache_paths),
        cdi_spec_dirs=those(site.cdi_spec_dirs),
        state_directories=those(site.state_directories),
        mounts=tuple(rows),
    )


def expand(text: str, variables: "Mapping[str, str]") -> str | None:
    """Return `text` with its `$NAME` and `${NAME}` replaced, None where one is unset or empty."""
    if "$" not in text:
        return text
    head, *rest = text.split("$")
    for piece in rest:
        if piece.startswith("{"):
            name, brace, tail = piece[1:].partition("}")
            if not brace:
                return None
        else:
            end = 0
            while end < len(piece) and (piece[end].isalnum() or piece[end] == "_"):
                end += 1
            name, tail = piece[:end], piece[end:]
        value = variables.get(name, "")
        if not value:
            return None
        head += value + tail
    return head
