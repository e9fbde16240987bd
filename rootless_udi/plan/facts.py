"""What a plan needs to know of the host, as data. `rootless_udi.host.facts` gathers it. Pure."""

from rootless_udi.base.records import Record


class HostPath(Record):
    """What is at a path of the host.

    `kind` is "directory", "file", "device", "special" (a FIFO or a socket), "missing", "denied" or
    "failed" (another error). `real` is the path without symbolic links. `why` is the kernel's
    message for "failed", and for "missing" where it says more than that there is no such file.
    """

    kind: str
    real: str
    why: str = ""


class Host(Record):
    """The caller and what this node can do."""

    uid: int
    gid: int
    user: str
    gecos: str
    home: str
    shell: str
    group: str
    fuse: bool
    """/dev/fuse is there and may be opened."""
    overlay: bool
    """The kernel lets an ordinary user mount overlayfs: Linux 5.11."""
    squashfuse: str
    """Path of squashfuse_ll, or empty."""
    unsquashfs: str
    machine: str = ""
    fuse_overlayfs: str = ""
    """Path of fuse-overlayfs, or empty; looked for only where --writable is asked for."""
