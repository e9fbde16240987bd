"""udi import: a squashfs file as an image of the user's store."""

import os
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import say, tell
from rootless_udi.commands.common import enroot, names, newfile, singularity
from rootless_udi.commands.common.given import Arguments, image_stores, opened
from rootless_udi.commands.common.parsers import Parsers, command
from rootless_udi.commands.tag import new_name
from rootless_udi.config import load
from rootless_udi.plan.image import Image
from rootless_udi.plan.reference import Platform, parse_platform, platform_of
from rootless_udi.plan.site import Site
from rootless_udi.store import adding, inside, resolve, sif, striping
from rootless_udi.store.store import Store, discard


def add(commands: Parsers) -> None:
    """Add the parser of `udi import`."""
    one = command(commands, "import", import_, "put a squashfs or SIF file into the store")
    one.add_argument("file")
    one.add_argument("name", nargs="?", metavar="NAME", help="what the file says it is, without it")


def import_(arguments: Arguments) -> int:
    """udi import: put a squashfs file into the user's store; print its digest.

    The digest is that of the file itself, without the list of its windows and its facts, so that a
    file means the same image with and without them. Its facts name the digest of the image that it
    was made of, but nobody can check that, and whoever asks the store for a digest must get just
    that image.
    """
    site = load.load(os.environ)
    store = Store(image_stores(site)[0])
    striping.prepare(store.root, site.stripes)
    if sif.is_sif(arguments.file):
        return _of_sif(arguments, site, store)
    image = resolve.local(arguments.file, os.path.abspath(arguments.file))
    if not image.path:
        raise UdiError(f"{arguments.file} is a directory", "udi-run takes it as it is")
    return _put(arguments, site, store, image)


def _of_sif(arguments: Arguments, site: Site, store: Store) -> int:
    """Import the root file system of a SIF file, with what it says of itself."""
    if not arguments.name:
        raise UdiError(f"{arguments.file} does not say what image it is of", "udi import FILE NAME")
    new_name(arguments.name, site)
    store.create()
    copy = store.temporary("blobs", f"sha256:{os.urandom(32).hex()}")
    with opened(arguments.file) as source, newfile.ending():
        part = sif.primary(source.fileno(), arguments.file)
        if part.signed:
            tell("its signatures are not checked")
        try:
            with open(os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
                source.seek(part.offset)
                left = part.size
                while left and (data := source.read(min(left, 1 << 20))):
                    out.write(data)
                    left -= len(data)
            image = resolve.local(arguments.file, copy)
            facts = singularity.facts(copy)
            if part.architecture:
                facts["architecture"] = part.architecture
            return _put(arguments, site, store, image.replace(facts=facts))
        except OSError as error:
            raise store.refused(f"importing {arguments.file}", error) from None
        finally:
            discard(copy)


def _put(arguments: Arguments, site: Site, store: Store, image: Image) -> int:
    name = _name_for(arguments, image, site)
    store.create()
    with opened(image.path) as source:
        digest = f"sha256:{_digest(source.fileno())}"
        platform = _platform(image)
        _may_name(store, name, platform, digest, arguments)
        lock = store.lock(digest)
        lock.wait()
        try:
            if store.image(digest) is None:
                _store(store, source.fileno(), digest, image, name)
        finally:
            lock.release()
    store.set_name(name, platform, digest)
    tell(f"it is {names.familiar(name, site.registry)}")
    say(digest)
    return 0


def _name_for(arguments: Arguments, image: Image, site: Site) -> str:
    if arguments.name:
        return new_name(arguments.name, site)
    try:
        return new_name(str(image.facts.get("reference") or ""), site)
    except UdiError:
        raise UdiError(
            f"{arguments.file} does not say what image it is of", "udi import FILE NAME"
        ) from None


def _may_name(
    store: Store, name: str, platform: Platform, digest: str, arguments: Arguments
) -> None:
    """Raise UdiError where the name in the file's facts is already another image's in the store."""
    if arguments.name:
        return
    for entry in store.images():
        if (platform.key(), name) in entry.names and entry.image.digest != digest:
            raise UdiError(
                f"{arguments.file} says that it is {name}, and that name is another image's",
                f"to rename that: udi import {arguments.file} {name}; or give another name",
            )


def _digest(fd: int) -> str:
    import hashlib

    summed = hashlib.sha256()
    for data in inside.original(fd):
        summed.update(data)
    return summed.hexdigest()


def _store(store: Store, fd: int, digest: str, image: Image, name: str) -> None:
    import hashlib

    known = image.facts or enroot.facts(image.path)
    facts = {"version": 1, "reference": name, **known, "digest": digest}
    facts["elf"] = known.get("elf") or _elf(image.path)
    facts["imported"] = {"digest": image.digest}
    target = store.temporary("images", digest)
    summed = hashlib.sha256()
    try:
        with newfile.ending():
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(target, flags, 0o644), "wb") as out:
                listed = inside.copy(fd, image.path, {}, out.write, summed.update)
            if f"sha256:{summed.hexdigest()}" != digest:
                raise UdiError(f"importing {image.path} failed: it changed meanwhile")
            adding.add(store, digest, target, facts, listed)
    except OSError as error:
        raise store.refused(f"importing {image.path}", error) from None
    finally:
        discard(target)


def _elf(path: str) -> Any:
    """Return what is known of the image's libraries, for --mpi; None where it can't be read."""
    from rootless_udi.forecast import imagefacts
    from rootless_udi.forecast.needs import Unreadable

    try:
        return imagefacts.elf(path)
    except (UdiError, Unreadable) as error:
        tell(f"its libraries are not known: {error}")
        return None


def _platform(image: Image) -> Platform:
    known = [str(image.facts.get(key) or "") for key in ("architecture", "variant")]
    if not known[0]:
        return platform_of(os.uname().machine)
    # Checked, since it becomes a folder's name.
    return parse_platform("/".join(filter(None, ("linux", *known))))
