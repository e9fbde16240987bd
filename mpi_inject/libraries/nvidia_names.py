"""The files of NVIDIA's driver by their names, and which NVIDIA_DRIVER_CAPABILITIES each is for."""

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.libraries.placing import is_library, numbers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

WORDS = ("compute", "utility", "video", "graphics", "display", "ngx", "compat32")
"""NVIDIA_DRIVER_CAPABILITIES; "all" is every one of them."""
DEFAULT = ("compute", "utility")

NEUTRAL = (
    "libEGL",
    "libGL",
    "libGLESv1_CM",
    "libGLESv2",
    "libGLX",
    "libGLdispatch",
    "libOpenCL",
    "libOpenGL",
)
"""Loaders for the drivers of all vendors. They are the image's, as the host's may not fit it."""

_PREFIXES = ("libcuda", "libnv", "libGLX_nvidia", "libEGL_nvidia", "libvdpau_nvidia")
_UTILITY = ("libnvidia-ml", "libnvidia-cfg", "libnvidia-nscq")
_VIDEO = ("libnvcuvid", "libnvidia-encode", "libnvidia-opticalflow", "libvdpau_nvidia")
_GRAPHICS = (
    "libEGL_nvidia",
    "libGLESv1_CM_nvidia",
    "libGLESv2_nvidia",
    "libGLX_nvidia",
    "libnvidia-api",
    "libnvidia-cbl",
    "libnvidia-egl-",
    "libnvidia-eglcore",
    "libnvidia-fbc",
    "libnvidia-glcore",
    "libnvidia-glsi",
    "libnvidia-glvkspirv",
    "libnvidia-gtk",
    "libnvidia-ifr",
    "libnvidia-rtcore",
    "libnvidia-tls",
    "libnvidia-vksc-core",
    "libnvidia-vulkan-producer",
    "libnvidia-wayland-client",
    "libnvidia-wfb",
    "libnvoptix",
)
_UNVERSIONED = {
    "libnvidia-nvvm70": ("compute",),
    "libnvidia-nscq": ("utility",),
    "libnvidia-egl-": ("graphics", "display"),
    "libnvidia-api": ("graphics", "display"),
}
"""Parts of the driver whose file names carry another version than the driver's."""


def capabilities(env: "Mapping[str, str]", environ: "Mapping[str, str]") -> tuple[str, ...]:
    """Return the driver capabilities that the caller, else the image, asks for.

    Raises UdiError for a word that NVIDIA does not have.
    """
    name = "NVIDIA_DRIVER_CAPABILITIES"
    text = environ.get(name) or env.get(name) or ""
    words = [w.strip() for w in text.split(",") if w.strip()]
    if not words:
        return DEFAULT
    for word in words:
        if word not in (*WORDS, "all", "none"):
            known = ", ".join((*WORDS, "all"))
            raise UdiError(f"{name}: unknown capability {word!r}", f"known are {known}")
    return WORDS if "all" in words else tuple(w for w in words if w != "none")


def likely(names: str, version: str) -> list[str]:
    """Return those of a folder's `names` (rooted.names) for which `belongs` may be true."""
    if len(numbers(version)) < 2:
        return beginning(names, _PREFIXES)
    found = set(beginning(names, _UNVERSIONED))
    mark = f".so.{version}\0"
    at = names.find(mark)
    while at >= 0:
        found.add(names[names.rindex("\0", 0, at) + 1 : at + len(mark) - 1])
        at = names.find(mark, at + 1)
    return sorted(found)


def beginning(names: str, starts: "Iterable[str]") -> list[str]:
    """Return those of a folder's `names` (rooted.names) that begin with one of `starts`."""
    found = set()
    for start in starts:
        at = names.find("\0" + start)
        while 0 <= at < len(names) - 1:
            end = names.index("\0", at + 1)
            found.add(names[at + 1 : end])
            at = names.find("\0" + start, end)
    return sorted(found)


def belongs(name: str, version: str, wanted: tuple[str, ...], wsl: bool = False) -> bool:
    """Tell whether a file's name is a driver library of the wanted capabilities.

    `version` is the driver's, which is in the names of most of its libraries. Without one ("1"),
    the begin of the name decides. In WSL's own folder no name has a version; all of it is the
    driver's.
    """
    if not is_library(name):
        return False
    base = name.partition(".so")[0]
    if base in NEUTRAL:
        return False
    if wsl:
        return name.partition(".so")[2] in ("", ".1", ".1.1") and asked(base, wanted)
    if len(numbers(version)) < 2:
        return base.startswith(_PREFIXES) and asked(base, wanted)
    if name.endswith(f".so.{version}"):
        return asked(base, wanted)
    for start, words in _UNVERSIONED.items():
        if base.startswith(start) and any(w in wanted for w in words):
            return name.count(".") >= 2
    return False


def asked(base: str, wanted: tuple[str, ...]) -> bool:
    """Tell whether a library is for a wanted capability; one in no table counts as compute's."""
    if base in _UTILITY:
        words: tuple[str, ...] = ("utility", "compute")
    elif base in _VIDEO:
        words = ("video",)
    elif base.startswith(_GRAPHICS):
        words = ("graphics", "display")
    elif base == "libnvidia-ngx":
        words = ("ngx",)
    elif base == "libnvidia-gpucomp":
        words = ("compute", "graphics", "display")
    else:
        words = ("compute",)
    return any(w in wanted for w in words)


def is_card(name: str) -> bool:
    """Tell whether a name in /dev is a card: nvidia0, nvidia1, ..."""
    return name.startswith("nvidia") and name[6:].isdigit()
