"""A layer's blob as a stream of uncompressed bytes, checked against its diff_id as they pass.

How a blob is compressed is seen at its first bytes, as containerd, moby and skopeo do it: media
types are wrong often enough (buildah#1589, containerd#3326), and the diff_id guards the content.
gzip by isal where it is installed (2.1 times zlib), zstd by whatever this machine has for it.
"""

import hashlib
import shutil
import subprocess
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from importlib import import_module
from queue import Empty, Queue
from threading import Event, Thread
from typing import IO, Any, NoReturn

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.layers.bounds import WINDOW, XZ_MEMORY

_CHUNK = 1 << 18
"""Bytes of the blob that are read at a time."""
_OUT = 1 << 20
"""Most bytes that one call decompresses to, so that memory is bounded for any compression ratio."""
AHEAD = 4
"""Most parts (of _OUT bytes) that are decompressed before somebody takes them."""

_MAGIC = {
    "gzip": b"\x1f\x8b\x08",
    "zstd": b"\x28\xb5\x2f\xfd",
    "xz": b"\xfd7zXZ\0",
}
_DAMAGED = "the blob is damaged; remove it and pull the image again"
HEAD = 512
"""Bytes that `sniff` looks at: the first header of a plain tar."""


def sniff(head: bytes) -> str:
    """Return "gzip", "zstd", "xz", "bzip2" or "tar" for the first HEAD bytes of a blob."""
    if head[257:262] == b"ustar":  # the field "magic" of a header (tarfields.FIELDS)
        return "tar"  # also where the first member's name looks like another format's magic
    for name, magic in _MAGIC.items():
        if head.startswith(magic):
            return name
    # "BZh", the level, then the magic of a block or of the end (pi or its square root in BCD). All
    # of it, since a tar older than ustar may begin with a file whose name begins with BZh.
    if head[:3] == b"BZh" and head[4:10] in (b"1AY&SY", b"\x17rE8P\x90"):
        return "bzip2"
    # Skippable frames may come first in a zstd file (RFC 8878, 3.1.2).
    if len(head) >= 4 and head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5:
        return "zstd"
    return "tar"


def chunks(path: str, label: str) -> Iterator[bytes]:
    """Yield a blob's uncompressed bytes; raise UdiError for a damaged one, naming the offset.

    `label` names the layer in messages.
    """
    with open(trust.regular(path), "rb", buffering=0) as blob:
        kind = sniff(blob.read(HEAD))
        blob.seek(0)
        yield from _READERS[kind](blob, label)


def verified(parts: Iterator[bytes], diff_id: str, label: str) -> Iterator[bytes]:
    """Yield `parts`; after the last one raise UdiError if their digest is not `diff_id`.

    `diff_id` is "sha256:HEX" or "sha512:HEX" (image-spec, config.md).
    """
    algorithm, _, told = diff_id.partition(":")
    if algorithm not in ("sha256", "sha512") or not told:
        raise UdiError(
            f"reading layer {label} failed: diff_id {diff_id!r} is no sha256 or sha512 digest",
            "the image's configuration is wrong; rebuild the image",
        )
    digest = hashlib.new(algorithm)
    for part in parts:
        digest.update(part)
        yield part
    if digest.hexdigest() != told:
        raise UdiError(
            f"reading layer {label} failed: its content has digest "
            f"{algorithm}:{digest.hexdigest()} where the image's configuration says {diff_id}",
            _DAMAGED,
        )


def ahead(parts: Iterator[bytes]) -> Generator[bytes, None, None]:
    """Yield `parts`, which a thread takes from their iterator at most AHEAD in advance.

    The thread ends after the last part, or when close() is called on this generator: a caller that
    stops earlier has to do that. Decompression is most of a merge's work, and isal, zlib and zstd
    release Python's lock while they do it.
    """
    ready: Queue[bytes | BaseException | None] = Queue(AHEAD)
    stopped = Event()

    def work() -> None:
        last: BaseException | None = None
        try:
            for part in parts:
                ready.put(part)
                if stopped.is_set():
                    break
        except BaseException as err:
            last = err
        finally:
            parts.close()  # type: ignore[attr-defined]  # a generator: closes its file
        ready.put(last)

    thread = Thread(target=work, name="decompress", daemon=True)
    thread.start()
    try:
        while isinstance(part := ready.get(), bytes):
            yield part
        if part is not None:
            raise part
    finally:
        stopped.set()
        while thread.is_alive():
            with suppress(Empty):
                ready.get_nowait()  # the thread may be waiting for room in the queue
            thread.join(0.01)


def _refuse(label: str, offset: int, why: str) -> NoReturn:
    raise UdiError(f"reading layer {label} failed at byte {offset} of the blob: {why}", _DAMAGED)


