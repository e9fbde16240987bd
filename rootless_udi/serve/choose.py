"""Choose how the image is mounted, from what this host has.

This module looks at the host; the decision is `fuse.choice.choose`, a pure function.
"""

import os

from rootless_udi.fuse import choice
from rootless_udi.plan.facts import Host
from rootless_udi.plan.image import Image, Root

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_LIBRARIES = {"zstd": "libzstd.so.1", "lz4": "liblz4.so.1", "lzo": "liblzo2.so.2"}
_FOLDERS = ("/lib64", "/usr/lib64", "/usr/lib", "/lib")


def choose(
    wanted: str, host: Host, image: Image, which: "Callable[[str], str]" = lambda _: ""
) -> Root:
    """Return how `image` is mounted on `host`; `wanted` is --fuse or the site's choice.

    `which` returns the path of a program, "" for none; it is asked only for one that is needed.
    Raises UdiError where no image server can be used, saying what each of them lacks.
    """
    if not image.path:
        return Root("directory", image.directory, reason="the image is a directory")
    decompresses = _decompresses(image.compressor, host.machine)
    classic = ""
    if wanted == "squashfuse" or (wanted == "auto" and not (decompresses or host.squashfuse)):
        classic = which("squashfuse")
    facts = choice.Facts(
        wanted=wanted,
        fuse=host.fuse,
        compressor=image.compressor,
        decompressor=decompresses,
        squashfuse=host.squashfuse,
        pyfuse3=wanted == "pyfuse3" and _installed("pyfuse3"),
        fuse_python=wanted == "fuse-python" and _installed("fuse"),
        directory=bool(image.directory)
        and (bool(host.unsquashfs) or os.path.isdir(image.directory)),
        classic=classic,
    )
    chosen = choice.choose(facts)
    path = image.directory if chosen.name == "directory" else image.path
    programs = {"squashfuse_ll": host.squashfuse, "squashfuse": classic}
    program = programs.get(chosen.name, "")
    found = Root(chosen.name, path, program, chosen.reason)
    unpacked = chosen.name == "directory"
    return found.replace(offset=image.offset) if image.offset and not unpacked else found


def _installed(name: str) -> bool:
    """Tell whether an image server can import `name`.

    It runs in a process that reads site-packages, which this one was started without.
    """
    import site

    site.main()
    return choice.importable(name)


def _decompresses(compressor: str, machine: str) -> bool:
    """Tell whether our own server can read this compressor here.

    For the usual compressors it looks for the library's file, one stat(2); loading the library to
    see takes 5 ms. The image server loads it later, in its own process.
    """
    library = _LIBRARIES.get(compressor)
    if library is not None:
        for folder in (f"/usr/lib/{machine}-linux-gnu", f"/lib/{machine}-linux-gnu", *_FOLDERS):
            if os.path.exists(f"{folder}/{library}"):
                return True
    elif compressor == "gzip":
        return True
    from rootless_udi.fuse.decompress import available

    return available(compressor)
