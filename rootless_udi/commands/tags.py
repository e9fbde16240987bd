"""udi tags: the tags of a repository, as its registry lists them."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say
from rootless_udi.commands.common.given import Arguments, parsed_reference
from rootless_udi.commands.common.parsers import Parsers, add_insecure, command
from rootless_udi.config import load


def add(commands: Parsers) -> None:
    """Add the parser of `udi tags`."""
    one = command(commands, "tags", tags, "list the tags of a repository")
    one.add_argument("repository")
    add_insecure(one)


def tags(arguments: Arguments) -> int:
    """udi tags: print the tags, one a line, in the registry's order."""
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
