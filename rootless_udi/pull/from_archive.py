"""The archive source: a tar file as `docker save`, `podman save` or skopeo write it.

Such an archive has a manifest.json, which lists images; their layers are members of the archive,
usually uncompressed (Docker image specification v1.2, "Combined Image JSON + Filesystem Changeset
Format"). One that has index.json as well, or alone, is an OCI image layout in a tar. The archive
itself may be compressed. Layers are copied into the store's blobs/ while their digest is checked,
since a merge reads each of them as a file.
"""

import contextlib
import hashlib
import json
import os
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError, counted
from rootless_udi.layers.blob import HEAD, sniff
from rootless_udi.layers.bounds import EXTENSION, GLOBAL, MEMBERS
from rootless_udi.plan.reference import Platform, Reference, platform_of
from rootless_udi.plan.reference import parse as parse_reference
from rootless_udi.pull import manifest
from rootless_udi.pull.artifact import FoundSquashfs
from rootless_udi.pull.blobs import Blobs, Report
from rootless_udi.pull.claims import Believed
from rootless_udi.pull.manifest import Config, Descriptor, Manifest
from rootless_udi.pull.registry import WrongContent, check
from rootless_udi.pull.sources import Resolved, Told, from_index, parse
from rootless_udi.pull.stop import Stop

_CHUNK = 1 << 20
_LINKS_MAX = 8
"""Links that are followed from a member to the file that has its content."""


def _odd(what: str) -> UdiError:
    return UdiError(
        f"reading an archive failed: it has {what}", "`docker save` and skopeo write no such"
    )


class Info(tarfile.TarInfo):
    """A member's header.

    Refuses what tarfile itself would read into memory, whatever its size: extension headers, and
    the maps of sparse files.
    """

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        extension = self.type not in tarfile.SUPPORTED_TYPES or self.type in _EXTENSIONS
        if extension and self.size > (GLOBAL if self.type == tarfile.XGLTYPE else EXTENSION):
            raise _odd(f"a header of {self.size} bytes")
        if self.type == tarfile.GNUTYPE_SPARSE:
            raise _odd("a sparse file")
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return found


_EXTENSIONS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)


