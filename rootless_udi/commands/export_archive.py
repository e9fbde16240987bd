"""Write an image as an archive that other tools load (oci, docker-archive), with one layer.

Our own reader reads the tree from the squashfs file, which needs no privilege. The layer's tar is
like the merged tar of a pull: all belongs to 0:0, and there are no devices.
"""

import gzip
import hashlib
import io
import json
import os
import tarfile
from collections.abc import Iterator
from tempfile import TemporaryFile
from typing import IO, Any, BinaryIO

from rootless_udi.base.errors import UdiError
from rootless_udi.fuse import format as squashfs
from rootless_udi.fuse.filesystem import ROOT, FileSystem
from rootless_udi.fuse.format import Corrupt
from rootless_udi.fuse.relayout import reading
from rootless_udi.layers.tarreader import DIRECTORY, FIFO, LINK, SYMLINK
from rootless_udi.layers.tarwriter import TarWriter
from rootless_udi.plan.image import Image
from rootless_udi.plan.reference import parse, platform_of
from rootless_udi.store import windows

_CHUNK = 1 << 20
_GROWTH, _ALWAYS = 5000, 1 << 30
"""Most bytes of files in an image: _GROWTH times its size, and _ALWAYS more. zstd makes 4000 bytes
of one at most; a damaged image may claim any size."""
_MEDIA = "application/vnd.oci.image"


def write(image: Image, name: str, kind: str, out: BinaryIO, folder: str) -> None:
    """Write `image` to `out`; `kind` is "oci-archive" or "docker-archive".

    `name` is the name in the archive, "" for none. Meanwhile the layer is in a file without a name
    in `folder`. Raises UdiError for a damaged image.
    """
    packed = kind == "oci-archive"
    with TemporaryFile(dir=folder or ".") as layer:
        hashed = _Hashed(layer)
        try:
            if packed:
                with _gzip(hashed) as inner:
                    plain = _Hashed(inner)
                    _layer_of(image.path, plain)
            else:
                plain = hashed
                _layer_of(image.path, plain)
        except Corrupt as error:
            raise UdiError(
                f"exporting {image.request} failed: the image is damaged: {error}", "pull it again"
            ) from None
        config = json.dumps(_config(image.facts, plain.digest)).encode()
        layer.seek(0)
        with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
            if packed:
                _oci(archive, config, layer, hashed, name)
            else:
                _docker(archive, config, layer, hashed, name)


def _gzip(target: Any) -> gzip.GzipFile:
    return gzip.GzipFile(fileobj=target, mode="wb", compresslevel=6, mtime=0)


class _Hashed:
    """Passes bytes on to `target`, and computes their digest and size."""

    def __init__(self, target: IO[bytes] | gzip.GzipFile) -> None:
        self.target, self.size, self._sum = target, 0, hashlib.sha256()

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        self._sum.update(data)
        self.size += len(data)
        return self.target.write(data)

    @property
    def digest(self) -> str:
        return f"sha256:{self._sum.hexdigest()}"


def _layer_of(path: str, out: _Hashed) -> None:
    """Write the tree of the squashfs at `path` as a tar. Raises Corrupt."""
    fs = reading(path)
    try:
        windows.refuse_damage(fs.reader.source.fd, f"exporting failed on {path}")
        room = os.fstat(fs.reader.source.fd).st_size * _GROWTH + _ALWAYS
        writer = TarWriter(out.write)
        first: dict[int, bytes] = {}
        for name, node in _walk(fs):
            mode, mtime = fs.attributes(node)[4] & 0o7777, fs.attributes(node)[3]
            xattrs = {key: fs.xattr(node, key) for key in fs.xattrs(node)}
            one = fs.inode(node)
            if one.kind != squashfs.DIR and node in first:
                writer.member(LINK, name, mode, mtime, first[node])
                continue
            first[node] = name
            if one.kind == squashfs.REG:
                room -= one.size
                if room < 0:
                    raise Corrupt("its files have more bytes than such a file can hold")
                writer.file(name, one.size, mode, mtime, _content(fs, node, one.size), xattrs)
            elif one.kind == squashfs.DIR:
                writer.member(DIRECTORY, name + b"/", mode, mtime, b"", xattrs)
            elif one.kind == squashfs.SYMLINK:
                writer.member(SYMLINK, name, mode, mtime, fs.readlink(node), xattrs)
            elif one.kind == squashfs.FIFO:
                writer.member(FIFO, name, mode, mtime, b"", xattrs)
        writer.close()
    finally:
        fs.close()
        os.close(fs.reader.source.fd)


