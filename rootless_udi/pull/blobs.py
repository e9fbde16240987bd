"""Compressed blobs in the store's blobs/ folder: downloaded once, resumed, shared, checked.

    blobs/sha256-HEX.part   being downloaded, or whole and in use by the pulls that share its lock
    blobs/sha256-HEX        whole and kept (--keep-blobs)

What is on disk is not believed: a partial download of a killed pull is hashed before it is resumed.
One pull downloads while it has the blob's exclusive lock; others wait for that and then use the
same file with a shared lock. No pull waits for an exclusive lock for longer than a download while
it has shared ones, so two pulls cannot block each other. Where the file system has no locks, each
pull has files of its own.
"""

import contextlib
import errno
import hashlib
import os
import random
import secrets
import shutil
from collections.abc import Callable, Sequence
from typing import Protocol

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError, counted
from rootless_udi.pull.manifest import Descriptor
from rootless_udi.pull.registry import WrongContent, matches
from rootless_udi.pull.stop import Stop
from rootless_udi.store.locks import Holder, Lock
from rootless_udi.store.store import Store, discard, stem

_CHUNK = 1 << 20

Report = Callable[[int], None]
"""Called with the number of bytes that are there so far."""


class Download(Protocol):
    """Sends bytes from offset `have` on; `Endpoint.blob` is one."""

    def __call__(
        self,
        descriptor: Descriptor,
        have: int,
        write: Callable[[bytes, int], None],
        restart: Callable[[], None],
    ) -> None: ...


