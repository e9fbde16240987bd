"""Decompressors for squashfs blocks, from whatever library this machine has.

`decompressor(name)` returns a function (data, most) -> bytes. It never makes more than `most`
bytes, whatever the data says, and raises `Corrupt` for damaged data. Several threads may call it at
once, and gain by it: each call has its own context, and Python's lock (GIL) is released meanwhile.

For each compressor the candidates are tried in order. gzip and xz come with Python. zstd comes with
Python 3.14 and later only, LZ4 and LZO never; for these the C library is used through ctypes, which
also decompresses straight into the result without a copy. Nearly every Linux has libzstd.so.1,
since dpkg, rpm and systemd need it. Packages of PyPI come last. No candidate is loaded before its
format is asked for.
"""

from os import RTLD_NOW
from sys import byteorder, maxsize

from rootless_udi.base.errors import UdiError
from rootless_udi.fuse.format import Corrupt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Decompress = Callable[[bytes, int], bytes]

PACKAGES = {
    "gzip": "the zlib module of Python",
    "xz": "the lzma module of Python",
    "lzma": "the lzma module of Python",
    "zstd": "Python 3.14, libzstd.so.1, or `pip install backports.zstd`",
    "lz4": "liblz4.so.1, or `pip install lz4`",
    "lzo": "liblzo2.so.2, or `pip install python-lzo`",
}
"""What a user can install for each compressor, for the hint of an error."""


_made: "dict[Callable[[], Decompress], Decompress]" = {}
"""Decompressors that were loaded before: the image server loads the usual one while it waits."""

_SIZE_T = (maxsize.bit_length() + 1) // 8
"""Bytes of a size_t."""


def decompressor(name: str) -> "Decompress":
    """Return the decompressor for `name` (of base.superblock.COMPRESSORS).

    Raises UdiError where this machine has none.
    """
    for attempt in _CANDIDATES[name]:
        try:
            if attempt not in _made:
                _made[attempt] = attempt()
            return _made[attempt]
        except (ImportError, OSError, AttributeError):
            continue
    raise UdiError(
        f"reading failed on a {name} image: this machine has no decompressor for {name}",
        f"install {PACKAGES[name]}; `udi doctor` shows what is here",
    )


def available(name: str) -> bool:
    """Tell whether `name` can be decompressed here; False for a compressor that is not known."""
    if name not in _CANDIDATES:
        return False
    try:
        decompressor(name)
    except UdiError:
        return False
    return True


def _too_long(name: str, most: int) -> Corrupt:
    return Corrupt(f"a {name} block holds more than its {most} bytes")


def _zlib() -> "Decompress":
    try:
        module: Any = __import__("isal.isal_zlib", fromlist=["decompressobj"])  # twice as fast
    except ImportError:
        module = __import__("zlib")
    make, failure = module.decompressobj, module.error

    def run(data: bytes, most: int) -> bytes:
        stream = make()
        try:
            found: bytes = stream.decompress(data, most)
            if not stream.eof:  # the output is full, and the end of the stream was not read yet
                found += stream.decompress(stream.unconsumed_tail, 1)
        except failure as error:
            raise Corrupt(f"a gzip block is damaged ({error})") from None
        if len(found) > most:
            raise _too_long("gzip", most)
        if not stream.eof:
            raise Corrupt("a gzip block is cut short")
        return found

    return run


def _lzma(alone: bool) -> "Decompress":
    import _lzma as lzma

    container = lzma.FORMAT_ALONE if alone else lzma.FORMAT_XZ
    limit = 64 << 20  # memory; a dictionary is never larger than a block, which has 1 MiB at most

    def run(data: bytes, most: int) -> bytes:
        try:
            stream = lzma.LZMADecompressor(container, limit)
            found = stream.decompress(data, most + 1)
        except (lzma.LZMAError, MemoryError) as error:
            raise Corrupt(f"an xz block is damaged ({error})") from None
        if len(found) > most:
            raise _too_long("xz", most)
        if not stream.eof and not alone:
            raise Corrupt("an xz block is cut short")
        return found

    return run


