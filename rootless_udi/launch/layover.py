"""Make the standard directories that an image lacks, in the upper layer of its overlay.

Where a mount point must be, an image may have nothing, a link or a file. A directory in the upper
layer hides that, if it is there before the overlay is mounted. To replace something in a mounted
overlay the kernel needs whiteouts and extended attributes, which tmpfs has since Linux 6.6 only.
"""

import os
from stat import S_IMODE, S_ISDIR, S_ISLNK

from rootless_udi.plan import mountpoints


def directories(image: str, upper: str) -> str:
    """Make /etc in `upper`, and those directories of `plan.mountpoints` that `image` lacks.

    Return the path of /etc inside: where the image's /etc is a link, the path that it leads to.
    Raises OSError.
    """

    modes: dict[str, int] = {}

    def look(path: str) -> int:
        """Return st_mode, 0 for nothing. Each path is asked of the image server only once."""
        # Only the last part of `path` may be a link, so that none leads out of the image.
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
