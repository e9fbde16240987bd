"""Who uses what over time, as plots and lists."""

import time
from collections.abc import Callable, Iterable
from typing import Any

from rootless_udi.gateway import page_data, page_plots
from rootless_udi.gateway.database import Database
from rootless_udi.gateway.people import Asker

LONGEST = 90
"""Most days: lookups are kept for so long."""
KINDS = ("image", "user")
_TOP = 15
_UNKNOWN = "images that are not here"


async def read(
    database: Database,
    asker: Asker,
    days: int,
    by: str,
    shown: Callable[[str], str],
    hashed: Callable[[str], str],
) -> dict[str, Any]:
    """Return the values of usage.html. Who is no administrator gets his own use alone.

    `shown` is a name of the store as users type it, `hashed` an id as starts are kept with it.
    """
    today = int(time.time()) // 86400
    all_days = range(today - days + 1, today + 1)
    since = float(all_days[0] * 86400)
    uid = None if asker.admin else asker.uid
    rows = await database.read(page_data.lookups, since, uid)
    pulls = await database.read(page_data.pulls, since, uid)
    counts = page_plots.ranked(
        _summed((day, tag if by == "image" else user, number) for day, user, tag, number in rows)
    )
    told = None if asker.admin else hashed(str(asker.uid))
    begun = await database.read(page_data.starts, since, told)
    starts = page_plots.ranked(
        _summed(
            (day, (shown(name) if name else _UNKNOWN) if by == "image" else user, number)
            for day, user, name, number in begun
        )
    )
    ended = {(day, "ready"): good for day, good, _ in pulls if good}
    ended |= {(day, "failed"): bad for day, _, bad in pulls if bad}
    pairs: dict[tuple[str, str], int] = {}
    for _, user, tag, number in rows:
        pairs[user, tag] = pairs.get((user, tag), 0) + number
    top = sorted(pairs.items(), key=lambda one: (-one[1], one[0]))[:_TOP]
    most = max((number for _, number in top), default=0)
    whose = "" if asker.admin else " of yours"
    return {
        "lookups": page_plots.bars(counts, all_days, f"Lookups{whose} by day and {by}"),
        "starts": page_plots.bars(starts, all_days, f"Starts{whose} by day and {by}"),
        "started": sum(starts.values()),
        "pulls": page_plots.bars(
            ended, all_days, f"Pulls{whose} by day", order=("ready", "failed")
        ),
        "total": sum(number for *_, number in rows),
        "pulled": sum(ended.values()),
        "top": [(user, tag, number, page_plots.share(number, most)) for (user, tag), number in top],
        "choices": (7, 30, LONGEST),
    }


def _summed(rows: Iterable[tuple[int, str, int]]) -> dict[tuple[int, str], int]:
    found: dict[tuple[int, str], int] = {}
    for day, label, number in rows:
        found[day, label] = found.get((day, label), 0) + number
    return found
