"""Images and amounts as people read and type them: names, digests, sizes, ages, tables. Pure."""

import time
from collections.abc import Sequence

from rootless_udi.base.errors import UdiError
from rootless_udi.base.errors import amount as amount
from rootless_udi.plan.reference import parse

_UNITS = {"h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}


def familiar(name: str, registry: str) -> str:
    """Return a store's name as it is typed: `ubuntu:24.04` for docker.io/library/ubuntu:24.04.

    `registry` is the one that short names belong to. The returned name, if typed, means the same
    image. In names of images from files there is "#" and the file's state behind it: that is cut
    off.
    """
    name = name.partition("#")[0]
    for prefix in (f"{registry}/library/", f"{registry}/"):
        text = name.removeprefix(prefix)
        if text != name and _means(text, registry) == name:
            return text
    return name


def _means(text: str, registry: str) -> str:
    try:
        return parse(text, registry).canonical
    except UdiError:
        return ""


def digits(digest: str) -> str:
    """Return the 12 digits by which a digest is shown."""
    return digest.partition(":")[2][:12]


def when(seconds: float) -> str:
    """Return the local date of `seconds` since the epoch."""
    return time.strftime("%Y-%m-%d", time.localtime(seconds))


def age(text: str, what: str) -> float:
    """Return the seconds that "12h", "30d", "6w" or "1y" mean. Raises UdiError, naming `what`."""
    number, unit = text[:-1], text[-1:].lower()
    if unit not in _UNITS or not number.isascii() or not number.isdigit() or len(number) > 6:
        raise UdiError(
            f"{what}={text}: not an age", "write hours, days, weeks or years: 12h, 30d, 6w, 1y"
        )
    return int(number) * _UNITS[unit]


def table(head: Sequence[str], rows: Sequence[Sequence[str]], columns: int) -> list[str]:
    """Return lines of at most `columns`, the head first.

    If the first cell of a row, a name, does not fit beside the others, it has a line of its own
    above them, so that it can be copied whole. Only a name that is longer than a line makes a wider
    line.
    """
    others = [max(len(row[i]) for row in (head, *rows)) for i in range(1, len(head))]
    room = max(columns - sum(others) - 2 * len(others), len(head[0]))
    first = max([len(head[0]), *(len(row[0]) for row in rows if len(row[0]) <= room)])
    lines = []
    for row in (head, *rows):
        rest = "  ".join(f"{c:<{w}}" for c, w in zip(row[1:], others, strict=True)).rstrip()
        if len(row[0]) > first:
            lines.append(row[0])
            lines.append(f"{'':<{first}}  {rest}")
        else:
            lines.append(f"{row[0]:<{first}}  {rest}".rstrip())
    return lines
