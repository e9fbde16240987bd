"""A TOML file that is being read: its values, the line of each key, and the problems in it."""

import difflib
import re
import tomllib
from collections.abc import Iterable
from typing import Any

from rootless_udi.base.records import Record
from rootless_udi.config import schema, tomllines


class Problem(Record):
    """An error in a file: `line` is from 1, `key` may be "", `hint` says what would be right."""

    path: str
    line: int
    key: str
    why: str
    hint: str = ""

    def __str__(self) -> str:
        key = f"{self.key}: " if self.key else ""
        return f"{self.path}:{self.line}: {key}{self.why}"


class Document:
    """One file being read: its values, and the problems found so far."""

    def __init__(self, path: str, text: str) -> None:
        self.path = path
        self.problems: list[Problem] = []
        self.values: dict[str, Any] = {}
        self.lines: dict[tomllines.Key, int] = {}
        try:
            self.values = tomllib.loads(text)
            self.lines = tomllines.lines(text)
        except tomllib.TOMLDecodeError as error:
            at = re.search(r"\(at line (\d+), column \d+\)$", str(error))
            line = int(at[1]) if at else max(1, len(text.splitlines()))
            why = re.sub(r" \(at .*\)$", "", str(error))
            self.problems.append(Problem(path, line, "", f"not TOML: {why}"))
        except RecursionError:
            self.problems.append(Problem(path, 1, "", "not TOML: nested too deeply"))

    def line(self, *key: str | int) -> int:
        """Return the line of a key, from 1."""
        return tomllines.line_of(self.lines, key)

    def wrong(self, key: tuple[str | int, ...], why: str, hint: str = "") -> None:
        """Add a problem with `key`."""
        self.problems.append(Problem(self.path, self.line(*key), dotted(key), why, hint))

    def check(self, key: tuple[str | int, ...], check: schema.Check, value: Any) -> Any:
        """Return what `check` makes of a value; for a wrong one add a problem and return None."""
        try:
            return check(value)
        except schema.Wrong as wrong:
            self.wrong(key, wrong.why, wrong.hint)
            return None

    def table(self, key: tuple[str | int, ...], value: Any) -> dict[str, Any]:
        """Return a value that is a table; for another add a problem and return {}."""
        found: dict[str, Any] | None = self.check(key, lambda v: schema.expect(v, dict), value)
        return found or {}

    def unknown(self, key: tuple[str | int, ...], known: Iterable[str]) -> None:
        """Add the problem that `key` is none of `known`, with the nearest of these as a hint."""
        names = sorted(known)
        near = difflib.get_close_matches(str(key[-1]), names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"keys here: {', '.join(names)}"
        self.wrong(key, "unknown key", hint)


def dotted(key: tuple[str | int, ...]) -> str:
    """Return a key as a message shows it: mount[2].source, where members are counted from 1."""
    text = ""
    for part in key:
        text += f"[{part + 1}]" if isinstance(part, int) else f".{part}" if text else part
    return text
