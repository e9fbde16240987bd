"""What to type in place of a command or an option that udi has not."""

import argparse
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from rootless_udi.base.errors import UdiError
from rootless_udi.plan import foreign

_ELSEWHERE = {
    "rmi": "udi rm IMAGE",
    "delete": "udi rm IMAGE",
    "ls": "udi images, or udi ps for containers",
    "list": "udi images, or udi ps for containers",
    "info": "udi doctor",
    "check": "udi doctor",
    "convert": "udi pull docker-archive:FILE",
    "help": "udi --help",
    "version": "udi --version",
    "container": "udi ps lists them; a container is its command: kill the process",
    "volume": "a folder of the host is a volume: udi run --volume=SRC:DST IMAGE COMMAND",
    "network": "the network is the host's",
    "cp": "a folder of the host is a volume: udi run --volume=SRC:DST IMAGE cp FILE DST",
    "clean": "udi prune",
    "gc": "udi prune",
    "top": "udi ps",
}
"""Commands of other tools -> ours; `plan.foreign` has more of them."""

_OBJECTS = {
    "image": {"ls": "images", "list": "images", "prune": "prune", "rm": "rm", "": "images"},
    "system": {"df": "df", "prune": "prune", "info": "doctor", "": "df"},
    "cache": {"list": "df", "clean": "prune", "": "df"},
}
"""Commands that go by a word of what they are about: docker image ls, apptainer cache list."""


def command(argv: Sequence[str], known: Sequence[str]) -> UdiError:
    """Return the error for a first word that is not among the `known` commands."""
    word = argv[0]
    hint = _ELSEWHERE.get(word) or foreign.COMMANDS.get(word, "")
    if word in _OBJECTS:
        second = argv[1] if len(argv) > 1 else ""
        same = second if second in known else _OBJECTS[word][""]
        ours = _OBJECTS[word].get(second, same)
        hint = f"udi {' '.join((ours, *argv[2:]))}; see udi --help"
    if not hint:
        near = get_close_matches(word, known, 2, 0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "see udi --help"
        if not near and any(c in word for c in ":/@"):
            hint = f"an image is run by udi run {word}, or udi-run {word}"
    return UdiError(f"udi has no command {word}", hint, 2)


def words(argv: Sequence[str], rest: Sequence[str], top: argparse.ArgumentParser) -> UdiError:
    """Return the error for words that a command does not take: `rest` of `argv`."""
    path, options = _command(argv, top)
    near = get_close_matches(rest[0].partition("=")[0], options, 2, 0.6)
    meant = f"did you mean {' or '.join(near)}? " if near and rest[0].startswith("-") else ""
    what = "option" if rest[0].startswith("-") else "word more,"
    return UdiError(f"{path} takes no {what} {rest[0]}", f"{meant}see {path} --help", 2)


def _command(argv: Sequence[str], top: argparse.ArgumentParser) -> tuple[str, list[str]]:
    """Return the words of the command that `argv` has, and its options."""
    path, parser = ["udi"], top
    for word in argv:
        one = next((p for name, p in _commands(parser) if name == word), None)
        if one is not None:
            path.append(word)
            parser = one
    return " ".join(path), [name for x in parser._actions for name in x.option_strings]


def _commands(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.items()
