"""udi verify: read images whole, and say which bytes are not what they were."""

import os
from collections.abc import Iterator
from contextlib import ExitStack

from rootless_udi.base import jsontext, trust
from rootless_udi.base.errors import BYTES, OURS, UdiError, counted, plain
from rootless_udi.base.process import page, say
from rootless_udi.base.records import Record
from rootless_udi.base.windows import WindowList, count
from rootless_udi.commands.common import names
from rootless_udi.commands.common.given import (
    Arguments,
    any_image,
    image_stores,
    parsed_platform,
    stored_image,
)
from rootless_udi.commands.common.parsers import Parsers, add_json, add_platform, command
from rootless_udi.config import load
from rootless_udi.plan.reference import named
from rootless_udi.plan.site import Site
from rootless_udi.store import find, resolve, windows
from rootless_udi.store.store import Store, stem


class _File(Record):
    """An image's file to check. `lists` are the digests of lists that its facts name; `stored` says
    that it is in a store; `name` is what it is called by."""

    name: str
    path: str
    lists: tuple[str, ...]
    stored: bool


class _Found(Record):
    """What was found of a file: its `size` in bytes, `why` it is not right ("" where it is), and
    whether it has a list at all."""

    file: _File
    size: int
    why: str
    listed: bool


def add(commands: Parsers) -> None:
    """Add the parser of `udi verify`."""
    one = command(commands, "verify", verify, "read images whole and compare each MiB")
    one.add_argument("image", nargs="*", help="of the store, or a squashfs file (./FILE.sqfs)")
    one.add_argument("--all", action="store_true", help="all images of the user's own store")
    add_platform(one)
    add_json(one)


def verify(arguments: Arguments) -> int:
    """udi verify: print a line for each file; 125 where one is damaged, or has nothing to compare.

    With --all an image without a list is said and no failure: an earlier version has made it.
    """
    site = load.load(os.environ)
    if bool(arguments.image) == arguments.all:
        raise UdiError("udi verify: which images?", "udi verify IMAGE..., or udi verify --all")
    files = list(_everything(site) if arguments.all else _named(arguments, site))
    found = _check(files)
    if arguments.json:
        page(jsontext.text([_document(one) for one in found]) + "\n")
    else:
        for one in found:
            say(_line(one))
    wrong = [one for one in found if one.why and (one.listed or not arguments.all)]
    return OURS if wrong else 0


def _named(arguments: Arguments, site: Site) -> Iterator[_File]:
    for text in arguments.image:
        if named(text, site.registry).kind in ("squashfs", "path"):
            image = any_image(text, site)
            yield _File(text, image.path, _lists(image.facts), False)
        else:
            yield from _of(text, stored_image(text, site, parsed_platform(arguments)))


def _everything(site: Site) -> Iterator[_File]:
    store = Store(image_stores(site)[0])
    for entry in store.images():
        own = names.familiar(entry.names[0][1], site.registry) if entry.names else ""
        find.owners(entry.image)
        yield from _of(own or names.digits(entry.image.digest), entry.image)


def _of(name: str, image: find.StoredImage) -> Iterator[_File]:
    """Yield the files of an image of a store: what was pulled, and what `udi optimize` made."""
    lists = _lists(resolve.read(image.facts, find.owners(image)))
    for suffix in (".sqfs", find.OPTIMIZED):
        path = f"{image.store}/images/{stem(image.digest)}{suffix}"
        if os.path.exists(path):
            yield _File(name, path, lists, True)


def _lists(facts: dict[str, object]) -> tuple[str, ...]:
    found = facts.get("windows")
    return tuple(map(str, found)) if isinstance(found, list) else ()


def _check(files: list[_File]) -> list[_Found]:
    """Read all files, at once, and return what was found, in their order."""
    found: list[_Found] = []
    jobs: list[tuple[int, windows.Checked]] = []
    with ExitStack() as stack:
        for number, file in enumerate(files):
            try:
                fd = trust.regular(file.path)
            except OSError as error:
                raise UdiError(f"opening image {file.path} failed: {error.strerror}") from None
            stack.callback(os.close, fd)
            size = windows.used(fd)
            known, why = _list(file, fd, size)
            if known is not None and not why:
                jobs.append((number, windows.Checked(fd, known)))
            found.append(_Found(file, size, why, known is not None or bool(file.lists)))
        for (number, _), bad in zip(jobs, windows.damaged([one for _, one in jobs]), strict=True):
            if bad:
                one = found[number]
                found[number] = one.replace(why=windows.said(bad, one.size))
    return found


def _list(file: _File, fd: int, size: int) -> tuple[WindowList | None, str]:
    """Return the list in a file, and why the file can't be compared with it ("" if it can)."""
    if size == 0:
        return None, "its first bytes are damaged: they are no squashfs's"
    try:
        known = windows.behind(fd, size)
    except ValueError as error:
        return None, str(error)
    if known is None:
        return None, "its list of windows is gone" if file.lists else "it has no list of windows"
    if file.lists and known.digest not in file.lists:
        return known, "its list of windows is another than the one that its facts name"
    return known, ""


def _line(one: _Found) -> str:
    where = plain(one.file.path, keep=BYTES)
    if not one.why:
        amount = counted(count(one.size), "window")
        return f"{one.file.name}: right, {amount} of 1 MiB ({where})"
    hint = f"udi pull --force {one.file.name}" if one.file.stored else "copy it again"
    if not one.listed:
        hint = f"{hint} makes one" if one.file.stored else "`udi import` and `udi export` make one"
    return f"{one.file.name}: {one.why} ({where}): {hint}"


def _document(one: _Found) -> dict[str, object]:
    return {
        "name": one.file.name,
        "squashfs": one.file.path,
        "size": one.size,
        "right": not one.why if one.listed else None,
        "why": one.why or None,
    }
