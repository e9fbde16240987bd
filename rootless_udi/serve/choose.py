"""The rung on which an image becomes a file system: facts for `fuse.choice.choose`, and its answer.

A look at the host, not a decision: that is the pure function's.
"""

import os

from rootless_udi.fuse import choice
from rootless_udi.plan.facts import Host
from rootless_udi.plan.image import Image, Root

_LIBRARIES = {"zstd": "libzstd.so.1", "lz4": "liblz4.so.1", "lzo": "liblzo2.so.2"}
_FOLDERS = ("/lib64", "/usr/lib64", "/usr/lib", "/lib")


def choose(wanted: str, host: Host, image: Image) -> Root:
    """Return the rung for `image` on `host`; `wanted` is --fuse or the site's choice.

    Raises UdiError where no rung will do, saying what each lacks.
    """
    if not image.path:
        return Root("directory", image.directory, reason="the image is a directory")
    facts = choice.Facts(
        wanted=wanted,
        fuse=host.fuse,
        compressor=image.compressor,
        decompressor=decompresses(image.compressor, host.machine),
        squashfuse=host.squashfuse,
        pyfuse3=wanted == "pyfuse3" and _installed("pyfuse3"),
        fuse_python=wanted == "fuse-python" and _installed("fuse"),
        directory=bool(image.directory)
        and (bool(host.unsquashfs) or os.path.isdir(image.directory)),
    )
    chosen = choice.choose(facts)
    path = image.directory if chosen.name == "directory" else image.path
    program = host.squashfuse if chosen.name == "squashfuse_ll" else ""
    return Root(chosen.name, path, program, chosen.reason)


def _installed(name: str) -> bool:
    """Tell whether a server's process would find `name`: unlike ours, it reads site-packages."""
    import site

    site.main()
    return choice.importable(name)


def decompresses(compressor: str, machine: str) -> bool:
    """Tell whether our own server can read this compressor here.

    The libraries that are mostly there are looked for by name, which is a stat in place of 5 ms of
    loading; the server loads them in a process of its own.
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
