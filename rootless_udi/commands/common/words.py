"""Split the words of a command that takes udi-run's options besides its own: udi check and others.

Both kinds may stand before and after the image. The command begins at the next word that is no
option, or behind a "--"; whatever it has is its own.
"""

import argparse
from collections.abc import Sequence

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.commands.common.given import Arguments
from rootless_udi.plan import options


class Split(Record):
    """The words: `own` are the command's own options as argparse has them; `words` are udi-run's
    options, `given` the same as fields of a Request; `image` is "" where an option names it."""

    own: Arguments
    words: tuple[str, ...]
    given: dict[str, object]
    image: str
    command: tuple[str, ...]
    marked: bool
    """Whether the command stands behind a "--"."""

    def run(self, *before: str) -> list[str]:
        """Return udi-run's words up to the command, with more options `before` the image."""
        named = [f"--image={self.image}"] if self.image else []
        return [*self.words, *before, *named, "--"]


def split(words: Sequence[str], own: argparse.ArgumentParser, usage: str) -> Split:
    """Return the words split; `own` is a parser without --help, whose prog begins the errors.

    Raises UdiError for what udi-run does not know, and where no image is named.
    """
    actions = {name: action for action in own._actions for name in action.option_strings}
    rest, mine, theirs, command = list(words), list[str](), list[str](), list[str]()
    values: dict[str, object] = {}
    image, marked = "", False
    while rest:
        stops = (i for i, w in enumerate(rest) if w == "--" or w.partition("=")[0] in actions)
        end = next(stops, len(rest))
        # Behind the image an option's value is no image: `leading` is told that there is one.
        ahead = [*theirs, *(["--image", image] if image else [])]
        values, left = options.leading([*ahead, *rest[:end]])
        theirs += rest[: end - len(left)]
        named = bool(image or values.get("image") or values.get("edf"))
        if left and named:
            command = [*left, *rest[end:]]
            break
        if left:
            image, rest = left[0], [*left[1:], *rest[end:]]
        elif end == len(rest):
            break
        elif rest[end] == "--":
            command, marked = rest[end + 1 :], True
            if not named and command:
                image, command = command[0], command[1:]
            break
        else:
            name, equals, _ = rest[end].partition("=")
            count = 1 if equals or actions[name].nargs == 0 else 2
            mine += rest[end : end + count]
            rest = rest[end + count :]
    values.pop("image", None)
    if not (image or values.get("help") or "edf" in values or _image(theirs)):
        raise UdiError(f"{own.prog}: no image is given", usage)
    return Split(own.parse_args(mine), tuple(theirs), values, image, tuple(command), marked)


def _image(words: Sequence[str]) -> object:
    return options.leading(list(words))[0].get("image")
