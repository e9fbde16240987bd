"""udi search and udi tags: what a registry has, where it tells."""

import os
import shutil

from rootless_udi.base.errors import UdiError, plain
from rootless_udi.base.process import say
from rootless_udi.commands.given import Arguments, parsed_reference
from rootless_udi.config import load


def tags(arguments: Arguments) -> int:
    """udi tags: a tag a line, in the registry's order."""
    from rootless_udi.pull import listing

    site = load.load(os.environ)
    reference = parsed_reference(arguments.repository, site)
    if reference.kind != "registry":
        raise UdiError(f"{arguments.repository} is no repository of a registry")
    host = reference.registry
    insecure = arguments.insecure or host in site.insecure
    for tag in listing.tags(host, reference.repository, insecure):
        say(tag)
    return 0


def search(arguments: Arguments) -> int:
    """udi search: repositories with a word in their names; [HOST[:PORT]/]WORD."""
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
