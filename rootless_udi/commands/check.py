"""udi check: will an image run at a site, before anybody has gone there?"""

import argparse
import os
from collections.abc import Sequence

from rootless_udi.base import jsontext
from rootless_udi.base.process import page
from rootless_udi.commands.common.given import Arguments, any_image
from rootless_udi.commands.common.parsers import Parsers, add_json, command
from rootless_udi.commands.common.words import split
from rootless_udi.config import load
from rootless_udi.plan import options
from rootless_udi.plan.image import Image
from rootless_udi.plan.options import Request
from rootless_udi.plan.reference import named, parse_platform
from rootless_udi.plan.site import Site

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from rootless_udi.forecast.asked import Asked
    from rootless_udi.forecast.check import Answer
    from rootless_udi.forecast.site import Capture

_USAGE = "udi check IMAGE [--site NAME-OR-FILE]... [OPTIONS of udi-run] [-- COMMAND [ARG...]]"

_TEXT = "tell whether an image will run at a site, and why not; status 0, 1 (no), 3 (can't tell)"


def add(commands: Parsers) -> None:
    """Add the parser of `udi check`."""
    _fill(command(commands, "check", check, _TEXT))


def _fill(one: argparse.ArgumentParser) -> None:
    _own(one)
    one.add_argument("image")
    one.add_argument("word", nargs=argparse.REMAINDER, metavar="[OPTIONS] [-- COMMAND]")


def _own(parser: argparse.ArgumentParser) -> None:
    """Add the options that are udi check's and not udi-run's."""
    parser.add_argument(
        "--site", action="append", default=[], metavar="NAME-OR-FILE", help="default: this machine"
    )
    add_json(parser)
    parser.add_argument("--all", action="store_true", help="show what is fine too, one by one")
    parser.add_argument("--report", choices=("html",), help="one page for a site's support")
    parser.add_argument("--export", choices=("nfd",), help="the needs as a document of NFD")
    parser.add_argument("--to", metavar="FILE", help="where --report or --export is written")
    parser.add_argument("--force", action="store_true", help="replace FILE")


def check(arguments: Arguments) -> int:
    """udi check: print the forecast for each site. `arguments.word` are all of its words."""
    from rootless_udi.forecast import check as forecast
    from rootless_udi.forecast import imagefacts, places, report
    from rootless_udi.forecast.asked import Asked

    own, request = parsed(arguments.word)
    if request.help:
        whole = argparse.ArgumentParser(prog="udi check", description=_TEXT)
        _fill(whole)
        page(whole.format_help())
        return 0
    places.need_archspec()
    config = load.load(os.environ)
    image = _image(request, config)
    sites = _sites(own.site)
    facts = imagefacts.facts(image, os.environ)
    path = image.path or image.directory
    size = os.stat(path).st_size if image.path else 0
    asked = Asked(request.image, path, request, {}, size, offset=image.offset)
    answers = tuple(forecast.check(site, facts, asked) for site in sites)
    if own.report or own.export:
        _write(own, _document(own, facts, asked, answers))
    elif own.json:
        data = {"image": request.image, "sites": [forecast.as_data(one) for one in answers]}
        page(jsontext.text(data) + "\n")
    else:
        page(report.text(request.image, answers, own.all))
    return forecast.status(answers)


def _document(
    own: Arguments, facts: "dict[str, Any]", asked: "Asked", answers: "tuple[Answer, ...]"
) -> str:
    """Return the text of --report or --export."""
    import time

    from rootless_udi.forecast import nfd, report_html
    from rootless_udi.version import VERSION

    if own.export:
        return nfd.yaml(nfd.document(facts, asked)) + "\n"
    made = f"Made by udi check {VERSION} on {time.strftime('%Y-%m-%d', time.gmtime())}"
    return report_html.page(asked.image, asked.command, answers, made)


def _write(own: Arguments, text: str) -> None:
    from rootless_udi.commands.common.newfile import writing

    if own.to is None:
        page(text)
        return
    with writing(own.to, own.force) as file:
        file.write(text.encode())


def parsed(words: Sequence[str]) -> tuple[Arguments, Request]:
    """Return udi check's own options, and the request to udi-run that is to be checked.

    Both kinds of options may stand before and after the image; behind "--" is the command.
    """
    own = argparse.ArgumentParser(prog="udi check", add_help=False, allow_abbrev=False)
    _own(own)
    found = split(words, own, _USAGE)
    return found.own, options.parse([*found.run(), *found.command], {})


def _image(request: Request, config: Site) -> Image:
    """Return the image; it must be here. Raises UdiError."""
    from rootless_udi.store import resolve

    platform = parse_platform(request.platform) if request.platform else None
    reference = named(request.image, config.registry)
    if reference.kind in ("directory", "path", "squashfs"):
        return resolve.local(request.image, os.path.abspath(reference.path), sif=True)
    return any_image(request.image, config, platform)


def _sites(named: Sequence[str]) -> "list[Capture]":
    from rootless_udi.commands import site
    from rootless_udi.forecast import places

    if not named:
        return [site.here()]
    return [places.find(one, os.environ) for one in named]