def _function(library: "str | None", name: str, result: str, arguments: str) -> "Any":
    """Return the C function `name` of a shared library, or of Python itself where that is None.

    A function of Python is called with the GIL held. `result` and `arguments` are types in ctypes'
    letters: i int, L size_t, P void *, z const char *, O object. This uses the extension module
    `_ctypes`, as base.syscalls does: the package `ctypes` around it costs 4 ms at each start.
    """
    import _ctypes

    def kind(letter: str) -> "Any":
        return type(letter, (_ctypes._SimpleCData,), {"_type_": letter})

    flags = _ctypes.FUNCFLAG_CDECL | (0 if library else _ctypes.FUNCFLAG_PYTHONAPI)
    maker = type(name, (_ctypes.CFuncPtr,), {"_flags_": flags, "_restype_": kind(result)})
    function: Any = maker(_ctypes.dlsym(_ctypes.dlopen(library, RTLD_NOW), name))  # type: ignore[arg-type]
    function.argtypes = tuple(kind(letter) for letter in arguments)
    return function


def _uninitialised() -> "Callable[[None, int], bytes]":
    """Return PyBytes_FromStringAndSize: with NULL it makes a bytes object that C may still fill."""
    make: Callable[[None, int], bytes] = _function(None, "PyBytes_FromStringAndSize", "O", "PL")
    return make


_zstd_contexts: list[int] = []
"""Contexts of libzstd that no call uses now, 150 KiB each. They are never freed, since the next
image that this process opens can use them; there are as many as calls ever ran at the same time."""


def _libzstd() -> "Decompress":
    library = "libzstd.so.1"
    create = _function(library, "ZSTD_createDCtx", "P", "")
    call = _function(library, "ZSTD_decompressDCtx", "L", "PzLzL")
    wrong = _function(library, "ZSTD_isError", "i", "L")
    why = _function(library, "ZSTD_getErrorName", "z", "L")
    highest = 2 * maxsize - 4096  # errors are small negative numbers, as size_t above this
    make = _uninitialised()
    contexts = _zstd_contexts

    def run(data: bytes, most: int) -> bytes:
        out = make(None, most)
        try:
            context = contexts.pop()
        except IndexError:
            context = create()
        found = call(context, out, most, data, len(data))
        contexts.append(context)
        if found == most:
            return out
        if found > highest and wrong(found):
            raise Corrupt(f"a zstd block is damaged ({why(found).decode()})")
        return out[:found]

    return run


def _zstd_module(name: str) -> "Callable[[], Decompress]":
    def attempt() -> "Decompress":
        module: Any = __import__(name, fromlist=["ZstdDecompressor"])
        make, failure = module.ZstdDecompressor, module.ZstdError

        def run(data: bytes, most: int) -> bytes:
            try:
                stream = make()
                found: bytes = stream.decompress(data, most + 1)
            except failure as error:
                raise Corrupt(f"a zstd block is damaged ({error})") from None
            if len(found) > most:
                raise _too_long("zstd", most)
            if not stream.eof:
                raise Corrupt("a zstd block is cut short")
            return found

        return run

    return attempt


def _zstandard() -> "Decompress":
    import zstandard

    def run(data: bytes, most: int) -> bytes:
        try:  # `max_output_size` bounds the output only where the frame does not say its size
            if zstandard.frame_content_size(data) > most:
                raise _too_long("zstd", most)
            found: bytes = zstandard.ZstdDecompressor().decompress(data, max_output_size=most)
        except zstandard.ZstdError as error:
            raise Corrupt(f"a zstd block is damaged ({error})") from None
        return found

    return run


