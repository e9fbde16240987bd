"""The covers of a plan for --explain, as far as an image can be looked at that nobody mounts."""

import os
from stat import S_ISDIR, S_ISLNK

from rootless_udi.plan.covers import covers, warning
from rootless_udi.plan.planner import Plan
from rootless_udi.plan.steps import Mount


def rows(plan: Plan) -> list[tuple[str, str, str]]:
    """Return (kind, what, why) of each cover, and of each warning about one.

    Of an image that is a directory; what is in a squashfs file is seen when it is mounted.
    """
    if plan.layer.kind != "underlay" or plan.root.server != "directory":
        return []
    top = plan.root.path.rstrip("/")

    def look(path: str) -> tuple[str, str]:
        # No part of `path` is a link but for the last, perhaps: nothing leads out of the image.
        try:
            mode = os.lstat(f"{top}{path}").st_mode
            if S_ISLNK(mode):
                return "link", os.readlink(f"{top}{path}")
        except OSError:
            return "", ""
        return ("directory" if S_ISDIR(mode) else "file"), ""

    files = frozenset(
        step.target
        for step in plan.steps
        if isinstance(step, Mount) and not step.fstype and not os.path.isdir(step.source)
    )
    found = []
    for cover in covers(plan.steps, look, files):
        try:
            count = len(os.listdir(f"{top}{cover.target}"))
        except OSError as error:
            found.append(("cover", cover.target, f"{cover.reason}; {error.strerror}"))
            continue
        found.append(("cover", f"{cover.target} ({count} entries)", cover.reason))
        if text := warning(cover, count):
            found.append(("warning", text, ""))
    return found
