"""The `shifter` command: udi-run by Shifter's words, and with Shifter's exit statuses."""

import os
import sys
from stat import S_ISREG

from rootless_udi import run
from rootless_udi.base import process
from rootless_udi.base.errors import UdiError
from rootless_udi.shifter import options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import NoReturn


def main(argv: "list[str] | None" = None) -> "NoReturn":
    """Run shifter on `argv` (without the program's name); never returns."""
    process.occupy()
    words = sys.argv[1:] if argv is None else argv
    sys.exit(options.status(process.guarded("shifter", lambda: _run(words))))


def _run(argv: list[str]) -> int:
    words = options.translate(argv, os.environ)
    if words is None:
        process.page(options.USAGE)
        return 0
    try:
        return run.run(["--shifter", *scripted(words, os.environ)])
    except UdiError as error:
        raise UdiError(error.message, error.hint, options.status(error.status)) from None


def scripted(words: list[str], environ: "Mapping[str, str]") -> list[str]:
    """Return the words, with a batch script's path replaced by /dev/fd/N, which is opened here.

    A script that begins with `#!/usr/bin/env -S shifter --image=... /bin/bash` is an argument of
    this command. Slurm runs a copy of it in slurmd's spool directory (sbatch(1)), which no
    container has; but the command inherits the descriptor.
    """
    if not environ.get("SLURM_JOB_ID"):
        return words
    found = list(words)
    for at, word in enumerate(words):
        if word.startswith("/") and word.endswith("/slurm_script"):
            try:
                fd = os.open(word, os.O_RDONLY)
            except OSError:
                continue
            if S_ISREG(os.fstat(fd).st_mode):
                os.set_inheritable(fd, True)
                found[at] = f"/dev/fd/{fd}"
            else:
                os.close(fd)
    return found


if __name__ == "__main__":
    main()
