"""The source of archives that come through a pipe, and of images that other tools keep.

`docker save NAME | udi pull -`, and the same for who names docker-daemon:NAME or
containers-storage:NAME (containers-transports(5)): the tool's program is started. The archive is
read once, forwards, and is nowhere a file: its documents stay in memory, and each layer goes into
the store's blobs/ as it passes, in a file without a name, of which nothing stays, however the pull
ends. A merge needs the layers as files.
"""

import hashlib
import os
import shutil
import signal
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from typing import IO, Any

from rootless_udi.base.errors import UdiError, counted
from rootless_udi.layers.bounds import DOCUMENT
from rootless_udi.plan.reference import Platform, Reference
from rootless_udi.plan.reference import parse as parse_reference
from rootless_udi.pull.blobs import Blobs, Report, hash_file
from rootless_udi.pull.from_archive import ArchiveSource, Info, plain
from rootless_udi.pull.manifest import Descriptor
from rootless_udi.pull.registry import WrongContent, matches
from rootless_udi.pull.sources import Resolved
from rootless_udi.pull.stop import Stop
from rootless_udi.store.store import Store

_CHUNK = 1 << 20
_SMALL = 1 << 20
"""Bytes. Members up to this size may be documents, and stay in memory."""
_KEPT = 16 * DOCUMENT
"""Bytes that such members may have together; those that follow go into files."""

_PROGRAMS = {
    "docker-daemon": (("docker", "save"),),
    "containers-storage": (
        ("podman", "save", "--quiet", "--format=docker-archive"),
        ("buildah", "push", "--quiet"),
        ("skopeo", "copy", "--quiet"),
    ),
}
"""What writes an image to its standard output; the first that is installed does."""

_REMEDIES = {
    "docker": "the daemon must run, and you must be in the group that may ask it: "
    "`docker images` shows what it has",
    "podman": "`podman images` shows what is there for you",
    "buildah": "`buildah images` shows what is there for you",
    "skopeo": "`podman images` or `buildah images` shows what is there for you",
}


def command(storage: str, name: str) -> list[str]:
    """Return the command line that writes image `name` of a storage as a docker-archive.

    Raises UdiError where no program for that is installed.
    """
    for words in _PROGRAMS[storage]:
        if shutil.which(words[0]) is None:
            continue
        if words[0] == "buildah":
            return [*words, name, "docker-archive:/dev/stdout"]
        if words[0] == "skopeo":
            return [*words, f"containers-storage:{name}", "docker-archive:/dev/stdout"]
        return [*words, name]
    names = ", ".join(words[0] for words in _PROGRAMS[storage])
    raise UdiError(
        f"reading {storage}:{name} failed: {names}: not found",
        "install it, or pipe the archive: `docker save NAME | udi pull -`",
    )


