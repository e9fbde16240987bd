"""udi run and udi shell: become udi-run. And what is said of commands that udi does not have."""

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rootless_udi.base import program
from rootless_udi.base.errors import UdiError
from rootless_udi.plan import foreign, options

ELSEWHERE = {
    "exec": "`udi run IMAGE COMMAND` starts a container",
    "rmi": "udi rm IMAGE",
    "delete": "udi rm IMAGE",
    "ls": "udi images, or udi ps for containers",
    "list": "udi images, or udi ps for containers",
    "info": "udi doctor",
    "check": "udi doctor",
    "convert": "udi pull docker-archive:FILE",
    "help": "udi --help",
    "version": "udi --version",
}
"""Commands of other tools and ours, where `foreign` does not have them or udi-run says more."""

_SHELL = '[ -x /bin/bash ] && exec /bin/bash "$@"; exec /bin/sh "$@"'


def become(words: Sequence[str]) -> NoReturn:
    """Become udi-run with `words`: the one beside this program, else this package's."""
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "udi-run")
    argv = [beside, *words]
    if not os.access(beside, os.X_OK):
        argv = program.argv("from rootless_udi.run import main; main()", *words, site=False)
    os.execv(argv[0], argv)


def shell(words: Sequence[str]) -> NoReturn:
    """Become an interactive shell in a container: bash, else sh, whose prompt shows the image.

    The image is not touched: sh takes PS1 from its environment; bash, whose start-up files set it,
    runs PROMPT_COMMAND before the first prompt, which puts the image before what they made of it.
    """
    request = options.parse(list(words), dict(os.environ))
    if request.help:
        become(["--help"])
    if request.command:
        raise UdiError(
            "udi shell takes no command", f"udi run {request.image} {request.command[0]} ..."
        )
    own = [f"--env={pair}" for pair in marks(request.image)]
    become([*own, *words, "/bin/sh", "-c", _SHELL, "sh"])


def marks(image: str) -> tuple[str, str]:
    """Return the variables, NAME=VALUE, by which sh and bash show `image` in their prompts."""
    # What a shell would expand in a prompt is left out.
    name = "".join(c if c.isalnum() or c in "._-:/@+" else "?" for c in image)
    mark = f"[{name}] "
    once = f'[ "${{PS1#"{mark}"}}" != "$PS1" ] || PS1="{mark}$PS1"; unset PROMPT_COMMAND'
    return f"PS1={mark}$PWD $ ", f"PROMPT_COMMAND={once}"


def unknown(word: str, known: Sequence[str]) -> UdiError:
    """Return what is said of a `word` that is none of the commands `known`."""
    from difflib import get_close_matches

    hint = ELSEWHERE.get(word) or foreign.COMMANDS.get(word, "")
    if not hint:
        near = get_close_matches(word, known, 2, 0.6)
        hint = f"did you mean {' or '.join(near)}?" if near else "see udi --help"
        if not near and any(c in word for c in ":/@"):
            hint = f"an image is run by udi run {word}, or udi-run {word}"
    return UdiError(f"udi has no command {word}", hint, 2)
