"""What an image of Apptainer says of itself: labels, what it runs, and its variables.

Apptainer writes them as files of the image, below /.singularity.d: labels.json, runscript, and
env/*.sh, which it sources in the image's own sh before each command. Here they are sourced once,
when the image is imported: what they set then is the image's ENV from then on.
"""

import subprocess
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import tell
from rootless_udi.commands.run import udi_run
from rootless_udi.forecast import imagetree
from rootless_udi.forecast.needs import Unreadable

_SECONDS = 20
_MOST = 1 << 20
_LABELS, _RUNSCRIPT = "/.singularity.d/labels.json", "/.singularity.d/runscript"
_LIBRARIES = "/.singularity.d/libs"
"""Where Apptainer binds the host's GPU libraries; udi-run has a place of its own for them."""
_SHOW = "exec cat /proc/self/environ"
_SOURCE = f'for s in /.singularity.d/env/*.sh; do [ -f "$s" ] && . "$s"; done; {_SHOW}'
_OWN = ("_", "HOME", "HOSTNAME", "OLDPWD", "PWD", "PS1", "SHLVL", "USER")
_PREFIXES = ("APPTAINER_", "SINGULARITY_", "SHIFTER_", "UDI_")


def facts(path: str) -> dict[str, Any]:
    """Return the facts of the squashfs file of an Apptainer image; says what it can't find out."""
    found: dict[str, Any] = {"cmd": [], "entrypoint": [], "env": [], "workdir": ""}
    try:
        with imagetree.opened(path) as tree:
            found["labels"] = _labels(tree)
            entry = imagetree.find(tree, _RUNSCRIPT)
            if entry is not None and entry.kind == "file":
                found["entrypoint"] = [_RUNSCRIPT]
    except (UdiError, Unreadable) as error:
        tell(f"its labels are not known: {error}")
    try:
        before, after = _environ(path, _SHOW), _environ(path, _SOURCE)
    except UdiError as error:
        tell(f"its environment scripts are not used: {error.message}")
        return found
    for name, value in after.items():
        if name == "LD_LIBRARY_PATH":
            value = ":".join(one for one in value.split(":") if one and one != _LIBRARIES)
        if before.get(name) != value and name not in _OWN and not name.startswith(_PREFIXES):
            found["env"].append(f"{name}={value}")
    return found


def labels(path: str, offset: int) -> dict[str, str]:
    """Return the labels of the image at byte `offset` of a file. Raises UdiError."""
    try:
        with imagetree.opened(path, offset) as tree:
            return _labels(tree)
    except Unreadable as error:
        raise UdiError(f"reading the labels of {path} failed: {error}") from None


def _labels(tree: imagetree.ImageTree) -> dict[str, str]:
    import json

    entry = imagetree.find(tree, _LABELS)
    content = tree.content(entry.path) if entry and entry.kind == "file" else None
    if entry is None or content is None or entry.size > _MOST:
        return {}
    try:
        labels = json.loads(content.read(0, entry.size).decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    if not isinstance(labels, dict):
        return {}
    return {key: value for key, value in labels.items() if isinstance(value, str)}


def _environ(path: str, script: str) -> dict[str, str]:
    """Return the variables of a process of the image after `script`. Raises UdiError."""
    words = ["--quiet", "--share=off", "--clearenv", "--no-cwd", "--workdir=/", path]
    argv = udi_run([*words, "/bin/sh", "-c", script])
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_SECONDS,
        )
    except OSError as error:
        raise UdiError(f"starting {argv[0]} failed: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UdiError(f"they took more than {_SECONDS} s") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise UdiError(lines[0] if lines else f"the image's sh ended with {done.returncode}")
    if len(done.stdout) > _MOST:
        raise UdiError("they set more than a megabyte")
    pairs = (one.partition("=") for one in done.stdout.decode("utf-8", "replace").split("\0"))
    return {name: value for name, _, value in pairs if name}
