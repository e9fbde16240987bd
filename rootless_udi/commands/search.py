"""udi search: repositories of a registry, where it can be searched."""

import os
import shutil

from rootless_udi.base.errors import UdiError, plain
from rootless_udi.base.process import say
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, add_insecure, command
from rootless_udi.config import load


def add(commands: Parsers) -> None:
    """Add the parser of `udi search`."""
    one = command(
        commands, "search", search, "find repositories of a registry by a word of their names"
    )
    one.add_argument("word", metavar="[HOST/]WORD")
    add_insecure(one)


def search(arguments: Arguments) -> int:
    """udi search: print the repositories that have the word in their names, one a line."""
    from rootless_udi.pull import listing, login

    site = load.load(os.environ)
    first, slash, rest = arguments.word.partition("/")
    named = slash and ("." in first or ":" in first or first == "localhost")
    host = login.registry_name(first if named else site.registry)
    word = rest if named else arguments.word
    found = listing.search(host, word, arguments.insecure or host in site.insecure)
    width = shutil.get_terminal_size().columns
    for name, text in found:
        whole = name if host == site.registry else f"{host}/{name}"
        line = plain(f"{whole}  {' '.join(text.split())}".rstrip())
        say(line if len(line) <= max(width, len(whole)) else f"{line[: width - 3]}...")
    if not found:
        raise UdiError(f"searching {host} found no repository with {word!r} in its name")
    return 0
