"""User and group id maps of one entry each, as text for /proc/PID/{uid,gid}_map. Pure.

A map of one entry is all that an ordinary user may write without newuidmap(1) and /etc/subuid
(user_namespaces(7), "Defining user and group ID mappings").
"""

OUTER = 0
"""The id in the outer namespace, where the file systems are mounted: files that the image gives
to root belong to the caller, so that overlay can copy them up and ssh(1) accepts their owner."""


def entry(inside: int, outside: int) -> str:
    """Return the map line that shows id `outside` of the parent namespace as `inside`."""
    return f"{inside} {outside} 1\n"