def hash_file(path: str, algorithm: str, stop: Stop, report: Report = lambda done: None) -> str:
    """Return ALGORITHM:HEX of a file; raises OSError."""
    summed, done = hashlib.new(algorithm), 0
    buffer = memoryview(bytearray(_CHUNK))
    with open(trust.regular(path), "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            stop.check()
            summed.update(buffer[:count])
            done += count
            report(done)
    return f"{algorithm}:{summed.hexdigest()}"


class Blobs:
    """The blobs of one pull. `fetch` from several threads; `release` once, at the end."""

    def __init__(
        self,
        store: Store,
        stop: Stop,
        keep: bool = False,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.store = store
        self._stop = stop
        self._keep = keep
        self._note = note
        self._held: dict[str, tuple[str, Lock]] = {}

    def fetch(self, descriptor: Descriptor, download: Download, report: Report, what: str) -> str:
        """Return the path of a blob that is whole and right, which stays there until `release`.

        `what` begins the message of a wrong digest. Raises UdiError where the blob cannot be had
        and where the file system refuses.
        """
        held = self._held.get(descriptor.digest)
        if held is not None:
            return held[0]
        lock = self.store.lock(descriptor.digest)
        try:
            path = self._fetch(descriptor, download, report, what, lock)
            self._stop.check()
        except OSError as error:
            self._give_up(lock)
            raise self.store.refused(f"storing blob {descriptor.digest}", error) from None
        except BaseException:
            self._give_up(lock)
            raise
        self._held[descriptor.digest] = path, lock
        return path

    def _give_up(self, lock: Lock) -> None:
        with contextlib.suppress(OSError):
            lock.release()

    def _fetch(
        self,
        descriptor: Descriptor,
        download: Download,
        report: Report,
        what: str,
        lock: Lock,
    ) -> str:
        waits, holder = 0, Holder(lock)
        while True:
            if not lock.acquire(shared=True) and not self._left(lock, holder):
                if not waits:
                    by = holder.name() or "another process"
                    self._note(f"waiting for the download of {descriptor.digest} by {by}")
                self._stop.sleep(min(0.05 * 2**waits, 1.0) * random.uniform(0.5, 1.5))
                waits += 1
                continue
            if not lock.works:
                self._note(f"{self.store.root} has no file locks: nothing is shared or resumed")
                path = self.store.path(
                    "blobs", f"{stem(descriptor.digest)}.{os.getpid()}-{secrets.token_hex(6)}.part"
                )
                self._download(path, descriptor, download, report, what)
                return path
            path = self._whole(descriptor, report)
            if path:
                return path
            lock.release()
            if not lock.acquire():
                self._left(lock, holder)
                waits += 1
                self._stop.sleep(0.05 * random.uniform(0.5, 1.5))
                continue
            path = self._whole(descriptor, report)
            if not path:
                path = self.store.path("blobs", f"{stem(descriptor.digest)}.part")
                self._download(path, descriptor, download, report, what)
            if lock.acquire(shared=True) and os.path.exists(path):
                return path
            # Removed by another pull while we changed to a shared lock.
            lock.release()

    def _left(self, lock: Lock, holder: Holder) -> bool:
        """Go on without the lock if its holder shows no sign of life; tell whether that is so."""
        if holder.gone():
            self._note(f"no sign of life from whoever holds {lock.path}: going on without it")
            lock.do_without()
        return not lock.works

    def _whole(self, descriptor: Descriptor, report: Report) -> str:
        """Return the path of a whole, right copy, empty where there is none."""
        for end in ("", ".part"):
            path = self.store.path("blobs", stem(descriptor.digest) + end)
            try:
                if os.stat(path).st_size != descriptor.size:
                    continue
                algorithm = descriptor.digest.partition(":")[0]
                if hash_file(path, algorithm, self._stop, report) == descriptor.digest:
                    return path
            except FileNotFoundError:
                continue
        return ""

    def _download(
        self, path: str, descriptor: Descriptor, download: Download, report: Report, what: str
    ) -> None:
        """Download into `path`, going on with what is there; once more from the start if wrong."""
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            have = os.fstat(fd).st_size
            if have >= descriptor.size:
                # As long as it should be, and `_whole` found it wrong.
                have = 0
            try:
                self._stream(fd, have, descriptor, download, report, what)
            except WrongContent:
                if not have:
                    raise
                self._note(f"what was left of {descriptor.digest} is damaged: from the start")
                self._stream(fd, 0, descriptor, download, report, what)
        except (WrongContent, OSError) as error:
            # Of no use to the next pull, and on a full disk in its way.
            if isinstance(error, WrongContent) or error.errno in (errno.ENOSPC, errno.EDQUOT):
                discard(path)
            if isinstance(error, OSError) and error.filename is None:
                error.filename = path
            raise
        finally:
            os.close(fd)

    def _stream(
        self,
        fd: int,
        have: int,
        descriptor: Descriptor,
        download: Download,
        report: Report,
        what: str,
    ) -> None:
        algorithm = descriptor.digest.partition(":")[0]
        summed = hashlib.new(algorithm)
        os.truncate(fd, have)
        done = 0
        while done < have:
            part = os.pread(fd, min(_CHUNK, have - done), done)
            if not part:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            summed.update(part)
            done += len(part)
        report(done)

        def write(data: bytes, offset: int) -> None:
            nonlocal done
            left = memoryview(data)
            while left:
                left = left[os.pwrite(fd, left, offset + len(data) - len(left)) :]
            summed.update(data)
            done = offset + len(data)
            report(done)

        def restart() -> None:
            nonlocal summed, done
            os.truncate(fd, 0)
            summed, done = hashlib.new(algorithm), 0

        download(descriptor, have, write, restart)
        matches(f"{algorithm}:{summed.hexdigest()}", descriptor.digest, what)

    def take(self, path: str, target: str) -> None:
        """Make `target` of the blob at `path`: that very file, if it is of no use to others.

        Raises OSError.
        """
        for known, lock in self._held.values():
            if known == path and path.endswith(".part") and not self._keep:
                if lock.works and not lock.acquire():
                    break  # another pull uses it
                os.rename(path, target)
                return
        shutil.copyfile(path, target)

    def release(self, used: bool) -> None:
        """Release all blobs. `used`: the image was made, so they are removed, or kept if asked for.

        A blob that another pull is using too is left for that one to remove.
        """
        for digest, (path, lock) in self._held.items():
            with contextlib.suppress(OSError):
                if not lock.works:
                    discard(path)
                elif used and path.endswith(".part"):
                    if self._keep:
                        with contextlib.suppress(FileExistsError):
                            os.link(path, self.store.path("blobs", stem(digest)))
                    if lock.acquire():
                        discard(path)
            self._give_up(lock)
        self._held.clear()

    def forget(self, descriptors: Sequence[Descriptor]) -> None:
        """Remove partial downloads of these blobs, but for those that another pull is using."""
        for descriptor in descriptors:
            path = self.store.path("blobs", f"{stem(descriptor.digest)}.part")
            if not os.path.exists(path):
                continue
            lock = self.store.lock(descriptor.digest)
            with contextlib.suppress(OSError):
                if lock.acquire() and lock.works:
                    discard(path)
            self._give_up(lock)

    def have(self, descriptor: Descriptor) -> int:
        """Return how many bytes of a blob are on disk; their content is not looked at."""
        most = 0
        for end in ("", ".part"):
            with contextlib.suppress(OSError):
                size = os.stat(self.store.path("blobs", stem(descriptor.digest) + end)).st_size
                most = max(most, min(size, descriptor.size))
        return most


def verify(path: str, descriptor: Descriptor, what: str, stop: Stop, report: Report) -> None:
    """Check size and digest of a blob that is read in place. Raises UdiError."""
    try:
        size = os.stat(path).st_size
        if size != descriptor.size:
            raise WrongContent(
                f"{what}: has {counted(size, 'byte')}, its descriptor says {descriptor.size}",
                "the copy there is truncated or damaged",
            )
        algorithm = descriptor.digest.partition(":")[0]
        matches(hash_file(path, algorithm, stop, report), descriptor.digest, what)
    except OSError as error:
        raise UdiError(f"{what}: {error.strerror}", f"it should be {path}") from None