def _plain(blob: IO[bytes], label: str) -> Iterator[bytes]:
    while part := blob.read(_OUT):
        yield part


def _optional(*names: str) -> Any:
    """Return the first module of `names` that is installed, else None."""
    for name in names:
        try:
            return import_module(name)
        except ImportError:
            continue
    return None


def _gzip(blob: IO[bytes], label: str) -> Iterator[bytes]:
    codec: Any = _optional("isal.isal_zlib") or zlib

    def new() -> Any:
        return codec.decompressobj(wbits=16 + zlib.MAX_WBITS)  # with gzip's header

    yield from _inflate(blob, label, new, codec.error)


def _xz(blob: IO[bytes], label: str) -> Iterator[bytes]:
    lzma = _of_python("lzma", label)

    def new() -> Any:
        return lzma.LZMADecompressor(memlimit=XZ_MEMORY)

    yield from _inflate(blob, label, new, lzma.LZMAError)


def _bzip2(blob: IO[bytes], label: str) -> Iterator[bytes]:
    yield from _inflate(blob, label, _of_python("bz2", label).BZ2Decompressor, OSError)


def _of_python(name: str, label: str) -> Any:
    module = _optional(name)
    if module is None:
        raise UdiError(
            f"reading layer {label} failed: this Python was built without the module {name}",
            "use another Python, or push the image again with gzip or zstd",
        )
    return module


def _zstd(blob: IO[bytes], label: str) -> Iterator[bytes]:
    module = _optional("compression.zstd", "backports.zstd")
    if module is not None:
        limit = {module.DecompressionParameter.window_log_max: WINDOW.bit_length() - 1}

        def new() -> Any:
            return module.ZstdDecompressor(options=limit)

        yield from _inflate(blob, label, new, module.ZstdError)
    elif (module := _optional("zstandard")) is not None:
        yield from _zstandard(blob, label, module)
    elif program := shutil.which("zstd"):
        yield from _zstd_program(blob, label, program)
    else:
        raise UdiError(
            f"reading layer {label} failed: it is compressed with zstd, and nothing here reads it",
            "pip install 'rootless_udi[speed]', or install the program zstd",
        )


def _inflate(
    blob: IO[bytes], label: str, new: Callable[[], Any], error: type[Exception]
) -> Iterator[bytes]:
    """Yield what a decompressor object (as zlib's or bz2's) makes of the blob.

    `new` makes such an object; each gzip member or zstd frame of the blob gets its own.
    """
    codec = new()
    fed = 0
    try:
        while data := blob.read(_CHUNK):
            fed += len(data)
            while data:
                if codec.eof:
                    # Another gzip member or zstd frame; zeros are padding (as gzip(1) takes them).
                    if not data.strip(b"\0"):
                        break
                    codec = new()
                out = codec.decompress(data, _OUT)
                if out:
                    yield out
                data = _rest(codec)
                while not data and not codec.eof and len(out) == _OUT:
                    out = codec.decompress(b"", _OUT)
                    if out:
                        yield out
                    data = _rest(codec)
    except (error, EOFError, ValueError) as err:
        _refuse(label, max(0, fed - len(data)), str(err) or "corrupt data")
    if not codec.eof:
        _refuse(label, fed, "the blob ends in the middle of the compressed data")


def _rest(codec: Any) -> bytes:
    """Return the input that `codec` has not used: zlib's objects hand it back, zstd's keep it."""
    if codec.eof:
        return bytes(codec.unused_data)
    return bytes(getattr(codec, "unconsumed_tail", b""))


def _zstandard(blob: IO[bytes], label: str, module: Any) -> Iterator[bytes]:
    codec = module.ZstdDecompressor(max_window_size=WINDOW)
    reader = codec.stream_reader(blob, read_across_frames=True)
    try:
        while part := reader.read(_OUT):
            yield bytes(part)
    except module.ZstdError as err:
        _refuse(label, blob.tell(), str(err))


def _zstd_program(blob: IO[bytes], label: str, program: str) -> Iterator[bytes]:
    argv = [program, "--decompress", "--stdout", "--quiet", "--no-progress"]
    argv.append(f"--memory={WINDOW >> 20}MiB")
    with subprocess.Popen(
        argv, stdin=blob, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=False
    ) as child:
        assert child.stdout and child.stderr
        try:
            while part := child.stdout.read(_OUT):
                yield part
        except GeneratorExit:
            child.kill()
            raise
        said = child.stderr.read().decode(errors="replace").strip()
        if child.wait():
            _refuse(label, blob.tell(), said or f"zstd ended with status {child.returncode}")


_READERS = {"tar": _plain, "gzip": _gzip, "zstd": _zstd, "xz": _xz, "bzip2": _bzip2}
