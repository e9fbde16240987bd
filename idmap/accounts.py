"""The text of /etc/passwd and /etc/group, which name the one user of the container. Pure.

The image's files do not know the caller. The host's may not either, if accounts come from LDAP. Ids
that are not mapped in the container show as 65534 (user_namespaces(7)); that id gets a name too.
"""

_OVERFLOW = 65534
"""The id that the kernel shows for ids that are not mapped (/proc/sys/kernel/overflowuid)."""


def passwd(uid: int, gid: int, name: str, gecos: str, home: str, shell: str) -> str:
    """Return passwd(5) lines for root, the caller and unmapped ids."""
    lines = [
        "root:x:0:0:root:/root:/bin/sh",
        f"{field(name)}:x:{uid}:{gid}:{field(gecos)}:{field(home)}:{field(shell)}",
    ]
    if uid != _OVERFLOW:
        lines.append(f"nobody:x:{_OVERFLOW}:{_OVERFLOW}:nobody:/nonexistent:/usr/sbin/nologin")
    return "\n".join(lines) + "\n"


def group(gid: int, name: str, user: str) -> str:
    """Return group(5) lines for root, the caller's group and unmapped ids.

    The caller's supplementary groups are unmapped. Their names would be of no use in the container,
    and a site's directory service may take 50 ms for each.
    """
    lines = ["root:x:0:", f"{field(name)}:x:{gid}:{field(user)}"]
    if gid != _OVERFLOW:
        lines.append(f"nogroup:x:{_OVERFLOW}:{field(user)}")
    return "\n".join(lines) + "\n"


def other(account: str, known: tuple[str, str]) -> tuple[str, str]:
    """Return the lines of passwd(5) and group(5) for an account NAME:UID:GID; "" for those that the
    `known` texts have by name."""
    name, uid, gid = account.split(":")
    lines = (f"{name}:x:{uid}:{gid}::/nonexistent:/usr/sbin/nologin\n", f"{name}:x:{gid}:\n")
    passwd, group = (
        "" if any(line.startswith(f"{name}:") for line in text.splitlines()) else mine
        for text, mine in zip(known, lines, strict=True)
    )
    return passwd, group


def field(text: str) -> str:
    """Return `text` with "?" for characters that would end a field or a line of these files."""
    return "".join("?" if c in ":\n\0" else c for c in text)
