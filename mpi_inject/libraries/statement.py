"""What an MPI library says about itself: its version and its ABI."""

import re

from rootless_udi.mpi_inject.libraries.symbols import Symbols

_HIDDEN = re.compile(rb"\0(?=[^\0])([^\0]{0,40}\0+)?(1[2-9]:\d{1,3}:\d{1,2})\0")
_RELEASE = re.compile(rb"(?<=\0)[345]\.\d{1,2}(?:\.\d{1,2})?(?:[abr]c?\d{1,2})?(?=\0)")


def statement(reader: Symbols, data: bytes) -> tuple[str, str]:
    """Return an MPI library's statements: libtool's numbers ("14:2:2") and its release ("4.0.2").

    MPICH 4.1 and later don't export these constants: there their texts are searched for in `data`.
    """
    numbers = reader.constant("MPII_Version_ABI")
    release = reader.constant("MPII_Version_string") or reader.constant("ompi_version_string")
    if not numbers and not release and (found := _HIDDEN.search(data)):
        numbers = found[2].decode()
        text = _RELEASE.findall(data, max(0, found.start() - 256), found.end() + 4096)
        release = text[0].decode() if text else ""
    if not reader.missing(["I_MPI_Check_image_status"]):
        release = f"Intel MPI, {release}" if release else "Intel MPI"
    return numbers, release


def has_mpi_inside(data: bytes) -> bool:
    """Tell whether an MPI is linked into a program: by its symbols, or if stripped, its texts."""
    if data.find(b"MPI_Init") < 0:
        return False
    if b"\0PMPI_Init\0" in data and b"\0MPI_Init\0" in data:
        return True
    return b"MPICH Version:" in data or b"Open MPI v" in data
