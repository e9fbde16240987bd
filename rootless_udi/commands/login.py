"""udi login and logout: a registry's credentials, asked for on the terminal."""

import os
import sys

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import tell
from rootless_udi.commands.given import Arguments


def login(arguments: Arguments) -> int:
    """udi login: ask for what is not given, on the terminal, never on the command line."""
    from rootless_udi.pull import login as logins

    registry = logins.registry_name(arguments.registry)
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
    path = logins.login(registry, username, password, os.environ, arguments.insecure)
    tell(f"logged in at {registry}; kept in {path}")
    return 0


def logout(arguments: Arguments) -> int:
    """udi logout."""
    from rootless_udi.pull import login as logins

    registry = logins.registry_name(arguments.registry)
    path = logins.logout(registry, os.environ)
    tell(f"logged out of {registry}; removed from {path}")
    return 0
