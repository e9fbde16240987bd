"""udi run: becomes udi-run."""

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from rootless_udi.base import program
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command


def add(commands: Parsers) -> None:
    """Add the parser of `udi run`."""
    one = command(commands, "run", run, "run a command in an image, with udi-run's options")
    one.add_argument("word", nargs=argparse.REMAINDER, metavar="[OPTIONS] IMAGE ...")


def run(arguments: Arguments) -> NoReturn:
    """udi run: udi-run with the same words."""
    become(arguments.word)


def become(words: Sequence[str]) -> NoReturn:
    """Become udi-run (execve(2)): the program beside this one, else this package's.

    It gets the caller's environment and signals, as if the caller had started it.
    """
    from rootless_udi.launch import command as last

    argv = udi_run(words)
    last.signals()
    os.execve(argv[0], argv, last.given())


def udi_run(words: Sequence[str]) -> list[str]:
    """Return the command line of udi-run: the program beside this one, else this package's."""
    beside = os.path.join(os.path.dirname(os.path.abspath(sys.argv[0])), "udi-run")
    if os.access(beside, os.X_OK):
        return [beside, *words]
    return program.argv("from rootless_udi.run import main; main()", *words, site=False)
