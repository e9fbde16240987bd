"""udi bundle: the modules of udi-run as two files, where its users may not write them."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command


def add(commands: Parsers) -> None:
    """Add the parser of `udi bundle`."""
    text = "join udi-run's own modules into two files, so that starts open fewer"
    command(commands, "bundle", bundle, text)


def bundle(arguments: Arguments) -> int:
    """udi bundle: write the two files and print their paths. Raises UdiError where that fails."""
    from rootless_udi import bundle as bundling

    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not bundling.write(package):
        raise UdiError(
            f"writing {bundling.path(package)} failed", "run it as who installed udi-run"
        )
    for stem in bundling.FILES:
        say(bundling.path(package, stem))
    return 0