class StreamSource(ArchiveSource):
    """The image of an archive that is read from a pipe: standard input's, or a program's."""

    def __init__(self, reference: Reference, store: Store, blobs: Blobs, stop: Stop) -> None:
        super().__init__(reference, blobs, stop)
        self._store = store
        self._program: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._argv: list[str] = []
        self._small: dict[str, bytes] = {}
        self._files: dict[str, tuple[IO[bytes], str]] = {}
        self._name = ""
        if reference.kind == "stream":
            self.what = "reading the archive"
        else:
            self._argv = command(reference.kind, reference.path)

    def resolve(self, platform: Platform) -> Resolved:
        found = super().resolve(platform)
        return found.replace(name=self._name)

    def _open(self) -> None:
        if not self._argv:
            if os.isatty(0):
                raise UdiError(
                    f"{self.what} failed: standard input is a terminal",
                    "pipe an archive: docker save NAME | udi pull -",
                )
            with open(os.dup(0), "rb", buffering=0) as file:
                self._scan(file, "standard input")
            return
        self._said = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._program = subprocess.Popen(
                self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self._said
            )
        except OSError as error:
            raise UdiError(f"{self.what} failed on {self._argv[0]}: {error.strerror}") from None
        pipe = self._program.stdout
        assert pipe is not None
        with pipe:
            try:
                self._scan(pipe, f"what {self._argv[0]} wrote")
            except UdiError:
                # Its own words say more than that the archive is not whole. It ends now, for want
                # of a reader if for no other reason.
                pipe.close()
                self._ended(fine=(0, -signal.SIGPIPE, 128 + signal.SIGPIPE))
                raise
        self._ended()

    def _ended(self, fine: tuple[int, ...] = (0,)) -> None:
        """Wait for the program's end; raise UdiError with what it said if it failed."""
        assert self._program is not None and self._said is not None
        status = self._program.wait()
        if status in fine:
            return
        self._said.seek(0, os.SEEK_END)
        self._said.seek(max(0, self._said.tell() - 4096))
        lines = self._said.read().decode("utf-8", "replace").strip().splitlines()
        why = lines[-1].strip() if lines else f"it ended with status {status}"
        raise UdiError(
            f"{self.what} failed on {' '.join(self._argv[:2])}: {why}",
            _REMEDIES[self._argv[0]],
        )

    def _scan(self, file: IO[bytes], where: str) -> None:
        """Read the archive to its end: documents into memory, the rest into files."""
        kept = 0
        with self._reading(where):
            with tarfile.open(None, "r|*", file, tarinfo=Info) as tar:
                for member in tar:
                    name = self._take(tar, member)
                    if not member.isreg():
                        continue
                    content = tar.extractfile(member)
                    assert content is not None
                    if member.size <= _SMALL and kept + member.size <= _KEPT:
                        self._small[name] = self._whole(content.read(), member)
                        kept += member.size
                    else:
                        self._files[name] = self._filed(content, member)
            # What follows the end's mark, so that the program can write it all.
            while file.read(_CHUNK):
                self._stop.check()

    def _whole(self, data: bytes, member: tarfile.TarInfo) -> bytes:
        if len(data) != member.size:
            raise tarfile.ReadError(f"unexpected end of data in {member.name}")
        return data

    def _filed(self, content: IO[bytes], member: tarfile.TarInfo) -> tuple[IO[bytes], str]:
        """Return an open file without a name that has a member's content, and its digest."""
        file = self._new_file()
        summed, done = hashlib.sha256(), 0
        while data := content.read(_CHUNK):
            self._stop.check()
            summed.update(data)
            done += len(data)
            self._write(file, data)
        if done != member.size:
            raise tarfile.ReadError(f"unexpected end of data in {member.name}")
        return file, f"sha256:{summed.hexdigest()}"

    def _new_file(self) -> IO[bytes]:
        try:
            folder = self._store.path("blobs", "")
            return tempfile.TemporaryFile(dir=folder, buffering=0)
        except OSError as error:
            raise self._store.refused("storing a layer", error) from None

    def _write(self, file: IO[bytes], data: bytes) -> None:
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise self._store.refused("storing a layer", error) from None

    def _content(self, member: tarfile.TarInfo, offset: int, size: int) -> bytes:
        name = plain(member.name)
        if name in self._small:
            return self._small[name][offset : offset + size]
        return os.pread(self._files[name][0].fileno(), size, offset)

    def _hash(self, member: tarfile.TarInfo) -> str:
        name = plain(member.name)
        if name in self._files:
            return self._files[name][1]
        return f"sha256:{hashlib.sha256(self._small[name]).hexdigest()}"

    def _choose(self, images: Any, tag: str, platform: Platform) -> dict[str, Any]:
        image = super()._choose(images, tag, platform)
        tags = image.get("RepoTags")
        for one in tags if isinstance(tags, list) else []:
            try:
                found = parse_reference(str(one))
            except UdiError:
                continue
            if found.kind == "registry" and not found.digest:
                self._name = found.canonical
                break
        return image

    def fetch(self, layer: Descriptor, report: Report) -> str:
        member = self._member(self._name_of(layer))
        name = plain(member.name)
        what = f"{self.what}: layer {name}"
        if member.size != layer.size:
            raise WrongContent(f"{what}: has {counted(member.size, 'byte')}, not {layer.size}")
        if name in self._small:
            file = self._new_file()
            self._write(file, self._small[name])
            self._files[name] = file, self._hash(member)
            del self._small[name]
        file, digest = self._files[name]
        path = f"/proc/self/fd/{file.fileno()}"
        if layer.digest.startswith("sha512:"):
            digest = hash_file(path, "sha512", self._stop)
        matches(digest, layer.digest, what)
        report(member.size)
        return path

    def room(self, layers: Sequence[Descriptor]) -> int:
        # They are there already, but for the smallest.
        return 0

    def close(self, used: bool) -> None:
        if self._program is not None and self._program.poll() is None:
            self._program.kill()
            self._program.wait()
        if self._said is not None:
            self._said.close()
        for file, _ in self._files.values():
            file.close()
        self._files.clear()
        super().close(used)
