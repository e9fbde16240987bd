"""Choose how the image is mounted, from what this host has.

This module looks at the host; the decision is `fuse.choice.choose`, a pure function.
"""

import os

from rootless_udi.fuse import choice
from rootless_udi.plan.facts import Host
from rootless_udi.plan.image import Image, Root

_LIBRARIES = {"zstd": "libzstd.so.1", "lz4": "liblz4.so.1", "lzo": "liblzo2.so.2"}
_FOLDERS = ("/lib64", "/usr/lib64", "/usr/lib", "/lib")


def choose(wanted: str, host: Host, image: Image) -> Root:
    """Return how `image` is mounted on `host`; `wanted` is --fuse or the site's choice.

    Raises UdiError where no image server can be used, saying what each of them lacks.
    """
    if not image.path:
        return Root("directory", image.directory, reason="the image is a directory")
    facts = choice.Facts(
        wanted=wanted,
        fuse=host.fuse,
        compressor=image.compressor,
        decompressor=_decompresses(image.compressor, host.machine),
        squashfuse=host.squashfuse,
        pyfuse3=wanted == "pyfuse3" and _installed("pyfuse3"),
        fuse_python=wanted == "fuse-python" and _installed("fuse"),
        directory=bool(image.directory)
        and (bool(host.unsquashfs) or os.path.isdir(image.directory)),
    )
    chosen = choice.choose(facts)
    path = image.directory if chosen.name == "directory" else image.path
    program = host.squashfuse if chosen.name == "squashfuse_ll" else ""
    found = Root(chosen.name, path, program, chosen.reason)
    return found.replace(offset=image.offset) if image.offset else found


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
