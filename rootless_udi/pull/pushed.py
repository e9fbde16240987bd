"""Take a squashfs that was pushed (`artifact`) for an image, with its facts, as a pull's result."""

import os
from typing import Any

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.plan.platforms import suitability
from rootless_udi.plan.reference import Platform, Reference, normal
from rootless_udi.pull.artifact import FoundSquashfs
from rootless_udi.pull.facts import of_config
from rootless_udi.pull.sources import Resolved
from rootless_udi.store import resolve, windows

_AGAIN = "push it again (udi push)"


def facts(
    reference: Reference, resolved: Resolved, found: FoundSquashfs, path: str
) -> dict[str, Any]:
    """Do what `made` does with those that are in the file `path`."""
    with open(trust.regular(path), "rb") as file:
        return made(reference, resolved, found, file.read())


def made(
    reference: Reference, resolved: Resolved, found: FoundSquashfs, data: bytes
) -> dict[str, Any]:
    """Return an image's facts, made of those that were pushed with its squashfs, `data`.

    What the image's own config says counts, where there is one. For an image of its own the pushed
    facts name the digest of what it was made of; but nobody can check that, and whoever asks the
    store for a digest must get just that image. Raises UdiError, also for another platform's image.
    """
    what = f"pulling {reference.canonical}"
    try:
        known = resolve.parsed(data)
    except ValueError as error:
        raise UdiError(f"{what}: the facts that were pushed with it: {error}", _AGAIN) from None
    if not known:
        why = "the facts that were pushed with it are of a later version, or none"
        raise UdiError(f"{what}: {why}", "a newer rootless_udi may read them")
    # Who has signed it, this pull says.
    known.pop("signed", None)
    note = {"artifact": found.artifact, "registry": found.host, "believed": found.why}
    if resolved.found is None:
        return {**known, **of_config(reference, resolved), "pushed": note}
    names = [known.get(key) for key in ("os", "architecture", "variant")]
    theirs = normal(Platform(*(name if isinstance(name, str) else "" for name in names)))
    theirs = theirs.replace(os=theirs.os or "linux")
    if theirs.architecture and suitability(theirs, resolved.config.platform) < 0:
        raise UdiError(f"{what}: is an image for {theirs}, wanted is {resolved.config.platform}")
    note["of"] = str(known.get("digest", ""))
    own = {"digest": resolved.digest, "index": resolved.index, "reference": reference.canonical}
    return {**known, **own, "pushed": note}


def check(path: str, found: FoundSquashfs, what: str) -> None:
    """Raise UdiError unless the file at `path` is a squashfs with the list of windows that was
    announced, and is what that list says; OSError."""
    resolve.check(path, _AGAIN, ())
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            known = windows.behind(fd, windows.used(fd))
        except ValueError as error:
            raise UdiError(f"{what}: {error}", _AGAIN) from None
        listed = known.digest if known is not None else "missing"
        if listed != found.parts.listed:
            why = f"its list of windows is {listed}, announced is {found.parts.listed}"
            raise UdiError(f"{what}: {why}", _AGAIN)
        windows.refuse_damage(fd, what)
    finally:
        os.close(fd)
