"""The mount points that `udi pull` makes in each image, so that most starts need no overlay. Pure.

They are listed here for both the pull, which makes them, and the planner, which relies on them.
/opt/udiImage is Shifter's folder for what a site adds to an image. Here it is private memory with
the files of modules, MPI and GPUs.

An image may have symbolic links at these places. At those of MOUNTED, where a file system is
mounted at each start, a link is replaced by a directory: through links, one mount could hide
another (`/var/tmp -> /tmp`). The links at FOLLOWED stay, since the image's own files are found
through them (`/etc -> usr/etc`, `/opt -> var/opt`, Nix's `/etc -> /nix/store/...`). The mount
points inside them are made where they lead.
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
"""Directories; those above others come first."""
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
"""Files over which something is bound at each start. A link of the image at one of these is
replaced by an empty file."""

SYMLINKS = {"/etc/mtab": "/proc/mounts", "/var/run": "/run"}
"""Links -> targets, made where the image has nothing; /etc/mtab whatever the image has there."""

LINKS_MAX = 40
"""Links that the kernel follows in one path (path_resolution(7))."""


def within(path: str, folder: str) -> bool:
    """Tell whether `path` is `folder` or inside it; both are absolute and normal."""
    return folder == "/" or path == folder or path.startswith(f"{folder}/")


def may_lead(place: str) -> bool:
    """Tell whether a link at one of FOLLOWED may lead to `place`, a path without links.

    It may not lead to a standard directory, nor into /etc or a file system that is mounted at each
    start.
    """
    if place in ("/", *DIRECTORIES):
        return False
    return not any(within(place, point) for point in (*MOUNTED, "/etc"))


def places(
    link: "Callable[[str], str | None]", directory: "Callable[[str], bool]"
) -> dict[str, str]:
    """Return directory -> path without links, for each of DIRECTORIES, in an image.

    That is where the directory is or must be made. `link` returns the target of the link at a path,
    None for anything else; `directory` tells whether a directory is there. A link that leads to
    nothing, to a file or to a place where it may not lead must be replaced by a directory.
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
    """Return where `path` leads inside the image, as a path without links; None for a circle.

    `link` is as for `places`. Parts that do not exist are taken as they are.
    """
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
    """Say why nothing may be mounted on `path`, which links lead to `found`; "" where it may.

    `where` is what `places` returned. `volumes.allowed` has judged the path by its name before;
    this judges the place that it leads to.
    """
    for point in ("/dev", "/etc", "/opt/udiImage", "/proc", "/sys"):
        if within(found, where[point]) and not within(path, point):
            return f"that is {'' if found == where[point] else 'in '}the container's {point}"
    for point in (*MOUNTED, "/etc"):
        at = where[point]
        if at != found and within(at, found) and not within(point, path):
            return f"that would hide the container's {point}"
    return ""
