"""Do the sources of volumes exist, and can they be mounted? The volumes' one look at the disk."""

import os
import stat

from rootless_udi.errors import UdiError
from rootless_udi.volumes import Volume, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

_ODD = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
}


def check_sources(volumes: "Iterable[Volume]") -> None:
    """Raise UdiError for the first source that is missing, out of reach, a FIFO or a socket.

    Symbolic links are followed. A perNodeCache's source is only looked at where a cache is made
    in it (`rootless_udi.cache`): Shifter's users write any path there.
    """
    for volume in volumes:
        if volume.cache is None:
            _check(volume)


def _check(volume: Volume) -> None:
    what = f"{volume.origin}: source {shown(volume.source)}"
    try:
        mode = os.stat(volume.source).st_mode
    except FileNotFoundError:
        if os.path.islink(volume.source):
            raise UdiError(
                f"{what} is a symbolic link to {shown(os.readlink(volume.source))}, "
                "which does not exist",
                "make its target, or name another source",
            ) from None
        raise UdiError(f"{what} does not exist", "make it first, or correct the path") from None
    except OSError as error:
        raise UdiError(
            f"{what}: {os.strerror(error.errno or 0)}",
            "the container is run as you: it sees what you can see",
        ) from error
    odd = _ODD.get(stat.S_IFMT(mode))
    if odd:
        raise UdiError(
            f"{what} is {odd}", "name a directory or a file; mount the directory it is in"
        )
    if stat.S_ISDIR(mode) and not os.access(volume.source, os.X_OK):
        raise UdiError(
            f"{what}: you may not enter this directory", "ask its owner for x permission"
        )
