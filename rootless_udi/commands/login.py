"""udi login: a registry's credentials, asked for on the terminal, tried and kept."""

import os
import sys

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import tell
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, add_insecure, command


def add(commands: Parsers) -> None:
    """Add the parser of `udi login`."""
    one = command(commands, "login", login, "try a registry's credentials and keep them")
    one.add_argument("registry", nargs="?", default="docker.io")
    one.add_argument("--username", "-u", help="asked for where it is not given")
    one.add_argument("--password-stdin", action="store_true", help="read it from standard input")
    add_insecure(one)


def login(arguments: Arguments) -> int:
    """udi login: ask on the terminal for what is not given; a password is never an argument."""
    from rootless_udi.pull.login import login as log_in
    from rootless_udi.pull.login import registry_name

    registry = registry_name(arguments.registry)
    if arguments.password_stdin:
        if not arguments.username:
            raise UdiError("udi login --password-stdin: --username is missing too")
        username, password = arguments.username, sys.stdin.readline().rstrip("\r\n")
    else:
        import getpass

        try:
            username = arguments.username or input(f"username at {registry}: ")
            password = getpass.getpass(f"password of {username}: ")
        except EOFError:
            raise UdiError("udi login: no name or password was given") from None
    path = log_in(registry, username, password, os.environ, arguments.insecure)
    tell(f"logged in at {registry}; kept in {path}")
    return 0
