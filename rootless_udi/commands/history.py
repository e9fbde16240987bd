"""udi history: the steps by which an image was made, as its config tells them."""

import os
import shutil

from rootless_udi.base import jsontext
from rootless_udi.base.errors import UdiError, plain
from rootless_udi.base.process import page, say, tell
from rootless_udi.commands.common import names
from rootless_udi.commands.common.given import Arguments, any_image, parsed_platform
from rootless_udi.commands.common.parsers import Parsers, add_json, add_platform, command
from rootless_udi.config import load


def add(commands: Parsers) -> None:
    """Add the parser of `udi history`."""
    one = command(commands, "history", history, "print the steps by which an image was made")
    one.add_argument("image")
    add_json(one)
    add_platform(one)


def history(arguments: Arguments) -> int:
    """udi history: the last step first, with the size of its layer as it was downloaded."""
    site, platform = load.load(os.environ), parsed_platform(arguments)
    image = any_image(arguments.image, site, platform, sif=True)
    if image.offset:
        raise UdiError(
            f"a SIF file as {arguments.image} has no history",
            f"udi inspect {arguments.image} shows its labels",
        )
    steps = image.facts.get("history")
    if not isinstance(steps, list) or not all(_is_step(step) for step in steps):
        raise UdiError(
            f"of image {arguments.image} no history is known",
            "images that this version pulls have it: udi pull --force IMAGE",
        )
    if arguments.json:
        keys = ("created", "created_by", "size")
        page(jsontext.text([dict(zip(keys, step, strict=True)) for step in steps]) + "\n")
        return 0
    if not steps:
        tell(f"the history of image {arguments.image} has no step")
        return 0
    width = shutil.get_terminal_size().columns
    say(f"{'CREATED':<10}  {'SIZE':>9}  STEP")
    for created, how, size in reversed(steps):
        shown = names.amount(size) if size >= 0 else "-"
        line = f"{plain(created)[:10]:<10}  {shown:>9}  {plain(' '.join(how.split()))}"
        say(line if len(line) <= width else f"{line[: width - 3]}...")
    return 0


def _is_step(step: object) -> bool:
    kinds = (str, str, int)
    return (
        isinstance(step, list)
        and len(step) == len(kinds)
        and all(isinstance(one, kind) for one, kind in zip(step, kinds, strict=True))
    )
