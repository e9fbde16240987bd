"""Run a FUSE server that must mount by itself, and bring its mount into the container.

fuse2fs and fuse-python use libfuse 2, which mounts by itself. A server in the container's mount
namespace would keep that namespace alive for ever. So the server gets a mount namespace of its own.
It mounts there, a copy of the mount (open_tree(2), Linux 5.2) is sent out of it, and the copy is
attached in the container (move_mount(2)). When the container ends, that copy is the last one, and
the kernel ends the connection and so the server. Where one of these calls is refused, mount
propagation is used in their place (`propagated`).
"""

import os
from sys import modules

from rootless_udi.base.syscalls import (
    MS_MOVE,
    mount,
    move_mount,
    moves_mounts,
)
from rootless_udi.serve.mounting import run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def serve(argv: "Sequence[str]", keep: "Sequence[int]" = (), gone: str = "") -> int:
    """Start the server `argv` and return a descriptor of its mount, for `attach`.

    Call this as root of the outer user namespace, while the host's tree is at "/". `argv` has
    `mounting.TARGET` for the mount point. `keep` are descriptors that the server inherits, `gone`
    is an empty directory in the mount to remove, "" for none. Raises mounting.Refused.
    """
    if not moves_mounts():
        from rootless_udi.serve import propagated

        return propagated.serve(argv, keep, gone)
    return run(argv, keep, gone)


def settle() -> None:
    """Call this once the host's tree is at /host and before `attach`: see `propagated.settle`.

    Raises OSError.
    """
    if "rootless_udi.serve.propagated" in modules:
        from rootless_udi.serve import propagated

        propagated.settle()


def attach(made: int, target: int) -> None:
    """Attach the mount `made`, which `serve` returned, to the open directory `target`; close
    `made`.

    Raises OSError.
    """
    try:
        if "rootless_udi.serve.propagated" in modules:
            mount(f"/host/proc/self/fd/{made}", f"/host/proc/self/fd/{target}", None, MS_MOVE)
        else:
            move_mount(made, target)
    finally:
        os.close(made)