def _liblz4() -> "Decompress":
    call = _function("liblz4.so.1", "LZ4_decompress_safe", "i", "zzii")
    make = _uninitialised()

    def run(data: bytes, most: int) -> bytes:
        out = make(None, most)
        found = call(data, out, len(data), most)
        if found < 0:
            raise Corrupt("an lz4 block is damaged")
        return out if found == most else out[:found]

    return run


def _lz4_package() -> "Decompress":
    from lz4 import block

    def run(data: bytes, most: int) -> bytes:
        try:
            found: bytes = block.decompress(data, uncompressed_size=most)
        except block.LZ4BlockError:
            raise Corrupt("an lz4 block is damaged") from None
        return found

    return run


def _liblzo() -> "Decompress":
    call = _function("liblzo2.so.2", "lzo1x_decompress_safe", "i", "zLzzP")
    make = _uninitialised()

    def run(data: bytes, most: int) -> bytes:
        # C writes the length of the result into `length`. Nobody else has that bytes object.
        out, length = make(None, most), most.to_bytes(_SIZE_T, byteorder)
        status = call(data, len(data), out, length, None)
        if status != 0:
            raise Corrupt(f"an lzo block is damaged (status {status})")
        found = int.from_bytes(length, byteorder)
        return out if found == most else out[:found]

    return run


def _lzo_package() -> "Decompress":
    import lzo

    def run(data: bytes, most: int) -> bytes:
        try:
            found: bytes = lzo.decompress(data, False, most)
        except lzo.error as error:
            raise Corrupt(f"an lzo block is damaged ({error})") from None
        return found

    return run


def zstd_start(data: bytes, most: int) -> bytes | None:
    """Return the first bytes, `most` at most, of a zstd frame of which `data` is the beginning.

    None where this machine has nothing that can do it. Raises Corrupt.
    """
    for attempt in (_libzstd_start, _zstd_module_start):
        try:
            return attempt(data, most)
        except (ImportError, OSError, AttributeError):
            continue
    return None


def _libzstd_start(data: bytes, most: int) -> bytes:
    library = "libzstd.so.1"
    # ZSTD_decompressStream does the same, but takes its arguments in structures.
    call = _function(library, "ZSTD_decompressStream_simpleArgs", "L", "PzLzzLz")
    wrong = _function(library, "ZSTD_isError", "i", "L")
    why = _function(library, "ZSTD_getErrorName", "z", "L")
    context = _function(library, "ZSTD_createDCtx", "P", "")()
    # C writes into these two numbers and `out`. Nobody else has those bytes objects.
    made, taken = (0).to_bytes(_SIZE_T, byteorder), (0).to_bytes(_SIZE_T, byteorder)
    out = _uninitialised()(None, most)
    status = call(context, out, most, made, data, len(data), taken)
    failed, text = wrong(status), why(status)
    _function(library, "ZSTD_freeDCtx", "L", "P")(context)
    if failed:
        raise Corrupt(f"a zstd frame is damaged ({text.decode()})")
    return out[: int.from_bytes(made, byteorder)]


def _zstd_module_start(data: bytes, most: int) -> bytes:
    try:
        module: Any = __import__("compression.zstd", fromlist=["ZstdDecompressor"])
    except ImportError:
        module = __import__("backports.zstd", fromlist=["ZstdDecompressor"])
    try:
        found: bytes = module.ZstdDecompressor().decompress(data, most)
    except module.ZstdError as error:
        raise Corrupt(f"a zstd frame is damaged ({error})") from None
    return found


_CANDIDATES: "dict[str, tuple[Callable[[], Decompress], ...]]" = {
    "gzip": (_zlib,),
    "xz": (lambda: _lzma(False),),
    "lzma": (lambda: _lzma(True),),
    "zstd": (
        _libzstd,
        _zstd_module("compression.zstd"),
        _zstd_module("backports.zstd"),
        _zstandard,
        _zstd_module("pyzstd"),
    ),
    "lz4": (_liblz4, _lz4_package),
    "lzo": (_liblzo, _lzo_package),
}
