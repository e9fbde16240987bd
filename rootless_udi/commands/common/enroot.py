"""What an enroot image says of itself: the variables and the start of the image it was made of.

`enroot import` writes a Docker image's ENV into /etc/environment, a line each, and its WORKDIR,
ENTRYPOINT and CMD into /etc/rc, a script for sh that `enroot start` runs with the command's words
(enroot's doc/image-format.md). A squashfs file has no other place for them.
"""

import re
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.forecast import imagetree
from rootless_udi.forecast.needs import Unreadable

_MOST = 1 << 16
"""Bytes of each of the two files."""
_WORKDIR = re.compile(r'^cd "([^"\n]*)" && unset OLDPWD', re.MULTILINE)


def facts(path: str) -> dict[str, Any]:
    """Return env, entrypoint and workdir as an image's facts have them; {} for other images.

    Another image may have an /etc/rc too, as BSD has; enroot's sources /etc/rc.local and executes.
    """
    try:
        with imagetree.opened(path) as tree:
            script = _text(tree, "/etc/rc")
            if "/etc/rc.local" not in script or not re.search(r"^\s*exec ", script, re.MULTILINE):
                return {}
            lines = _text(tree, "/etc/environment").split("\n")
    except (UdiError, Unreadable):
        # Damaged, or compressed by what nothing here reads: it is imported as it is.
        return {}
    workdir = _WORKDIR.search(script)
    return {
        "env": [
            line for line in lines if line.partition("=")[1] and not line.startswith(("=", "#"))
        ],
        "entrypoint": ["/bin/sh", "/etc/rc"],
        "cmd": [],
        "workdir": workdir[1] if workdir else "",
    }


def _text(tree: imagetree.ImageTree, path: str) -> str:
    entry = imagetree.find(tree, path)
    content = tree.content(entry.path) if entry and entry.kind == "file" else None
    if entry is None or content is None:
        return ""
    return content.read(0, min(entry.size, _MOST)).decode("utf-8", "replace").replace("\0", "")
