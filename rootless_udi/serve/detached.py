"""Run a FUSE server that can only mount by itself, and take its mount out of where it lives.

fuse2fs and fuse-python are built on libfuse 2, which must mount by itself. But a server that lives
in the container's mount namespace would keep it alive for ever. So it mounts in a mount namespace
of its own; a detached copy of the mount (open_tree(2), Linux 5.2) is passed out and attached in the
container. When the container ends, its copy was the last one, and the kernel ends the server. Where
open_tree(2) or move_mount(2) is refused, mount propagation is used instead (`propagated`).
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
    """Return a descriptor of what the server `argv` mounts on TARGET, attached nowhere yet.

    To be called as root of the outer user namespace, where the host's tree is still at "/"; once
    it is not, `settle` comes first. `keep` are descriptors that the server inherits, `gone` a
    directory of it that is removed first. Raises Refused.
    """
    if not moves_mounts():
        from rootless_udi.serve import propagated

        return propagated.serve(argv, keep, gone)
    return run(argv, keep, gone)


def settle() -> None:
    """Make way for sources of the host, where its tree has moved to /host. Raises OSError."""
    if "rootless_udi.serve.propagated" in modules:
        from rootless_udi.serve import propagated

        propagated.settle()


def attach(made: int, target: int) -> None:
    """Mount what `serve` returned on the open directory `target`; closes `made`.

    Raises OSError.
    """
    try:
        if "rootless_udi.serve.propagated" in modules:
            mount(f"/host/proc/self/fd/{made}", f"/host/proc/self/fd/{target}", None, MS_MOVE)
        else:
            move_mount(made, target)
    finally:
        os.close(made)
