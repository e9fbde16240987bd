"""udi gateway backup and restore: the gateway's database as a file, while it runs."""

import os

from rootless_udi.base.errors import UdiError, counted
from rootless_udi.base.process import tell
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command


def add(actions: Parsers) -> None:
    """Add the parsers of `udi gateway backup` and `udi gateway restore`."""
    for name, call, text in (
        ("backup", backup, "write the gateway's database to a file, while it runs"),
        ("restore", restore, "put such a file back, into SQLite or PostgreSQL"),
    ):
        one = command(actions, name, call, text)
        one.add_argument("--store", required=True, metavar="DIR", help="the site's store")
        one.add_argument(
            "--database", default="", metavar="URL", help="as udi gateway serve has it"
        )
        one.add_argument("file", metavar="FILE", help="a file of SQLite")


def backup(arguments: Arguments) -> int:
    """udi gateway backup: say what is in the copy."""
    from rootless_udi.gateway import extra

    extra.need()
    from rootless_udi.gateway import copies
    from rootless_udi.gateway.database import Database

    root = os.path.abspath(arguments.store)
    if not arguments.database:
        try:
            os.stat(Database.path(root))
        except PermissionError:
            raise UdiError(
                f"the gateway's database in {root} is not yours to read", "only its own account may"
            ) from None
        except OSError:
            raise UdiError(
                f"{root} has no database of a gateway",
                "--store is the site's store; see --database",
            ) from None
    database = Database(root, arguments.database, beside=True)
    try:
        found = copies.write(database, arguments.file)
    finally:
        database.close()
    tell(f"{arguments.file}: {_said(found)}")
    return 0


def restore(arguments: Arguments) -> int:
    """udi gateway restore: say what is there again."""
    from rootless_udi.gateway import extra

    extra.need()
    from rootless_udi.gateway import copies
    from rootless_udi.gateway.database import Database
    from rootless_udi.store.store import Store

    root = os.path.abspath(arguments.store)
    os.umask(0o022)
    store = Store(root)
    store.create(0o755)
    database = Database(root, arguments.database, beside=True)
    try:
        found = copies.restore(database, store, arguments.file)
    finally:
        database.close()
    tell(f"{database.where}: {_said(found)}")
    return 0


def _said(found: dict[str, int]) -> str:
    words = (("images", "image"), ("grants", "right"), ("tokens", "token"), ("lookups", "lookup"))
    return ", ".join(counted(found.get(table, 0), word) for table, word in words)
