"""The reader of SIF files: the primary partition, or one line."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.store import sif
from tests.kit import sifs

ONE = sifs.sif(b"hsqs" + b"x" * 5000)


def read(path: Path, data: bytes) -> sif.Partition:
    path.write_bytes(data)
    fd = os.open(path, os.O_RDONLY)
    try:
        return sif.primary(fd, "F")
    finally:
        os.close(fd)


def made(*rows: bytes, total: int | None = None, more: bytes = b"") -> bytes:
    return sifs.header(len(rows) if total is None else total) + b"".join(rows) + more


def test_a_partition(tmp_path: Path) -> None:
    found = read(tmp_path / "x", ONE)
    assert (found.size, found.architecture, found.signed) == (5004, "amd64", False)
    assert ONE[found.offset :][: found.size] == b"hsqs" + b"x" * 5000
    arm = sifs.sif(b"hsqs", sifs.partition(machine=b"04"), signed=True)
    found = read(tmp_path / "x", arm)
    assert (found.architecture, found.signed) == ("arm64", True)
    assert read(tmp_path / "x", sifs.sif(b"a", sifs.partition(machine=b"99"))).architecture == ""


def test_what_begins_like_one(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(ONE)
    assert sif.is_sif(str(tmp_path / "x"))
    (tmp_path / "y").write_bytes(b"hsqs" * 100)
    os.mkfifo(tmp_path / "f")
    for name in ("y", "f", "no", "."):
        assert not sif.is_sif(str(tmp_path / name))


ROW = sifs.descriptor(sifs.PARTITION, 4096, 4, sifs.partition())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (ONE[:100], "it has no whole header"),
        (b"x" * 200, "it has no whole header"),
        (sifs.header(1, version=b"02"), "of version b'02'"),
        (sifs.header(-1), "names -1 descriptors"),
        (sifs.header(1 << 40), "descriptors at byte 128"),
        (sifs.header(3, at=-5), "descriptors at byte -5"),
        (sifs.header(3, at=0), "descriptors at byte 0"),
        (
            made(sifs.descriptor(1, 0, 0), total=2, more=bytes(500)),
            "descriptor 2 of 2 is beyond its end",
        ),
        (sifs.header(1, at=1 << 50), "descriptor 1 of 1 is beyond its end"),
        (made(ROW), "its partition is at 4096"),
        (made(sifs.descriptor(sifs.PARTITION, -9, 4, sifs.partition())), "its partition is at -9"),
        (made(sifs.descriptor(sifs.PARTITION, 0, 4, sifs.partition())), "its partition is at 0"),
        (made(sifs.descriptor(sifs.PARTITION, 400, -4, sifs.partition())), "is at 400\\+-4"),
        (made(sifs.descriptor(sifs.PARTITION, 400, 1 << 62, sifs.partition())), "is at 400"),
        (made(ROW, ROW, more=bytes(9000)), "it has two primary system partitions"),
        (made(), "it has no root file system"),
        (made(sifs.descriptor(sifs.PARTITION, 400, 4, sifs.partition(part=3))), "no root file sys"),
        (made(sifs.descriptor(sifs.PARTITION, 400, 4, b"", used=False)), "no root file system"),
        *(
            (made(sifs.descriptor(sifs.PARTITION, 400, 4, sifs.partition(system))), words)
            for system, words in ((2, "is ext3"), (5, "is an encrypted squashfs"), (9, "of type 9"))
        ),
    ],
)
def test_damaged_files(tmp_path: Path, data: bytes, words: str) -> None:
    with pytest.raises(UdiError, match=words) as caught:
        read(tmp_path / "x", data)
    assert caught.value.message.startswith("reading F failed: ") and caught.value.hint


@given(st.lists(st.tuples(st.integers(0, len(ONE) - 1), st.integers(0, 255)), max_size=12))
def test_any_change_is_a_partition_or_one_error(changes: list[tuple[int, int]]) -> None:
    data = bytearray(ONE)
    for at, value in changes:
        data[at % 2000] = value
    fd = os.memfd_create("x")
    try:
        os.write(fd, data)
        found = sif.primary(fd, "F")
        assert found.offset >= 128 and found.offset + found.size <= len(data)
    except UdiError as error:
        assert error.message.startswith("reading F failed: ")
    finally:
        os.close(fd)


ROWS = st.lists(
    st.builds(
        lambda kind, offset, size, extra, used: sifs.descriptor(kind, offset, size, extra, used),
        st.sampled_from([sifs.PARTITION, sifs.SIGNATURE, 0x4001, 0, -1]),
        st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 9000),
        st.integers(-(1 << 63), (1 << 63) - 1) | st.integers(0, 9000),
        st.builds(
            sifs.partition,
            st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(0, 6),
            st.integers(-(1 << 31), (1 << 31) - 1) | st.integers(0, 5),
            st.binary(min_size=3, max_size=3),
        ),
        st.booleans(),
    ),
    max_size=9,
)


@given(
    ROWS,
    st.none() | st.integers(-(1 << 63), (1 << 63) - 1),
    st.sampled_from([128, 128, 128, 0, -1, 700, 1 << 40, (1 << 63) - 1]),
    st.integers(0, 9000),
)
def test_any_table_is_a_partition_or_one_error(
    rows: list[bytes], total: int | None, at: int, more: int
) -> None:
    """Overlapping, negative, huge and no descriptors: as an image and as data."""
    count = len(rows) if total is None else total
    try:
        data = sifs.header(count, at) + b"".join(rows) + bytes(more)
    except struct.error:
        # The table's size, in the header, has no room for so many.
        return
    fd = os.memfd_create("x")
    try:
        os.write(fd, data)
        for how in (sif.primary, sif.data):
            try:
                found = how(fd, "F")
            except UdiError as error:
                assert error.message.startswith("reading F failed: ") and error.hint
            else:
                assert found.offset >= 128 and 0 < found.size <= len(data) - found.offset
    finally:
        os.close(fd)
