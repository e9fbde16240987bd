"""A plan back from what `udi-run --explain=json` prints: what is printed is all of it."""

import json
from typing import Any

from rootless_udi.base.records import Record
from rootless_udi.plan import steps
from rootless_udi.plan.image import Root
from rootless_udi.plan.pernodecache import FileCache
from rootless_udi.plan.planner import Plan, RootLayer

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
        RootLayer,
        steps.Hook,
        Plan,
    )
}


def from_json(text: str) -> Plan:
    """Return the plan that `as_json` wrote. Raises ValueError for anything else."""
    found = _record(json.loads(text))
    if not isinstance(found, Plan):
        raise ValueError("not a plan")
    return found


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
