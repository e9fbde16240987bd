"""Make the standard directories that an image lacks, in the upper layer of its overlay.

An image may have nothing, a link or a file where a mount point must be. A directory in the upper
layer hides that, if it is there before the overlay is mounted. Afterwards the kernel would need a
whiteout and extended attributes to replace it, which a tmpfs has only since Linux 6.6.
"""

import os
from stat import S_IMODE, S_ISDIR, S_ISLNK

from rootless_udi.plan import mountpoints


def directories(image: str, upper: str) -> str:
    """Make in `upper` /etc, and the directories of `plan.mountpoints` that `image` lacks.

    Return /etc's place, a path inside: another one where the image's link leads there.
    """

    modes: dict[str, int] = {}

    def look(path: str) -> int:
        """Return st_mode, 0 for nothing. Each path is asked for once: the image server answers."""
        # No part of `path` is a link but for the last, perhaps: nothing leads out of the image.
        if path not in modes:
            try:
                modes[path] = os.lstat(f"{image}{path}").st_mode
            except OSError:
                modes[path] = 0
        return modes[path]

    def link(path: str) -> str | None:
        try:
            return os.readlink(f"{image}{path}") if S_ISLNK(look(path)) else None
        except OSError:
            return None

    def mode(path: str) -> int | None:
        found = look(path)
        return S_IMODE(found) if S_ISDIR(found) else None

    where = mountpoints.places(link, lambda path: mode(path) is not None)
    for point, place in where.items():
        if mode(place) is not None and point != "/etc":
            continue
        names = place.split("/")
        for count in range(2, len(names) + 1):
            path = "/".join(names[:count])
            try:
                os.mkdir(f"{upper}{path}")
            except FileExistsError:
                continue
            found = mode(path)
            os.chmod(f"{upper}{path}", 0o755 if found is None else found)
    return where["/etc"]
