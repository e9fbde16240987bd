"""udi profile: run a command, and write down what it reads of its image."""

import argparse
import os
import time
from collections.abc import Sequence
from pathlib import Path

from rootless_udi.base import program
from rootless_udi.base.errors import OURS, UdiError
from rootless_udi.base.process import tell
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command

WAIT = 30.0
"""Seconds to wait for the profile: the server writes it when the mount has ended, after the
command."""


def add(commands: Parsers) -> None:
    """Add the parser of `udi profile`."""
    one = command(commands, "profile", profile, "run a command and note what it reads of its image")
    one.add_argument("--output", "-o", metavar="FILE", default="udi.profile")
    one.add_argument("image")
    one.add_argument("word", nargs=argparse.REMAINDER, metavar="[--] COMMAND")


def profile(arguments: Arguments) -> int:
    """udi profile: return the command's exit status."""
    words = arguments.word[1:] if arguments.word[:1] == ["--"] else arguments.word
    if not words:
        raise UdiError("udi profile: no command is given", "udi profile IMAGE -- COMMAND [ARG...]")
    launcher = "from rootless_udi.run import main; main()"
    run = program.argv(launcher, "--share=off", site=False)
    status = traced(run, arguments.image, words, arguments.output)
    if status != OURS:
        tell(f"what it read is in {arguments.output}")
    return status


def traced(run: Sequence[str], image: str, command: Sequence[str], target: str) -> int:
    """Run `command` in `image` with a profile as `target`; return its exit status.

    `run` is the argv of udi-run with its options, to which `--trace=FILE` is added. Raises UdiError
    where there is no profile after WAIT; OSError.
    """
    import subprocess
    import tempfile

    where = os.path.abspath(target)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(where), prefix=".profile-") as folder:
        trace = Path(folder) / "trace"
        status = subprocess.run([*run, f"--trace={trace}", image, *command]).returncode
        if status == OURS and not os.listdir(folder):
            # udi-run has started nothing, and has printed why.
            return status
        end = time.monotonic() + WAIT
        while not trace.exists():
            if time.monotonic() > end:
                raise UdiError(
                    f"profiling failed on {image}: the image server left no profile",
                    "does the command leave processes behind? They keep its image mounted",
                )
            time.sleep(0.01)
        os.replace(trace, where)
    return status if status >= 0 else 128 - status
