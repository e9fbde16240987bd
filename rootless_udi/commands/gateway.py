"""udi gateway: the service from which a site's users pull, and what its administrator does."""

import os
import time

from rootless_udi.base.errors import counted, plain
from rootless_udi.base.process import say, tell
from rootless_udi.commands import gateway_copies, gateway_serve
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command, group
from rootless_udi.config import load


def add(commands: Parsers) -> None:
    """Add the parsers of `udi gateway`."""
    actions = group(commands, "gateway", "serve a site's images to its users")
    gateway_serve.add(actions)
    gateway_copies.add(actions)
    four = command(actions, "expire", expire, "remove images by the rules of the site's gateway")
    four.add_argument("--dry-run", action="store_true", help="only say which")
    two = command(actions, "token", token, "make a token that proves you to the site's gateway")
    two.add_argument("--scope", choices=("read", "pull", "all"), default="read")
    two.add_argument("--days", type=float, default=30.0, help="how long it is good (30)")
    two.add_argument("--note", default="", help="what it is for, for --list")
    two.add_argument("--list", action="store_true", help="list your tokens")
    two.add_argument("--revoke", type=int, metavar="NUMBER", help="take one back")
    three = command(actions, "audit", audit, "print who gave which images to whom")
    three.add_argument("--limit", type=int, default=100, help="the last so many (100)")


def token(arguments: Arguments) -> int:
    """udi gateway token: print a new token, the only time that it can be seen."""
    from rootless_udi.commands.common import names, over_gateway

    client = over_gateway.client(load.load(os.environ))
    if arguments.revoke is not None:
        client.tokens({"revoke": arguments.revoke})
        return 0
    if arguments.list:
        rows = client.tokens().get("list", [])
        cells = [
            (str(one["id"]), str(one["scope"]), _day(one["expires"]), plain(str(one["note"])))
            for one in rows
        ]
        head = ("NUMBER", "SCOPE", "UNTIL", "NOTE")
        for line in names.table(head, cells, 200) if cells else ():
            say(line)
        if not cells:
            tell("you have no token: udi gateway token makes one")
        return 0
    wanted = {"scope": arguments.scope, "days": arguments.days, "note": arguments.note}
    found = client.tokens(wanted)
    tell(f"number {found.get('id')}, to {arguments.scope}, until {_day(found.get('expires'))}")
    say(str(found.get("token", "")))
    return 0


def expire(arguments: Arguments) -> int:
    """udi gateway expire: print what goes, and remove it unless --dry-run."""
    from rootless_udi.commands.common import names, over_gateway

    found = over_gateway.client(load.load(os.environ)).apply_rules(arguments.dry_run)
    for one in found:
        size, when = int(one.get("size", 0)), float(one.get("used", 0))
        called = ", ".join(map(str, one.get("names", []))) or str(one.get("digest"))
        say(f"{called}: {names.amount(size)}, last used {_day(when)}")
    total = names.amount(sum(int(one.get("size", 0)) for one in found))
    what = "would go" if arguments.dry_run else "went"
    tell(f"{counted(len(found), 'image')}, {total} {what}")
    return 0


def audit(arguments: Arguments) -> int:
    """udi gateway audit: print the log's last rows, the oldest first."""
    from rootless_udi.commands.common import over_gateway

    for one in over_gateway.client(load.load(os.environ)).audit(arguments.limit):
        words = (one.get(key, "") for key in ("user", "action", "what", "detail"))
        say(f"{_moment(one.get('time'))} {' '.join(map(str, words))}".rstrip())
    return 0


def _moment(seconds: object) -> str:
    known = float(seconds) if isinstance(seconds, int | float) else 0.0
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(known))


def _day(seconds: object) -> str:
    return _moment(seconds).partition("T")[0]
