"""The older way of `detached`: the server's mount reaches the container's namespace by propagation.

Linux before 5.2 has no detached mounts, and mount(2) moves none between namespaces. But what is
mounted below a shared mount appears in each namespace that has a copy of it (mount_namespaces(7)):
private memory is mounted and shared here, the server mounts in it in a namespace of its own, and
there the mount is taken away when it has arrived here.
"""

import os

from rootless_udi.base.syscalls import MS_MOVE, MS_PRIVATE, MS_REC, MS_SHARED, mount
from rootless_udi.serve import mounting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

_covers: list[int] = []
"""Descriptors of the private memory that covers a folder of the host until `settle`."""


def serve(argv: "Sequence[str]", keep: "Sequence[int]", gone: str) -> int:
    """As `detached.serve`; the mount is attached here, on a folder of private memory."""
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
    """Move the private memory away from the host's folders, which may be sources of mounts."""
    for number, cover in enumerate(_covers):
        place = f"/served{number}"
        os.mkdir(place)
        mount(f"/host/proc/self/fd/{cover}", place, None, MS_MOVE)
        os.close(cover)
    _covers.clear()
