"""udi profile and udi optimize."""

import os

from rootless_udi.base import program
from rootless_udi.base.errors import OURS, UdiError
from rootless_udi.base.process import say, tell
from rootless_udi.commands.given import Arguments, stored_image
from rootless_udi.config import load
from rootless_udi.plan import reference as oci
from rootless_udi.store import find


def profile(arguments: Arguments) -> int:
    """udi profile: the command's exit status; the profile is written when its mount has ended."""
    from rootless_udi.commands import startup_layout

    words = arguments.word[1:] if arguments.word[:1] == ["--"] else arguments.word
    if not words:
        raise UdiError("udi profile: no command is given", "udi profile IMAGE -- COMMAND [ARG...]")
    launcher = "from rootless_udi.run import main; main()"
    run = program.argv(launcher, "--share=off", site=False)
    status = startup_layout.profile(run, arguments.image, words, arguments.output)
    if status != OURS:
        tell(f"what it read is in {arguments.output}")
    return status


def optimize(arguments: Arguments) -> int:
    """udi optimize: print the file. In the store both layouts have one name and one digest."""
    from rootless_udi.commands import startup_layout

    site = load.load(os.environ)
    reference = oci.parse(arguments.image, site.registry)
    if reference.kind in ("squashfs", "path"):
        source, target = reference.path, arguments.output
        if target is None:
            raise UdiError("udi optimize of a file: --output is missing", "--output=NEW.sqfs")
    else:
        image = stored_image(arguments.image, site)
        source = f"{image.store}/images/{image.digest.replace(':', '-', 1)}.sqfs"
        target = arguments.output or source.removesuffix(".sqfs") + find.OPTIMIZED
    found = startup_layout.optimize(
        source, arguments.profile, target, raw=not arguments.compact, progress=tell
    )
    tell(f"{found.files} files of the profile lie first")
    say(target)
    return 0
