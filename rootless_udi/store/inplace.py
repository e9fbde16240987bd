"""An image that is a SIF file, run where it is: its root file system and what is known of it.

Nothing but the file's table is read. What Apptainer keeps inside the image, its runscript and the
scripts that set variables, is read in the container. Only starts from such a file import this.
"""

import os

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.plan.image import Image
from rootless_udi.plan.reference import platform_of
from rootless_udi.store import sif

RUNSCRIPT = "/.singularity.d/runscript"
SCRIPTS = "/.singularity.d/env"
"""The folder in the image whose *.sh set variables, in the order of their names."""


def image(text: str, path: str) -> Image | None:
    """Return the image in the SIF file at `path`, which the caller called `text`; None for another
    file. Its compressor is not looked at.

    Raises UdiError where the file is damaged, has no root file system, one that is no squashfs, or
    one for another machine.
    """
    if not sif.is_sif(path):
        return None
    try:
        fd = trust.regular(path)
        try:
            part = sif.primary(fd, path)
        finally:
            os.close(fd)
    except OSError as error:
        raise UdiError(f"opening image {path} failed: {error.strerror}") from None
    ours = platform_of(os.uname().machine).architecture
    if part.architecture and part.architecture != ours:
        raise UdiError(
            f"image {path} is for {part.architecture}, and this machine is {ours}",
            "apptainer build makes one for the machine that it runs on",
        )
    facts = {
        "version": 1,
        "architecture": part.architecture,
        "entrypoint": [RUNSCRIPT],
        "scripts": SCRIPTS,
        "unchecked": part.signed,
    }
    return Image(text, "", os.path.realpath(path), "", facts, offset=part.offset)
