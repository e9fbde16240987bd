"""Spread the large files of a store over several servers of Lustre, by Lustre's program `lfs`.

A file of Lustre lies on one server (OST) unless its layout says more, and a layout is fixed before
the first byte. So the folders of a new store get one, which files inherit: the first 64 MiB of each
on one server, the rest on several, so that small files cost no more than before. Where there is no
`lfs`, or it refuses since the file system is another, nothing is changed.
"""

import os
import re
import shutil
import subprocess

from rootless_udi.store.store import Store

FOLDERS = ("images", "blobs")
_SECONDS = 30
"""Most seconds that `lfs` may take: a server that is down must not stop a pull."""


def layout(stripes: int) -> list[str]:
    """Return the words of `lfs setstripe` for large files in so many stripes; -1 for all."""
    return ["-E", "64M", "-c", "1", "-E", "-1", "-c", str(stripes)]


def prepare(root: str, stripes: int) -> None:
    """Make the store at `root`, if there is none, with its large files in so many stripes; 0 leaves
    that as the file system has it. Raises UdiError where the store can't be made."""
    if not stripes or os.path.isdir(f"{root}/images") or not shutil.which("lfs"):
        return
    Store(root).create()
    for folder in FOLDERS:
        _lfs("setstripe", *layout(stripes), f"{root}/{folder}")


def found(root: str) -> int | None:
    """Return the stripes of new large files of a store, None where its file system has none."""
    said = _lfs("getstripe", "-d", f"{root}/images")
    counts = [int(count) for count in re.findall(r"stripe_count:\s*(-?\d{1,9})", said or "")]
    if not counts:
        return None
    return -1 if -1 in counts else max(counts)


def _lfs(*words: str) -> str | None:
    """Return what `lfs` prints; None where there is none, or it refuses."""
    program = shutil.which("lfs")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
