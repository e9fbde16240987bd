"""A captured machine as data: what `udi site capture` writes, and how it is read again. Pure.

A capture is a JSON object; every section and every key may be missing, which means "not known":

    format    "rootless_udi site"
    version   1
    name      the site's name
    taken     where and when: [{"on": "login" or "compute", "date": "2026-01-31", "by": "0.1.0"}]
    source    for an example: the public documents it was made of, a list of texts
    system    machine ("x86_64"), kernel ("5.14.21-..."), os ("SLES 15 SP5"), pagesize (bytes),
              userns, fuse, overlay (true or false: may an ordinary user), findings (of udi doctor:
              [state, what, found])
    cpu       name (archspec's: "zen3"), vendor, model (text), features (a list), generic
              ("x86_64_v3"), cores
    memory    bytes
    libc      folder, files: name -> [real path, symbol versions that it defines]
    mpi       see `capturempi`
    launchers list: name ("slurm", "hydra", "openmpi", "pals"), version, pmi (["pmi2", "pmix_v4"])
    networks  list: name, kind ("Slingshot", "InfiniBand", ...; "" for ordinary Ethernet)
    gpus      list, one for each: vendor ("nvidia", "amd", "intel"), name, memory (bytes),
              capability ("8.0", NVIDIA), arch ("gfx90a", AMD)
    drivers   vendor -> version ("550.54.15"); for NVIDIA also cuda ("12.4", the newest it offers)
    config    mounts ([[source, destination, options]]), modules, default_modules, mpi (profiles,
              name -> table), cache_limit (bytes), cache_paths, cwd, home, store (bytes that are
              free for the user's)

An empty list of GPUs says that there is none, a missing one that nobody has looked.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from rootless_udi.base.errors import UdiError, plain
from rootless_udi.base.records import Record

FORMAT, VERSION = "rootless_udi site", 1
LARGEST = 1 << 20
"""Most bytes of a capture; one of a large machine has a tenth of it."""
_DEPTH, _ITEMS, _TEXT = 8, 60_000, 65_536
"""Most levels of lists and tables, values in all of them, characters of a text."""

_OBJECTS = ("system", "cpu", "libc", "mpi", "drivers", "config")
_ROWS = ("taken", "source", "launchers", "networks", "gpus")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")

_MACHINE = ("system", "cpu", "memory", "networks", "gpus", "drivers", "libc")
"""What a compute node knows better than a login node; the rest is the site's on both."""


class Capture(Record):
    """A capture that was read and checked. `data` is the object above; `place` is for messages."""

    name: str
    data: dict[str, Any]
    place: str = ""

    def table(self, section: str) -> dict[str, Any]:
        """Return a section that is an object, {} where it is missing."""
        found = self.data.get(section)
        return found if isinstance(found, dict) else {}

    def rows(self, section: str) -> list[dict[str, Any]]:
        """Return a section that is a list of objects, [] where it is missing."""
        found = self.data.get(section)
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []

    def knows(self, section: str) -> bool:
        """Tell whether the capture says anything about a section: no GPUs is not unknown GPUs."""
        return section in self.data

    def word(self, section: str, key: str) -> str:
        """Return a text of a section, "" where there is none."""
        found = self.table(section).get(key)
        return found if isinstance(found, str) else ""

    def number(self, section: str, key: str = "") -> int:
        """Return a number of a section (itself one without a key), 0 where there is none."""
        found = self.table(section).get(key) if key else self.data.get(section)
        return found if isinstance(found, int) and not isinstance(found, bool) else 0

    def words(self, section: str, key: str) -> tuple[str, ...]:
        """Return a list of texts of a section, () where there is none."""
        found = self.table(section).get(key)
        return tuple(w for w in found if isinstance(w, str)) if isinstance(found, list) else ()

    @property
    def machine(self) -> str:
        """The machine as uname(2) names it, "" where it is not known."""
        return self.word("system", "machine")


def parse(data: bytes, place: str) -> Capture:
    """Return the capture in `data`; `place` (a file or URL) is for messages.

    Raises UdiError for what is none, is cut off, is of a later version, or goes beyond the bounds:
    a capture may come from anybody.
    """
    if len(data) > LARGEST:
        raise _refused(place, f"it has more than {LARGEST >> 20} MiB")
    try:
        found = json.loads(data, parse_constant=_no_constant)
    except RecursionError:
        raise _refused(place, "its lists are nested too deeply") from None
    except ValueError as error:
        raise _refused(place, f"{error}; was it cut off?") from None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise _refused(place, f'it is another document: "format" is not "{FORMAT}"')
    version = found.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        raise UdiError(
            f"reading site capture {place} failed: it is of version {version!r}, this is for"
            f" {VERSION}",
            "update rootless_udi" if newer else "capture the site anew: udi site capture",
        )
    _bounded(found, place)
    for key in (*_OBJECTS, *_ROWS):
        kind, word = (dict, "an object") if key in _OBJECTS else (list, "a list")
        if key in found and not isinstance(found[key], kind):
            raise _refused(place, f'"{key}" is not {word}')
    name = found.get("name")
    if not isinstance(name, str) or not _NAME.match(name):
        raise _refused(place, '"name" is not a word of letters, digits, ".", "_" and "-"')
    return Capture(name, found, place)


