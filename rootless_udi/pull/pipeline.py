"""Pull an image: resolve, lock, fetch, merge, store. trio waits for threads, which do the work.

An image appears in the store whole, by one rename(2), and its name after it. A pull that fails
leaves at most partial downloads, which the next pull resumes.
"""

import contextlib
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import trio

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.layers import bounds, merge, squashfs_tools
from rootless_udi.layers.tarwriter import Write
from rootless_udi.plan.reference import Platform, Reference, platform_of
from rootless_udi.pull import pushed
from rootless_udi.pull.artifact import FoundSquashfs
from rootless_udi.pull.authorizer import Lookup
from rootless_udi.pull.blobs import Blobs
from rootless_udi.pull.claims import Believed
from rootless_udi.pull.facts import facts
from rootless_udi.pull.manifest import LAYERS, Descriptor
from rootless_udi.pull.open import open_source
from rootless_udi.pull.progress import Progress, Silent
from rootless_udi.pull.repository import RegistryOptions
from rootless_udi.pull.retry import GaveUp, Patience
from rootless_udi.pull.sources import Resolved, Source
from rootless_udi.pull.stop import Stop
from rootless_udi.store import adding, find, platforms
from rootless_udi.store.find import StoredImage
from rootless_udi.store.locks import Holder, Lock
from rootless_udi.store.store import Store, discard

_COMPRESSION = "zstd:3"
_GRACE_SECONDS = 2.0
_LEAVE_SECONDS = 0.5

_Answer = TypeVar("_Answer")


class Options(Record):
    """The options of a pull. `mirrors`: registry -> hosts or URLs that are tried before it.

    With `platform` None the best one that this machine can run is chosen. `writer` is tar2sqfs or
    mksquashfs, by name or path, or "" for the one that is there. `name` is the image's full name in
    the store, or "" for that of its reference. `lookup` finds the credentials
    for a repository; None means those of the process's user. `believed` says whose squashfs files
    for an image are used in place of its layers.
    """

    platform: Platform | None = None
    compression: str = _COMPRESSION
    insecure: bool = False
    force: bool = False
    keep_blobs: bool = False
    writer: str = ""
    mirrors: Mapping[str, Sequence[str]] = {}
    patience: Patience = Patience()
    name: str = ""
    lookup: Lookup | None = None
    believed: Believed = Believed()


def pull_sync(
    reference: Reference, store: Store, options: Options, progress: Progress | None = None
) -> StoredImage:
    """Do `pull` from code that does not run in trio."""
    try:
        return trio.run(pull, reference, store, options, progress)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


async def pull(
    reference: Reference, store: Store, options: Options, progress: Progress | None = None
) -> StoredImage:
    """Bring the image that `reference` names into `store` and return it.

    If the store has its digest already, only the name is set. Raises UdiError for what a user, a
    registry or a full disk can cause; the store is then as it was.
    """
    one = _Pull(reference, store, options, progress or Silent())
    failure: BaseException | None = None
    image: StoredImage | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_stop_when_cancelled, one.stop)
        try:
            image = await one.run()
        except Exception as error:
            # Raised below: the nursery would wrap it in an exception group.
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    assert image is not None
    return image


async def _stop_when_cancelled(stop: Stop) -> None:
    try:
        await trio.sleep_forever()
    finally:
        stop.set()


