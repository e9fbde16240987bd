"""Id maps of user namespaces, as text for /proc/PID/uid_map and gid_map. Pure.

They have one entry, which maps one id. An ordinary user may write no more without newuidmap(1) and
/etc/subuid (user_namespaces(7), "Defining user and group ID mappings").
"""

OUTER = 0
"""The caller's id in the outer namespace, in which file systems are mounted. It is root's there, so
that the files of the image belong to the caller: an overlay can copy them to its upper layer, and
ssh(1) accepts their owner."""


def entry(inside: int, outside: int) -> str:
    """Return the line that maps id `inside` of the namespace to id `outside` of its parent."""
    return f"{inside} {outside} 1\n"
