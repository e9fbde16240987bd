"""Write programs with code for GPUs: ELF files, NVIDIA's fat binaries, AMD's bundles."""

import struct
import subprocess
import zlib

HOST, CUDA, AMDGPU = 62, 190, 224
"""e_machine."""
_KINDS = {"sm": 2, "compute": 1, "lto": 8}
_SUFFIX = {"": 0, "a": 0x100000, "f": 0x200000}
_COMPRESSED = 0x8000


def fatbin(*codes: str, size: int = 0) -> bytes:
    """Return a container with entries "sm_80", "sm_90a", "compute_90@8.4", "lto_80".

    `size` is the least number of bytes of each.
    """
    body = b""
    for code in codes:
        kind, _, rest = code.partition("_")
        name, _, version = rest.partition("@")
        digits = name.rstrip("af")
        major, minor = map(int, (version or "1.7").split("."))
        flags = _COMPRESSED | _SUFFIX[name[len(digits) :]] | 0x11
        data = b"\x28\xb5\x2f\xfd and so on, compressed"
        data += bytes(max(0, size - len(data)))
        length = len(data)
        data += bytes(-length % 8)
        head = struct.pack("<HHIQII", _KINDS[kind], 0x101, 64, len(data), length, 0)
        head += struct.pack("<HHIIIQ", minor, major, int(digits), 0, 0, flags)
        body += head + bytes(64 - len(head)) + data
    return struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(body)) + body


def bundle(*processors: str, code: bytes = b"\x7fELF code of a GPU") -> bytes:
    """Return AMD's bundle with the host's empty entry and one for each processor."""
    names = ["host-x86_64-unknown-linux--", *(f"hipv4-amdgcn-amd-amdhsa--{p}" for p in processors)]
    size = 24 + 8 + sum(24 + len(name) for name in names)
    at = -(-size // 4096) * 4096
    head = b"__CLANG_OFFLOAD_BUNDLE__" + struct.pack("<Q", len(names))
    for index, name in enumerate(names):
        length = len(code) if index else 0
        head += struct.pack("<QQQ", at, length, len(name)) + name.encode()
        at += length
    start = -(-size // 4096) * 4096
    return head + bytes(start - size) + code * len(processors)


def compressed(plain: bytes, version: int = 2, method: str = "zstd") -> bytes:
    """Return a bundle in the compressed form."""
    if method == "zstd":
        done = subprocess.run(["zstd", "-c"], input=plain, capture_output=True, check=True)
        data = done.stdout
    else:
        data = zlib.compress(plain)
    number = 1 if method == "zstd" else 0
    size = {1: 20, 2: 24, 3: 32}[version] + len(data)
    sizes = {
        1: struct.pack("<I", len(plain)),
        2: struct.pack("<II", size, len(plain)),
        3: struct.pack("<QQ", size, len(plain)),
    }[version]
    return b"CCOB" + struct.pack("<HH", version, number) + sizes + b"\0" * 8 + data


def pages(*bundles: bytes) -> bytes:
    """Return a section of bundles: each begins at a multiple of 4096 bytes."""
    return b"".join(one + bytes(-len(one) % 4096) for one in bundles)


def elf(
    sections: dict[str, bytes], machine: int = HOST, flags: int = 0, abi: int = 0, needed: str = ""
) -> bytes:
    """Return an ELF file with these sections; `needed` is a library that it is linked to."""
    if needed:
        rows = struct.pack("<qQqQ", 1, 1, 0, 0)
        sections = {".dynamic": rows, ".dynstr": b"\0" + needed.encode() + b"\0", **sections}
    names = b"\0"
    body, at, table = b"", 64, [bytes(64)]
    for name, data in {**sections, ".shstrtab": b""}.items():
        number = len(names)
        names += name.encode() + b"\0"
        data = names if name == ".shstrtab" else data
        pad = -(at + len(body)) % 4096 if name == ".hip_fatbin" else -(at + len(body)) % 8
        body += bytes(pad)
        row = struct.pack("<IIQQQQIIQQ", number, 1, 0, 0, at + len(body), len(data), 0, 0, 8, 0)
        table.append(row)
        body += data
    body += bytes(-(at + len(body)) % 8)
    ident = b"\x7fELF\x02\x01\x01" + bytes([0, abi]) + bytes(7)
    counts = (64, 56, 0, 64, len(table), len(table) - 1)
    head = struct.pack("<HHIQQQI6H", 3, machine, 1, 0, 0, at + len(body), flags, *counts)
    return ident + head + body + b"".join(table)
