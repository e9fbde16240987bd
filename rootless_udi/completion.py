"""Completion scripts for bash, zsh and fish, printed by `udi completion SHELL`.

Image names come from `udi images` when somebody presses Tab; udi-run itself is never asked.
"""

from rootless_udi import completion_bash, completion_fish, completion_zsh
from rootless_udi.commandtree import all_commands

SHELLS = ("bash", "zsh", "fish")


def script(shell: str) -> str:
    """Return the script for one of SHELLS."""
    make = {
        "bash": completion_bash.script,
        "zsh": completion_zsh.script,
        "fish": completion_fish.script,
    }[shell]
    return make(all_commands())
