"""A table of the system calls that Linux 4.18 does not have, and what is done where one is refused.

An older kernel answers ENOSYS. Seccomp filters (of systemd units, containers, batch systems) answer
ENOSYS, EPERM or EINVAL. The code for such cases is in `base.older`, `serve.propagated`,
`serve.detached` and `launch.hooks`. docs/kernels.md shows this table, `udi doctor` the rows that
are refused on this machine.
"""

from rootless_udi.base.records import Record


class NewCall(Record):
    """A row. `number` is the call's, the same on all architectures (unistd.h); `since` the Linux
    version that brought it; `use` what it is used for; `older` what is done without it; `cost` the
    disadvantage of that."""

    name: str
    number: int
    since: str
    use: str
    older: str
    cost: str


TABLE = (
    NewCall(
        "open_tree",
        428,
        "5.2",
        "a perNodeCache in a file, --fuse=fuse-python; what the last start asked is asked again",
        "the server's mount comes by propagation; nothing is asked early",
        "the first start on a node reads the image piece by piece",
    ),
    NewCall(
        "move_mount",
        429,
        "5.2",
        "a perNodeCache in a file, --fuse=fuse-python",
        "the server's mount comes by propagation",
        "nothing",
    ),
    NewCall(
        "pidfd_open",
        434,
        "5.3",
        "the end of a hook, or of a server that does not mount",
        "it is asked for every 10 or 50 ms",
        "so much later",
    ),
    NewCall(
        "clone3",
        435,
        "5.3",
        "threads and programs, by the C library",
        "programs by fork(2); threads only where the answer is ENOSYS",
        "else `udi pull` and extraction are refused, and the image server works with one CPU",
    ),
    NewCall(
        "close_range",
        436,
        "5.9",
        "the processes outside keep none of the caller's descriptors",
        "those of /proc/self/fd are closed one by one",
        "nothing",
    ),
    NewCall(
        "openat2",
        437,
        "5.6",
        "no link of the image leads a mount point out of it",
        "each part of a path is opened by descriptor, links are read",
        "somebody else's links in folders like /tmp are never followed",
    ),
    NewCall(
        "mount_setattr",
        442,
        "5.12",
        "`ro`, nosuid and nodev hold for all mounts below a volume too",
        "each mount of /proc/self/mountinfo is remounted",
        "a volume `ro` with a mount below a directory that is closed to you is refused",
    ),
)
