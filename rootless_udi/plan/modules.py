"""Modules: sets of binds, devices, variables and a hook, which a site or a user gave a name. Pure.

This selects modules and plans what they put into a container. `mpi` and `gpu` are built in: they
are selected like the others, and other modules may require them or conflict with them, but
`rootless_udi.mpi_inject` plans them.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.plan.steps import Env, Hook, Injection, Mount, Step

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

BUILT_IN = {
    "gpu": "the host's GPUs and their driver's libraries (as --gpu)",
    "mpi": "the host's MPI library in place of the image's (as --mpi)",
}
NONE = "none"
_NAME = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.+-")
_MAGIC = frozenset("*?[")


class Bind(Record):
    """Files of the host to bind. `source` is a path or a pattern (`*`, `?`, `[...]` in any part).

    An empty `destination` means the same path as on the host. One that ends in "/" is a directory,
    in which each source appears by its own name. A pattern needs one of these two. `options` are
    those of `steps.Mount`. With `required`, it is an error if nothing matches.
    """

    source: str
    destination: str = ""
    options: tuple[str, ...] = ("ro",)
    required: bool = True


class Device(Record):
    """A device node of the host, or a pattern for several; each appears at its own path."""

    path: str
    required: bool = True


class Module(Record):
    """A module, as its file describes it.

    `origin` is the file's path. `problem` says why the file can't be used, "" where it can.
    """

    name: str
    binds: tuple[Bind, ...] = ()
    devices: tuple[Device, ...] = ()
    environment: tuple[Env, ...] = ()
    conflicts: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    hook: "Hook | None" = None
    enabled: bool = True
    description: str = ""
    origin: str = ""
    problem: str = ""
    accounts: tuple[str, ...] = ()
    """Accounts of others, as NAME:UID:GID, that programs of the module look for."""

    @property
    def built_in(self) -> bool:
        """Tell whether another part of the runtime plans this module."""
        return self.name in BUILT_IN


def available(flat: "Mapping[str, Any]") -> dict[str, Module]:
    """Return name -> module of `Site.modules`, and the built-in ones."""
    found = {name: Module(name, description=text) for name, text in BUILT_IN.items()}
    for name, row in flat.items():
        if name in BUILT_IN:
            continue
        values = dict(zip(Module.FIELDS, row, strict=True))
        for field, kind in (("binds", Bind), ("devices", Device), ("environment", Env)):
            values[field] = tuple(kind(*_tuples(one)) for one in values[field])
        for field in ("conflicts", "requires", "accounts"):
            values[field] = tuple(values[field])
        if values["hook"] is not None:
            values["hook"] = Hook(*_tuples(values["hook"]))
        found[name] = Module(**values)
    return found


def flat(module: Module) -> "list[Any]":
    """Return a module as lists and strings for JSON; `available` makes modules of them."""
    return [
        [one.values() for one in value]
        if name in ("binds", "devices", "environment")
        else value.values()
        if isinstance(value, Hook)
        else value
        for name, value in zip(module.FIELDS, module.values(), strict=True)
    ]


def _tuples(row: "Sequence[Any]") -> "list[Any]":
    return [tuple(value) if isinstance(value, list) else value for value in row]


def proper_name(name: str) -> bool:
    """Tell whether `name` may be a module's name: the name of its file without .toml."""
    return bool(name) and name != NONE and name[0].isalnum() and _NAME.issuperset(name)


def names(text: str) -> tuple[str, ...]:
    """Return the names of `--module=a,b`; empty for "none". Raises UdiError."""
    found = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    if not found:
        raise UdiError("--module: no module is named", "write --module=NAME,... or --module=none")
    if NONE in found and len(found) > 1:
        raise UdiError(f"--module={text}: none and others", "write none alone, or the others")
    return () if found == (NONE,) else found


def select(wanted: "Iterable[str]", known: "Mapping[str, Module]") -> tuple[Module, ...]:
    """Return the modules to use, in the order wanted, each after those that it requires.

    Raises UdiError for a name that is unknown, disabled or broken, for a circle of requirements
    (naming it) and for two that conflict (either may say so).
    """
    chosen: dict[str, Module] = {}
    for name in wanted:
        _choose(name, known, chosen, ())
    for module in chosen.values():
        for other in module.conflicts:
            if other in chosen and other != module.name:
                raise UdiError(
                    f"module {module.name} conflicts with module {other} ({module.origin})",
                    "leave one of them out: --module replaces the default modules",
                )
    return tuple(chosen.values())


