"""udi config: what the site and the user configured; checked, compiled, or taken from Shifter."""

import os
from pathlib import Path

from rootless_udi.base import jsontext
from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import page, say, tell
from rootless_udi.commands.common.given import Arguments, write_files
from rootless_udi.commands.common.parsers import Parsers, add_json, command, group
from rootless_udi.plan.site import to_flat


def add(commands: Parsers) -> None:
    """Add the parsers of `udi config` and its actions."""
    actions = group(commands, "config", "show and check the configuration")
    add_json(
        command(actions, "show", _show, "print the merged configuration and where it comes from")
    )
    command(actions, "check", _check, "print what is wrong with it, by file and line")
    command(actions, "compile", _compile, "write the site's copy that launches read quickly")
    one = command(actions, "import", _import, "translate Shifter's udiRoot.conf")
    one.add_argument("file")
    one.add_argument("--to", metavar="DIR", help="write the files there; else print them")


def _show(arguments: Arguments) -> int:
    """udi config show."""
    from rootless_udi.config import show

    site, problems = show.merged(os.environ)
    if arguments.json:
        document = to_flat(site)
        document["origins"] = dict(site.origins)
        document["problems"] = [dict(zip(p.FIELDS, p.values(), strict=True)) for p in problems]
        page(jsontext.text(document) + "\n")
        return 1 if problems else 0
    page(show.show(site))
    tell(*show.report(problems).splitlines())
    return 1 if problems else 0


def _check(arguments: Arguments) -> int:
    """udi config check: 1 where there is a problem."""
    from rootless_udi.config import show

    problems = list(show.check(os.environ))
    page(show.report(problems))
    return 1 if problems else 0


def _compile(arguments: Arguments) -> int:
    """udi config compile: print the file that was written."""
    from rootless_udi.config import compiled

    say(compiled.compile_site(os.environ))
    return 0


def _import(arguments: Arguments) -> int:
    """udi config import: write or print our files; standard error says what has no counterpart."""
    from rootless_udi.shifter import udiroot

    try:
        text = Path(arguments.file).read_text(errors="surrogateescape")
    except OSError as error:
        raise UdiError(f"reading {arguments.file} failed: {error.strerror}") from None
    made = udiroot.convert(text, _listing)
    write_files(made.files, arguments.to)
    for note in made.notes:
        tell(f"{arguments.file}: {note}")
    return 0


def _listing(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
