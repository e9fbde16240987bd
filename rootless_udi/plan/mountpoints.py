"""Mount points that every image gets when it is pulled, so that a plain run needs no overlay.

Lives here because the pull makes them and the planner relies on them. `/opt/udiImage` is Shifter's
own folder for what the site adds; modules, MPI and GPU links live there in private memory.

An image may have links at these places. Where a file system is mounted at each start (MOUNTED), a
link becomes a directory: through it, one mount would hide another (`/var/tmp -> /tmp`). The links
at FOLLOWED stay, since files of the image are found through them (`/etc -> usr/etc`, `/opt ->
var/opt`, Nix's `/etc -> /nix/store/...`); what must be there is made where they lead.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

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
"""Parents before what is in them."""
FOLLOWED = ("/etc", "/opt", "/var")
MOUNTED = ("/dev", "/opt/udiImage", "/proc", "/run", "/sys", "/tmp", "/var/tmp")
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

LINKS_MAX = 40
"""Links that the kernel follows in one path (path_resolution(7))."""


def within(path: str, folder: str) -> bool:
    """Tell whether `path` is `folder` or inside it; both normal and absolute."""
    return folder == "/" or path == folder or path.startswith(f"{folder}/")


def may_lead(place: str) -> bool:
    """Tell whether a link at one of FOLLOWED may lead to `place`, a path without links."""
    if place in ("/", *DIRECTORIES):
        return False
    return not any(within(place, point) for point in (*MOUNTED, "/etc"))


def places(
    link: "Callable[[str], str | None]", directory: "Callable[[str], bool]"
) -> dict[str, str]:
    """Return where each of DIRECTORIES is in an image, or is to be made.

    `link` returns what the link at a path says, None for anything else; `directory` tells whether
    a directory is there. A link that leads to nothing, to a file or where it may not is to be
    replaced by a directory.
    """
    found: dict[str, str] = {}
    for point in DIRECTORIES:
        folder, _, name = point.rpartition("/")
        path = f"{found.get(folder, '')}/{name}"
        if point in FOLLOWED and link(path) is not None:
            led = follow(path, link)
            if led is not None and may_lead(led) and directory(led):
                path = led
        found[point] = path
    return found


def follow(path: str, link: "Callable[[str], str | None]") -> str | None:
    """Return where `path` leads inside the image, a path without links; None for a circle."""
    left, done, followed = path.split("/")[::-1], [""], 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        if name == "..":
            del done[max(1, len(done) - 1) :]
            continue
        done.append(name)
        target = link("/".join(done))
        if target is not None:
            followed += 1
            if followed > LINKS_MAX:
                return None
            del done[1 if target.startswith("/") else -1 :]
            left += target.split("/")[::-1]
    return "/".join(done) or "/"


def carried(path: str, found: str, where: "dict[str, str]") -> str:
    """Say why nothing may be mounted on `path`, which leads to `found`; "" where it may.

    `where` are the places of DIRECTORIES. What is allowed for a path by its name is judged before
    (`volumes.allowed`); this judges where links lead it.
    """
    for point in ("/dev", "/etc", "/opt/udiImage", "/proc", "/sys"):
        if within(found, where[point]) and not within(path, point):
            return f"that is {'' if found == where[point] else 'in '}the container's {point}"
    for point in (*MOUNTED, "/etc"):
        at = where[point]
        if at != found and within(at, found) and not within(point, path):
            return f"that would hide the container's {point}"
    return ""
