"""The text of /etc/passwd and /etc/group for the one user that the container knows. Pure.

Image and host files are of no use inside: the image does not know the caller, the host's may come
from LDAP. Ids that the map leaves out show as 65534 (user_namespaces(7)); they get a name too.
"""

OVERFLOW = 65534
"""What the kernel shows for ids outside the map (/proc/sys/kernel/overflowuid)."""


def passwd(uid: int, gid: int, name: str, gecos: str, home: str, shell: str) -> str:
    """Return passwd(5) lines for root, the caller and the overflow id."""
    lines = [
        "root:x:0:0:root:/root:/bin/sh",
        f"{field(name)}:x:{uid}:{gid}:{field(gecos)}:{field(home)}:{field(shell)}",
    ]
    if uid != OVERFLOW:
        lines.append(f"nobody:x:{OVERFLOW}:{OVERFLOW}:nobody:/nonexistent:/usr/sbin/nologin")
    return "\n".join(lines) + "\n"


def group(gid: int, name: str, user: str) -> str:
    """Return group(5) lines for root, the caller's group and the overflow id.

    The supplementary groups all show as the last; their names are of no use inside, and a site's
    directory may take 50 ms to look each of them up.
    """
    lines = ["root:x:0:", f"{field(name)}:x:{gid}:{field(user)}"]
    if gid != OVERFLOW:
        lines.append(f"nogroup:x:{OVERFLOW}:{field(user)}")
    return "\n".join(lines) + "\n"


def field(text: str) -> str:
    """Return `text` without what would end a field or a line of these files."""
    return "".join("?" if c in ":\n\0" else c for c in text)
