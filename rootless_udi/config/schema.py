"""The keys of the TOML files, and the checks of their values. Pure; off the start path.

A check is a function that takes a value as `tomllib` gives it. It returns the value as the `Site`
holds it, or raises `Wrong`.
"""

import ipaddress
from collections.abc import Callable
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.plan import keeping, modules, sizes, volumes
from rootless_udi.plan.steps import Env

Check = Callable[[Any], Any]

_SQFS = volumes.FORMS[0]
_NAMES = {str: "a string", bool: "true or false", int: "an integer", float: "a number"}
_NAMES |= {list: "a list", dict: "a table"}


class Wrong(Exception):
    """A wrong value: `why` says what is wrong, `hint` what would be right."""

    def __init__(self, why: str, hint: str = "") -> None:
        super().__init__(why)
        self.why = why
        self.hint = hint


def kind(value: Any) -> str:
    """Return the name of a value's type in TOML."""
    return _NAMES.get(type(value), f"a {type(value).__name__}")


def expect(value: Any, wanted: type, hint: str = "") -> Any:
    """Return `value` if it is of the type `wanted`; a boolean is no integer. Raises Wrong."""
    if isinstance(value, wanted) and (wanted is bool or not isinstance(value, bool)):
        return value
    raise Wrong(f"expected {_NAMES[wanted]}, found {kind(value)}", hint)


def text(value: Any) -> str:
    """Check a string: no NUL."""
    expect(value, str, 'write it in double quotes: "..."')
    if "\0" in value:
        raise Wrong("a NUL character", "leave it out")
    return str(value)


def texts(value: Any) -> tuple[str, ...]:
    """Check a list of strings."""
    expect(value, list, 'write ["...", "..."]')
    return tuple(text(one) for one in value)


def truth(value: Any) -> bool:
    """Check a boolean."""
    return bool(expect(value, bool, "write true or false without quotes"))


def choice(*words: str) -> Check:
    """Return a check for one of `words`."""

    def check(value: Any) -> str:
        if text(value) not in words:
            raise Wrong(f"{value!r} is none of its values", f"one of: {', '.join(words)}")
        return str(value)

    return check


def integer(least: int, most: int) -> Check:
    """Return a check for an integer from `least` to `most`."""

    def check(value: Any) -> int:
        expect(value, int, f"a number from {least} to {most}")
        if not least <= value <= most:
            raise Wrong(f"{value} is out of bounds", f"from {least} to {most}")
        return int(value)

    return check


def size(value: Any) -> int:
    """Check a size: Shifter's text (`plan.sizes`) or a number of bytes; 0 means no limit."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if text(value) in ("", "0"):
        return 0
    try:
        return sizes.parse(value)
    except UdiError as error:
        raise Wrong(error.message, error.hint) from None


def path(value: Any) -> str:
    """Check an absolute path; it may begin with a variable, as in "$SCRATCH/images"."""
    if text(value).startswith("$"):
        normal("/" + value)
        return str(value)
    return normal(value)


def paths(value: Any) -> tuple[str, ...]:
    """Check a list of paths."""
    return tuple(path(one) for one in texts(value))


def normal(value: str) -> str:
    """Check a path and return it in its normal form (`plan.volumes.normal`)."""
    try:
        return volumes.normal(value, "path")
    except UdiError as error:
        raise Wrong(error.message, error.hint) from None


def destination(value: Any, site: bool) -> str:
    """Check a path in the container for a mount. `site`: by the rules for sites, not for users."""
    found = path(value)
    try:
        (volumes.allowed_for_site if site else volumes.allowed)(found, "destination")
    except UdiError as error:
        raise Wrong(error.message, error.hint) from None
    return found


def options(value: Any, more: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Check a list of flags of a bind (`plan.volumes.FLAGS`), or some of `more`."""
    words = texts(value)
    known = (*volumes.FLAGS, *more)
    for word in words:
        if word not in known:
            raise Wrong(f"unknown option {word!r}", f"options are: {', '.join(known)}")
    for one, two in (("ro", "rw"), ("slave", "private")):
        if one in words and two in words:
            raise Wrong(f"{one} and {two} contradict each other", "give one of them")
    return words


def mount_options(value: Any) -> tuple[str, ...]:
    """Check the options of [[mount]]: those of a bind, or "sqfs" for what is in a squashfs file."""
    words = options(value, (_SQFS,))
    others = [word for word in words if word not in (_SQFS, "ro")]
    if _SQFS in words and others:
        raise Wrong(f"{_SQFS} and {others[0]} contradict each other", "leave one of them out")
    return words


def module_names(value: Any) -> tuple[str, ...]:
    """Check a list of modules' names."""
    for word in texts(value):
        if not modules.proper_name(word):
            raise Wrong(f"{word!r} is no name of a module", "letters, digits, and . _ + - inside")
    return texts(value)


