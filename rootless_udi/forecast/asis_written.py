"""Which files of an image did a command write? Looked at from outside, in its running container.

The container's root is reached by /proc/PID/root; what the kernel has stamped since a moment before
the command began was written. (The changes themselves are in an overlay's memory, which no path
leads to.)
"""

import os
import time
from collections.abc import Iterator

_SECONDS, _ENTRIES = 20.0, 500_000
"""After so many the search ends."""
_MOST = 50
"""Paths that are named."""


def now(folder: str) -> int:
    """Return a time, as the kernel stamps files, that no file of before has; in nanoseconds.

    It stamps by a clock that advances every few milliseconds.
    """
    path = f"{folder}/clock"

    def stamp() -> int:
        with open(path, "wb") as file:
            file.write(b"x")
            return os.fstat(file.fileno()).st_ctime_ns

    first = stamp()
    while (later := stamp()) <= first:
        pass
    return later


def written(pid: int, since: int) -> Iterator[str]:
    """Yield paths in the root of a running process in which something was written since then.

    Of a folder with a new or changed entry the entry is named, of one that lost an entry itself.
    """
    root = f"/proc/{pid}/root"
    with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        mounts = {line.split()[4] for line in file} - {"/"}
    end, left, found = time.monotonic() + _SECONDS, _ENTRIES, 0
    folders = [""]
    while folders and found < _MOST:
        folder = folders.pop()
        try:
            entries = list(os.scandir(root + (folder or "/")))
            changed = os.lstat(root + folder + "/").st_ctime_ns >= since
        except OSError:
            continue
        for entry in entries:
            path = f"{folder}/{entry.name}"
            left -= 1
            if left < 0 or time.monotonic() > end:
                return
            if path in mounts:
                continue
            try:
                status = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            is_folder = entry.is_dir(follow_symlinks=False)
            new = status.st_ctime_ns >= since
            changed = changed and not new
            if new and (not is_folder or status.st_mtime_ns < since):
                found += 1
                yield path
            if is_folder:
                folders.append(path)
        if changed:
            found += 1
            yield folder or "/"
