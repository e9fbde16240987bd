"""/var/shifterConfig.json: Shifter's users tell by it that they are in a container. Pure.

Shifter itself compares it with what is asked for, to enter the same container again.
"""

from rootless_udi.plan.facts import Host
from rootless_udi.plan.image import Image, Root
from rootless_udi.plan.options import Request
from rootless_udi.plan.steps import File, Injection

PATH = "/var/shifterConfig.json"


def injection(request: Request, image: Image, root: Root, host: Host) -> Injection:
    """Return what `--shifter` adds: the file, with Shifter's keys in its order (shifter_core.c)."""
    if root.server == "directory":
        # No image has the place for it, and `shifter` must not fail where it can't be made: in a
        # directory of somebody else's.
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
