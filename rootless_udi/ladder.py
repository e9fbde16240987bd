"""The rungs on which an image becomes a file system, best first, and why one is taken. Pure."""

from rootless_udi.errors import UdiError
from rootless_udi.host import Host
from rootless_udi.plan import Image, Root


def choose(wanted: str, host: Host, image: Image) -> Root:
    """Return the rung for `image` on `host`; `wanted` is --fuse or the site's choice.

    Raises UdiError where no rung will do, saying what each lacks.
    """
    if not image.path:
        return Root("directory", image.directory, reason="the image is a directory")
    missing = []
    if wanted == "udi" and host.fuse:
        return Root("udi", image.path, reason="FUSE, served by our own server")
    if wanted in ("auto", "squashfuse_ll"):
        if not host.fuse:
            missing.append("squashfuse_ll: /dev/fuse is missing or may not be opened")
        elif not host.squashfuse:
            missing.append("squashfuse_ll: it is not installed")
        else:
            return Root(
                "squashfuse_ll", image.path, host.squashfuse, "FUSE, served by squashfuse_ll"
            )
    if wanted in ("auto", "directory"):
        why = "; ".join(missing) or "asked for"
        if image.directory and host.unsquashfs:
            return Root(
                "directory", image.directory, reason=f"extracted once by unsquashfs ({why})"
            )
        missing.append("directory: unsquashfs is not installed")
    raise UdiError(
        f"there is no way to mount {image.path}: {'; '.join(missing) or f'unknown: {wanted}'}",
        "`udi doctor` says what this machine lacks and how to get it",
    )
