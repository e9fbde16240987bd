"""udi completion: completion scripts for bash, zsh, fish and tcsh.

When somebody presses Tab, the scripts run `udi images` for the names of images.
"""

import argparse

from rootless_udi.base.process import page
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command

SHELLS = ("bash", "zsh", "fish", "tcsh")


def add(commands: Parsers) -> None:
    """Add the parser of `udi completion`."""
    one = command(commands, "completion", completion, "print a completion script for a shell")
    one.add_argument("shell", choices=SHELLS)


def completion(arguments: Arguments) -> int:
    """udi completion: print the script; in bash: source <(udi completion bash)."""
    from rootless_udi.commands.udi import parser

    page(script(arguments.shell, parser()))
    return 0


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return the script for one of SHELLS; `parser` is that of udi."""
    from rootless_udi.commands import (
        completion_bash,
        completion_fish,
        completion_tcsh,
        completion_zsh,
    )
    from rootless_udi.commands.common.tree import all_commands

    make = {
        "bash": completion_bash.script,
        "zsh": completion_zsh.script,
        "fish": completion_fish.script,
        "tcsh": completion_tcsh.script,
    }[shell]
    return make(all_commands(parser))
