"""udi config, udi mpi, udi gpu: what the site configured and what the host would put in."""

import os
from pathlib import Path

from rootless_udi.base import jsontext
from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import page, say, tell
from rootless_udi.commands.given import Arguments, write_files
from rootless_udi.plan import site as plan_site


def config_show(arguments: Arguments) -> int:
    """udi config show."""
    from rootless_udi.config import show

    site, problems = show.merged(os.environ)
    if arguments.json:
        document = plan_site.to_flat(site)
        document["origins"] = dict(site.origins)
        document["problems"] = [dict(zip(p.FIELDS, p.values(), strict=True)) for p in problems]
        page(jsontext.text(document) + "\n")
        return 1 if problems else 0
    page(show.show(site))
    tell(*show.report(problems).splitlines())
    return 1 if problems else 0


def config_check(arguments: Arguments) -> int:
    """udi config check: 1 where there is a problem."""
    from rootless_udi.config import show

    problems = list(show.check(os.environ))
    page(show.report(problems))
    return 1 if problems else 0


def config_compile(arguments: Arguments) -> int:
    """udi config compile: print the file that was written."""
    from rootless_udi.config import compiled

    say(compiled.compile_site(os.environ))
    return 0


def config_import(arguments: Arguments) -> int:
    """udi config import: what has no counterpart goes to standard error, a line each."""
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