def _walk(fs: FileSystem) -> Iterator[tuple[bytes, int]]:
    """Yield (path, node) of everything below the root, a folder before what is in it."""
    seen = {ROOT}
    stack = [(b"", ROOT)]
    while stack:
        path, node = stack.pop()
        if path:
            yield path, node
        if fs.inode(node).kind != squashfs.DIR:
            continue
        below = []
        for name, child, _, _, _ in fs.entries(node, 0):
            if not child:
                continue
            if b"/" in name or name in (b"", b".", b".."):
                raise Corrupt(f"a name that is none: {name[:100]!r}")
            if fs.inode(child).kind == squashfs.DIR:
                if child in seen:
                    raise Corrupt("a folder that is in two places")
                seen.add(child)
            below.append((path + b"/" + name if path else name, child))
        stack += reversed(below)


def _content(fs: FileSystem, node: int, size: int) -> Iterator[memoryview]:
    for at in range(0, size, _CHUNK):
        data = b"".join(fs.read(node, at, _CHUNK))
        if len(data) != min(_CHUNK, size - at):
            raise Corrupt("a file that is shorter than its inode says")
        yield memoryview(data)


def _config(facts: dict[str, Any], diff_id: str) -> dict[str, Any]:
    run: dict[str, Any] = {
        "Env": facts.get("env"),
        "Entrypoint": facts.get("entrypoint"),
        "Cmd": facts.get("cmd"),
        "WorkingDir": facts.get("workdir"),
        "User": facts.get("user"),
        "Labels": facts.get("labels"),
        "Volumes": {name: {} for name in facts.get("volumes") or ()},
        "ExposedPorts": {name: {} for name in facts.get("ports") or ()},
    }
    here = platform_of(os.uname().machine)
    found = {
        "created": facts.get("created") or "1970-01-01T00:00:00Z",
        "architecture": facts.get("architecture") or here.architecture,
        "variant": facts.get("variant"),
        "os": "linux",
        "config": {key: value for key, value in run.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        "history": [{"created_by": "udi export"}],
    }
    return {key: value for key, value in found.items() if value}


def _oci(
    archive: tarfile.TarFile,
    config: bytes,
    layer: IO[bytes],
    hashed: _Hashed,
    name: str,
) -> None:
    """Write an OCI image layout as a tar (image-spec 1.1, image-layout.md)."""
    media = f"{_MEDIA}.layer.v1.tar+gzip"
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{_MEDIA}.manifest.v1+json",
        "config": _descriptor(config, f"{_MEDIA}.config.v1+json"),
        "layers": [{"mediaType": media, "digest": hashed.digest, "size": hashed.size}],
    }
    body = json.dumps(manifest).encode()
    top: dict[str, Any] = _descriptor(body, manifest["mediaType"])
    top["platform"] = {"os": "linux", "architecture": json.loads(config)["architecture"]}
    if name:
        reference = parse(name)
        top["annotations"] = {
            "org.opencontainers.image.ref.name": reference.tag,
            "io.containerd.image.name": name,
        }
    index = {"schemaVersion": 2, "mediaType": f"{_MEDIA}.index.v1+json", "manifests": [top]}
    _add(archive, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    _add(archive, "index.json", json.dumps(index).encode())
    # Without these members skopeo would make the folders as root's, and fail for other users.
    for folder in ("blobs", "blobs/sha256"):
        info = tarfile.TarInfo(folder)
        info.type, info.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(info)
    for data in (body, config):
        _add(archive, f"blobs/sha256/{hashlib.sha256(data).hexdigest()}", data)
    _add_file(archive, f"blobs/sha256/{hashed.digest[7:]}", layer, hashed.size)


def _docker(
    archive: tarfile.TarFile, config: bytes, layer: IO[bytes], hashed: _Hashed, name: str
) -> None:
    """Write what `docker save` writes (moby, image/spec/v1.2)."""
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    layer_name = f"{hashed.digest[7:]}/layer.tar"
    tags = [name] if name else None
    rows = [{"Config": config_name, "RepoTags": tags, "Layers": [layer_name]}]
    _add(archive, config_name, config)
    _add_file(archive, layer_name, layer, hashed.size)
    _add(archive, "manifest.json", json.dumps(rows).encode())


def _descriptor(data: bytes, media: object) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    return {"mediaType": media, "digest": digest, "size": len(data)}


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    _add_file(archive, name, io.BytesIO(data), len(data))


def _add_file(archive: tarfile.TarFile, name: str, source: IO[bytes], size: int) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = size, 0o644
    archive.addfile(info, source)
