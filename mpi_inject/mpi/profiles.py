"""A site's configuration of its MPIs and networks: TOML tables become `Profile` records.

[mpi.cray]                          # or mpi.d/cray.toml, without the [mpi.cray]
family = "mpich"                    # mpich, openmpi, abi; may be left out for a fabric
prefix = "/opt/cray/pe/mpich/8.1.28/ofi/gnu/9.1"
libraries = ["lib-abi-mpich/libmpi.so.12"]     # below prefix, or absolute
dependencies = ["/opt/cray/libfabric/1.20.1/lib64/libfabric.so.1"]
optional = ["/usr/lib64/libcxi.so.1"]
search = ["/opt/cray/pe/lib64"]     # LD_LIBRARY_PATH while the host's libraries are looked for
binds = ["/var/spool/slurmd", "/opt/site/etc:/etc/site"]
devices = ["/dev/cxi*", "/dev/xpmem"]
with = ["slingshot"]                # other profiles that come along
[mpi.cray.set]                      # the environment; also [.prepend], [.append], [.default]
FI_CXI_RX_MATCH_MODE = "hybrid"
"""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.libraries.rooted import under
from rootless_udi.plan.steps import Env, Mount

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

_LISTS = ("libraries", "dependencies", "optional", "search", "binds", "devices", "with", "preload")
_TABLES = ("set", "default", "prepend", "append")
_WORDS = ("family", "prefix", "description", "compat")
RESERVED = ("auto", "none", *abi.FAMILIES)
"""Values of --mpi that name no profile."""


class Profile(Record):
    """One MPI or fabric of the site; see the module's docstring for the fields.

    A profile without `family` is a fabric: it is used through another one's `with`, or by name
    beside the MPI that is found. `preload` are libraries for LD_PRELOAD (GPU-aware transport).
    """

    name: str
    family: str = ""
    prefix: str = ""
    description: str = ""
    compat: str = ""
    libraries: tuple[str, ...] = ()
    dependencies: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    search: tuple[str, ...] = ()
    binds: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    preload: tuple[str, ...] = ()
    environment: tuple[Env, ...] = ()


def from_dict(name: str, table: "Mapping[str, Any]", source: str = "") -> Profile:
    """Return the profile of a TOML table; raises UdiError naming `source` and the key."""
    where = f"MPI profile {name}" + (f" ({source})" if source else "")
    if name in RESERVED or not name.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise UdiError(f"{where}: not a name for a profile", f"not one of {', '.join(RESERVED)}")
    for key, value in table.items():
        if key in _WORDS:
            good = isinstance(value, str)
        elif key in _LISTS:
            good = isinstance(value, list) and all(isinstance(v, str) and v for v in value)
        elif key in _TABLES:
            good = isinstance(value, dict) and all(isinstance(v, str) for v in value.values())
        else:
            known = ", ".join((*_WORDS, *_LISTS, *_TABLES))
            raise UdiError(f"{where}: unknown key {key}", f"the keys are {known}")
        if not good:
            kind = "text" if key in _WORDS else "a list of texts" if key in _LISTS else "a table"
            raise UdiError(f"{where}: {key} must be {kind}", "see docs/mpi.md")
    words: dict[str, Any] = {key: table.get(key, "") for key in _WORDS}
    lists: dict[str, Any] = {key: tuple(table.get(key, ())) for key in _LISTS}
    _check(where, words, lists)
    prefix = words["prefix"]
    for key in ("libraries", "dependencies", "optional", "search", "preload"):
        lists[key] = tuple(_below(where, key, prefix, path) for path in lists[key])
    lists["needs"] = lists.pop("with")
    environment = tuple(
        Env(op, variable, value, f"MPI profile {name}")
        for op in _TABLES
        for variable, value in table.get(op, {}).items()
    )
    return Profile(name=name, environment=environment, **words, **lists)


def _check(where: str, words: "dict[str, str]", lists: "dict[str, tuple[str, ...]]") -> None:
    if words["family"] not in ("", *abi.FAMILIES):
        raise UdiError(
            f"{where}: unknown family {words['family']}", f"one of {', '.join(abi.FAMILIES)}"
        )
    if words["compat"] not in ("", *abi.CHECKS):
        raise UdiError(
            f"{where}: unknown compat {words['compat']}", f"one of {', '.join(abi.CHECKS)}"
        )
    if words["prefix"] and not words["prefix"].startswith("/"):
        raise UdiError(f"{where}: prefix must be an absolute path: {words['prefix']}")
    for key in ("binds", "devices"):
        for path in lists[key]:
            if not all(part.startswith("/") for part in path.split(":")):
                raise UdiError(f"{where}: {key} must have absolute paths: {path}")


def _below(where: str, key: str, prefix: str, path: str) -> str:
    if path.startswith("/"):
        return path
    if not prefix:
        raise UdiError(f"{where}: {key} has a relative path and there is no prefix: {path}")
    return f"{prefix.rstrip('/')}/{path}"


def named(profiles: "Iterable[Profile]", name: str) -> Profile:
    """Return the profile `name`; raises UdiError with the names that there are."""
    known = {p.name: p for p in profiles}
    if name not in known:
        names = ", ".join((*RESERVED, *sorted(known)))
        raise UdiError(f"--mpi={name}: there is no such MPI profile", f"one of {names}")
    return known[name]


def together(profiles: "tuple[Profile, ...]", first: Profile) -> list[Profile]:
    """Return `first` and all profiles that it names by `with`, each once."""
    found, queue = [first], list(first.needs)
    while queue:
        name = queue.pop(0)
        if name not in {p.name for p in found}:
            found.append(named(profiles, name))
            queue += found[-1].needs
    return found


def expand(root: str, pattern: str) -> list[str]:
    """Return the host's paths that match; "*" only in the last component (glob(7) without re)."""
    folder, _, name = pattern.rpartition("/")
    if "*" not in name:
        return [pattern] if os.path.lexists(under(root, pattern)) else []
    head, _, tail = name.partition("*")
    try:
        names = os.listdir(under(root, folder or "/"))
    except OSError:
        return []
    long = len(head) + len(tail)
    fits = [n for n in names if n.startswith(head) and n.endswith(tail) and len(n) >= long]
    return [f"{folder}/{n}" for n in sorted(fits) if not (n.startswith(".") and not head)]


def variables(profile: Profile, environ: "Mapping[str, str]") -> list[Env]:
    """Return a profile's operations; a `default` sets a variable that the caller has not."""
    return [
        env.replace(op="set") if env.op == "default" else env
        for env in profile.environment
        if env.op != "default" or env.name not in environ
    ]


def mounts(profile: Profile, root: str = "/") -> list[Mount]:
    """Return the binds of a profile's folders, files and devices that the host has."""
    steps = []
    for bind in profile.binds:
        source, _, target = bind.partition(":")
        for path in expand(root, source):
            place = target + path.rpartition("/")[2] if target.endswith("/") else target or path
            why = f"MPI profile {profile.name}"
            steps.append(Mount(place, under(root, path), options=("rec",), reason=why))
    for device in profile.devices:
        for path in expand(root, device):
            why = f"device of MPI profile {profile.name}"
            steps.append(Mount(path, under(root, path), options=("rec",), reason=why))
    return steps
