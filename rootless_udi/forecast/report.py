"""The forecast for a person: a line for each site, then what decides it, with its remedy."""

import shutil
import textwrap
from collections.abc import Iterable

from rootless_udi.base.errors import plain
from rootless_udi.forecast.check import Answer
from rootless_udi.forecast.finding import (
    FAILS,
    RUNS,
    UNKNOWN,
    UNLOOKED,
    WITH,
    CheckFinding,
    Evidence,
)

WORDS = {
    RUNS: "will run",
    WITH: "will run with",
    FAILS: "will not run",
    UNKNOWN: "can't tell",
    UNLOOKED: "not looked at",
}
_ORDER = (FAILS, UNKNOWN, WITH, UNLOOKED)
_MARKS = {FAILS: "no", UNKNOWN: "?", WITH: "with", UNLOOKED: "-", RUNS: "yes"}
"""The first column of a finding."""


def text(image: str, answers: Iterable[Answer], everything: bool = False) -> str:
    """Return the report. `everything`: findings without a problem are shown one by one too."""
    width = max(60, min(shutil.get_terminal_size().columns, 120))
    lines: list[str] = []
    for one in answers:
        lines += [f"{one.site}: {headline(one)}", *_site(one, width, everything), ""]
    return plain("\n".join([f"image {image}", "", *lines]).rstrip("\n"), keep="\n") + "\n"


def headline(one: Answer) -> str:
    """Return the verdict in words: "will run with --mpi --gpu"."""
    words = WORDS[one.verdict]
    return f"{words} {' '.join(one.options)}" if one.verdict == WITH else words


def _site(one: Answer, width: int, everything: bool) -> list[str]:
    lines: list[str] = []
    for verdict in (*_ORDER, *([RUNS] if everything else [])):
        for found in one.findings:
            if found.verdict == verdict:
                lines += _finding(found, width)
    fine = list(dict.fromkeys(f.check for f in one.findings if f.verdict == RUNS))
    if fine and not everything:
        lines += _wrapped(f"  {'yes':<5}", f"nothing in the way: {', '.join(fine)}", width)
    return lines


def _finding(one: CheckFinding, width: int) -> list[str]:
    lines = _wrapped(f"  {_MARKS[one.verdict]:<5}", f"{one.check}: {one.what}", width)
    for name, side in (("image", one.image), ("site", one.site)):
        if shown := evidence(side):
            lines += _wrapped(f"       {name + ':':<8}", shown, width)
    if one.options:
        lines += _wrapped("       with:   ", " ".join(one.options), width)
    if one.remedy:
        lines += _wrapped("       remedy: ", one.remedy, width)
    return lines


def evidence(side: Evidence) -> str:
    """Return one side's fact for a person; "" for none."""
    return ": ".join(part for part in (side.file, side.fact) if part)


def _wrapped(head: str, body: str, width: int) -> list[str]:
    return textwrap.wrap(
        body,
        width,
        initial_indent=head,
        subsequent_indent=" " * len(head),
        break_long_words=False,
        break_on_hyphens=False,
    ) or [head]
