"""udi stats: what the site's gateway was asked for, by day."""

import os
import shutil

from rootless_udi.base import jsontext
from rootless_udi.base.errors import counted, plain
from rootless_udi.base.process import page, say, tell
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, add_json, command
from rootless_udi.config import load

_COLUMNS = ("day", "lookups", "starts", "users", "images", "pulls", "failures")


def add(commands: Parsers) -> None:
    """Add the parser of `udi stats`."""
    one = command(commands, "stats", stats, "what the site's gateway was asked for, by day")
    one.add_argument("--days", type=int, default=30, help="the last so many (30)")
    add_json(one)


def stats(arguments: Arguments) -> int:
    """udi stats: a row for each day, then the images that were looked up most."""
    from rootless_udi.commands.common import names, over_gateway

    found = over_gateway.client(load.load(os.environ)).stats(arguments.days)
    if arguments.json:
        page(jsontext.text(found) + "\n")
        return 0
    width = shutil.get_terminal_size().columns
    rows = [tuple(str(row.get(word, "")) for word in _COLUMNS) for row in found.get("days", [])]
    for line in names.table(tuple(map(str.upper, _COLUMNS)), rows, width) if rows else ():
        say(line)
    if not rows:
        tell(f"nothing was asked for in {counted(arguments.days, 'day')}")
    for one in found.get("top", []):
        say(f"{plain(str(one.get('tag')))}: {counted(int(one.get('lookups', 0)), 'lookup')}")
    size = names.amount(int(found.get("bytes", 0)))
    tell(f"{counted(int(found.get('images', 0)), 'image')}, {size}, {found.get('private')} private")
    return 0
