"""Images that somebody made to do harm, or that a disk has damaged: refused, and nothing else."""

import lzma
import os
import struct
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.base.superblock import MAGIC
from rootless_udi.fuse import decompress, format
from rootless_udi.fuse.bounded_cache import Cache
from rootless_udi.fuse.filesystem import ROOT, FileSystem
from rootless_udi.fuse.format import Corrupt
from rootless_udi.fuse.reader import Reader
from tests.kit import fuseimages, fuzz_squashfs, images, probes
from tests.kit.fusemount import Mount, ours

RAW = fuzz_squashfs.RAW


@given(st.binary(max_size=300))
def test_any_bytes_as_a_listing(data: bytes) -> None:
    for parse in (format.listing, format.listing_headers):
        try:
            assert parse(data) is not None
        except Corrupt:
            pass


@given(st.binary(max_size=80), st.integers(0, 14))
def test_any_bytes_as_an_inode(data: bytes, kind: int) -> None:
    try:
        one = format.inode(0, bytes([kind, 0]) + data, 0)
    except Corrupt:
        return
    assert one.kind in range(1, 8) and one.nlink >= 0


@given(st.binary(max_size=120))
def test_any_bytes_as_a_superblock(data: bytes) -> None:
    head = struct.pack("<I", MAGIC)
    for raw in (data, head + data):
        try:
            assert format.Superblock(raw).block_size >= 4096
        except Corrupt:
            pass


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 60)), max_size=200))
def test_a_cache_never_holds_more_than_its_limit(steps: list[tuple[int, int]]) -> None:
    cache: Cache[bytes] = Cache(100, len)
    for key, size in steps:
        cache.put(key, bytes(size))
        assert cache.get(key) == bytes(size)
        held = sum(map(len, {**cache._old, **cache._young}.values()))
        assert held <= 100 + 60


BOMBS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: zlib.compress(data, 9),
    "xz": lambda data: lzma.compress(data, check=lzma.CHECK_CRC32),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
}


def variants() -> list[tuple[str, int]]:
    return [(n, i) for n, found in decompress._CANDIDATES.items() for i in range(len(found))]


