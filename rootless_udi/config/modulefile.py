"""Make a `Module` of its TOML file, and report errors with file and line. Off the start path."""

from typing import TYPE_CHECKING, Any

from rootless_udi.config import schema
from rootless_udi.plan import modules
from rootless_udi.plan.modules import Bind, Device, Module
from rootless_udi.plan.steps import HOOK_SECONDS, Hook

if TYPE_CHECKING:
    from rootless_udi.config.document import Document


def module(name: str, document: "Document") -> Module:
    """Return the module of a file; if that has errors, `problem` is the first of them."""
    values = document.values
    if not modules.proper_name(name):
        document.wrong(
            (), f"{name!r} is no name of a module", "letters, digits, and . _ + - inside"
        )
    elif name in modules.BUILT_IN:
        document.wrong((), f"module {name} is built in", "give the file another name")
    for key in values:
        if key not in schema.MODULE:
            document.unknown((key,), schema.MODULE)
    found = Module(
        name=name,
        binds=tuple(_binds(document, values.get("bind", []))),
        devices=tuple(_devices(document, values.get("devices", []))),
        environment=tuple(_environment(document, values.get("env", {}))),
        conflicts=_get(document, "conflicts", schema.module_names, []) or (),
        requires=_get(document, "requires", schema.module_names, []) or (),
        accounts=_get(document, "accounts", schema.module_accounts, []) or (),
        hook=_hook(document, values["hook"]) if "hook" in values else None,
        enabled=_get(document, "enabled", schema.truth, True) is not False,
        description=_get(document, "description", schema.text, "") or "",
        origin=document.path,
    )
    if document.problems:
        return found.replace(problem=str(document.problems[0]))
    return found


def _get(document: "Document", key: str, check: schema.Check, default: Any) -> Any:
    return document.check((key,), check, document.values.get(key, default))


def _binds(document: "Document", rows: Any) -> list[Bind]:
    found = []
    rows = document.check(("bind",), lambda v: schema.expect(v, list, "write [[bind]]"), rows)
    for number, value in enumerate(rows or ()):
        key = ("bind", number)
        row = document.table(key, value)
        for name in row:
            if name not in schema.BIND:
                document.unknown((*key, name), schema.BIND)
        if "source" not in row:
            document.wrong(key, "no source", 'write source = "/path"')
            continue
        source = document.check((*key, "source"), _real_path, row["source"])
        target = document.check((*key, "destination"), _target, row.get("destination", ""))
        options = document.check((*key, "options"), schema.options, row.get("options", ["ro"]))
        required = document.check((*key, "required"), schema.truth, row.get("required", True))
        if None in (source, target, options, required):
            continue
        if modules.has_magic(source) and target and not target.endswith("/"):
            why = "a pattern's destination must be a directory"
            document.wrong((*key, "destination"), why, f'write "{target}/"')
            continue
        if not target:
            document.check((*key, "source"), lambda v: schema.destination(v, True), source)
        found.append(Bind(source, target, options, required))
    return found


def _real_path(value: Any) -> str:
    """Check a path. It may have no variables, since modules are planned without an environment."""
    return schema.normal(schema.text(value))


def _target(value: Any) -> str:
    """Check a destination: empty, a path, or a directory that ends in "/"."""
    if schema.text(value) == "":
        return ""
    found = schema.normal(value)
    if value.endswith("/"):
        return found.rstrip("/") + "/"
    return schema.destination(found, True)


def _devices(document: "Document", rows: Any) -> list[Device]:
    found = []
    rows = document.check(
        ("devices",), lambda v: schema.expect(v, list, 'write ["/dev/..."]'), rows
    )
    for number, value in enumerate(rows or ()):
        key = ("devices", number)
        row = {"path": value} if isinstance(value, str) else document.table(key, value)
        for name in row:
            if name not in schema.DEVICE:
                document.unknown((*key, name), schema.DEVICE)
        if not row:
            continue
        path = document.check(key, _device, row.get("path", ""))
        required = document.check(key, schema.truth, row.get("required", True))
        if path is not None and required is not None:
            found.append(Device(path, required))
    return found


def _device(value: Any) -> str:
    found = _real_path(value)
    if not found.startswith("/dev/"):
        raise schema.Wrong(f"{found} is not below /dev", "use [[bind]] for other paths")
    return found


def _environment(document: "Document", value: Any) -> list[Any]:
    table = document.table(("env",), value)
    for name in table:
        if name not in schema.TABLES["env"]:
            document.unknown(("env", name), schema.TABLES["env"])
    return document.check(("env",), lambda v: schema.environment(v, ""), table) or []


def _hook(document: "Document", value: Any) -> Hook | None:
    """Return the hook: a string is run by /bin/sh, a list is an argv; a table may add `seconds`."""
    row = document.table(("hook",), value) if isinstance(value, dict) else {"command": value}
    for name in row:
        if name not in schema.HOOK:
            document.unknown(("hook", name), schema.HOOK)
    argv = document.check(("hook", "command"), _command, row.get("command", ""))
    seconds = document.check(("hook", "seconds"), _seconds, row.get("seconds", HOOK_SECONDS))
    return None if argv is None or seconds is None else Hook(argv, seconds)


def _command(value: Any) -> tuple[str, ...]:
    argv = ("/bin/sh", "-c", value) if isinstance(value, str) else schema.texts(value)
    if not argv or not argv[-1]:
        raise schema.Wrong("no command", 'write command = "/path/in/the/image ARGUMENT"')
    return argv


def _seconds(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 3600:
        raise schema.Wrong(f"expected seconds, found {value!r}", "a number above 0, at most 3600")
    return float(value)
