"""`udi profile` and `udi optimize`: trace a start-up, and lay an image out for it.

Nothing here is on the path of a launch. An optimised image has the content of the old one, to the
inode number; it is a squashfs like any other, which any server reads, faster still by our own.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from rootless_udi.base.errors import OURS, UdiError
from rootless_udi.fuse import profile as profiles
from rootless_udi.fuse.format import Corrupt
from rootless_udi.fuse.relayout import Result, reading, relayout
from rootless_udi.fuse.relayout_check import verify
from rootless_udi.serve import prefetch
from rootless_udi.store import inside, resolve

WAIT = 30.0
"""Seconds to wait for the server's profile after the command has ended: its mount ends after it."""


def profile(run: Sequence[str], image: str, command: Sequence[str], target: str) -> int:
    """Run `command` in `image` with a tracing server, write its profile; return its exit status.

    `run` is the argv of udi-run with its options; it is given `--trace=FILE`. Raises UdiError where
    no profile came of it; OSError.
    """
    where = os.path.abspath(target)
    with tempfile.TemporaryDirectory(dir=os.path.dirname(where), prefix=".profile-") as folder:
        trace = Path(folder) / "trace"
        status = subprocess.run([*run, f"--trace={trace}", image, *command]).returncode
        if status == OURS and not os.listdir(folder):
            # Nothing was started, and udi-run has said why.
            return status
        end = time.monotonic() + WAIT
        while not trace.exists():
            if time.monotonic() > end:
                raise UdiError(
                    f"profiling failed on {image}: the image server left no profile",
                    "does the command leave processes behind? They keep its image mounted",
                )
            time.sleep(0.01)
        os.replace(trace, where)
    return status if status >= 0 else 128 - status


def optimize(
    image: str,
    profile_paths: Sequence[str],
    target: str,
    *,
    raw: bool = True,
    progress: Callable[[str], None] = lambda _: None,
) -> Result:
    """Write to `target` the image at `image`, laid out for the profiles, and compare the two.

    `raw` stores what start-ups read uncompressed: larger, and quicker to serve. What they ask is
    written behind the image, for every node's first such start. `target` appears
    whole or not at all. Raises UdiError where a profile or the image is none, or does not fit the
    other, and where the comparison fails; OSError.
    """
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
