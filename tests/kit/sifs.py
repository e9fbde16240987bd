"""SIF files, as https://github.com/apptainer/sif describes them, and damaged ones."""

import struct
import subprocess

from tests.conftest import User
from tests.kit import images
from tests.kit.probes import APPTAINER

HEADER, DESCRIPTOR = struct.Struct("<32s10s3s3s16s8q"), struct.Struct("<i?3I7q128s384s")
PARTITION, SIGNATURE, SQUASHFS, PRIMARY = 0x4004, 0x4005, 1, 2
Row = tuple[int, int, int, bytes]
"""Data type, offset, size, extra."""


def partition(system: int = SQUASHFS, part: int = PRIMARY, machine: bytes = b"02") -> bytes:
    """Return a partition's extra bytes."""
    return struct.pack("<ii3s", system, part, machine)


def header(total: int, at: int = 128, version: bytes = b"01") -> bytes:
    """Return a header for `total` descriptors at byte `at`."""
    numbers = (0, 0, 0, total, at, total * DESCRIPTOR.size, 0, 0)
    launch = b"#!/usr/bin/env run-singularity\n"
    return HEADER.pack(launch, b"SIF_MAGIC", version, b"02", bytes(16), *numbers)


def descriptor(kind: int, offset: int, size: int, extra: bytes = b"", used: bool = True) -> bytes:
    return DESCRIPTOR.pack(kind, used, 1, 1, 0, offset, size, size, 0, 0, 0, 0, b"", extra)


def sif(data: bytes, extra: bytes = b"", signed: bool = False, rows: int = 48) -> bytes:
    """Return a file whose primary partition has `data`, at 4096 bytes from a page's start."""
    at = (128 + rows * DESCRIPTOR.size + 4095) // 4096 * 4096
    found = [descriptor(0x4001, 128, 0), descriptor(PARTITION, at, len(data), extra or partition())]
    if signed:
        found.append(descriptor(SIGNATURE, 128, 1))
    table = b"".join(found).ljust(rows * DESCRIPTOR.size, b"\0")
    return (header(rows) + table).ljust(at, b"\0") + data


def by_apptainer(user: User, sections: str) -> None:
    """Have the real Apptainer build app.sif in `user`'s home, of busybox with ENV A=docker;
    `sections` are those of its definition file."""
    images.busybox_layout(user.home / "layout", config={"Env": ["A=docker"]})
    archive = f"{user.home}/x.tar"
    argv = ["skopeo", "copy", "-q", f"oci:{user.home}/layout:latest", f"docker-archive:{archive}"]
    subprocess.run(argv, check=True, capture_output=True)
    (user.home / "def").write_text(f"Bootstrap: docker-archive\nFrom: {archive}\n{sections}")
    user.run(APPTAINER, "build", "app.sif", "def", check=True)
