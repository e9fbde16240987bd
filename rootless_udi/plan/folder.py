"""Mount the caller's current folder into each container, and with --home the home directory. Pure.

Whoever runs a command expects to find the files of the current folder. So it is mounted at its own
path, and at a second one where a symbolic link gives it two names. It is not mounted where that
could change what the image does: in a system folder (_SYSTEM), over anything that the image has, or
if it is the home directory, whose files (~/.local/lib/python3, ~/.bashrc) programs of the image
would load.
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

_SYSTEM = (
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
"""Top folders in which nothing is mounted unasked; also those that begin with "lib"."""
_CWD = "the caller's folder (user.cwd; --no-cwd leaves it out)"
_HOME = "the caller's home directory (user.home)"


def wanted(
    request: "Request", site: "Site", names: "Sequence[str]", homes: "Sequence[str]"
) -> tuple[Mount, ...]:
    """Return the mounts to make of the current folder and of the home directory.

    `names` and `homes` are their paths, by which they are known. `fitting` decides which of these
    mounts are possible beside others, and the executor which of them the image allows.
    """
    found: list[Mount] = []
    if site.home:
        found += [_mount(home, _HOME) for home in dict.fromkeys(homes) if allowed(home)]
    around = any(within(home, name) for home in homes for name in names)
    if site.cwd and not request.no_cwd and not request.shifter and not around:
        # The name without links first: the other one may lead through it.
        found += [_mount(name, _CWD) for name in reversed(names) if allowed(name)]
    return tuple(found)


def _mount(path: str, reason: str) -> Mount:
    return Mount(path, path, "", ("nosuid", "nodev"), False, reason, only_empty=True)


def allowed(path: str) -> bool:
    """Tell whether a folder may be mounted at its own path though nobody asked for it."""
    top = path.split("/")[1] if path.startswith("/") else ""
    if within(path, "/var/tmp"):
        return True
    return bool(top) and top not in _SYSTEM and not top.startswith("lib")


def below(mounts: "Iterable[Mount]", volumes: "Iterable[Volume]") -> list[str]:
    """Return the paths of volumes in `mounts`; `fitting` needs to know if they exist."""
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
    """Return those of `mounts` that can be made together with `steps` and `volumes`.

    `sources` says what is at the host's paths. A mount is left out if its target lies inside that
    of another mount (it is visible there already, or its mount point would have to be made in a
    folder of the host), or above it (which it would hide). It is left out too if a volume lies in
    it whose mount point does not exist there, since nothing is made in the caller's folder.
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