class ArchiveSource:
    """One image of an archive: that of the reference's tag, or the only one without a tag."""

    parallel = 1

    def __init__(self, reference: Reference, blobs: Blobs, stop: Stop) -> None:
        self.what = f"reading {reference.canonical}"
        self._reference = reference
        self._blobs = blobs
        self._stop = stop
        self._lock = threading.Lock()
        self._tar: tarfile.TarFile | None = None
        self._file: BinaryIO | None = None
        self._members: dict[str, tarfile.TarInfo] = {}
        self._layers: dict[str, str] = {}

    def resolve(self, platform: Platform) -> Resolved:
        self._open()
        tag = self._reference.tag
        if "manifest.json" in self._members:
            images = parse(self._read("manifest.json"), f"{self.what}: manifest.json")
            image = self._choose(images, tag, platform)
            found = self._oci(image, platform)
            return found or self._docker(image, platform)
        if "index.json" in self._members:
            return from_index(
                parse(self._read("index.json"), f"{self.what}: index.json"),
                tag,
                self._reference.digest,
                platform,
                self.what,
                self._document,
            )
        raise UdiError(
            f"{self.what}: has neither manifest.json nor index.json",
            "it is no archive of `docker save`; for a root file system's tar make an image of it",
        )

    def _open(self) -> None:
        with self._reading(self._reference.path):
            self._file = os.fdopen(trust.regular(self._reference.path), "rb")
            self._tar = tarfile.open(None, "r:*", self._file, tarinfo=Info)  # noqa: SIM115
            for member in self._tar:
                self._take(self._tar, member)

    @contextlib.contextmanager
    def _reading(self, where: str) -> Iterator[None]:
        """Turn what reading a tar raises into UdiError; `where` it lies."""
        try:
            yield
        except (OSError, EOFError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise UdiError(f"{self.what} failed on {where}: {why}") from None
        except tarfile.TarError as error:
            # Its message has a line for each format that tarfile tried.
            why = str(error).partition("\n")[0]
            raise UdiError(
                f"{self.what} failed on {where}: is no whole tar: {why}",
                "it may be truncated, or compressed by other than gzip, bzip2 or xz",
            ) from None

    def _take(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> str:
        """Remember a member; return its name below the archive's root."""
        self._stop.check()
        if len(self._members) >= MEMBERS or len(tar.pax_headers) > 1000:
            raise _odd(f"more than {MEMBERS} members, or of global headers")
        name = plain(member.name)
        self._members[name] = member
        return name

    def _member(self, name: str) -> tarfile.TarInfo:
        """Return a regular file, by links where a name is one: old Docker links equal layers."""
        name = plain(name)
        for _ in range(_LINKS_MAX):
            member = self._members.get(name)
            if member is None:
                raise UdiError(f"{self.what}: has no {name}", "the archive may be truncated")
            if member.isreg():
                return member
            if not member.issym() and not member.islnk():
                break
            target = member.linkname
            if member.issym():
                target = os.path.join(os.path.dirname(name), target)
            name = plain(target)
        raise UdiError(f"{self.what}: {name} is no file")

    def _content(self, member: tarfile.TarInfo, offset: int, size: int) -> bytes:
        """Return `size` bytes of a member at `offset`; one thread reads the archive at a time."""
        assert self._tar is not None
        with self._lock:
            try:
                file = self._tar.extractfile(member)
                assert file is not None
                file.seek(offset)
                return file.read(size)
            except (OSError, EOFError, tarfile.TarError) as error:
                raise UdiError(f"{self.what} failed on {member.name}: {error}") from None

    def _read(self, name: str) -> bytes:
        member = self._member(name)
        if member.size > manifest.DOCUMENT_MAX:
            raise UdiError(f"{self.what}: {name} is larger than any document may be")
        return self._content(member, 0, member.size)

    def _document(self, descriptor: Descriptor) -> bytes:
        body = self._read("blobs/" + descriptor.digest.replace(":", "/"))
        check(body, descriptor.digest, f"{self.what}: {descriptor.digest}")
        return body

    def _choose(self, images: Any, tag: str, platform: Platform) -> dict[str, Any]:
        """Return the image of that name, or the only one.

        Where several have the name, it is the one that can run on `platform`.
        """
        if not isinstance(images, list) or not all(isinstance(x, dict) for x in images):
            raise UdiError(f"{self.what}: manifest.json is no list of images")
        names = [_tags(image) for image in images]
        shown = ", ".join(name for group in names for name in group) or "no names"
        if tag:
            wanted = _canonical(tag)
            images = [
                image
                for image, group in zip(images, names, strict=True)
                if tag in group or wanted in map(_canonical, group)
            ]
            if not images:
                raise UdiError(f"{self.what}: has no image {tag!r}", f"it has {shown}")
        if len(images) > 1 and (tag or all(group == names[0] for group in names)):
            # One name for several machines.
            images = [image for image in images if self._fits(image, platform)]
            if len(images) != 1:
                why = f"has {len(images) or 'no'} images for {platform} of the name {tag or shown}"
                raise UdiError(f"{self.what}: {why}", "choose another by --platform")
        if len(images) != 1:
            raise UdiError(
                f"{self.what}: holds {len(images)} images", f"add ':NAME' of one: {shown}"
            )
        return dict(images[0])

    def _fits(self, image: dict[str, Any], platform: Platform) -> bool:
        try:
            self._config(image, platform)
        except UdiError:
            return False
        return True

    def _oci(self, image: dict[str, Any], platform: Platform) -> Resolved | None:
        """Resolve by index.json, where there is one and it has an image with this one's config."""
        if "index.json" not in self._members:
            return None
        index = parse(self._read("index.json"), f"{self.what}: index.json")
        for _, found in manifest.entries(index, "index.json", self.what)[0]:
            try:
                one = from_index(index, "", found.digest, platform, self.what, self._document)
            except WrongContent:
                raise
            except UdiError:
                # An entry for another image, or another machine's: go on to the next. If none fits,
                # manifest.json has all that is needed.
                continue
            algorithm, _, text = one.manifest.config.digest.partition(":")
            if str(image.get("Config")) in (f"blobs/{algorithm}/{text}", f"{text}.json"):
                for layer in one.manifest.layers:
                    self._layers[layer.digest] = "blobs/" + layer.digest.replace(":", "/")
                return one
        return None

    def _docker(self, image: dict[str, Any], platform: Platform) -> Resolved:
        """Make a manifest, which such an archive lacks; equal images get equal digests."""
        names, raw, config = self._config(image, platform)
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        layers = [
            self._layer(str(name), diff_id)
            for name, diff_id in zip(names, config.diff_ids, strict=True)
        ]
        document = {
            "schemaVersion": 2,
            "mediaType": manifest.OCI_MANIFEST,
            "config": _json(Descriptor(manifest.OCI_CONFIG, digest, len(raw))),
            "layers": [_json(layer) for layer in layers],
        }
        body = json.dumps(document, separators=(",", ":")).encode()
        found = Manifest(Descriptor(manifest.OCI_CONFIG, digest, len(raw)), tuple(layers))
        return Resolved(f"sha256:{hashlib.sha256(body).hexdigest()}", found, config)

    def _config(self, image: dict[str, Any], platform: Platform) -> tuple[list[Any], bytes, Config]:
        """Return the layers' names, and the config as its bytes and as checked."""
        names, path = image.get("Layers"), image.get("Config")
        if not isinstance(path, str) or not isinstance(names, list):
            raise UdiError(f"{self.what}: manifest.json has no Config or no Layers")
        raw = self._read(path)
        here = platform_of(os.uname().machine)
        found = manifest.config(parse(raw, self.what), platform, here, len(names), self.what)
        return names, raw, found

    def _layer(self, name: str, diff_id: str) -> Descriptor:
        member = self._member(name)
        kind = sniff(self._content(member, 0, HEAD))
        digest = diff_id if kind == "tar" else self._hash(member)
        self._layers[digest] = name
        end = f"+{kind}" if kind in ("gzip", "zstd") else ""
        return Descriptor(manifest.OCI_LAYER + end, digest, member.size)

    def _hash(self, member: tarfile.TarInfo) -> str:
        summed = hashlib.sha256()
        for offset in range(0, member.size, _CHUNK):
            self._stop.check()
            summed.update(self._content(member, offset, _CHUNK))
        return f"sha256:{summed.hexdigest()}"

    def fetch(self, layer: Descriptor, report: Report) -> str:
        name = self._name_of(layer)
        member = self._member(name)
        what = f"{self.what}: layer {name}"
        if member.size != layer.size:
            raise WrongContent(f"{what}: has {counted(member.size, 'byte')}, not {layer.size}")

        def copy(
            descriptor: Descriptor,
            have: int,
            write: Callable[[bytes, int], None],
            restart: Callable[[], None],
        ) -> None:
            for offset in range(have, member.size, _CHUNK):
                self._stop.check()
                data = self._content(member, offset, _CHUNK)
                if len(data) != min(_CHUNK, member.size - offset):
                    raise WrongContent(f"{what}: is truncated")
                write(data, offset)

        return self._blobs.fetch(layer, copy, report, what)

    def allowed(self, resolved: Resolved, believed: Believed) -> tuple[str, ...]:
        return believed.allow(self._reference, (), lambda digest: ())

    def squashfs(self, digest: str, believed: Believed, told: Told) -> FoundSquashfs | None:
        return None

    def order(self, layers: Sequence[Descriptor]) -> list[Descriptor]:
        """Return the layers in the archive's order: so a compressed one is read once, forwards."""
        return sorted(layers, key=lambda layer: self._member(self._name_of(layer)).offset)

    def _name_of(self, layer: Descriptor) -> str:
        return self._layers.get(layer.digest) or "blobs/" + layer.digest.replace(":", "/")

    def room(self, layers: Sequence[Descriptor]) -> int:
        return sum({layer.digest: layer.size for layer in layers}.values())

    def close(self, used: bool) -> None:
        self._blobs.release(used)
        if self._tar is not None:
            self._tar.close()
        if self._file is not None:
            self._file.close()


def plain(name: str) -> str:
    """Return a member's name below the archive's root."""
    return os.path.normpath(name).lstrip("/")


def _canonical(tag: str) -> str:
    """Return a tag in full; one that is no reference as it is."""
    try:
        return parse_reference(tag).canonical
    except UdiError:
        return tag


def _tags(image: dict[str, Any]) -> list[str]:
    tags = image.get("RepoTags")
    return [tag for tag in tags if isinstance(tag, str)] if isinstance(tags, list) else []


def _json(descriptor: Descriptor) -> dict[str, Any]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
