"""What several commands do with their words: find an image or the stores, write files.

Raises UdiError for what the user can mend.
"""

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import page, say
from rootless_udi.plan.image import Image
from rootless_udi.plan.reference import Platform, Reference, named, parse, parse_platform
from rootless_udi.plan.site import Site
from rootless_udi.store import find, resolve, upkeep

Arguments = argparse.Namespace


def parsed_reference(
    text: str,
    site: Site,
    name: str | None = None,
    otherwise: str = "udi images shows what is in the store",
) -> Reference:
    """Return a name's reference, or a URL's. Raises UdiError for a path, and what is no name.

    For a path the error says how the store has it by `name`, and where there is nothing at it what
    to do `otherwise`.
    """
    found = named(text, site.registry)
    if found.kind in ("squashfs", "directory", "path"):
        from rootless_udi.store import suggest

        raise UdiError(
            f"{text} is a path, not an image of a registry or a store",
            suggest.stored(text, name or "NAME") or otherwise,
        )
    return found


def parsed_platform(arguments: Arguments) -> Platform | None:
    """Return the platform of --platform, None where it is not given. Raises UdiError."""
    return parse_platform(arguments.platform) if arguments.platform else None


def image_stores(site: Site) -> tuple[str, ...]:
    """Return the folders of the stores: the user's own first, then the site's."""
    return resolve.all_stores(site, os.environ)


def stored_image(
    text: str, site: Site, platform: Platform | None = None, name: str | None = None
) -> find.StoredImage:
    """Return an image of the stores by its name, its digest, or the first digits of that.

    Raises UdiError where it is in none; for a path as `parsed_reference` does.
    """
    found = resolve.lookup(image_stores(site), parsed_reference(text, site, name), platform)
    if found is None and upkeep.short(text):
        digest = upkeep.by_digits(image_stores(site), upkeep.short(text))
        found = find.find(image_stores(site), parse(digest)) if digest else None
    if found is None:
        unseen = find.closed(image_stores(site))
        raise UdiError(f"image {text} is in no image store{unseen}", f"udi pull {text}")
    # Also what is written anew of it (extract, optimize) comes out of what others may not write.
    find.owners(found)
    return found


def any_image(text: str, site: Site, platform: Platform | None = None, sif: bool = False) -> Image:
    """Return an image of the stores, or a squashfs file that is named by its path, with its facts.

    With `sif` a SIF file will do too.

    Raises UdiError where there is none, and for a directory.
    """
    reference = named(text, site.registry)
    if reference.kind in ("squashfs", "path"):
        found = resolve.local(text, os.path.abspath(reference.path), sif)
        if not found.path:
            raise UdiError(
                f"{text} is a directory, not an image's file", "udi-run takes it as it is"
            )
        return found
    stored = stored_image(text, site, platform)
    owners = find.owners(stored)
    packed = resolve.check(stored.squashfs, f"udi pull --force {text}", owners)
    facts = resolve.read(stored.facts, owners)
    return Image(text, stored.digest, stored.squashfs, stored.directory, facts, *packed)


def opened(path: str) -> BinaryIO:
    """Open an image's file for reading, without a buffer. Raises UdiError where it can't be."""
    try:
        return open(path, "rb", buffering=0)
    except OSError as error:
        raise UdiError(f"opening image {path} failed: {error.strerror}") from None


def write_files(files: Any, folder: str | None) -> None:
    """Write (name, text) pairs below `folder`, or print them one after the other.

    Raises UdiError, also where others could exchange what is written: root writes files that all
    users' launches believe, and a link in /tmp may lead anywhere.
    """
    for name, text in files:
        if folder is None:
            page(f"# {name}\n{text}\n")
            continue
        path = Path(folder, name)
        try:
            _write(str(path), text)
        except OSError as error:
            raise UdiError(f"writing {path} failed: {error.strerror}") from None
        say(str(path))


def _write(path: str, text: str) -> None:
    """Write a file anew; raises OSError, and Untrusted for a folder or a link of somebody else."""
    trust.make(os.path.dirname(os.path.abspath(path)))
    path = trust.destination(path, "writing")
    folder, name = os.path.split(os.path.abspath(path))
    handle, partial = tempfile.mkstemp(dir=folder, prefix=f".{name}-")
    try:
        with open(handle, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            os.fchmod(file.fileno(), 0o644)
        os.replace(partial, path)
    except BaseException:
        os.unlink(partial)
        raise
