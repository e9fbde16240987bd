"""The facts of an image: what a pull writes beside it and a launch reads."""

from typing import Any

from rootless_udi.layers import merge
from rootless_udi.plan.reference import Reference
from rootless_udi.pull.sources import Resolved

_FACTS_VERSION = 1
_NAMED_MAX = 20
"""Most members that the facts list by name, of those left out of the image; all are counted."""


def facts(
    reference: Reference,
    resolved: Resolved,
    compression: str,
    summary: "merge.Summary",
    elf: dict[str, Any],
) -> dict[str, Any]:
    """Return the facts as JSON's types. `elf` is what was found of programs and libraries."""
    return {
        "version": _FACTS_VERSION,
        **of_config(reference, resolved),
        "mount_points": summary.mount_points,
        "compression": compression,
        "size": summary.bytes,
        "files": summary.files,
        "left_out": {
            "devices": len(summary.devices),
            "device_paths": list(summary.devices[:_NAMED_MAX]),
            "setuid": len(summary.setuid),
            "setuid_paths": list(summary.setuid[:_NAMED_MAX]),
            "xattrs": summary.xattrs,
        },
        "elf": elf,
    }


def of_config(reference: Reference, resolved: Resolved) -> dict[str, Any]:
    """Return the facts that an image's own documents say."""
    config = resolved.config
    return {
        "digest": resolved.digest,
        "index": resolved.index,
        "reference": reference.canonical,
        "created": config.created,
        "architecture": config.platform.architecture,
        "variant": config.platform.variant,
        "os": config.platform.os,
        "env": list(config.env),
        "entrypoint": list(config.entrypoint),
        "cmd": list(config.cmd),
        "workdir": config.workdir,
        "user": config.user,
        "labels": dict(config.labels),
        "volumes": list(config.volumes),
        "ports": list(config.ports),
        "layers": [layer.digest for layer in resolved.manifest.layers],
        "history": _history(resolved),
    }


def _history(resolved: Resolved) -> list[list[str | int]]:
    """Return [created, created by, bytes of its compressed layer (-1: none)] of each step."""
    layers = iter(resolved.manifest.layers)
    found: list[list[str | int]] = []
    for created, how, empty in resolved.config.history:
        layer = None if empty else next(layers, None)
        found.append([created, how, -1 if layer is None else layer.size])
    return found
