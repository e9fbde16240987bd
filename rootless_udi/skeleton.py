"""Mount points that every image gets when it is pulled, so that a plain run needs no overlay.

Lives here because the pull makes them and the planner relies on them. `/opt/udiImage` is Shifter's
own folder for what the site adds; modules, MPI and GPU links live there in private memory.
"""

DIRECTORIES = (
    "/dev",
    "/etc",
    "/opt",
    "/opt/udiImage",
    "/proc",
    "/run",
    "/sys",
    "/tmp",
    "/var",
    "/var/tmp",
)
FILES = (
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/resolv.conf",
    "/etc/shadow",
)
"""Bound over at each start. A symbolic link of the image at one of these becomes an empty file."""

SYMLINKS = {"/etc/mtab": "/proc/mounts", "/var/run": "/run"}
"""Put where the image has nothing (mtab: whatever the image has)."""
