"""Print a plan (--explain): as lines with the reason of each step, or as JSON."""

import json
import os
import sys
from typing import Any

from rootless_udi.base import jsontext
from rootless_udi.base.errors import counted, plain
from rootless_udi.base.process import page
from rootless_udi.base.records import Record
from rootless_udi.launch import explaincovers
from rootless_udi.plan import sizes, steps
from rootless_udi.plan.pernodecache import FileCache
from rootless_udi.plan.planner import Plan, RootLayer


def as_json(plan: Plan) -> str:
    """Return the plan as a JSON document; each record is an object with its type as "type"."""
    return jsontext.text(as_data(plan)) + "\n"


def as_data(value: Any) -> Any:
    """Return a record, or a field's value, as objects and lists for JSON."""
    if isinstance(value, Record):
        fields = {name: as_data(getattr(value, name)) for name in value.FIELDS}
        return {"type": type(value).__name__, **fields}
    return [as_data(v) for v in value] if isinstance(value, tuple) else value


def show(plan: Plan, how: str) -> None:
    """Print the plan. `how` is "json", "wide" or "".

    "wide" is a line for each row; so is "" if standard output is no terminal. Else "" fits rows to
    the terminal's width, in colours unless NO_COLOR is set (no-color.org).
    """
    if how == "json":
        page(as_json(plan))
    elif how == "wide" or sys.stdout is None or not sys.stdout.isatty():
        page(as_text(plan))
    else:
        width = os.get_terminal_size(sys.stdout.fileno()).columns or 80
        colours = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        # Not by `page`, which would spell out our colours; the texts are plain already.
        sys.stdout.write(fitted(plan, width, colours))


def fitted(plan: Plan, width: int, colours: bool = False) -> str:
    """Return the rows of `as_text` in lines of at most `width` columns, reasons below."""
    rows = _rows(plan)
    first = max(len(row[0]) for row in rows)
    room = max(20, width - first - 2)
    lines = []
    for kind, text, reason in rows:
        head = kind
        for part, indent, code in ((text, "", "0"), (reason, "  ", "2")):
            for piece in _wrapped(plain(part), room - len(indent)):
                shown = f"{indent}{piece}"
                if colours:
                    shown = f"\x1b[{code}m{shown}\x1b[0m" if code != "0" else shown
                    lines.append(f"\x1b[1m{head:<{first}}\x1b[0m  {shown}".rstrip())
                else:
                    lines.append(f"{head:<{first}}  {shown}".rstrip())
                head = ""
    return "\n".join(lines) + "\n"


def _wrapped(text: str, room: int) -> list[str]:
    """Split a text into pieces of at most `room` columns.

    At blanks; if there are none after "/", ":" or ","; else anywhere.
    """
    found = []
    while len(text) > room:
        at = text.rfind(" ", 1, room + 1)
        if at < 1:
            at = max(text.rfind(c, 1, room - 1) + 1 for c in "/:,")
        at = at if at > room // 3 else room
        found.append(text[:at].rstrip())
        text = text[at:].lstrip(" ")
    return [*found, *([text] if text else [])]


def as_text(plan: Plan) -> str:
    """Return what the plan will do: a line for each step, with its reason."""
    rows = _rows(plan)
    first = max(len(row[0]) for row in rows)
    second = min(60, max(len(row[1]) for row in rows))
    # plain(): a newline in a value of the image must not begin a new line.
    lines = [plain(f"{a:<{first}}  {b:<{second}}  {c}".rstrip()) for a, b, c in rows]
    return "\n".join(lines) + "\n"


def _rows(plan: Plan) -> list[tuple[str, str, str]]:
    rows = [
        ("image", plan.image, plan.digest or "no digest: a foreign file or directory"),
        ("root", plan.root.path, plan.root.reason),
        ("layer", _layer(plan.layer), plan.layer.reason),
        ("writable", "yes, in memory" if plan.writable else "no", ""),
        ("ids", f"uid {plan.uid}, gid {plan.gid}", "the caller's, mapped to themselves"),
    ]
    rows += explaincovers.rows(plan)
    rows += [(*_step(step), step.reason) for step in plan.steps]
    for env in (*plan.before, *plan.after):
        rows.append(("env", _env(env), env.reason))
    if plan.scripts:
        rows.append(
            ("env", f"{plan.scripts}/*.sh", "the image's own, sourced by its sh at the start")
        )
    if plan.entrypoint:
        rows.append(("entrypoint", json.dumps(plan.entrypoint), "with --entrypoint"))
    if plan.workdir:
        rows.append(("workdir", plan.workdir, "with --workdir"))
    rows += [("hook", json.dumps(hook.argv), hook.reason) for hook in plan.hooks]
    rows += [("note", note, "") for note in plan.notes]
    return rows + [("warning", text, "") for text in plan.warnings]


def _layer(layer: RootLayer) -> str:
    return f"{layer.kind}, or {layer.instead} where refused" if layer.instead else layer.kind


def _step(step: steps.Step | FileCache) -> tuple[str, str]:
    if isinstance(step, FileCache):
        size = sizes.show(step.size)
        return "cache", f"ext4 in a file of {step.directory} on {step.target} (size={size})"
    if isinstance(step, steps.Squashfs):
        return "volume", f"{step.root.path} on {step.target} (squashfs,ro,nosuid,nodev)"
    if isinstance(step, steps.Mount):
        options = f" ({','.join(step.options)})" if step.options else ""
        kind = f"{step.fstype} " if step.fstype else ""
        same = not step.fstype and step.source == step.target
        source = "" if same or step.fstype else f"{step.source} on "
        return "mount", f"{kind}{source}{step.target}{options}"
    if isinstance(step, steps.File):
        return "file", f"{step.target} ({counted(len(step.content), 'byte')})"
    if isinstance(step, steps.Symlink):
        return "symlink", f"{step.target} -> {step.to}"
    return "directory", step.target


def _env(env: steps.Env) -> str:
    return f"{env.op} {env.name}={env.value}" if env.op != "unset" else f"unset {env.name}"
