"""udi gateway serve: the service itself, and its options."""

import argparse
import os
import pwd
import sys
from typing import TYPE_CHECKING

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import complain, say
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command
from rootless_udi.config import load
from rootless_udi.plan import sizes

if TYPE_CHECKING:
    from collections.abc import Iterable

    from rootless_udi.gateway.database import Database
    from rootless_udi.gateway.expiry import Rules
    from rootless_udi.gateway.starts import StartCounter
    from rootless_udi.store.store import Store


def add(actions: Parsers) -> None:
    """Add the parser of `udi gateway serve`."""
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
        help="unix:/PATH, 127.0.0.1:PORT or https://ADDRESS:PORT; several times for several "
        "(unix:DIR/gateway.socket)",
    )
    one.add_argument(
        "--certificate", metavar="FILE", default="", help="for https://: the certificates, as PEM"
    )
    one.add_argument(
        "--key", metavar="FILE", default="", help="their key, as PEM (in the certificate's file)"
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
    one.add_argument(
        "--accel", metavar="/PREFIX", default="", help="nginx in front sends images (X-Accel)"
    )
    _add_rules(one)


def _add_rules(one: argparse.ArgumentParser) -> None:
    """Add the options that say what users may have."""
    one.add_argument("--rate", type=float, default=500.0, help="a user's requests a second (500)")
    one.add_argument(
        "--starts", metavar="ADDRESS", default="", help="count starts: 0.0.0.0:PORT or unix:/PATH"
    )
    one.add_argument("--hash-users", action="store_true", help="whose starts they are, hashed")
    one.add_argument("--pulls", type=int, default=20, help="a user's pulls in the queue (20)")

    one.add_argument(
        "--keep", metavar="DAYS", type=float, default=0.0, help="expire what is unused so long"
    )
    one.add_argument("--room", metavar="SIZE", default="", help="expire what does not fit: 500G")
    one.add_argument(
        "--user-keep",
        metavar="[USER=]DAYS",
        action="append",
        help="as --keep, for what a user has brought; several times",
    )
    one.add_argument(
        "--user-room",
        metavar="[USER=]SIZE",
        action="append",
        help="how much a user may bring; several times",
    )
    one.add_argument("--examiner", metavar="PROGRAM", default="", help="may refuse an image")
    one.add_argument(
        "--examiner-seconds", metavar="N", type=float, default=300.0, help="its time limit (300)"
    )
    one.add_argument(
        "--import", metavar="SIZE", default="", dest="import_", help="import users' files up to it"
    )


def serve(arguments: Arguments) -> int:
    """udi gateway serve: print where it listens, and serve."""
    from rootless_udi.gateway import extra

    extra.need()
    from rootless_udi.gateway import app, listen
    from rootless_udi.gateway import serve as server
    from rootless_udi.gateway.database import Database
    from rootless_udi.gateway.examiner import Examiner
    from rootless_udi.gateway.limits import Limits
    from rootless_udi.gateway.people import People
    from rootless_udi.gateway.service import Service
    from rootless_udi.store.store import Store

    if min(arguments.workers, arguments.pulls, arguments.rate) <= 0 or arguments.keep < 0:
        raise UdiError("--workers, --pulls and --rate are numbers above 0", "leave them out")
    rules, most = _rules(arguments), _size(arguments.import_, "--import")
    examiner = Examiner(arguments.examiner, arguments.examiner_seconds)
    examiner.check()
    root = os.path.abspath(arguments.store)
    words = arguments.listen or [f"unix:{root}/{listen.SOCKET}"]
    addresses = [listen.parsed(word) for word in words]
    given = (arguments.certificate, arguments.key)
    certificate = listen.Certificate(*given) if arguments.certificate else None
    os.umask(0o022)
    store, site = Store(root), load.load(os.environ)
    _create(store)
    _doubts(root, arguments.admin or ())
    if arguments.munge is not None:
        _munged(arguments.munge)
    database = Database(root, arguments.database)
    service = None
    try:
        people = People(arguments.admin or (), arguments.munge, arguments.anonymous)
        systems = tuple(arguments.system or [site.name or os.uname().nodename.partition(".")[0]])
        limits = Limits(arguments.rate, arguments.pulls)
        more = (limits, rules, _counter(arguments, database), examiner, most)
        service = Service(store, database, site, systems, people, arguments.workers, *more)
        service.accel = arguments.accel.rstrip("/")
        service.begin()
        listeners = [listen.Listener(one, certificate) for one in addresses]

        def ready() -> None:
            for one in listeners:
                say(f"listening on {one.address}")
            if service.starts.address:
                say(f"counting starts at {service.starts.address}")
            sys.stdout.flush()

        server.run(app.application(service), service, listeners, ready, app.quick(service))
    finally:
        if service is not None:
            service.member.leave()
        database.close()
    return 0


def _create(store: "Store") -> None:
    """Make the store, if it is missing, for everybody to enter. Raises UdiError."""
    try:
        store.create(0o755)
    except UdiError as error:
        if "UDI_STORE" in error.hint and not error.hint.startswith(("make room", "your quota")):
            error.hint = "--store is a folder of the account that the gateway runs as"
        raise


def _doubts(root: str, admins: "Iterable[str]") -> None:
    """Tell what may be meant otherwise: a store that nobody else can reach, admins unknown here."""
    parts = root.split("/")
    for end in range(2, len(parts) + 1):
        folder = "/".join(parts[:end])
        # An access list's rights for others are those of the group, as the mode shows them.
        if not os.stat(folder).st_mode & 0o011:
            complain(
                "udi gateway",
                f"{folder} is closed to others, who so can't run images of the store",
                f"chmod a+x {folder}",
            )
            break
    for name in admins:
        try:
            pwd.getpwnam(name)
        except KeyError:
            complain("udi gateway", f"--admin={name}: there is no such user now")


def _munged(socket: str) -> None:
    """Tell what is not to be had where no munged answers; it may come later."""
    import trio

    from rootless_udi.gateway import munge

    try:
        trio.run(munge.check, socket)
    except munge.Unreachable as error:
        complain(
            "udi gateway",
            f"--munge: {error.message}: who proves himself by munge is answered 503 until it works",
            error.hint,
        )


def _counter(arguments: Arguments, database: "Database") -> "StartCounter":
    from rootless_udi.gateway import starts

    secret = starts.key(database.folder) if arguments.hash_users else b""
    sock = starts.opened(arguments.starts) if arguments.starts else None
    return starts.StartCounter(database, sock, secret)


def _rules(arguments: Arguments) -> "Rules":
    """Return what expires. Raises UdiError."""
    from rootless_udi.gateway.expiry import Rules

    keep, room = {}, {}
    for text in arguments.user_keep or ():
        user, _, days = text.rpartition("=")
        try:
            keep[user] = float(days) * 86400
        except ValueError:
            keep[user] = -1.0
        if not keep[user] >= 0:
            raise UdiError(f"--user-keep={text}: is no [USER=]DAYS", "--user-keep=30")
    for text in arguments.user_room or ():
        user, _, size = text.rpartition("=")
        room[user] = sizes.parse(size, "--user-room")
    return Rules(arguments.keep * 86400, _size(arguments.room, "--room"), keep, room)


def _size(text: str, option: str) -> int:
    return sizes.parse(text, option) if text else 0
