"""udi shell: an interactive shell in an image; becomes udi-run."""

import argparse
import os
from typing import NoReturn

from rootless_udi.base.errors import UdiError
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command
from rootless_udi.commands.run import become
from rootless_udi.plan import options

SHELL = '[ -x /bin/bash ] && exec /bin/bash "$@"; exec /bin/sh "$@"'
"""A script for sh: bash where the image has it, else sh."""


def add(commands: Parsers) -> None:
    """Add the parser of `udi shell`."""
    one = command(commands, "shell", shell, "a shell in an image, with udi-run's options")
    one.add_argument("word", nargs=argparse.REMAINDER, metavar="[OPTIONS] IMAGE ...")


def shell(arguments: Arguments) -> NoReturn:
    """udi shell: bash, else sh, whose prompt shows the image.

    The prompt is set by variables alone. sh takes PS1 from its environment. bash's start-up files
    set PS1 anew; then, before the first prompt, bash runs PROMPT_COMMAND, which puts the image
    before it.
    """
    request = options.parse(list(arguments.word), dict(os.environ))
    if request.help:
        become(["--help"])
    if request.command:
        raise UdiError(
            "udi shell takes no command", f"udi run {request.image} {request.command[0]} ..."
        )
    own = [f"--env={pair}" for pair in marks(request.image)]
    become([*own, *arguments.word, "/bin/sh", "-c", SHELL, "sh"])


def marks(image: str) -> tuple[str, str]:
    """Return the variables, NAME=VALUE, by which sh and bash show `image` in their prompts."""
    # Characters that a shell expands in a prompt become "?".
    name = "".join(c if c.isalnum() or c in "._-:/@+" else "?" for c in image)
    mark = f"[{name}] "
    once = f'[ "${{PS1#"{mark}"}}" != "$PS1" ] || PS1="{mark}$PS1"; unset PROMPT_COMMAND'
    return f"PS1={mark}$PWD $ ", f"PROMPT_COMMAND={once}"
