"""The standard directories of an image that has something else in their place, or nothing.

They are made in the overlay's upper layer before it is mounted, and so hide links and files of the
image. Later it would take whiteouts, and a directory in the place of one needs extended attributes
that a tmpfs has only since Linux 6.6.
"""

import os
from stat import S_IMODE, S_ISDIR

from rootless_udi.plan import mountpoints


def directories(image: str, upper: str) -> str:
    """Make in `upper` the directories of skeleton.py that `image` lacks, and /etc in any case.

    Return /etc's place, a path inside: another one where the image's link leads there.
    """

    def link(path: str) -> str | None:
        try:
            return os.readlink(f"{image}{path}")
        except OSError:
            return None

    def mode(path: str) -> int | None:
        # No part of `path` is a link but for the last, perhaps: nothing leads out of the image.
        try:
            found = os.lstat(f"{image}{path}").st_mode
        except OSError:
            return None
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
