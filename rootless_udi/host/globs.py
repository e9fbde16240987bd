"""Expand patterns of modules on this host, as glob(7). (`glob` and `fnmatch` would import `re`.)"""

import os

from rootless_udi.plan.modules import has_magic

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def matches(patterns: "Iterable[str]") -> dict[str, tuple[str, ...]]:
    """Return for each path or pattern the host's paths that it stands for, sorted.

    A folder that can't be read has no matches, as in the shell.
    """
    return {pattern: tuple(_expand(pattern)) for pattern in patterns}


def _expand(pattern: str) -> list[str]:
    found = ["/"]
    parts = [part for part in pattern.split("/") if part]
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        found = [
            path
            for folder in found
            for path in (_listed(folder, part) if has_magic(part) else [os.path.join(folder, part)])
            if os.path.exists(path) and (last or os.path.isdir(path))
        ]
    return found


def _listed(folder: str, pattern: str) -> list[str]:
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [os.path.join(folder, name) for name in names if matching(name, pattern)]


def matching(name: str, pattern: str) -> bool:
    """Tell whether a file name matches one component of a pattern, by the rules of glob(7).

    A name that begins with a dot is matched only by a pattern that does.
    """
    if name.startswith(".") and not pattern.startswith("."):
        return False
    # After a mismatch go back to the last star, and let it match one character more.
    at = to = 0
    star = back = -1
    while at < len(name):
        end = _one(name[at], pattern, to)
        if end:
            at, to = at + 1, end
        elif to < len(pattern) and pattern[to] == "*":
            star, back, to = to, at, to + 1
        elif star >= 0:
            back += 1
            at, to = back, star + 1
        else:
            return False
    return not pattern[to:].strip("*")


def _one(char: str, pattern: str, to: int) -> int:
    """Return the index behind the part of the pattern that matches `char`, 0 if it does not."""
    if to >= len(pattern) or pattern[to] == "*":
        return 0
    if pattern[to] == "?":
        return to + 1
    if pattern[to] == "[":
        end = pattern.find("]", to + 2 if pattern[to + 1 : to + 2] not in ("!", "^") else to + 3)
        if end > 0:
            body = pattern[to + 1 : end]
            wanted = not body.startswith(("!", "^"))
            return end + 1 if _in_set(char, body if wanted else body[1:]) is wanted else 0
    return to + 1 if pattern[to] == char else 0


def _in_set(char: str, body: str) -> bool:
    at = 0
    while at < len(body):
        if body[at + 1 : at + 2] == "-" and at + 2 < len(body):
            if body[at] <= char <= body[at + 2]:
                return True
            at += 3
        else:
            if body[at] == char:
                return True
            at += 1
    return False