@pytest.mark.parametrize(("name", "number"), variants())
def test_every_decompressor_stops_at_its_limit_and_knows_damage(name: str, number: int) -> None:
    try:
        run = decompress._CANDIDATES[name][number]()
    except (ImportError, OSError):
        probes.need("decompressors")
        raise
    block = fuseimages.words(8192)
    if name in ("zstd", "lz4", "lzo"):
        packed, bomb = made_by_mksquashfs(name, block), None
        if name == "zstd":
            probes.need("zstd")
            bomb = subprocess.run(
                ["zstd", "-q"], input=bytes(50 << 20), stdout=subprocess.PIPE, check=True
            ).stdout
    else:
        packed, bomb = BOMBS[name](block), BOMBS[name](bytes(50 << 20))
    assert run(packed, 8192) == block
    assert run(packed, 9000) == block
    for most in (8191, 4096, 1):
        with pytest.raises(Corrupt):
            run(packed, most)
    if bomb is not None:
        with pytest.raises(Corrupt):
            run(bomb, 131072)
    for damaged in (b"", b"x", packed[: len(packed) // 2], bytes(len(packed))):
        try:  # a format without a checksum can't know all damage
            assert len(run(damaged, 8192)) <= 8192
        except Corrupt:
            pass


def made_by_mksquashfs(compressor: str, block: bytes) -> bytes:
    """Return `block` as mksquashfs compresses it, taken out of an image."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        tar = images.tar([("f", block, {})])
        options = ("-comp", compressor, "-b", "8192", "-no-fragments")
        path = fuseimages.mksquashfs(tar, Path(folder) / "i", *options)
        fd = os.open(path, os.O_RDONLY)
        fs = FileSystem(Reader(fd, "i"))
        place = fs.blocks.place(fs.inode(fs.lookup(ROOT, b"f")), 0)
        stored = fs.blocks.stored(place)
        os.close(fd)
    assert not place[1] & format.RAW
    return stored


@pytest.fixture
def tree(tmp_path: Path) -> bytearray:
    """An image with uncompressed structures: a/b/c and a file with one block."""
    entries: list[images.Entry] = [("a", None, {}), ("a/b", None, {}), ("a/b/c", None, {})]
    entries += [("file", fuseimages.noise(8192), {}), ("later", fuseimages.noise(8192, 2), {})]
    path = fuseimages.mksquashfs(images.tar(entries), tmp_path / "tree", *RAW, "-b", "8192")
    return bytearray(path.read_bytes())


def opened(data: bytes | bytearray, path: Path) -> FileSystem:
    path.write_bytes(data)
    return FileSystem(Reader(os.open(path, os.O_RDONLY), "bad"))


def inode_at(data: bytes | bytearray, fs: FileSystem, *names: bytes) -> int:
    """Return where in the image the inode of a path lies (its structures are uncompressed)."""
    node = ROOT
    for name in names:
        node = fs.lookup(node, name)
    ref = fs.inode(node).ref
    return int(fs.reader.super.inode_table) + (ref >> 16) + 2 + (ref & 0xFFFF)


@pytest.mark.needs("userns", "fuse", "mksquashfs")
def test_a_directory_that_contains_its_parent(tree: bytearray, tmp_path: Path) -> None:
    """The kernel sees the same node twice and answers ELOOP; nothing walks for ever."""
    fs = opened(tree, tmp_path / "good")
    parent, child = inode_at(tree, fs, b"a"), inode_at(tree, fs, b"a", b"b", b"c")
    at = tree.index(b"c", fs.reader.super.directory_table) - 8
    while tree[at + 6 : at + 8] != b"\0\0":  # the entry of "c": offset, delta, type, size - 1, name
        at = tree.index(b"c", at + 9) - 8
    offset = int.from_bytes(tree[at : at + 2], "little")
    tree[at : at + 2] = (offset + parent - child).to_bytes(2, "little")
    image = tmp_path / "cycle"
    image.write_bytes(tree)
    with Mount(ours(), image, tmp_path / "m") as one:
        done = one.run("find", one.point)
        assert done.stdout.count("/b") <= 3
        assert done.returncode == 1
        assert "symbolic links" in done.stderr or "loop" in done.stderr.lower()
        assert one.server.poll() is None


@pytest.mark.needs("userns", "fuse", "mksquashfs")
def test_4_billion_inodes_and_a_mount_still_works(tree: bytearray, tmp_path: Path) -> None:
    tree[4:8] = b"\xff" * 4
    image = tmp_path / "many"
    image.write_bytes(tree)
    with Mount(ours(), image, tmp_path / "m") as one:
        assert one.run("stat", "-f", "-c", "%c", one.point).stdout == "4294967295\n"
        assert one.run("ls", one.point).stdout == "a\nfile\nlater\n"


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("size", (1 << 20, 1 << 40, (1 << 62) - 1))
def test_a_file_that_claims_more_blocks_than_its_list_can_hold(
    size: int, tree: bytearray, tmp_path: Path
) -> None:
    fs = opened(tree, tmp_path / "good")
    at = inode_at(tree, fs, b"file")
    assert tree[at] == 2
    if size >= 1 << 32:  # made an extended inode, over whatever follows
        tree[at : at + 2] = b"\x09\0"
        tree[at + 16 : at + 56] = struct.pack("<QQQIIII", 96, size, 0, 1, 0xFFFFFFFF, 0, 0xFFFFFFFF)
    else:
        tree[at + 28 : at + 32] = struct.pack("<I", size)
    fs = opened(tree, tmp_path / "bad")
    node = fs.lookup(ROOT, b"file")
    for offset in (size - 1, size // 2):
        with pytest.raises(Corrupt):
            fs.read(node, offset, 4096)


@pytest.mark.needs("mksquashfs")
def test_a_block_that_claims_to_be_elsewhere(tree: bytearray, tmp_path: Path) -> None:
    fs = opened(tree, tmp_path / "good")
    at = inode_at(tree, fs, b"file")
    for value, why in (
        (len(tree) + 5, "beyond its end"),
        (0xFFFFFFFF, "beyond its end"),
    ):
        bad = bytearray(tree)
        bad[at + 16 : at + 20] = struct.pack("<I", value)
        one = opened(bad, tmp_path / "bad")
        with pytest.raises(Corrupt, match=why):
            one.read(one.lookup(ROOT, b"file"), 0, 100)
    for size, why in ((0x3FFFFFF, "claims"), (0x1000010, "holds 16 of 8192"), (10, "damaged")):
        bad = bytearray(tree)
        bad[at + 32 : at + 36] = struct.pack("<I", size)
        one = opened(bad, tmp_path / "bad")
        with pytest.raises(Corrupt, match=why):
            one.read(one.lookup(ROOT, b"file"), 0, 100)


@pytest.mark.needs("mksquashfs")
def test_a_tail_cut_off_at_every_place(tmp_path: Path) -> None:
    """A copy that broke off: refused at the mount, wherever it broke off."""
    path = fuseimages.mksquashfs(fuseimages.everything(), tmp_path / "i", "-comp", "gzip")
    whole = path.read_bytes()
    used = int.from_bytes(whole[40:48], "little")
    for size in (*range(0, used, used // 50), used - 1):
        path.write_bytes(whole[:size])
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(UdiError, match=r"too few|cut short"):
            Reader(fd, "cut")
        os.close(fd)


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("name", (b".", b"..", b"a/b", b"a\0b"))
def test_names_that_would_lead_elsewhere(name: bytes, tmp_path: Path) -> None:
    """Neither listed nor found: extracting such an image would write outside of its folder."""
    stand_in = b"q" * len(name)
    tar = images.tar([("d", None, {}), (f"d/{stand_in.decode()}", b"x", {})])
    data = fuseimages.mksquashfs(tar, tmp_path / "i", *RAW).read_bytes()
    table = int.from_bytes(data[72:80], "little")
    data = data[:table] + data[table:].replace(stand_in, name)
    fs = opened(data, tmp_path / "bad")
    node = fs.lookup(ROOT, b"d")
    with pytest.raises(Corrupt):
        list(fs.entries(node, 0))


@pytest.mark.needs("mksquashfs")
@settings(max_examples=60)
@given(st.data())
def test_any_superblock_over_a_real_image(data: st.DataObject) -> None:
    global _good
    if not _good:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            path = fuseimages.mksquashfs(fuseimages.everything(), Path(folder) / "i", *RAW)
            _good = path.read_bytes()
    at = data.draw(st.integers(4, 92))
    patch = data.draw(st.binary(min_size=1, max_size=8))
    bad = bytearray(_good)
    bad[at : at + len(patch)] = patch
    fd = os.memfd_create("bad")
    try:
        os.write(fd, bad)
        fs = FileSystem(Reader(fd, "bad"))
        for entry in fs.entries(ROOT, 0):
            fs.attributes(entry[1] or ROOT)
    except (UdiError, Corrupt):
        pass
    finally:
        os.close(fd)


_good = b""


@pytest.mark.alike
@pytest.mark.needs("mksquashfs")
def test_the_fuzzer_for_a_moment(tmp_path: Path) -> None:
    mutants, refused = fuzz_squashfs.fuzz(2, 7, tmp_path / "mutant")
    assert mutants > 10 and refused > 0


@pytest.mark.slow
@pytest.mark.needs("mksquashfs")
@pytest.mark.timeout(3600)
def test_the_fuzzer_for_ten_minutes() -> None:
    argv = ["python3", "-m", "tests.kit.fuzz_squashfs", "600"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
