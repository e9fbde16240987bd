"""udi export: an image as one file, for another machine or another tool."""

import os
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say
from rootless_udi.commands.common import newfile
from rootless_udi.commands.common.given import Arguments, any_image, opened, parsed_platform
from rootless_udi.commands.common.parsers import Parsers, add_platform, command
from rootless_udi.config import load
from rootless_udi.plan.image import Image
from rootless_udi.plan.options import SQUASHFS_SUFFIXES
from rootless_udi.plan.reference import parse
from rootless_udi.plan.site import Site
from rootless_udi.store import inside


def add(commands: Parsers) -> None:
    """Add the parser of `udi export`."""
    one = command(
        commands, "export", export, "write an image to one file, with all that is known of it"
    )
    one.add_argument("image", help="of the store, or a squashfs or SIF file (./FILE)")
    one.add_argument("file")
    one.add_argument(
        "--format",
        default="squashfs",
        choices=("squashfs", "oci-archive", "docker-archive"),
        help="for udi-run, or for other tools",
    )
    one.add_argument("--force", action="store_true", help="replace the file")
    add_platform(one)


def export(arguments: Arguments) -> int:
    """udi export: write the file and print its path; a squashfs file has the facts in it."""
    site = load.load(os.environ)
    image = any_image(arguments.image, site, parsed_platform(arguments), sif=True)
    if arguments.format != "squashfs":
        from rootless_udi.commands import export_archive

        if image.offset:
            raise UdiError(
                f"exporting {arguments.image} failed: a SIF file's variables are set by scripts, "
                f"which a {arguments.format} has no place for",
                f"udi import {arguments.image} NAME evaluates them; then udi export NAME",
            )
        name = _named(image, arguments.image, site)
        with newfile.writing(arguments.file, arguments.force) as out:
            export_archive.write(
                image, name, arguments.format, out, os.path.dirname(arguments.file)
            )
        say(arguments.file)
        return 0
    if not arguments.file.endswith(SQUASHFS_SUFFIXES):
        raise UdiError(
            f"{arguments.file} does not end in .sqfs, by which udi-run knows such a file",
            "for docker or podman: --format=oci-archive or --format=docker-archive",
        )
    with opened(image.path) as source, newfile.writing(arguments.file, arguments.force) as out:
        inside.copy(source.fileno(), image.path, _facts(image), out.write, begin=image.offset)
    say(arguments.file)
    return 0


def _facts(image: Image) -> "dict[str, Any]":
    """Return the facts that go into the file; those of a SIF file with its labels."""
    if not image.offset:
        return image.facts
    from rootless_udi.commands.common import singularity

    return {**image.facts, "labels": singularity.labels(image.path, image.offset)}


def _named(image: Image, text: str, site: Site) -> str:
    """Return the image's name in an archive: the one that is given here, else that of the pull."""
    for one in (text, str(image.facts.get("reference") or "")):
        try:
            reference = parse(one, site.registry)
        except UdiError:
            continue
        if reference.kind == "registry" and not reference.digest and one != image.digest:
            return reference.canonical
    return ""
