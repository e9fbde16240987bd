"""What a check of `udi check` found: facts of both sides, what follows, and the remedy. Pure."""

from collections.abc import Iterable
from typing import Any

from rootless_udi.base.records import Record

RUNS, WITH, FAILS, UNKNOWN, UNLOOKED = "runs", "with", "fails", "unknown", "unlooked"
"""Verdicts.

RUNS     nothing of what this check looked at stands in the way
WITH     it runs with `CheckFinding.options`, which the caller has not given
FAILS    it will not run
UNKNOWN  it was looked at, and can't be told: the whole answer is then at best "can't tell"
UNLOOKED this was not looked at, and the answer does not cover it; why, and how to have it looked at
"""
_WORST = (FAILS, UNKNOWN, WITH, RUNS)


class Evidence(Record):
    """A fact of one side: the file (of the image, of the host, or the capture's key) and what of it
    is meant, in words. Both may be "" where a side has nothing to say.
    """

    file: str = ""
    fact: str = ""


class CheckFinding(Record):
    """One finding. `check` is the check's short name ("mpi"), `what` one sentence for a person.

    `remedy` says what the user or the site can do, and is needed for FAILS. `options` are those of
    udi-run that WITH means, as words of a command line.
    """

    check: str
    verdict: str
    what: str
    image: Evidence = Evidence()
    site: Evidence = Evidence()
    remedy: str = ""
    options: tuple[str, ...] = ()


def worst(findings: Iterable[CheckFinding]) -> str:
    """Return the verdict of all findings together: RUNS, WITH, FAILS or UNKNOWN.

    Without any finding that looked at something it is UNKNOWN.
    """
    seen = {one.verdict for one in findings}
    return next((verdict for verdict in _WORST if verdict in seen), UNKNOWN)


def options(findings: Iterable[CheckFinding]) -> tuple[str, ...]:
    """Return the options that all findings ask for, each once, in order."""
    words = (word for one in findings if one.verdict == WITH for word in one.options)
    return tuple(dict.fromkeys(words))


def as_data(one: CheckFinding) -> dict[str, Any]:
    """Return a finding as JSON's types: the fields, of each side a table of `file` and `fact`."""
    sides = {name: {"file": s.file, "fact": s.fact} for name, s in _sides(one)}
    data = dict(zip(one.FIELDS, one.values(), strict=True))
    return {**data, **sides, "options": list(one.options)}


def _sides(one: CheckFinding) -> tuple[tuple[str, Evidence], ...]:
    return ("image", one.image), ("site", one.site)
