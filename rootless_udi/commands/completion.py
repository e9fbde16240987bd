"""Completion scripts for bash, zsh and fish, printed by `udi completion SHELL`.

Image names come from `udi images` when somebody presses Tab; udi-run itself is never asked.
"""

import argparse

from rootless_udi.commands import completion_bash, completion_fish, completion_zsh
from rootless_udi.commands.tree import all_commands

SHELLS = ("bash", "zsh", "fish")


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return the script for one of SHELLS; `parser` is that of udi."""
    make = {
        "bash": completion_bash.script,
        "zsh": completion_zsh.script,
        "fish": completion_fish.script,
    }[shell]
    return make(all_commands(parser))