class _Pull:
    def __init__(
        self, reference: Reference, store: Store, options: Options, progress: Progress
    ) -> None:
        self.stop = Stop()
        self._reference = reference
        self._store = store
        self._options = options
        self._progress = progress
        self._platform = options.platform or platforms.here()
        # The platform that the name in the store is for. Launches look for their architecture
        # without a variant, whatever the CPU has.
        self._named = options.platform or platform_of(os.uname().machine)
        self._blobs = Blobs(store, self.stop, options.keep_blobs, progress.note)
        self._wanted: list[Descriptor] = []
        self._signed: tuple[str, ...] = ()

    async def run(self) -> StoredImage:
        options = self._options
        # Fail here, before anything is downloaded.
        _check_writer(options)
        note = self._progress.note
        asked = RegistryOptions(
            options.insecure, options.mirrors, options.patience, note, options.lookup
        )
        source = open_source(self._reference, self._blobs, self.stop, asked)
        name = options.name
        if not name and self._reference.kind != "stream":
            name = find.name_of(self._reference)
        self._store.create()
        self._progress.stage("resolve", self._reference.canonical)
        used = False
        resolved: Resolved | None = None
        try:
            resolved = await self._in_thread(source.resolve, self._platform)
            self._wanted = list({x.digest: x for x in resolved.manifest.layers}.values())
            self._signed = await self._in_thread(source.allowed, resolved, options.believed)
            name = name or resolved.name
            if not name:
                raise UdiError(
                    "reading the archive failed: it does not name its image", "udi pull - NAME"
                )
            image = None if options.force else self._store.image(resolved.digest, name)
            if image is None:
                image = await self._under_lock(source, resolved, name)
            else:
                self._progress.stage("present", resolved.digest)
            self._store.set_name(name, self._named, resolved.digest)
            used = True
            return image
        except UdiError as error:
            # Partial downloads are kept where another try may succeed, so not after a wrong image
            # or a full disk. After Ctrl-C they are kept too.
            used = not isinstance(error, GaveUp)
            raise
        finally:
            source.close(used)
            if used:
                self._blobs.forget(self._wanted)

    async def _in_thread(self, call: Callable[..., _Answer], *args: Any) -> _Answer:
        """Run `call` in a thread; when cancelled, have it stop and wait a moment for it.

        Threads need that moment to remove their locks before the process ends. One that is
        connecting can't be stopped: it is left behind, since Ctrl-C must end a pull at once.
        """
        begun, ended = threading.Event(), threading.Event()

        def run() -> _Answer:
            begun.set()
            try:
                return call(*args)
            finally:
                ended.set()

        try:
            return await trio.to_thread.run_sync(run, abandon_on_cancel=True)
        except trio.Cancelled:
            self.stop.set()
            with trio.move_on_after(_LEAVE_SECONDS, shield=True):
                while begun.is_set() and not ended.is_set():
                    await trio.sleep(0.005)
            raise

    async def _under_lock(self, source: Source, resolved: Resolved, name: str) -> StoredImage:
        """Make the image, or wait for another pull that is making it."""
        lock = self._store.lock(resolved.digest)
        try:
            waited = await self._acquire(lock, resolved.digest)
            image = self._store.image(resolved.digest, name, fresh=waited)
            if image is not None and (waited or not self._options.force):
                self._progress.stage("present", resolved.digest)
                return image
            await trio.to_thread.run_sync(self._store.sweep, resolved.digest if lock.works else "")
            return await self._make(source, resolved, name)
        finally:
            lock.release()

    async def _acquire(self, lock: Lock, digest: str) -> bool:
        """Take the lock; return whether another pull had it before."""
        waited, said, holder = 0, "", Holder(lock)
        try:
            while not lock.acquire():
                if holder.gone():
                    self._progress.note(
                        f"no sign of life from whoever holds {lock.path}: going on without it"
                    )
                    lock.do_without()
                    break
                name = holder.name() or said or "another process"
                if name != said:
                    self._progress.stage("wait", name)
                said = name
                waited += 1
                # Poll the lock: a call that waits in the kernel could not be ended by Ctrl-C at
                # once.
                await trio.sleep(min(0.05 * waited, 1.0))
        except OSError as error:
            raise self._store.refused(f"locking {digest}", error) from None
        return bool(waited)

    async def _make(self, source: Source, resolved: Resolved, name: str) -> StoredImage:
        target = self._store.temporary("images", resolved.digest)
        found = resolved.found or await self._in_thread(
            source.squashfs, resolved.digest, self._options.believed, self._progress.detail
        )
        try:
            facts = await self._take(source, resolved, found, target) if found else None
            if facts is None:
                facts = await self._merge(source, resolved, target)
            if self._signed:
                facts["signed"] = list(self._signed)
            self._progress.stage("store", resolved.digest)
            image = await trio.to_thread.run_sync(
                adding.add, self._store, resolved.digest, target, facts
            )
        except OSError as error:
            raise self._store.refused(f"converting {name}", error) from None
        finally:
            with contextlib.suppress(OSError):
                discard(target)
        self._progress.stage("done", resolved.digest)
        return image.replace(name=name)

    async def _take(
        self, source: Source, resolved: Resolved, found: FoundSquashfs, target: str
    ) -> dict[str, Any] | None:
        """Fetch a pushed squashfs into the file `target`; return the image's facts.

        None where one that lies beside an image is damaged, or is not there: the image's layers may
        be.
        """
        self._progress.detail(f"squashfs {found.artifact} of {found.host}: {found.why}")
        layers = self._wanted
        self._wanted = [found.parts.squashfs, found.parts.facts]
        await trio.to_thread.run_sync(self._check_room, source, self._wanted)
        self._progress.stage("pushed", resolved.digest)
        for blob in self._wanted:
            self._progress.blob(blob.digest, 0, blob.size, "waiting")

        def taken() -> dict[str, Any]:
            # One after the other: where one fails, this pull goes on.
            path = self._fetch_one(source, found.parts.facts)
            facts = pushed.facts(self._reference, resolved, found, path)
            self._blobs.take(self._fetch_one(source, found.parts.squashfs), target)
            pushed.check(target, found, f"pulling {self._reference.canonical}")
            return facts

        try:
            return await self._in_thread(taken)
        except UdiError as error:
            if isinstance(error, GaveUp) or resolved.found is not None:
                raise
            self._progress.note(
                f"the squashfs that {found.host} has for it is not used: {error.message}; "
                "the image is made of its layers"
            )
        discard(target)
        self._wanted += layers
        return None

    async def _merge(self, source: Source, resolved: Resolved, target: str) -> dict[str, Any]:
        """Fetch the layers and make the squashfs file `target`; return the image's facts."""
        layers = list({x.digest: x for x in resolved.manifest.layers}.values())
        await trio.to_thread.run_sync(self._check_room, source, layers)
        self._progress.stage("fetch", resolved.digest)
        paths = await self._fetch(source, source.order(layers))
        self._progress.stage("convert", resolved.digest)
        return await trio.to_thread.run_sync(self._convert, resolved, paths, target)

    def _check_room(self, source: Source, blobs: list[Descriptor]) -> None:
        """Raise UdiError where the downloads and half of a usual image's size do not fit."""
        download = source.room(blobs)
        image = sum(x.size if LAYERS.get(x.media_type) != "none" else x.size // 3 for x in blobs)
        free = self._store.free()
        if download + image // 2 > free:
            raise UdiError(
                f"pulling {self._reference.canonical} failed on {self._store.root}: needs about "
                f"{_mega(download + image)} MB, {_mega(free)} MB are free",
                f"make room on {self._store.filesystem()} (`udi images`, `udi rm`), or set "
                "UDI_STORE to a directory on another file system",
            )

    async def _fetch(self, source: Source, blobs: list[Descriptor]) -> dict[str, str]:
        """Fetch the blobs of all layers, several at once; return digest -> path."""
        limiter = trio.CapacityLimiter(source.parallel)
        paths: dict[str, str] = {}
        failures: list[Exception] = []
        for blob in blobs:
            self._progress.blob(blob.digest, 0, blob.size, "waiting")
        async with trio.open_nursery() as nursery:

            async def one(blob: Descriptor) -> None:
                try:
                    async with limiter:
                        paths[blob.digest] = await self._in_thread(self._fetch_one, source, blob)
                except Exception as error:
                    failures.append(error)
                    self.stop.set()
                    # That ends the others, but for threads that are connecting.
                    nursery.cancel_scope.deadline = trio.current_time() + _GRACE_SECONDS

            for blob in blobs:
                nursery.start_soon(one, blob)
        if failures:
            raise failures[0]
        return paths

    def _fetch_one(self, source: Source, blob: Descriptor) -> str:
        def report(done: int) -> None:
            self._progress.blob(blob.digest, done, blob.size, "running")

        path = source.fetch(blob, report)
        self._progress.blob(blob.digest, blob.size, blob.size, "done")
        return path

    def _convert(self, resolved: Resolved, paths: dict[str, str], target: str) -> dict[str, Any]:
        """Write the squashfs file and return the image's facts."""
        parts = [
            merge.Layer(paths[blob.digest], diff_id)
            for blob, diff_id in zip(
                resolved.manifest.layers, resolved.config.diff_ids, strict=True
            )
        ]
        found: list[tuple[merge.Summary, dict[str, Any]]] = []

        def feed(write: Write) -> None:
            from rootless_udi.mpi_inject.libraries.image_facts import Inspector

            inspector = Inspector(bounds.FACTS)
            done = 0

            def counted(data: bytes | bytearray | memoryview) -> None:
                nonlocal done
                self.stop.check()
                write(data)
                done += len(data)
                self._progress.convert(done)

            summary = merge.merge(parts, counted, inspector)
            found.append((summary, inspector.result()))

        squashfs_tools.build(target, self._options.compression, feed, self._options.writer)
        summary, elf = found[-1]
        return facts(self._reference, resolved, self._options.compression, summary, elf)


def _check_writer(options: Options) -> None:
    """Raise UdiError where no squashfs file can be written: no program, unknown compression."""
    if not options.writer:
        squashfs_tools.find(options.compression)
        return
    squashfs_tools.command("image", options.compression, options.writer)
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    if shutil.which(options.writer, path=path) is None:
        raise UdiError(
            f"making a squashfs file failed: {options.writer} was not found",
            "leave the writer out to use tar2sqfs or mksquashfs, whichever is there",
        )


def _mega(size: int) -> str:
    return f"{size / 1e6:.0f}"
