"""udi logout: forget a registry's credentials."""

import os

from rootless_udi.base.process import tell
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command


def add(commands: Parsers) -> None:
    """Add the parser of `udi logout`."""
    one = command(commands, "logout", logout, "forget a registry's credentials")
    one.add_argument("registry", nargs="?", default="docker.io")


def logout(arguments: Arguments) -> int:
    """udi logout: print the file from which the credentials were removed."""
    from rootless_udi.pull.login import logout as log_out
    from rootless_udi.pull.login import registry_name

    registry = registry_name(arguments.registry)
    path = log_out(registry, os.environ)
    tell(f"logged out of {registry}; removed from {path}")
    return 0
