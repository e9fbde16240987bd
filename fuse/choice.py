"""Choose the program that serves an image on this node. Pure: a function of facts found out before.

In the order of preference (docs/fuse.md has the figures):

- `udi`: our own server on /dev/fuse. It needs a decompressor for the image, and nothing else.
- `squashfuse_ll`: a C program with its own decompressors, where it is installed.
- `squashfuse`: the same by libfuse's interface for paths, which is slower; some packages have it
  alone.
- `directory`: no server; the image is extracted once into a directory. For nodes without FUSE.
- `pyfuse3` and `fuse-python` are our own server through libfuse 3 and libfuse 2. They are slower,
  and used only where they are asked for by name.
"""

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record

_DOCTOR = "`udi doctor` says what this machine lacks and how to get it"


class Facts(Record):
    """What `choose` decides on.

    `wanted`: --fuse, or the site's choice: "auto" or a name of NAMES. `fuse`: /dev/fuse may be
    opened. `compressor`: the image's, by name. `decompressor`: this machine can decompress that.
    `squashfuse`: the path of squashfuse_ll, `classic` that of squashfuse, or empty. `pyfuse3`,
    `fuse_python`: the module can be imported. `directory`: the image has been extracted, or can be.
    """

    wanted: str
    fuse: bool
    compressor: str
    decompressor: bool
    squashfuse: str = ""
    pyfuse3: bool = False
    fuse_python: bool = False
    directory: bool = False
    classic: str = ""


class Choice(Record):
    """`name` of NAMES, and why, as `--explain` prints it."""

    name: str
    reason: str


NAMES = ("udi", "squashfuse_ll", "squashfuse", "directory", "pyfuse3", "fuse-python")
_AUTOMATIC = ("udi", "squashfuse_ll", "squashfuse", "directory")

_PRAISE = {
    "udi": "our own server; the kernel keeps its answers and asks nothing twice",
    "squashfuse_ll": "squashfuse_ll, a C program",
    "squashfuse": "squashfuse, a C program",
    "pyfuse3": "our own server through pyfuse3 (libfuse 3)",
    "fuse-python": "our own server through fuse-python (libfuse 2)",
    "directory": "the image extracted to a directory",
}


def choose(facts: Facts) -> Choice:
    """Return the server to use, and why.

    Raises UdiError for an unknown name, and where none can be used, with what each of them lacks.
    """
    if facts.wanted not in ("auto", *NAMES):
        raise UdiError(
            f"choosing an image server failed on {facts.wanted}: there is none of that name",
            f"one of auto, {', '.join(NAMES)}; {_DOCTOR}",
        )
    lacking: list[str] = []
    for name in _AUTOMATIC if facts.wanted == "auto" else (facts.wanted,):
        lack = _lack(name, facts)
        if not lack:
            because = "asked for" if facts.wanted == name else "; ".join(lacking) or "preferred"
            return Choice(name, f"{_PRAISE[name]} ({because})")
        lacking.append(f"not {name}: {lack}")
    raise UdiError(f"there is no way to mount the image: {'; '.join(lacking)}", _DOCTOR)


def _lack(name: str, facts: Facts) -> str:
    """Say why `name` can't be used here; "" where it can."""
    if name == "directory":
        return "" if facts.directory else "there is no unsquashfs, or the image is elsewhere"
    if not facts.fuse:
        return "/dev/fuse is missing or may not be opened"
    if name in ("squashfuse_ll", "squashfuse"):
        path = facts.squashfuse if name == "squashfuse_ll" else facts.classic
        return "" if path else "it is not installed"
    if not facts.decompressor:
        return f"there is no decompressor for {facts.compressor} here"
    if name == "pyfuse3" and not facts.pyfuse3:
        return "it can't be imported (pip install rootless_udi[fuse])"
    if name == "fuse-python" and not facts.fuse_python:
        return "it can't be imported (pip install rootless_udi[fuse2])"
    return ""


def importable(name: str) -> bool:
    """Tell whether the module `name` is installed; a bare folder of that name does not count."""
    from importlib.util import find_spec

    spec = find_spec(name)
    return spec is not None and spec.origin is not None