def check_name(name: str) -> None:
    """Raise UdiError if `name` can't be a site's: it becomes a file's."""
    if not _NAME.match(name):
        raise UdiError(
            f"{name!r} is not a name for a site",
            "at most 64 letters, digits, '.', '_' and '-', the first a letter or digit",
        )


def _refused(place: str, why: str) -> UdiError:
    return UdiError(
        f"reading site capture {place} failed: {why}", "`udi site capture` writes such files"
    )


def _no_constant(word: str) -> float:
    raise ValueError(f"{word} is no number of JSON")


def _bounded(document: Any, place: str) -> None:
    """Raise UdiError where a document has too many values, too deep ones, or odd texts."""
    todo, left = [(document, 0)], _ITEMS
    while todo:
        value, depth = todo.pop()
        left -= 1
        if left < 0:
            raise _refused(place, f"it has more than {_ITEMS} values")
        if depth > _DEPTH:
            raise _refused(place, f"its lists are nested more than {_DEPTH} deep")
        if isinstance(value, dict):
            todo += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif isinstance(value, list):
            todo += [(inner, depth + 1) for inner in value]
        elif isinstance(value, str) and (len(value) > _TEXT or not value.isprintable()):
            what = "a text of more than 65,536 characters"
            what = what if len(value) > _TEXT else f"unprintable characters: {plain(value[:60])}"
            raise _refused(place, f"it has {what}")


def merge(first: Capture, *others: Capture) -> Capture:
    """Return what several captures of one site know together; `first` gives the name.

    A compute node's sections win over a login node's where they are about the machine; else the
    first that has a section. Where and when all of them were taken stays.
    """
    compute = [one for one in (first, *others) if _is_compute(one)]
    data: dict[str, Any] = {}
    for one in reversed((first, *others)):
        data |= one.data
    for one in reversed(compute):
        data |= {key: one.data[key] for key in _MACHINE if key in one.data}
    data["taken"] = [row for one in (first, *others) for row in one.rows("taken")]
    return Capture(first.name, data | {"name": first.name}, first.place)


def _is_compute(one: Capture) -> bool:
    return any(row.get("on") == "compute" for row in one.rows("taken"))


def scrubbed(document: Any, secrets: Iterable[tuple[str, str]]) -> Any:
    """Return a document in which words that nobody need know are replaced.

    `secrets` are pairs: a folder ("/home/me", replaced at the beginning of paths) or a word ("me",
    replaced where it stands alone), and what to put there ("$HOME", "$USER").
    """
    rules = []
    for secret, instead in secrets:
        if secret.strip("/"):
            edge = r"(?<![\w.-])" if not secret.startswith("/") else r"(?<![\w./-])"
            rules.append((re.compile(edge + re.escape(secret) + r"(?![\w-])"), instead))

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            for pattern, instead in rules:
                value = instead.join(pattern.split(value))
            return plain(value)[:_TEXT]
        if isinstance(value, list | tuple):
            return [clean(one) for one in value]
        if isinstance(value, dict):
            return {clean(key): clean(one) for key, one in value.items()}
        return value

    return clean(document)


def text(one: Capture) -> str:
    """Return a capture as JSON for people: a line for each value of a section, none longer."""
    lines = []
    for key, value in one.data.items():
        lines.append(f"  {_json(key)}: {_lines(value)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _lines(value: Any, indent: str = "  ") -> str:
    inner = indent + "  "
    if isinstance(value, dict) and value and len(_json(value)) > 90:
        rows = [f"{inner}{_json(k)}: {_lines(v, inner)}" for k, v in value.items()]
        return "{\n" + ",\n".join(rows) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        rows = [f"{inner}{_lines(v, inner) if len(_json(v)) > 400 else _json(v)}" for v in value]
        return "[\n" + ",\n".join(rows) + f"\n{indent}]"
    return _json(value)


def _json(value: Any) -> str:
    found = json.dumps(value, ensure_ascii=False)
    return plain(found, spell=lambda c: json.dumps(c)[1:-1])
