"""udi share: who may read a private image of the site's gateway."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say
from rootless_udi.commands.common.given import Arguments, parsed_reference
from rootless_udi.commands.common.parsers import Parsers, command
from rootless_udi.config import load


def add(commands: Parsers) -> None:
    """Add the parser of `udi share`."""
    one = command(commands, "share", share, "let others read a private image of the site's gateway")
    one.add_argument("image")
    one.add_argument("--user", action="append", default=[], metavar="A,B", help="users")
    one.add_argument("--group", action="append", default=[], metavar="A,B", help="groups")
    one.add_argument("--remove", action="store_true", help="no longer let them")


def share(arguments: Arguments) -> int:
    """udi share: change the list, then print it; without --user and --group only print it."""
    from rootless_udi.commands.common import over_gateway
    from rootless_udi.shifter import accounts

    site = load.load(os.environ)
    reference, client = parsed_reference(arguments.image, site), over_gateway.client(site)
    users, groups = accounts.users(arguments.user), accounts.groups(arguments.group)
    if users or groups:
        found = client.share(reference, users, groups, arguments.remove)
    elif arguments.remove:
        raise UdiError("--remove: nobody is named", "--user=NAME or --group=NAME")
    else:
        found = client.access(reference)
    if found.get("public"):
        say("everybody")
    for one in found.get("users", []):
        say(f"user {one.get('name')}" + (" (owner)" if one.get("owner") else ""))
    for one in found.get("groups", []):
        say(f"group {one.get('name')}")
    return 0
