"""The caller's folder and home directory inside the container, without a word about them. Pure.

Who types a command expects his files to be where he stands. So the current folder is mounted at its
own path, by both of its names where a symbolic link gives it two, unless that would change the
image: not in what distributions fill, not over anything that the image has, and not the home
directory, whose dot files (~/.local/lib/python3, ~/.bashrc) would change what an image runs.
"""

from rootless_udi.plan.mountpoints import within
from rootless_udi.plan.steps import Mount
from rootless_udi.plan.volumes import Volume

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rootless_udi.plan.facts import HostPath
    from rootless_udi.plan.options import Request
    from rootless_udi.plan.pernodecache import FileCache
    from rootless_udi.plan.site import Site
    from rootless_udi.plan.steps import Step

SYSTEM = (
    "bin",
    "boot",
    "dev",
    "etc",
    "opt",
    "proc",
    "run",
    "sbin",
    "sys",
    "usr",
    "var",
)
"""Folders of the root that are the image's or the kernel's, with those that begin with lib."""
_CWD = "the caller's folder (user.cwd; --no-cwd leaves it out)"
_HOME = "the caller's home directory (user.home)"


def wanted(
    request: "Request", site: "Site", names: "Sequence[str]", homes: "Sequence[str]"
) -> tuple[Mount, ...]:
    """Return the mounts that would be made of the current folder, known by `names`, and of the home
    directory, known by `homes`; whether each fits, `fitting` and the image decide."""
    found: list[Mount] = []
    if site.home:
        found += [_mount(home, _HOME) for home in dict.fromkeys(homes) if allowed(home)]
    around = any(within(home, name) for home in homes for name in names)
    if site.cwd and not request.no_cwd and not request.shifter and not around:
        # The physical name first: the other one may lead through it.
        found += [_mount(name, _CWD) for name in reversed(names) if allowed(name)]
    return tuple(found)


def _mount(path: str, reason: str) -> Mount:
    return Mount(path, path, "", ("nosuid", "nodev"), False, reason, only_empty=True)


def allowed(path: str) -> bool:
    """Tell whether a folder may be mounted at its own path without having been asked for."""
    top = path.split("/")[1] if path.startswith("/") else ""
    if within(path, "/var/tmp"):
        return True
    return bool(top) and top not in SYSTEM and not top.startswith("lib")


def below(mounts: "Iterable[Mount]", volumes: "Iterable[Volume]") -> list[str]:
    """Return the paths of the host of which `fitting` must know whether they are there."""
    return [
        volume.destination
        for volume in volumes
        if any(within(volume.destination, mount.target) for mount in mounts)
    ]


def fitting(
    mounts: "Iterable[Mount]",
    steps: "Iterable[Step | FileCache]",
    volumes: "Iterable[Volume]",
    sources: "Mapping[str, HostPath]",
) -> list[Mount]:
    """Return those of `mounts` that can be made beside `steps` and, after them, `volumes`.

    One that is inside another mount is there already, or would have to be made in a folder of the
    host; one above another mount would hide it. A volume inside one needs a mount point that is
    there: none is made in the caller's folder.
    """
    taken = [step.target for step in steps]
    asked = [volume.destination for volume in volumes]
    found: list[Mount] = []
    for mount in mounts:
        source = sources[mount.source]
        others = [*taken, *(one.target for one in found)]
        if source.kind != "directory":
            continue
        if any(within(mount.target, other) or within(other, mount.target) for other in others):
            continue
        if any(within(mount.target, other) for other in asked):
            continue
        inside = [other for other in asked if within(other, mount.target)]
        if all(sources[other].kind != "missing" for other in inside):
            found.append(mount.replace(source=source.real))
    return found