def module_accounts(value: Any) -> tuple[str, ...]:
    """Check a list of accounts, NAME:UID:GID."""
    for word in texts(value):
        name, *ids = word.split(":")
        good = modules.proper_name(name) and len(ids) == 2
        if not good or not all(one.isascii() and one.isdigit() for one in ids):
            raise Wrong(f"{word!r} is no account", "NAME:UID:GID, as of `id slurm` on the nodes")
    return texts(value)


def etc_name(value: Any) -> str:
    """Check a name below /etc; "/etc/" may stand before it."""
    name = text(value).removeprefix("/etc/")
    parts = name.split("/")
    if not name or name.startswith("/") or "" in parts or ".." in parts or "." in parts:
        raise Wrong(f"{value!r} is no file of /etc", 'write its name: "hosts"')
    return name


def environment(table: Any, reason: str) -> list[Env]:
    """Return the operations of an [env] table, in this order: its tables of strings `set`, `append`
    and `prepend`, its list `unset`."""
    found: list[Env] = []
    for op in ("set", "append", "prepend"):
        for name, value in expect(table.get(op, {}), dict, 'write NAME = "VALUE" below it').items():
            _variable(name)
            try:
                found.append(Env(op, name, text(value), reason))
            except Wrong as wrong:
                raise Wrong(f"{op}.{name}: {wrong.why}", wrong.hint) from None
    for name in texts(table.get("unset", [])):
        _variable(name)
        found.append(Env("unset", name, "", reason))
    return found


def _variable(name: str) -> None:
    if not name or "=" in name or "\0" in name:
        raise Wrong(f"{name!r} is no name of a variable", "no '=' in it")


def gateway(value: Any) -> str:
    """Check the address of an image gateway."""
    where = text(value).removesuffix("/")
    scheme, _, host = where.partition("://")
    end = host.rpartition("]")[2].partition(":")
    proper = scheme in ("http", "https") and host and not {*"/?#@"} & {*host}
    if proper and (not end[1] or end[2].isdecimal()):
        return where
    if where.startswith("unix:/") and len(where) > len("unix:/"):
        return where
    raise Wrong(f"{value!r} is no gateway's address", "unix:/PATH, http://HOST:PORT, https://HOST")


def datagrams(value: Any) -> str:
    """Check an address for datagrams. Names of hosts are refused: a start would ask for them."""
    where = text(value)
    host, _, port = where.rpartition(":")
    if where.startswith("unix:/"):
        return where
    try:
        ipaddress.ip_address(host[1:-1] if host[:1] == "[" else host)
        if port.isascii() and port.isdecimal() and 0 < int(port) < 65536:
            return where
    except ValueError:
        pass
    raise Wrong(
        f"{value!r} is no address for datagrams",
        "unix:/PATH, or an IP address and a port: 10.1.2.3:7007",
    )


SITE_KEYS: dict[str, tuple[str, Check]] = {
    "site.name": ("name", text),
    "store.path": ("store", path),
    "store.site": ("site_stores", paths),
    "store.stripes": ("stripes", integer(-1, 2000)),
    "image.registry": ("registry", text),
    "image.pull": ("pull", choice("missing", "lazy", "never", "always")),
    "image.verify": ("verify", choice("always", "remote", "never")),
    "image.policy": ("policy", path),
    "image.timeout": ("timeout", integer(1, 3600)),
    "image.compression": ("compression", choice("zstd", "gzip", "lz4", "xz", "lzo", "none")),
    "image.level": ("compression_level", integer(1, 22)),
    "container.propagation": ("propagation", choice("private", "slave")),
    "modules.default": ("default_modules", module_names),
    "cache.paths": ("cache_paths", paths),
    "cache.method": ("cache_method", choice("tmpfs", "file")),
    "cache.limit": ("cache_limit", size),
    "gateway.address": ("gateway", gateway),
    "gateway.munge_socket": ("gateway_munge", path),
    "gateway.starts": ("gateway_starts", datagrams),
    "gateway.starts_user": ("gateway_starts_user", truth),
    "gpu.cdi_spec_dirs": ("cdi_spec_dirs", paths),
    "state.directories": ("state_directories", paths),
    "user.cwd": ("cwd", truth),
    "user.home": ("home", truth),
    "user.keep": ("keep", integer(0, keeping.MOST)),
    "server.program": ("server", text),
    "server.squashfuse": ("squashfuse", path),
    "server.options": ("server_options", texts),
}
"""Key -> (field of `Site`, check). Tables that are not here, as [[mount]], `config.merge` reads."""

TABLES: dict[str, tuple[str, ...]] = {
    "env": ("set", "append", "prepend", "unset"),
    "etc": ("host", "files"),
    "registry": (),
    "mpi": (),
    "mount": ("source", "destination", "options", "required", "enabled"),
}
REGISTRY = ("mirrors", "insecure", "trusted")
MODULE = (
    "description",
    "enabled",
    "conflicts",
    "requires",
    "accounts",
    "bind",
    "devices",
    "env",
    "hook",
)
BIND = ("source", "destination", "options", "required")
DEVICE = ("path", "required")
HOOK = ("command", "seconds")
