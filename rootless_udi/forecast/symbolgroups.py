"""Thousands of an MPI's symbols as a text that a person can read. Pure.

    {"MPI_* PMPI_*": "Abort Accumulate Add_error_{class,code,string} ..."}

A key has patterns; with each of them every word of its value makes a name: "*" stands for the word,
"^" for the word in capitals, as the compilers of Fortran name functions. Words with the same
beginning are written once, as a shell does it: "get_{a,b{c,d}}" are get_a, get_bc and get_bd. What
is between braces ends the word.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_FORMS = ("mpi_*", "mpi_*_", "mpi_*__", "pmpi_*", "pmpi_*_", "pmpi_*__")
_PATTERNS = (
    (*_FORMS, "MPI_^", "PMPI_^"),
    ("mpix_*", "mpix_*_", "mpix_*__", "MPIX_^"),
    _FORMS,
    ("mpi_*_", "pmpi_*_"),
    ("MPI_*_f", "PMPI_*_f", "MPI_*_f08", "PMPI_*_f08"),
    ("MPI_*", "PMPI_*"),
)
"""Names under which an MPI exports one function, the most names first."""
_PART = re.compile(r"[^_]*_|[^_]+")
_TOKEN = re.compile(r"[^{},\s]+|[{},]|\s+")
_DEEPEST, _LONGEST, _MOST_PATTERNS, _MOST = 16, 256, 16, 20_000
"""Braces within braces, characters of a word and of a pattern, patterns of a key, names: of what
others have written no more is read."""


def pack(names: Iterable[str]) -> dict[str, str]:
    """Return symbols in groups. Names with characters of the notation are left out."""
    groups: dict[str, list[str]] = {}
    left = {name for name in names if not re.search(r"[{},\s*^]", name)}
    for patterns in _PATTERNS:
        stems = [
            stem
            for stem in {_stem(patterns[0], name) for name in left} - {""}
            if all(_name(pattern, stem) in left for pattern in patterns)
        ]
        if stems:
            groups[" ".join(patterns)] = stems
            left -= {_name(pattern, stem) for stem in stems for pattern in patterns}
    for name in sorted(left):
        head, line, tail = name.partition("_")
        key, word = (f"{head}_*", tail) if line and tail else ("*", name)
        groups.setdefault(key, []).append(word)
    return {key: " ".join(_braced(map(_parts, sorted(words)))) for key, words in groups.items()}


def unpack(groups: Mapping[str, Any]) -> list[str]:
    """Return the symbols that `pack` was given, sorted; what isn't its form is left out."""
    found = set()
    for key, text in groups.items():
        patterns = [one for one in key.split() if _is_pattern(one)][:_MOST_PATTERNS]
        for word in _words(text) if isinstance(text, str) and patterns else ():
            found |= {_name(pattern, word) for pattern in patterns}
            if len(found) > _MOST:
                return sorted(found)
    return sorted(found)


def _is_pattern(text: str) -> bool:
    return text.count("*") + text.count("^") <= 1 and len(text) <= _LONGEST


def _stem(pattern: str, name: str) -> str:
    """Return what "*" stands for in a name, "" where it does not fit the pattern."""
    head, _, tail = pattern.partition("*")
    if not (name.startswith(head) and name.endswith(tail)) or len(name) <= len(head) + len(tail):
        return ""
    stem = name[len(head) : len(name) - len(tail)]
    # "mpi_send_" is a form of "send", not the word "send_".
    return "" if head.islower() and not tail and stem.endswith("_") else stem


def _name(pattern: str, stem: str) -> str:
    return pattern.replace("*", stem).replace("^", stem.upper())


def _parts(word: str) -> tuple[str, ...]:
    """Return the parts of a word, cut behind each underscore."""
    return tuple(_PART.findall(word))


def _braced(words: Iterable[tuple[str, ...]]) -> list[str]:
    """Return words in their parts as text, those with the same first part as one."""
    groups: dict[str, list[tuple[str, ...]]] = {}
    for word in words:
        groups.setdefault(word[0] if word else "", []).append(word[1:])
    found = []
    for head, tails in groups.items():
        inner = _braced(tails) if len(tails) > 1 else ["".join(tails[0])]
        found.append(head + (inner[0] if len(inner) == 1 else "{" + ",".join(inner) + "}"))
    return found


def _words(text: str) -> Iterator[str]:
    """Yield the words of a text with braces; what is too deep or too long is left out."""
    heads: list[str] = []
    word, closed = "", False
    # `heads` is what stands before each open brace. Behind a closing one no word is left to end.
    for token in _TOKEN.findall(f"{text} "):
        if token == "{":
            heads.append(word)
            word = ""
        elif token in ",}" or token.isspace():
            if (word or heads) and not closed and len(heads) <= _DEEPEST:
                name = "".join(heads) + word
                if len(name) <= _LONGEST:
                    yield name
            if token == "}" and heads:
                heads.pop()
            elif token.isspace():
                heads.clear()
            word = ""
        else:
            word += token
        closed = token == "}"
