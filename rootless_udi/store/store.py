"""Write an image store: name images, list and remove them. `store.find` describes its layout.

Many nodes may do so at once on a shared file system. Each file is written to a temporary name in
its folder, synced (fsync(2)) and renamed, then the folder is synced. So an image is there
completely or not at all, and a name appears after its image. A temporary name begins with a dot and
contains the digest. By the lock of that digest, a later pull can tell whether the process that made
it lives. `store.adding` adds images.
"""

import contextlib
import errno
import os
import secrets
import stat
import time
from collections.abc import Iterator
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
_PARTIAL_KEPT = 24 * 3600
"""Seconds for which a partial download of a killed pull is kept, so that the next can resume it."""
_LINK_KEPT = 3600
"""Seconds after which a temporary link and a file of a lock are removed."""


class ListedImage(Record):
    """An image in a store, for `udi images`.

    `names` are (platform key, name), sorted; `pulled` is a time in Unix seconds.
    """

    image: StoredImage
    names: tuple[tuple[str, str], ...]
    pulled: float


class Store:
    """The store at `root`. Its methods raise UdiError where the file system refuses something."""

    def __init__(self, root: str) -> None:
        self.root = root

    def path(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    def create(self, mode: int = 0o700) -> None:
        """Make the store if it is missing; `mode` is its top folder's, which says who can enter.

        Whatever the umask, others may neither write in it nor lock. Raises UdiError where they may
        write.
        """
        try:
            trust.make(self.root, mode)
            find.judge(self.root)
            for folder in FOLDERS:
                path = self.path(folder)
                trust.make(path, 0o700 if folder == "locks" else 0o755)
                if not os.access(path, os.W_OK | os.X_OK):
                    raise PermissionError(errno.EACCES, "Permission denied", path)
                close_to_others(path, 0o077 if folder == "locks" else 0o022)
        except OSError as error:
            raise self.refused("making the image store", error) from None

    def refused(self, what: str, error: OSError) -> UdiError:
        """Return the UdiError, with a hint, for an error of the file system in doing `what`."""
        where = os.fsdecode(error.filename) if error.filename is not None else self.root
        elsewhere = "set UDI_STORE to a directory on another file system"
        hint = disk_hint(error.errno, "set UDI_STORE to a directory that you can write")
        if error.errno == errno.ENOSPC:
            hint = f"make room on {self.filesystem()} (`udi images`, `udi rm`), or {elsewhere}"
        elif error.errno == errno.EDQUOT:
            hint = f"your quota on {self.filesystem()} is used up: `udi rm`, or {elsewhere}"
        return UdiError(f"{what} failed on {where}: {os.strerror(error.errno or 0)}", hint)

    def filesystem(self) -> str:
        """Return the mount point of the store's file system."""
        return mount_point(self.root)

    def free(self) -> int:
        """Return the free bytes by statvfs(3), which may not know of quotas."""
        try:
            found = os.statvfs(self.root)
        except OSError as error:
            raise self.refused("looking at the image store", error) from None
        return found.f_bavail * found.f_frsize

    def lock(self, digest: str) -> Lock:
        return Lock(self.path("locks", f"{stem(digest)}.lock"))

    def image(self, digest: str, name: str = "", fresh: bool = False) -> StoredImage | None:
        """Return the image with this digest, which is called `name`, None where there is none.

        `fresh`: also if another node has made it just now. NFS believes for up to a minute (nfs(5),
        acdirmax) that a name is missing that was; but not in a folder that this node writes in.
        """
        found = find.at(self.root, digest, name or digest)
        if found is None and fresh:
            path = self.temporary("images", digest)
            with contextlib.suppress(OSError):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                os.unlink(path)
            found = find.at(self.root, digest, name or digest)
        return found

    def temporary(self, folder: str, digest: str) -> str:
        """Return a new temporary path in `folder` for the image `digest`; `sweep` finds such."""
        return self.path(folder, f".{stem(digest)}.{os.getpid()}-{secrets.token_hex(6)}.tmp")

    def set_name(self, name: str, platform: Platform, digest: str) -> None:
        """Let `name` (`find.name_of`) mean the image `digest` on `platform`.

        Names of earlier states of the same image layout or archive are removed, their images not.
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
        """Return all images of the store, also those without a name, the last pulled first."""
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
        """Return an image's facts. Raises UdiError where their file is missing or damaged."""
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
        """Remove names, and images that have no name left; return the names and images' digests.

        A registry's reference is one name; "oci:" and "docker-archive:" are the names of all states
        that were pulled; a digest means all its names. A container that runs on this node keeps its
        image, which is open; on NFS one of another node loses it. Raises UdiError where the store
        has nothing of that name.
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
        """Remove links, then those images of `stems` without a name; return their digests."""
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
                # The image first: whoever still finds it finds its facts.
                for suffix in (find.OPTIMIZED, ".sqfs"):
                    discard(self.path("images", base + suffix))
                discard(image.facts)
                self.discard_directory(image)
                images.append(digest)
            finally:
                lock.release()
        return images

    def discard_directory(self, image: StoredImage) -> None:
        """Remove the extracted image, if any: rename it first, so that nobody finds half of it."""
        if os.path.lexists(image.directory):
            aside = self.temporary("dirs", image.digest)
            os.rename(image.directory, aside)
            remove_tree(aside)

    def sweep(self, ours: str = "") -> list[str]:
        """Remove what killed pulls left behind, and return the paths.

        Temporary files go at once if nobody has the lock of their digest, or if it is `ours`, which
        the caller has locked before it made any. Partial downloads go after a day, since the next
        pull resumes them; temporary links and files of locks after an hour.
        """
        gone = []
        now = time.time()
        for folder, age in (("images", 0), ("dirs", 0), ("blobs", _PARTIAL_KEPT)):
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
            if file.startswith(".") or (folder == "blobs" and _stem_of(file) != file):
                digest = _stem_of(file.removeprefix(".")).replace("-", ":", 1)
                yield self.path(folder, file), digest

    def _if_idle(self, digest: str, path: str, now: float, age: float, ours: bool) -> bool:
        lock = self.lock(digest)
        try:
            if not ours and not lock.acquire():
                return False
            try:
                # Without locks nobody can tell whether its maker lives; no pull takes a day.
                if not lock.works and now - _changed(path) < _PARTIAL_KEPT:
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
                    # `release` removes the file if nobody else has the lock.
                    lock.acquire()
                    lock.release()


def close_to_others(path: str, bits: int) -> None:
    """Remove `bits` from the mode of a file or folder, if it is the caller's."""
    status = os.lstat(path)
    if status.st_mode & bits and status.st_uid == os.getuid():
        os.chmod(path, stat.S_IMODE(status.st_mode) & ~bits)


def stem(digest: str) -> str:
    """Return a digest as a file name: sha256-HEX."""
    return digest.replace(":", "-", 1)


def _stem_of(file: str) -> str:
    """Return the digest in a file name: sha256-HEX of "sha256-HEX.1-ab.part"."""
    return file.partition(".")[0]


def _state_of(name: str) -> str:
    """Return a name of a layout or archive without "#" and its state; "" for a registry's name."""
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
    """Write a file or folder to the disk (fsync(2)). Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def discard(path: str) -> None:
    """Remove a file, if it is there. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
