"""Do what `detached` does without open_tree(2): bring a server's mount here by mount propagation.

Linux before 5.2 has no mounts that are attached nowhere, and mount(2) moves none between
namespaces. But what is mounted below a *shared* mount appears in each namespace that has a copy of
that mount (mount_namespaces(7)). So private memory is mounted here and shared. The server, in a
namespace of its own, mounts below it. The mount appears here too, and is then removed there.
"""

import os

from rootless_udi.base.syscalls import MS_MOVE, MS_PRIVATE, MS_REC, MS_SHARED, mount
from rootless_udi.serve import mounting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_covers: list[int] = []
"""Descriptors of private memory that is mounted on folders of the host, until `settle`."""


def serve(argv: "Sequence[str]", keep: "Sequence[int]", gone: str) -> int:
    """Do what `detached.serve` does; the mount is in private memory on a folder of the host."""
    try:
        base = mounting.cover(argv)
        mount(None, base, None, MS_SHARED)
    except OSError as error:
        raise mounting.Refused(f"{getattr(error, 'call', '')} {error.strerror}") from None
    mounting.run(argv, keep, gone, base)
    mount(None, base, None, MS_REC | MS_PRIVATE)
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    _covers.append(os.open(base, flags))
    return os.open(f"{base}/{mounting.SERVED}", flags)


def settle() -> None:
    """Move the private memory from the host's folders, which it hides, to folders of our own.

    Call this when the host's tree is at /host. Raises OSError.
    """
    for number, cover in enumerate(_covers):
        place = f"/served{number}"
        os.mkdir(place)
        mount(f"/host/proc/self/fd/{cover}", place, None, MS_MOVE)
        os.close(cover)
    _covers.clear()
