"""Write the content-addressed store: commit, name, list, remove. `find` has its layout.

Safe for many nodes on one file system: everything is written under a temporary name in its own
folder, synced, renamed, and its folder synced; an image is there wholly or not at all, and a name
appears after its image. A temporary name begins with a dot and has its digest in it, so that a
later pull can tell by that digest's lock whether its maker lives.
"""

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator, Mapping
from typing import Any

from rootless_udi.base import fastjson, trust
from rootless_udi.base.errors import UdiError, disk_hint
from rootless_udi.base.records import Record
from rootless_udi.base.trees import mount_point, remove_tree
from rootless_udi.plan.reference import Platform, Reference
from rootless_udi.store import find
from rootless_udi.store.find import StoredImage
from rootless_udi.store.locks import Lock

FOLDERS = ("images", "names", "blobs", "dirs", "locks")
PARTIAL_KEPT = 24 * 3600
"""Seconds that a partial download of a killed pull waits for the next one before it is removed."""
_LINK_KEPT = 3600


class ListedImage(Record):
    """An image in a store as `udi images` shows it. `names`: (platform key, name), sorted."""

    image: StoredImage
    names: tuple[tuple[str, str], ...]
    pulled: float


class Store:
    """The store at `root`. Every method raises UdiError for what the file system refuses."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def create(self, mode: int = 0o700) -> None:
        """Make the store where it is missing; `mode` is for its top folder, which is its door.

        Others get no right to write or lock, whatever the umask; UdiError where they have one.
        """
        try:
            trust.make(self.root, mode)
            find.judge(self.root)
            for folder in FOLDERS:
                path = self.path(folder)
                trust.make(path, 0o700 if folder == "locks" else 0o755)
                if not os.access(path, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, "Permission denied", path)
                _close_to_others(path, 0o077 if folder == "locks" else 0o022)
        except OSError as error:
            raise self.refused("making the image store", error) from None

    def refused(self, what: str, error: OSError) -> UdiError:
        """Turn the file system's refusal into a sentence with a remedy."""
        where = os.fsdecode(error.filename) if error.filename is not None else self.root
        elsewhere = "set UDI_STORE to a directory on another file system"
        hint = disk_hint(error.errno, "set UDI_STORE to a directory that you can write")
        if error.errno == errno.ENOSPC:
            hint = f"make room on {self.filesystem()} (`udi images`, `udi rm`), or {elsewhere}"
        elif error.errno == errno.EDQUOT:
            hint = f"your quota on {self.filesystem()} is used up: `udi rm`, or {elsewhere}"
        return UdiError(f"{what} failed on {where}: {os.strerror(error.errno or 0)}", hint)

    def filesystem(self) -> str:
        """Return the mount point that the store is on."""
        return mount_point(self.root)

    def free(self) -> int:
        """Return the bytes that statvfs(3) says are free for us; quotas it may not know."""
        try:
            found = os.statvfs(self.root)
        except OSError as error:
            raise self.refused("looking at the image store", error) from None
        return found.f_bavail * found.f_frsize

    def lock(self, digest: str) -> Lock:
        return Lock(self.path("locks", f"{stem(digest)}.lock"))

    def image(self, digest: str, name: str = "") -> StoredImage | None:
        return find.at(self.root, digest, name or digest)

    def temporary(self, folder: str, digest: str) -> str:
        """Return a new path in `folder` for what becomes `digest`; `sweep` knows it."""
        return self.path(folder, f".{stem(digest)}.{os.getpid()}-{secrets.token_hex(6)}.tmp")

    def commit(self, digest: str, squashfs: str, facts: Mapping[str, Any]) -> StoredImage:
        """Make the temporary file `squashfs` and `facts` the image `digest`, in one rename.

        The facts are there before the image: whoever finds it finds them.
        """
        facts_tmp = self.temporary("images", digest)
        target = self.path("images", stem(digest))
        try:
            try:
                with open(
                    os.open(facts_tmp, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644),
                    "w",
                    encoding="utf-8",
                ) as file:
                    # Names of files are in it, whose bytes need not be UTF-8.
                    file.write(fastjson.dumps(facts, separators=(",", ":")) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                # Its writer may have made it by the umask.
                _close_to_others(squashfs, 0o022)
                sync(squashfs)
                os.rename(facts_tmp, f"{target}.json")
                os.rename(squashfs, f"{target}.sqfs")
                # It may be what is to be mended: `udi pull --force`.
                discard(target + find.OPTIMIZED)
                sync(self.path("images"))
            finally:
                discard(facts_tmp)
        except OSError as error:
            raise self.refused(f"storing image {digest}", error) from None
        found = self.image(digest)
        if found is None:
            raise UdiError(f"storing image {digest} failed on {target}.sqfs: it vanished")
        return found

    def set_name(self, name: str, platform: Platform, digest: str) -> None:
        """Let `name` (of `find.name_of`) mean `digest` on `platform`.

        Names of earlier states of the same layout or archive are removed; their images are not.
        """
        link = self.path("names", platform.key(), find.escape(name))
        folder, _, base = link.rpartition("/")
        temporary = f"{folder}/.{base[:100]}.{secrets.token_hex(6)}.tmp"
        place = _state_of(name)
        try:
            trust.make(folder)
            os.symlink(stem(digest), temporary)
            try:
                os.rename(temporary, link)
            finally:
                discard(temporary)
            sync(folder)
            for key, other, path in self.links() if place else ():
                if key == platform.key() and other != name and _state_of(other) == place:
                    discard(path)
        except OSError as error:
            raise self.refused(f"naming image {name}", error) from None

    def links(self) -> Iterator[tuple[str, str, str]]:
        """Yield (platform key, name, path of the link) of every name."""
        top = self.path("names")
        for folder, _, files in os.walk(top):
            for file in files:
                path = f"{folder}/{file}"
                if file.startswith(".") or not os.path.islink(path):
                    continue
                key, _, escaped = os.path.relpath(path, top).partition("/")
                try:
                    name = find.unescape(escaped)
                except ValueError:
                    continue
                yield key, name, path

    def images(self) -> list[ListedImage]:
        """Return every image of the store, the last pulled first; also those without a name."""
        names: dict[str, list[tuple[str, str]]] = {}
        for key, name, path in self.links():
            names.setdefault(_target(path), []).append((key, name))
        found = []
        try:
            files = os.listdir(self.path("images"))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self.refused("listing the image store", error) from None
        for file in files:
            base = file.removesuffix(".sqfs")
            if base == file or file.startswith(".") or file.endswith(find.OPTIMIZED):
                continue
            own = tuple(sorted(names.get(base, [])))
            image = self.image(base.replace("-", ":", 1), own[0][1] if own else "")
            if image is not None:
                found.append(ListedImage(image, own, os.stat(image.squashfs).st_mtime))
        return sorted(found, key=lambda entry: (-entry.pulled, entry.image.digest))

    def facts(self, image: StoredImage) -> dict[str, Any]:
        """Return an image's facts; raises UdiError where the file is missing or damaged."""
        try:
            found = fastjson.loads(trust.read(image.facts, find.owners(image)).decode())
            why = "is no JSON object"
        except OSError as error:
            found, why = None, error.strerror or str(error)
        except ValueError as error:
            found, why = None, f"is no JSON: {error}"
        if not isinstance(found, dict):
            raise UdiError(
                f"reading the facts of {image.name} failed on {image.facts}: {why}",
                "pull it again with --force",
            )
        return found

    def remove(self, reference: Reference, platform: Platform) -> tuple[list[str], list[str]]:
        """Remove names, and images that have none left; returns both, the images as digests.

        A registry's reference is one name, "oci:" and "docker-archive:" with all the states that
        they were pulled in, a digest is all its names. A running container keeps its open image on
        this node; on NFS other nodes that have it open lose it. Raises UdiError where there is
        nothing of that name.
        """
        if os.path.isdir(self.root):
            find.judge(self.root)
        links = list(self.links())
        if reference.kind == "store":
            stems = {stem(reference.digest)} if self.image(reference.digest) else set()
            gone = [x for x in links if _target(x[2]) in stems]
        else:
            place = find.place_of(reference)
            gone = [x for x in links if x[0] == platform.key() and place in (x[1], _state_of(x[1]))]
            stems = {_target(x[2]) for x in gone}
        if not stems:
            raise UdiError(
                f"removing {reference.canonical} failed on {self.root}: no such image for "
                f"{platform}",
                "`udi images` lists what is there; another platform's is removed with --platform",
            )
        try:
            return [x[1] for x in gone], self.drop([x[2] for x in gone], sorted(stems))
        except OSError as error:
            raise self.refused(f"removing {reference.canonical}", error) from None

    def drop(self, paths: list[str], stems: list[str]) -> list[str]:
        """Remove links, then of the images those without a name; returns these, as digests."""
        for path in paths:
            discard(path)
        images = []
        for base in stems:
            digest = base.replace("-", ":", 1)
            lock = self.lock(digest)
            lock.wait()
            try:
                image = self.image(digest)
                if image is None or any(_target(x[2]) == base for x in self.links()):
                    continue
                # The image before its facts: whoever still finds it finds them.
                for suffix in (find.OPTIMIZED, ".sqfs"):
                    discard(self.path("images", base + suffix))
                discard(image.facts)
                self.discard_directory(image)
                images.append(digest)
            finally:
                lock.release()
        return images

    def discard_directory(self, image: StoredImage) -> None:
        """Remove an image's extracted tree, if any: out of sight first, then file by file."""
        if os.path.lexists(image.directory):
            aside = self.temporary("dirs", image.digest)
            os.rename(image.directory, aside)
            remove_tree(aside)

    def sweep(self, ours: str = "") -> list[str]:
        """Remove what killed pulls left behind, and return its paths.

        Temporary files whose digest nobody has locked go at once, also those of `ours`, a digest
        that the caller has locked and has nothing of yet; partial blobs after a day (the next pull
        of them resumes), temporary links after an hour, as do the files of locks.
        """
        gone = []
        now = time.time()
        for folder, age in (("images", 0), ("dirs", 0), ("blobs", PARTIAL_KEPT)):
            for path, digest in self._leftovers(folder):
                if now - _changed(path) < age:
                    continue
                if self._if_idle(digest, path, now, age, digest == ours):
                    gone.append(path)
        for folder, _, files in os.walk(self.path("names")):
            for file in files:
                path = f"{folder}/{file}"
                if file.startswith(".") and now - _changed(path) > _LINK_KEPT:
                    discard(path)
                    gone.append(path)
        with contextlib.suppress(OSError):
            self._sweep_locks(now)
        return gone

    def _leftovers(self, folder: str) -> Iterator[tuple[str, str]]:
        try:
            files = os.listdir(self.path(folder))
        except OSError:
            return
        for file in files:
            if file.startswith(".") or (folder == "blobs" and stem_of(file) != file):
                digest = stem_of(file.removeprefix(".")).replace("-", ":", 1)
                yield self.path(folder, file), digest

    def _if_idle(self, digest: str, path: str, now: float, age: float, ours: bool) -> bool:
        lock = self.lock(digest)
        try:
            if not ours and not lock.acquire():
                return False
            try:
                # Without locks nobody can tell; a day is longer than any pull.
                if not lock.works and now - _changed(path) < PARTIAL_KEPT:
                    return False
                if now - _changed(path) < age:
                    return False
                remove_tree(path) if os.path.isdir(path) else discard(path)
                return True
            finally:
                lock.release()
        except OSError:
            return False

    def _sweep_locks(self, now: float) -> None:
        for file in os.listdir(self.path("locks")):
            path = self.path("locks", file)
            if now - _changed(path) > _LINK_KEPT:
                lock = Lock(path)
                with contextlib.suppress(OSError):
                    # Removed by its release, where nobody else has it.
                    lock.acquire()
                    lock.release()


def _close_to_others(path: str, bits: int) -> None:
    """Take `bits` from the mode of a file or folder of the caller's; another's is left alone."""
    status = os.lstat(path)
    if status.st_mode & bits and status.st_uid == os.getuid():
        os.chmod(path, stat.S_IMODE(status.st_mode) & ~bits)


def stem(digest: str) -> str:
    """Return a digest as a file name: sha256-HEX."""
    return digest.replace(":", "-", 1)


def stem_of(file: str) -> str:
    """Return the digest's part of a file name: sha256-HEX of sha256-HEX.1-ab.part."""
    return file.partition(".")[0]


def _state_of(name: str) -> str:
    """Return a layout's or archive's name without its "#" and state; "" for a registry's."""
    return name.rpartition("#")[0]


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _changed(path: str) -> float:
    try:
        return os.lstat(path).st_mtime
    except OSError:
        return 0.0


def sync(path: str) -> None:
    """fsync(2) a file or a folder by its path."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def discard(path: str) -> None:
    """Remove a file that may be gone already."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
