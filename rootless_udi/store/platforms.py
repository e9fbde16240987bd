"""Find images of the stores that this machine's CPU can run."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.plan.image import Image
from rootless_udi.plan.platforms import suitability, variant
from rootless_udi.plan.reference import Platform, Reference, platform_of, platform_of_key
from rootless_udi.store import find

_FIRST_CPU = 1 << 14
"""Bytes to read of /proc/cpuinfo: those of the first CPU, of perhaps hundreds."""


def here() -> Platform:
    """Return this machine's platform, with the highest variant of its CPU: of amd64 v1 to v4."""
    found = platform_of(os.uname().machine)
    try:
        with open("/proc/cpuinfo", "rb") as file:
            text = file.read(_FIRST_CPU).decode(errors="replace")
    except OSError:
        return found
    return found.replace(variant=variant(found.architecture, text) or found.variant)


def best(stores: tuple[str, ...], reference: Reference) -> find.StoredImage | None:
    """Return the image of that name for the highest variant that this CPU can run, or None."""
    ours = here()
    keys: set[str] = set()
    for store in stores:
        try:
            keys.update(os.listdir(f"{store}/names"))
        except OSError:
            continue
    known = [platform_of_key(key) for key in keys if "-" in key]
    fitting = [one for one in known if suitability(one, ours) >= 0]
    for one in sorted(fitting, key=lambda one: -suitability(one, ours)):
        found = find.find(stores, reference, one)
        if found is not None:
            return found
    return None


def check(image: Image, asked: Platform | None) -> None:
    """Raise UdiError if an image is for a variant higher than `asked` or, if None, than this CPU's.

    A pull without a platform takes the best image for the machine that pulls, and other nodes may
    have older CPUs.
    """
    theirs = Platform("linux", *(str(image.facts.get(key)) for key in ("architecture", "variant")))
    ours = asked or here()
    if theirs.architecture == ours.architecture and suitability(theirs, ours) < 0:
        wanted = f"{asked} is asked for" if asked else f"this node's CPU is {ours}"
        least = asked or Platform("linux", theirs.architecture)
        raise UdiError(
            f"image {image.request} of the store is for {theirs}, and {wanted}",
            f"udi pull --platform={least} {image.request} takes one that "
            + ("suits" if asked else "every node runs"),
        )
