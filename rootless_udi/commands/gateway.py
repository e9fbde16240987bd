"""udi gateway: the service from which a site's users pull, and what its administrator does."""

import os
import sys
import time

from rootless_udi.base.errors import UdiError, counted, plain
from rootless_udi.base.process import say, tell
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command, group
from rootless_udi.config import load
from rootless_udi.plan import sizes


def add(commands: Parsers) -> None:
    """Add the parsers of `udi gateway`."""
    actions = group(commands, "gateway", "serve a site's images to its users")
    one = command(actions, "serve", serve, "serve the store DIR until SIGTERM")
    one.add_argument("--store", required=True, metavar="DIR", help="the site's store")
    one.add_argument(
        "--database",
        default="",
        metavar="URL",
        help="postgresql://HOST/NAME, for several gateways of one store (SQLite in the store)",
    )
    one.add_argument(
        "--listen",
        action="append",
        metavar="ADDRESS",
        help="unix:/PATH or 127.0.0.1:PORT; several times for several (unix:DIR/gateway.socket)",
    )
    one.add_argument("--workers", type=int, default=2, help="pulls at once (2)")
    one.add_argument("--admin", action="append", metavar="USER", help="may expire; several times")
    one.add_argument(
        "--system", action="append", help="a system's name in requests (site.name); several times"
    )
    one.add_argument(
        "--munge",
        nargs="?",
        const="",
        metavar="SOCKET",
        help="take munge credentials, checked by the munged at SOCKET",
    )
    one.add_argument(
        "--anonymous", action="store_true", help="list and look up public images for everybody"
    )
    one.add_argument("--rate", type=float, default=500.0, help="a user's requests a second (500)")
    one.add_argument("--pulls", type=int, default=20, help="a user's pulls in the queue (20)")

    one.add_argument(
        "--keep", metavar="DAYS", type=float, default=0.0, help="expire what is unused so long"
    )
    one.add_argument("--room", metavar="SIZE", default="", help="expire what does not fit: 500G")
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
        for line in names.table(("NUMBER", "SCOPE", "UNTIL", "NOTE"), cells, 200):
            say(line)
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
    tell(f"{counted(len(found), 'image')}, {total}" + (" would go" if arguments.dry_run else ""))
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


def serve(arguments: Arguments) -> int:
    """udi gateway serve: print where it listens, and serve."""
    from rootless_udi.gateway import extra

    extra.need()
    from rootless_udi.gateway import app, listen
    from rootless_udi.gateway import serve as server
    from rootless_udi.gateway.database import Database
    from rootless_udi.gateway.expiry import Rules
    from rootless_udi.gateway.limits import Limits
    from rootless_udi.gateway.people import People
    from rootless_udi.gateway.service import Service
    from rootless_udi.store.store import Store

    if min(arguments.workers, arguments.pulls, arguments.rate) <= 0 or arguments.keep < 0:
        raise UdiError("--workers, --pulls and --rate are numbers above 0", "leave them out")
    root = os.path.abspath(arguments.store)
    words = arguments.listen or [f"unix:{root}/{listen.SOCKET}"]
    addresses = [listen.parsed(word) for word in words]
    os.umask(0o022)
    store, site = Store(root), load.load(os.environ)
    store.create(0o755)
    database = Database(root, arguments.database)
    service = None
    try:
        people = People(arguments.admin or (), arguments.munge, arguments.anonymous)
        systems = tuple(arguments.system or [site.name or os.uname().nodename.partition(".")[0]])
        limits = Limits(arguments.rate, arguments.pulls)
        room = sizes.parse(arguments.room) if arguments.room else 0
        rules = Rules(arguments.keep * 86400, room)
        service = Service(store, database, site, systems, people, arguments.workers, limits, rules)
        service.begin()
        sockets = [listen.opened(one) for one in addresses]
        found = [
            one.replace(port=s.getsockname()[1]) if one.host else one
            for one, s in zip(addresses, sockets, strict=True)
        ]

        def ready() -> None:
            for one in found:
                say(f"listening on {one}")
            sys.stdout.flush()

        server.run(app.application(service), service, sockets, ready)
    finally:
        if service is not None:
            service.member.leave()
        database.close()
    return 0
