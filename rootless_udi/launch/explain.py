"""Print a plan: for a person, with the reason of each step, and as JSON, which reads back equal."""

import json
from typing import Any

from rootless_udi.base import jsontext
from rootless_udi.base.errors import plain
from rootless_udi.base.records import Record
from rootless_udi.plan import sizes, steps
from rootless_udi.plan.image import Root
from rootless_udi.plan.pernodecache import FileCache
from rootless_udi.plan.planner import Plan

_TYPES: dict[str, type[Record]] = {
    cls.__name__: cls
    for cls in (
        steps.Mount,
        steps.File,
        steps.Symlink,
        steps.Directory,
        steps.Env,
        FileCache,
        Root,
        steps.Hook,
        Plan,
    )
}


def as_json(plan: Plan) -> str:
    """Return the plan as a JSON document; each record is an object with its type as "type"."""
    return jsontext.text(_plain(plan)) + "\n"


def from_json(text: str) -> Plan:
    """Return the plan that `as_json` wrote. Raises ValueError for anything else."""
    found = _record(json.loads(text))
    if not isinstance(found, Plan):
        raise ValueError("not a plan")
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        fields = {name: _plain(getattr(value, name)) for name in value.FIELDS}
        return {"type": type(value).__name__, **fields}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _record(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_record(v) for v in value)
    if isinstance(value, dict):
        try:
            fields = {k: _record(v) for k, v in value.items() if k != "type"}
            return _TYPES[value["type"]](**fields)
        except (KeyError, TypeError) as error:
            raise ValueError(f"not a plan: {error}") from None
    return value


def as_text(plan: Plan) -> str:
    """Return what the plan will do, a line a step, with the reason of each."""
    rows = [
        ("image", plan.image, plan.digest or "no digest: a foreign file or directory"),
        ("root", plan.root.path, plan.root.reason),
        ("overlay", "yes" if plan.overlay else "no", plan.overlay or "the image has all it needs"),
        ("writable", "yes, in memory" if plan.writable else "no", ""),
        ("ids", f"uid {plan.uid}, gid {plan.gid}", "the caller's, mapped to themselves"),
    ]
    rows += [(*_step(step), step.reason) for step in plan.steps]
    for env in (*plan.before, *plan.after):
        rows.append(("env", _env(env), env.reason))
    if plan.entrypoint:
        rows.append(("entrypoint", json.dumps(plan.entrypoint), "with --entrypoint"))
    if plan.workdir:
        rows.append(("workdir", plan.workdir, "with --workdir"))
    rows += [("hook", json.dumps(hook.argv), hook.reason) for hook in plan.hooks]
    rows += [("note", note, "") for note in plan.notes]
    rows += [("warning", text, "") for text in plan.warnings]
    first = max(len(row[0]) for row in rows)
    second = min(60, max(len(row[1]) for row in rows))
    # A row is a line, whatever a value of the image holds.
    lines = [plain(f"{a:<{first}}  {b:<{second}}  {c}".rstrip()) for a, b, c in rows]
    return "\n".join(lines) + "\n"


def _step(step: steps.Step | FileCache) -> tuple[str, str]:
    if isinstance(step, FileCache):
        size = sizes.show(step.size)
        return "cache", f"ext4 in a file of {step.directory} on {step.target} (size={size})"
    if isinstance(step, steps.Mount):
        options = f" ({','.join(step.options)})" if step.options else ""
        kind = f"{step.fstype} " if step.fstype else ""
        same = not step.fstype and step.source == step.target
        source = "" if same or step.fstype else f"{step.source} on "
        return "mount", f"{kind}{source}{step.target}{options}"
    if isinstance(step, steps.File):
        return "file", f"{step.target} ({len(step.content)} bytes)"
    if isinstance(step, steps.Symlink):
        return "symlink", f"{step.target} -> {step.to}"
    return "directory", step.target


def _env(env: steps.Env) -> str:
    return f"{env.op} {env.name}={env.value}" if env.op != "unset" else f"unset {env.name}"
