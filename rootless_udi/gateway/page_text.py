"""Jinja's environment for the pages, and how sizes and times are written."""

import re
import time
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from rootless_udi.base.errors import counted, plain

_UNITS = ("", "kB", "MB", "GB", "TB", "PB")
_DAY = 86400
_AGES = (
    (_DAY * 365, "year"),
    (_DAY * 30, "month"),
    (_DAY, "day"),
    (3600, "hour"),
    (60, "minute"),
)
_BLANKS = re.compile(r"(\s+)")
_PARTS = re.compile(r"(?<=[/@])")


@cache
def environment() -> Environment:
    """Return the environment: every value is escaped, and none is missing."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters.update(amount=amount, ago=ago, short=short, breaks=breaks, words=words)
    return found


def _finalize(value: Any) -> Any:
    """Spell out what is unprintable in a text of somebody's. Markup is our own."""
    return plain(value, keep="\n") if type(value) is str else value


def amount(size: float) -> str:
    """Return a number of bytes for people: "1.2 GB"."""
    value, unit = float(size), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if not unit:
        return counted(round(value), "byte")
    return f"{value:.{1 if value < 99.95 else 0}f} {_UNITS[unit]}"


def age(then: float) -> str:
    """Return how long ago a time was: "3 hours ago"."""
    for length, word in _AGES:
        number = int((time.time() - then) // length)
        if number >= 1:
            return f"{counted(number, word)} ago"
    return "just now"


def ago(then: float) -> Markup:
    """Return how long ago a time was, with the time itself."""
    exact = datetime.fromtimestamp(then, UTC)
    iso = exact.strftime("%Y-%m-%dT%H:%M:%SZ")
    shown = exact.strftime("%Y-%m-%d %H:%M UTC")
    return Markup('<time datetime="{}" title="{}">{}</time>').format(iso, shown, age(then))


def breaks(name: str) -> Markup:
    """Return a name that a narrow screen breaks at its parts."""
    return Markup("<wbr>").join(_PARTS.split(plain(name)))


def words(text: str) -> Markup:
    """Return a command that a narrow screen breaks between its words: a break behind the hyphens
    of an option would be taken for a blank."""
    word = Markup('<span class="word">{}</span>')
    parts = _BLANKS.split(plain(text, keep="\n"))
    return Markup("").join(part if part.isspace() else word.format(part) for part in parts if part)


def short(digest: str) -> str:
    """Return the first digits of a digest, as `udi images` shows it."""
    return digest.partition(":")[2][:12]
