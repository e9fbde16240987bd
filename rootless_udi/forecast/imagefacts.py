"""What the checks need to know of an image: gathered once, and kept for the next time.

The image's own facts (of `udi pull`) stay as they are, since each launch reads them. What is
gathered here lies in the caller's cache, ~/.cache/rootless_udi/forecast: one file for each image,
which counts as long as the image's file is the same by size, time and inode. It need not be the
caller's store, which may be the site's, nor a store at all. Of an image that is a directory nothing
is kept: no look at it would tell whether a file deep inside has changed.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

from rootless_udi.base.process import tell
from rootless_udi.forecast import imagetree
from rootless_udi.forecast.asis_facts import AsIsFacts
from rootless_udi.forecast.gpucode import GpuCode
from rootless_udi.forecast.isa_signs import IsaSigns
from rootless_udi.forecast.needs import FileContent, Gatherer, ImageEntry, Unreadable
from rootless_udi.forecast.programfacts import ProgramFacts
from rootless_udi.mpi_inject.libraries.image_facts import Inspector
from rootless_udi.plan.image import Image

GATHERERS: tuple[type[Gatherer], ...] = (ProgramFacts, GpuCode, IsaSigns, AsIsFacts)
"""Each is shown all of an image once; `needs` says how."""

_KEPT = 64
"""Images whose facts are kept; the ones not used for longest go first."""
_UNREAD = 50


class _ElfFacts:
    """The facts' "elf" part, as the pull makes it, for images of other tools: reads whole files."""

    NAME, VERSION = "elf", 1

    def __init__(self) -> None:
        self._inspector = Inspector()

    def wants(self, entry: ImageEntry) -> bool:
        if entry.kind == "link":
            self._inspector.link(entry.path, entry.target)
        return entry.kind == "file" and entry.size > 3

    def file(self, entry: ImageEntry, content: FileContent) -> None:
        if self._inspector.wants(entry.path, entry.size, content.head[:4]):
            step = imagetree.MOST_READ
            parts = [content.read(at, step) for at in range(0, entry.size, step)]
            self._inspector.file(entry.path, b"".join(parts))

    def result(self) -> Any:
        return self._inspector.result()


def facts(image: Image, environ: Mapping[str, str]) -> dict[str, Any]:
    """Return an image's facts with what all gatherers found under "forecast".

    Facts of another tool's image get their "elf" part made. "unread" under "forecast" has
    [path, why] of what could not be read. Raises UdiError where the image can't be opened.
    """
    path = image.path or image.directory
    wanted: tuple[type[Gatherer], ...] = GATHERERS
    if not image.facts.get("elf"):
        wanted = (*wanted, _ElfFacts)
    versions = {one.NAME: one.VERSION for one in wanted}
    place = _place(path, environ) if image.path else ""
    key = [*_key(path), versions]
    found = _kept(place, key)
    if found is None:
        found = gather(path, wanted, image.offset)
        if place:
            _keep(place, key, found)
    elf = found.pop("elf", None) or image.facts.get("elf")
    return {**image.facts, "elf": elf, "forecast": found}


def elf(path: str) -> Any:
    """Return the "elf" part of an image's facts, as the pull makes it, for a squashfs file at
    `path`. Raises UdiError where the file can't be read."""
    return gather(path, (_ElfFacts,))["elf"]


def gather(path: str, wanted: tuple[type[Gatherer], ...], offset: int = 0) -> dict[str, Any]:
    """Show the image at byte `offset` of its file to new gatherers; return NAME -> result, and
    "unread"."""
    makers = [one() for one in wanted]
    unread: list[list[str]] = []

    def failed(where: str, error: Unreadable) -> None:
        if len(unread) < _UNREAD:
            unread.append([where, str(error)])

    with imagetree.opened(path, offset) as tree:
        try:
            for entry, content in tree.walk():
                for one in makers:
                    if one.wants(entry) and content is not None:
                        try:
                            one.file(entry, content)
                        except Unreadable as error:
                            failed(entry.path, error)
        except Unreadable as error:
            failed("/", error)
    return {**{one.NAME: one.result() for one in makers}, "unread": unread}


def _key(path: str) -> list[int]:
    status = os.stat(path)
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _place(path: str, environ: Mapping[str, str]) -> str:
    """Return where an image's facts are kept; "" where the caller has no cache."""
    base, home = environ.get("XDG_CACHE_HOME", ""), environ.get("HOME", "")
    if not base.startswith("/"):
        base = f"{home}/.cache" if home.startswith("/") else ""
    name = hashlib.sha256(os.fsencode(os.path.realpath(path))).hexdigest()[:32]
    return f"{base}/rootless_udi/forecast/{name}.json" if base else ""


def _kept(place: str, key: list[Any]) -> dict[str, Any] | None:
    """Return the facts that were kept under `key`; None where there are none, or damaged ones."""
    if not place:
        return None
    try:
        with open(place, encoding="utf-8") as file:
            document = json.load(file)
        if document["key"] == key and isinstance(document["facts"], dict):
            os.utime(place)
            facts: dict[str, Any] = document["facts"]
            return facts
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def _keep(place: str, key: list[Any], found: Mapping[str, Any]) -> None:
    """Keep facts, and drop the oldest of too many. That it can't be done is no error but told."""
    folder = os.path.dirname(place)
    part = f"{place}.{os.getpid()}.part"
    try:
        os.makedirs(folder, mode=0o700, exist_ok=True)
        with open(part, "w", encoding="utf-8") as file:
            # Names of files may be no UTF-8: escaped, which JSON can hold and Python reads back.
            json.dump({"key": key, "facts": found}, file)
        os.replace(part, place)
        paths = sorted((one.path for one in os.scandir(folder)), key=os.path.getmtime)
        for old in paths[:-_KEPT]:
            os.unlink(old)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(part)
        tell(f"what was found of the image is not kept: {folder}: {error.strerror}")
