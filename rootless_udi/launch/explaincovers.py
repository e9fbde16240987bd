"""The covers of a plan, for --explain: the image is looked into without mounting it."""

import os

from rootless_udi.base.errors import UdiError, counted
from rootless_udi.plan.covers import MOST, covers, too_many, warning
from rootless_udi.plan.planner import Plan
from rootless_udi.plan.steps import Mount
from rootless_udi.serve.unmounted import opened

Row = tuple[str, str, str]


def rows(plan: Plan) -> list[Row]:
    """Return rows (kind, what, why) for each cover, and for each warning about one."""
    if plan.layer.kind != "underlay":
        return []
    found: list[Row] = []
    try:
        _add(found, plan)
    except (OSError, UdiError) as error:
        why = error.strerror if isinstance(error, OSError) else error.message
        found.append(("cover", "not known", f"reading {plan.root.path} failed: {why}"))
    return found


def _add(found: list[Row], plan: Plan) -> None:
    files = frozenset(
        step.target
        for step in plan.steps
        if isinstance(step, Mount) and not step.fstype and not os.path.isdir(step.source)
    )
    with opened(plan.root.path, plan.root.offset) as (look, count_of):
        for cover in covers(plan.steps, look, files):
            try:
                count = count_of(cover.target)
            except OSError as error:
                found.append(("cover", cover.target, f"{cover.reason}; {error.strerror}"))
                continue
            entries = counted(count, "entry", "entries")
            found.append(("cover", f"{cover.target} ({entries})", cover.reason))
            if text := too_many(cover) if count > MOST else warning(cover, count):
                found.append(("warning", text, ""))
