"""udi optimize: lay an image out anew, for what start-ups read of it (`udi profile`).

The new image has the content of the old one, inode numbers included. It is a squashfs file that any
server can read; our own reads it faster. A launch uses nothing of this module.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, BinaryIO

from rootless_udi.base import fastjson
from rootless_udi.base.errors import UdiError, counted
from rootless_udi.base.process import say, tell
from rootless_udi.base.windows import WindowList
from rootless_udi.commands.common.given import Arguments, any_image, stored_image
from rootless_udi.commands.common.parsers import Parsers, command
from rootless_udi.config import load
from rootless_udi.plan.reference import named
from rootless_udi.store import adding, find, inside, resolve, windows
from rootless_udi.store.store import Store, stem

TYPE_CHECKING = False
if TYPE_CHECKING:
    from rootless_udi.fuse.filesystem import FileSystem
    from rootless_udi.fuse.profile import Read
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
    reference = named(arguments.image, site.registry)
    raw, profiles = not arguments.compact, arguments.profile
    if reference.kind in ("squashfs", "path"):
        if arguments.output is None:
            raise UdiError("udi optimize of a file: --output is missing", "--output=NEW.sqfs")
        target = arguments.output
        given = any_image(arguments.image, site, sif=True)
        found = rewrite(
            reference.path,
            profiles,
            target,
            raw=raw,
            progress=tell,
            begin=given.offset,
            facts=given.facts if given.offset else None,
        )
    else:
        image = stored_image(arguments.image, site)
        source = f"{image.store}/images/{stem(image.digest)}.sqfs"
        if arguments.output:
            target = arguments.output
            found = rewrite(source, profiles, target, raw=raw, progress=tell)
        else:
            target, found = _in_store(image, source, profiles, raw)
    tell(f"first in it: {counted(found.files, 'file')} of the profile")
    say(target)
    return 0


def _in_store(
    image: find.StoredImage, source: str, profiles: Sequence[str], raw: bool
) -> tuple[str, "Result"]:
    """Write the new image beside the image; return its path, and what was written."""
    store = Store(image.store)
    lock = store.lock(image.digest)
    lock.wait()
    try:
        target = f"{store.path('images', stem(image.digest))}{find.OPTIMIZED}"

        def place(new: str, _: str, listed: WindowList) -> None:
            adding.add_optimized(store, image, new, listed)

        partial = store.temporary("images", image.digest)
        found = rewrite(source, profiles, partial, raw=raw, progress=tell, place=place)
        return target, found
    finally:
        lock.release()


def rewrite(
    image: str,
    profile_paths: Sequence[str],
    target: str,
    *,
    raw: bool = True,
    progress: Callable[[str], None] = lambda _: None,
    place: Callable[[str, str, WindowList], object] = lambda new, target, _: os.replace(
        new, target
    ),
    begin: int = 0,
    facts: "Mapping[str, Any] | None" = None,
) -> "Result":
    """Write to `target` the image at `image`, laid out for the profiles, and compare the two.

    `begin` is where in the file the image begins: in a SIF file, whose `facts` are given.

    With `raw` what start-ups read is stored uncompressed: larger, and faster to serve. The list of
    that is appended to the image (`serve.prefetch`), for the first such start on each node; before
    it stands a new list of windows (`base.windows`). `target` appears whole or not at all; `place`
    gives it its name. Raises UdiError where a profile or the image can't be read, the image's list
    finds damage, or they don't fit, and where the two images differ; OSError.
    """
    from rootless_udi.fuse import profile as profiles
    from rootless_udi.fuse.format import Corrupt
    from rootless_udi.fuse.relayout import reading
    from rootless_udi.serve import prefetch

    loaded = [profiles.load(path) for path in profile_paths]
    merged, tail = profiles.merge(loaded), prefetch.tail(profiles.questions(loaded))
    known = _known(image, begin, facts)
    old = reading(image, begin)
    partial = f"{target}.{os.urandom(8).hex()}.part"
    try:
        if not begin:
            windows.refuse_damage(old.reader.source.fd, f"optimizing failed on {image}")
        progress(f"writing {target}")
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(partial, flags, 0o644), "w+b") as out:
            result, listed = _write(out, old, merged, raw, known, tail)
        if not result.files:
            raise UdiError(
                f"optimizing failed on {image}: none of the files that were read is in it",
                "is the profile of another image? Make one with `udi profile`",
            )
        progress("comparing it with the old one")
        _compare(old, partial)
        os.chmod(partial, os.stat(image).st_mode & 0o777)
        place(partial, target, listed)
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


def _compare(old: "FileSystem", path: str) -> None:
    """Raise UdiError where the image at `path` has not the content of the old one."""
    from rootless_udi.fuse.relayout import reading
    from rootless_udi.fuse.relayout_check import verify

    new = reading(path)
    try:
        verify(old, new)
    finally:
        new.close()
        os.close(new.reader.source.fd)


def _known(image: str, begin: int, facts: "Mapping[str, Any] | None") -> bytes:
    """Return the facts of the new file as JSON: `facts`, else those inside the file at `image`.

    Raises UdiError where that is no squashfs.
    """
    found = resolve.examine(image, "", None, begin)[2]
    return fastjson.dumps(facts).encode() if facts else found


def _write(
    out: BinaryIO, old: "FileSystem", reads: "list[Read]", raw: bool, facts: bytes, tail: bytes
) -> tuple["Result", WindowList]:
    """Write the new image to `out`, and behind it its list of windows, its `facts` as JSON (b"" for
    none) and `tail`; return what was written, and the list."""
    from rootless_udi.fuse.relayout import relayout

    result = relayout(old, reads, out, raw)
    out.flush()
    listed = windows.append(out.fileno())
    out.seek(0, os.SEEK_END)
    if facts:
        out.write(inside.pack({**resolve.parsed(facts), "windows": [listed.digest]}))
    out.write(tail)
    out.flush()
    os.fsync(out.fileno())
    return result.replace(size=out.tell()), listed
