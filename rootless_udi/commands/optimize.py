"""udi optimize: lay an image out anew, for what start-ups read of it (`udi profile`).

The new image has the content of the old one, inode numbers included. It is a squashfs file that any
server can read; our own reads it faster. A launch uses nothing of this module.
"""

import os
from collections.abc import Callable, Sequence

from rootless_udi.base.errors import UdiError, counted
from rootless_udi.base.process import say, tell
from rootless_udi.commands.common.given import Arguments, stored_image
from rootless_udi.commands.common.parsers import Parsers, command
from rootless_udi.config import load
from rootless_udi.plan.reference import parse
from rootless_udi.store import find, inside, resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.fuse.relayout import Result


def add(commands: Parsers) -> None:
    """Add the parser of `udi optimize`."""
    one = command(
        commands, "optimize", optimize, "write an image in the order in which starts read it"
    )
    one.add_argument("--output", "-o", metavar="FILE", help="write it there; else into the store")
    one.add_argument(
        "--compact",
        action="store_true",
        help="change the order alone: nothing is stored uncompressed",
    )
    one.add_argument("image")
    one.add_argument("profile", nargs="+")


def optimize(arguments: Arguments) -> int:
    """udi optimize: print the new file; in the store it stands beside the image."""
    site = load.load(os.environ)
    reference = parse(arguments.image, site.registry)
    if reference.kind in ("squashfs", "path"):
        source, target = reference.path, arguments.output
        if target is None:
            raise UdiError("udi optimize of a file: --output is missing", "--output=NEW.sqfs")
    else:
        image = stored_image(arguments.image, site)
        source = f"{image.store}/images/{image.digest.replace(':', '-', 1)}.sqfs"
        target = arguments.output or source.removesuffix(".sqfs") + find.OPTIMIZED
    found = rewrite(source, arguments.profile, target, raw=not arguments.compact, progress=tell)
    tell(f"first in it: {counted(found.files, 'file')} of the profile")
    say(target)
    return 0


def rewrite(
    image: str,
    profile_paths: Sequence[str],
    target: str,
    *,
    raw: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> "Result":
    """Write to `target` the image at `image`, laid out for the profiles, and compare the two.

    With `raw` what start-ups read is stored uncompressed: larger, and faster to serve. The list of
    that is appended to the image (`serve.prefetch`), for the first such start on each node.
    `target` appears whole or not at all. Raises UdiError where a profile or the image can't be
    read, or they don't fit, and where the two images differ; OSError.
    """
    from rootless_udi.fuse import profile as profiles
    from rootless_udi.fuse.format import Corrupt
    from rootless_udi.fuse.relayout import reading, relayout
    from rootless_udi.fuse.relayout_check import verify
    from rootless_udi.serve import prefetch

    loaded = [profiles.load(path) for path in profile_paths]
    merged = profiles.merge(loaded)
    known = resolve.examine(image)[2]
    facts = inside.pack(resolve.parsed(known)) if known else b""
    tail = facts + prefetch.tail(profiles.questions(loaded))
    old = reading(image)
    partial = f"{target}.{os.urandom(8).hex()}.part"
    try:
        progress(f"writing {target}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(partial, flags, 0o644), "w+b") as out:
            result = relayout(old, merged, out, raw, tail)
            out.flush()
            os.fsync(out.fileno())
        if not result.files:
            raise UdiError(
                f"optimizing failed on {image}: none of the files that were read is in it",
                "is the profile of another image? Make one with `udi profile`",
            )
        progress("comparing it with the old one")
        new = reading(partial)
        try:
            verify(old, new)
        finally:
            new.close()
            os.close(new.reader.source.fd)
        os.chmod(partial, os.stat(image).st_mode & 0o777)
        os.replace(partial, target)
    except Corrupt as error:
        raise UdiError(
            f"optimizing failed on {image}: the image is damaged: {error}", "pull it again"
        ) from None
    finally:
        old.close()
        os.close(old.reader.source.fd)
        if os.path.lexists(partial):
            os.unlink(partial)
    return result
