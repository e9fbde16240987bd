"""Completion scripts for bash, zsh, fish and tcsh, printed by `udi completion SHELL`.

Image names come from `udi images` when somebody presses Tab; udi-run itself is never asked.
"""

import argparse

from rootless_udi.commands import (
    completion_bash,
    completion_fish,
    completion_tcsh,
    completion_zsh,
)
from rootless_udi.commands.tree import all_commands

SHELLS = ("bash", "zsh", "fish", "tcsh")


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """Return the script for one of SHELLS; `parser` is that of udi."""
    make = {
        "bash": completion_bash.script,
        "zsh": completion_zsh.script,
        "fish": completion_fish.script,
        "tcsh": completion_tcsh.script,
    }[shell]
    return make(all_commands(parser))
