"""Which of an image's MPI files a command will load, as far as its words and the facts tell. Pure.

The facts have what each program loads, and what the packages of each interpreter load. Of a shell
or a wrapper (env, time, numactl) each word that is such a program counts. Of other programs nothing
is known.
"""

from rootless_udi.plan.environment import DEFAULT_PATH

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import Any

_INTERPRETERS = {
    "python": "python",
    "pypy": "python",
    "ipython": "python",
    "Rscript": "R",
    "R": "R",
    "perl": "perl",
    "julia": "julia",
}
_LOOKERS = frozenset(
    ("cat", "cp", "du", "echo", "file", "ldd", "ls", "md5sum", "nm", "objdump", "readelf", "stat")
)
"""Commands that take a program's name and don't start it."""

_SEPARATORS = ";|&()<>{}`$'\"\n\t"
"""Characters between the words of a shell's command, besides the space."""


def loaded(
    image: "Mapping[str, Any]", words: "Sequence[str]", env: "Mapping[str, str]"
) -> "set[str] | None":
    """Return the MPI files of the image that the command loads; None where that isn't known.

    `image` is the facts' "elf" part, `env` the container's environment as far as it is known.
    """
    reach = image.get("reach")
    if not reach or not words:
        return None
    path = env.get("PATH") or DEFAULT_PATH
    if words[0].rpartition("/")[2] in _LOOKERS:
        return set()
    first = _of(words[0], image, path, env)
    if first is not None and not _language(words[0]):
        return first
    blank = dict.fromkeys(map(ord, _SEPARATORS), " ")
    parts = [part for word in words[1:] for part in word.translate(blank).split(" ") if part]
    known = [first, *(_of(part, image, path, env) for part in parts)]
    sets = [one for one in known if one is not None]
    return set().union(*sets) if sets else None


def _language(word: str) -> str:
    """Return the language of an interpreter by its name ("python3.11"), "" for no interpreter."""
    base = word.rpartition("/")[2]
    return _INTERPRETERS.get(base) or _INTERPRETERS.get(base.rstrip("0123456789.t"), "")


def _of(
    word: str, image: "Mapping[str, Any]", path: str, env: "Mapping[str, str]"
) -> "set[str] | None":
    """Return what the program that `word` names loads; None where it is not known."""
    reach = image["reach"]
    for name in [word] if "/" in word else [f"{folder}/{word}" for folder in path.split(":")]:
        if name in reach:
            return set(reach[name])
    language = _language(word)
    if not language:
        return None
    found = set(reach.get(language, ()))
    if language == "python":
        folders = tuple(f.rstrip("/") + "/" for f in env.get("PYTHONPATH", "").split(":") if f)
        every = [file for family in image["consumers"] for file in noted(image, family)]
        found |= {file for file in every if folders and file.startswith(folders)}
    return found


def noted(image: "Mapping[str, Any]", family: str) -> "list[str]":
    """Return every MPI file of a family; [] where the facts don't have them one by one.

    They don't for images that older versions pulled, and for those with too many such files.
    """
    return [row[0] for row in image["consumers"].get(family, {}).get("each", ())]


def part(image: "dict[str, Any]", files: "Iterable[str]") -> "dict[str, Any]":
    """Return the facts as if the image had no other MPI files than `files`."""
    files = set(files)
    consumers = {}
    for family, one in image["consumers"].items():
        rows = [row for row in one.get("each", ()) if row[0] in files]
        if rows:
            # Old index of a name -> its index among the names that remain.
            at = {n: new for new, n in enumerate(sorted({n for row in rows for n in row[1]}))}
            by = {n: new for new, n in enumerate(sorted({n for row in rows for n in row[2]}))}
            names = [one["symbols"][n] for n in at]
            given, kept = one.get("provided", {}), set(names)
            consumers[family] = {
                **one,
                "symbols": names,
                "libraries": [one["libraries"][n] for n in by],
                "provided": {role: [s for s in given[role] if s in kept] for role in given},
                "files": [row[0] for row in rows],
                "count": len(rows),
                "each": [[r[0], [at[n] for n in r[1]], [by[n] for n in r[2]]] for r in rows],
            }
    return {**image, "consumers": consumers}


def lacking(image: "Mapping[str, Any]", family: str, symbols: "Iterable[str]") -> "list[str]":
    """Return the files that need one of `symbols`; [] where the facts don't tell which do."""
    one = image["consumers"].get(family, {})
    wanted = set(symbols)
    numbers = {number for number, name in enumerate(one.get("symbols", ())) if name in wanted}
    return [row[0] for row in one.get("each", ()) if numbers.intersection(row[1])]
