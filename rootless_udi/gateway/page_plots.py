"""Plots for the pages: stacked bars by day, as SVG that a style sheet colours.

Only bars are in the SVG, which is stretched to the width that there is; words stand beside it as
HTML, so that they have their size on a phone too.
"""

import datetime
from collections.abc import Mapping, Sequence

from markupsafe import Markup, escape

from rootless_udi.base.errors import plain
from rootless_udi.base.records import Record

SERIES = 6
"""Most colours; what is beyond the first ones is summed up as the last, OTHERS."""
OTHERS = "others"
_HEIGHT = 100.0
_BAR = 8.0
_GAP = 2.0
_STEPS = (1, 2, 4, 6, 8)


class Plot(Record):
    """A plot: its SVG, the legend (colour, label, sum), the scale's top, and the days' labels."""

    svg: Markup
    legend: tuple[tuple[int, str, int], ...]
    top: int
    days: tuple[str, ...]
    rows: tuple[tuple[str, tuple[int, ...]], ...]
    """(day, number of each of the legend), for who reads rather than sees."""


def day_of(number: int) -> str:
    """Return the date of a day, a number of days since 1970."""
    return (datetime.date(1970, 1, 1) + datetime.timedelta(days=number)).isoformat()


def ranked(counts: Mapping[tuple[int, str], int]) -> dict[tuple[int, str], int]:
    """Return counts by (day, label) with the smaller labels summed up as OTHERS."""
    sums: dict[str, int] = {}
    for (_, label), number in counts.items():
        sums[label] = sums.get(label, 0) + number
    kept = sorted(sums, key=lambda label: (-sums[label], label))
    if len(kept) > SERIES:
        kept = kept[: SERIES - 1]
    found: dict[tuple[int, str], int] = {}
    for (day, label), number in counts.items():
        key = (day, label if label in kept else OTHERS)
        found[key] = found.get(key, 0) + number
    return found


def bars(
    counts: Mapping[tuple[int, str], int],
    days: Sequence[int],
    what: str,
    order: Sequence[str] = (),
) -> Plot:
    """Return stacked bars of counts by (day, label). `what` says what is counted.

    Labels have the order of their sums, or `order`.
    """
    sums: dict[str, int] = dict.fromkeys(order, 0)
    for (_, label), number in counts.items():
        sums[label] = sums.get(label, 0) + number
    labels = list(order) or sorted(sums, key=lambda x: (x == OTHERS, -sums[x], x))
    highest = max((sum(counts.get((day, x), 0) for x in labels) for day in days), default=0)
    top = _round(highest)
    parts = []
    for place, day in enumerate(days):
        below = 0.0
        for colour, label in enumerate(labels):
            number = counts.get((day, label), 0)
            if not number:
                continue
            height = number * _HEIGHT / top
            title = escape(plain(f"{day_of(day)}: {label}: {number:,}"))
            parts.append(
                f'<rect class="c{colour}" x="{place * (_BAR + _GAP):g}" '
                f'y="{_HEIGHT - below - height:.3f}" width="{_BAR:g}" height="{height:.3f}">'
                f"<title>{title}</title></rect>"
            )
            below += height
    width = len(days) * (_BAR + _GAP) - _GAP
    svg = Markup(
        f'<svg viewBox="0 0 {width:g} {_HEIGHT:g}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(plain(what))}">{"".join(parts)}</svg>'
    )
    middle = days[len(days) // 2]
    rows = tuple(
        (day_of(day), tuple(counts.get((day, label), 0) for label in labels))
        for day in reversed(days)
        if any((day, label) in counts for label in labels)
    )
    legend = tuple((n, label, sums[label]) for n, label in enumerate(labels))
    return Plot(svg, legend, top, tuple(map(day_of, (days[0], middle, days[-1]))), rows)


def share(number: int, most: int) -> Markup:
    """Return a bar that is `number` of `most` long."""
    part = 100.0 * number / most if most else 0.0
    return Markup(
        '<svg class="share" aria-hidden="true" width="100%" height="6">'
        f'<rect class="c0" width="{part:.1f}%" height="6" rx="3"/></svg>'
    )


def _round(number: int) -> int:
    """Return the next round number, for the top of a scale: even, so that its half is whole."""
    power = 1
    while True:
        for step in _STEPS:
            if step * power >= number and (step * power) % 2 == 0:
                return step * power
        power *= 10