def _choose(
    name: str, known: "Mapping[str, Module]", chosen: dict[str, Module], above: tuple[str, ...]
) -> None:
    if name in above:
        circle = " requires ".join((*above[above.index(name) :], name))
        raise UdiError(f"module {circle}: a circle", f"correct `requires` in {known[name].origin}")
    if name in chosen:
        return
    by = f" (required by {above[-1]})" if above else ""
    module = known.get(name)
    if module is None:
        raise UdiError(
            f"module {name}{by}: there is no such module",
            f"modules are: {', '.join(sorted(known))}",
        )
    if module.problem:
        raise UdiError(f"module {name}{by}: {module.problem}", "see `udi config check`")
    if not module.enabled:
        raise UdiError(f"module {name}{by}: disabled in {module.origin}", "leave it out")
    for other in module.requires:
        _choose(other, known, chosen, (*above, name))
    chosen[name] = module


def without(chosen: "Sequence[Module]", name: str) -> tuple[Module, ...]:
    """Return `chosen` without the module `name`, and without all that need it."""
    left, gone = [], {name}
    # A module comes after those that it requires.
    for module in chosen:
        if module.name in gone or gone.intersection(module.requires):
            gone.add(module.name)
        else:
            left.append(module)
    return tuple(left)


def patterns(modules: "Iterable[Module]") -> tuple[str, ...]:
    """Return the paths and patterns of modules, to look for on the host."""
    found = []
    for module in modules:
        found += [bind.source for bind in module.binds]
        found += [device.path for device in module.devices]
    return tuple(dict.fromkeys(found))


def plan(
    modules: "Iterable[Module]", matches: "Mapping[str, Sequence[str]]"
) -> tuple[Injection, tuple[Hook, ...]]:
    """Return what the modules put into the container, and their hooks in order.

    `matches` maps each of `patterns` to the host's paths (`rootless_udi.host.globs.matches`). Of
    two mounts on one target, the later module's counts. Raises UdiError where something required is
    not on this host.
    """
    steps: dict[str, Step] = {}
    environment: list[Env] = []
    hooks = []
    for module in modules:
        for step in _mounts(module, matches):
            steps.pop(step.target, None)
            steps[step.target] = step
        environment += [
            one.replace(reason=f"module {module.name} ({module.origin})")
            for one in module.environment
        ]
        if module.hook is not None:
            hooks.append(module.hook.replace(reason=f"module {module.name} ({module.origin})"))
    ordered = sorted(steps.values(), key=lambda step: step.target.count("/"))
    named = tuple(dict.fromkeys(one for module in modules for one in module.accounts))
    return Injection(tuple(ordered), tuple(environment), accounts=named), tuple(hooks)


def _mounts(module: Module, matches: "Mapping[str, Sequence[str]]") -> "list[Mount]":
    reason = f"module {module.name} ({module.origin})"
    found = []
    for bind in module.binds:
        sources = _matched(module, bind.source, bind.required, matches)
        found += [
            Mount(target(bind, source), source, "", bind.options, bind.required, reason)
            for source in sources
        ]
    for device in module.devices:
        sources = _matched(module, device.path, device.required, matches)
        found += [Mount(path, path, "", ("rw",), device.required, reason) for path in sources]
    return found


def _matched(
    module: Module, pattern: str, required: bool, matches: "Mapping[str, Sequence[str]]"
) -> "Sequence[str]":
    found = matches.get(pattern, ())
    if required and not found:
        what = "nothing matches" if has_magic(pattern) else "there is no"
        raise UdiError(
            f"module {module.name}: {what} {pattern} on this host",
            f"write required = false in {module.origin}, or leave the module out",
        )
    return found


def target(bind: Bind, source: str) -> str:
    """Return the path in the container at which a source of a bind appears."""
    if not bind.destination:
        return source
    if bind.destination.endswith("/"):
        return bind.destination + source[source.rindex("/") + 1 :]
    return bind.destination


def has_magic(pattern: str) -> bool:
    """Tell whether a path is a pattern."""
    return not _MAGIC.isdisjoint(pattern)
