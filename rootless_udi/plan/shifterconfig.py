"""/var/shifterConfig.json, a file in all of Shifter's containers (--shifter). Pure.

Users' scripts look for it to see whether they run in a container. Shifter itself compares it with a
new request, to enter the same container again.
"""

from rootless_udi.plan.facts import Host
from rootless_udi.plan.image import Image, Root
from rootless_udi.plan.options import Request
from rootless_udi.plan.steps import File, Injection

PATH = "/var/shifterConfig.json"


def injection(request: Request, image: Image, root: Root, host: Host) -> Injection:
    """Return what `--shifter` adds: the file, with Shifter's keys in its order (shifter_core.c)."""
    if root.server == "directory":
        # A new mount point needs a layer over a directory, and `shifter` must not fail where none
        # can be had.
        return Injection(notes=(f"no {PATH}: the image is a directory",))
    fields = {
        "identifier": image.identifier,
        "user": host.user,
        "volMap": ";".join(request.volume),
        "modules": request.module or "",
    }
    text = ",".join(f'"{name}":"{_escaped(value)}"' for name, value in fields.items())
    return Injection(
        (File(PATH, f"{{{text}}}\n", reason="--shifter: Shifter's containers have it"),)
    )


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() and c not in '"\\' else f"\\u{ord(c):04x}" for c in text)
