"""Apptainer's and Singularity's files: find the root file system in a SIF file.

https://github.com/apptainer/sif: a header of 128 bytes, descriptors of 585 bytes, and the data that
they point to; integers are little-endian. Of the data only the primary system partition is of use
here, a squashfs file. Every number comes from outside and is checked.
"""

import os
import struct

from rootless_udi.base import trust
from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

MAGIC, MAGIC_AT = b"SIF_MAGIC\0", 32
_HEADER = struct.Struct("<32s10s3s3s16s8q")
_DESCRIPTOR = struct.Struct("<i?3I7q128s384s")
_MOST = 4096
"""Most descriptors that are looked at; apptainer makes files with 48."""
_PARTITION, _SIGNATURE = 0x4004, 0x4005
_SQUASHFS = 1
_SYSTEM, _PRIMARY, _DATA = 1, 2, 3
_KINDS = {2: "ext3", 3: "an archive", 4: "raw data", 5: "an encrypted squashfs"}
_MACHINES = {
    b"01": "386",
    b"02": "amd64",
    b"03": "arm",
    b"04": "arm64",
    b"05": "ppc64",
    b"06": "ppc64le",
    b"11": "s390x",
    b"12": "riscv64",
}


class Partition(Record):
    """A root file system in a SIF file: bytes `offset` to `offset` + `size` are a squashfs file.

    `architecture` is Go's name of the machine, "" for one that is not known. `signed`: the file has
    signatures, which are not checked.
    """

    offset: int
    size: int
    architecture: str
    signed: bool


def is_sif(path: str) -> bool:
    """Tell whether a file begins as a SIF file does; False for what can't be read."""
    try:
        fd = trust.regular(path)
    except OSError:
        return False
    try:
        return os.pread(fd, len(MAGIC), MAGIC_AT) == MAGIC
    except OSError:
        return False
    finally:
        os.close(fd)


def primary(fd: int, path: str) -> Partition:
    """Return the primary system partition of the SIF file open at `fd`.

    Raises UdiError where the file is damaged, has none, or one that is no squashfs; OSError.
    """
    return _only(fd, path, (_PRIMARY,))


def data(fd: int, path: str) -> Partition:
    """Return what a SIF file is as data: its primary system partition, or else the only other one.

    Raises as `primary` does.
    """
    return _only(fd, path, (_PRIMARY, _SYSTEM, _DATA))


def _only(fd: int, path: str, wanted: "tuple[int, ...]") -> Partition:
    """Return the partition of the first of the types `wanted` that the file has."""
    found: dict[int, list[tuple[int, Partition]]] = {}
    signed = False
    for kind, offset, size, extra in _descriptors(fd, path):
        signed = signed or kind == _SIGNATURE
        if kind != _PARTITION:
            continue
        system, part = struct.unpack_from("<ii", extra)
        one = Partition(offset, size, _MACHINES.get(extra[8:10], ""), False)
        found.setdefault(part, []).append((system, one))
    for part in wanted:
        fit = [one for system, one in found.get(part, ()) if system == _SQUASHFS]
        if len(fit) > 1:
            what = "primary system partitions" if part == _PRIMARY else "partitions"
            raise _damaged(path, f"it has two {what}")
        if fit:
            return fit[0].replace(signed=signed)
    systems = [system for part in wanted for system, _ in found.get(part, ())]
    if systems:
        why = f"its root file system is {_KINDS.get(systems[0], f'of type {systems[0]}')}"
        hint = "build it without encryption: apptainer build NEW.sif OLD.sif"
    else:
        why, hint = "it has no root file system", "a SIF file for data alone is no image"
        if _DATA in found:
            hint += "; as data: --volume=FILE:/data"
    raise UdiError(f"reading {path} failed: {why}", hint)


def _descriptors(fd: int, path: str) -> "Iterator[tuple[int, int, int, bytes]]":
    """Yield kind, offset, size and extra of each descriptor in use; of a partition they are
    checked."""
    length = os.fstat(fd).st_size
    head = os.pread(fd, _HEADER.size, 0)
    if len(head) < _HEADER.size or head[MAGIC_AT : MAGIC_AT + len(MAGIC)] != MAGIC:
        raise _damaged(path, "it has no whole header")
    _, _, version, _, _, _, _, _, total, at, span, _, _ = _HEADER.unpack(head)
    if version[:2] != b"01":
        raise UdiError(
            f"reading {path} failed: it is a SIF file of version {version[:2]!r}, and 01 is known",
            "apptainer build NEW.sif OLD.sif writes it anew",
        )
    if not 0 <= total <= _MOST or at < _HEADER.size or span < 0:
        raise _damaged(path, f"its header names {total} descriptors at byte {at}")
    for number in range(total):
        # pread(2) takes no position beyond 63 bits.
        row = os.pread(fd, _DESCRIPTOR.size, min(at + number * _DESCRIPTOR.size, length))
        if len(row) < _DESCRIPTOR.size:
            raise _damaged(path, f"descriptor {number + 1} of {total} is beyond its end")
        kind, used, _, _, _, offset, size, *_, extra = _DESCRIPTOR.unpack(row)
        if not used:
            continue
        bad = offset < _HEADER.size or size <= 0 or offset + size > length
        if kind == _PARTITION and bad:
            raise _damaged(path, f"its partition is at {offset}+{size}, and it has {length} bytes")
        yield kind, offset, size, extra


def _damaged(path: str, why: str) -> UdiError:
    return UdiError(f"reading {path} failed: {why}", "the file is damaged: copy it again")
