"""The reader against the tools that everybody uses: unsquashfs, for every compressor and size."""

import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rootless_udi import bundle
from rootless_udi.base.errors import UdiError
from rootless_udi.fuse.filesystem import ROOT, FileSystem
from rootless_udi.fuse.reader import Reader
from tests.kit import fuseimages, fusetree, images
from tests.kit.places import TREE


def tree(image: Path) -> dict[str, dict[str, object]]:
    return {str(one["path"]): one for one in fusetree.of_image(str(image))}


def extracted(image: Path, folder: Path) -> dict[str, dict[str, object]]:
    """What an ordinary user gets from unsquashfs: bytes, sizes, links; owners by its listing."""
    argv = ["unsquashfs", "-q", "-n", "-no-xattrs", "-d", str(folder), str(image)]
    subprocess.run(argv, capture_output=True, timeout=300)  # fails on device nodes alone
    subprocess.run(["chmod", "-R", "u+rwX", str(folder)], check=True)
    return {str(one["path"]): one for one in fusetree.of_folder(os.fsencode(folder))}


LINE = re.compile(
    r"(\S{10}) (\d+)/(\d+) +(?:(\d+)|(\d+), *(\d+)) (\S+ \S+) squashfs-root(.*)", re.S
)


def listed(image: Path) -> dict[str, tuple[str, int, int, int | None, str]]:
    """path -> mode letters, uid, gid, size, time, by unsquashfs -lln."""
    argv = ["unsquashfs", "-UTC", "-lln", str(image)]
    text = subprocess.run(argv, capture_output=True, check=True, timeout=120).stdout
    found = {}
    for line in re.split(r"\n(?=[-dlbcps][-rwxsStT]{9} )", "\n" + os.fsdecode(text).rstrip("\n")):
        match = LINE.fullmatch(line.lstrip("\n"))
        if match is None:
            assert not line.startswith(("-", "d", "l")), line
            continue
        letters, uid, gid, size, _, _, when, path = match.groups()
        path = path.split(" -> ")[0]
        found[path] = (letters, int(uid), int(gid), int(size) if size else None, when)
    return found


def compare(image: Path, folder: Path) -> dict[str, dict[str, object]]:
    """Compare our reading of an image with unsquashfs in everything that it tells."""
    ours, listing = tree(image), listed(image)
    assert set(ours) == set(listing)
    for path, one in ours.items():
        mode = int(str(one["mode"]), 8)
        when = time.strftime("%Y-%m-%d %H:%M", time.gmtime(int(str(one["mtime"]))))
        letters, uid, gid, size, time_there = listing[path]
        assert (stat.filemode(mode), one["uid"], one["gid"]) == (letters, uid, gid), path
        assert when == time_there, path
        if stat.S_ISREG(mode) or stat.S_ISLNK(mode):
            assert one["size"] == size, path
    theirs = extracted(image, folder)
    for path, other in theirs.items():
        mine = ours[path]
        for key in ("sha256", "target", "same"):
            assert mine.get(key) == other.get(key), (path, key)
        if stat.S_ISREG(int(str(other["mode"]), 8)):
            assert mine["nlink"] == other["nlink"], path
    devices = {path for path, one in ours.items() if str(one["mode"]).startswith(("0o2", "0o6"))}
    assert set(ours) - set(theirs) <= devices
    return ours


@pytest.fixture(scope="module")
def tar() -> bytes:
    return fuseimages.everything()


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("compressor", fuseimages.COMPRESSORS)
def test_every_compressor(compressor: str, tar: bytes, tmp_path: Path) -> None:
    image = fuseimages.mksquashfs(tar, tmp_path / "i", "-comp", compressor)
    found = compare(image, tmp_path / "out")
    assert found["/owners/xattrs"]["xattrs"] == {
        "user.long": (b"v" * 3000).hex(),
        "user.one": b"1".hex(),
    }
    assert found["/owners/again"]["xattrs"] == {"user.long": (b"v" * 3000).hex()}
    assert found["/owners/dir"]["xattrs"] == {"user.d": b"dir".hex()}
    assert found["/links/three"]["same"] == "/links/one"
    assert found["/links/one"]["nlink"] == 3
    assert found["/special/high"]["rdev"] == os.makedev(250, 70000)


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("size", fuseimages.BLOCK_SIZES)
def test_every_block_size(size: int, tar: bytes, tmp_path: Path) -> None:
    compare(fuseimages.mksquashfs(tar, tmp_path / "i", "-b", str(size)), tmp_path / "out")


@pytest.mark.needs("tar2sqfs", "mksquashfs")
@pytest.mark.parametrize("compressor", ("gzip", "lzo", "lz4", "xz", "zstd"))
def test_tar2sqfs(compressor: str, tar: bytes, tmp_path: Path) -> None:
    image = fuseimages.tar2sqfs(tar, tmp_path / "i", "-c", compressor)
    if compressor == "lz4":  # unsquashfs refuses 1.2.0's: "failed to read id table block"
        assert tree(image) == tree(fuseimages.tar2sqfs(tar, tmp_path / "j", "-c", "gzip"))
    else:
        compare(image, tmp_path / "out")


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize(
    "options",
    (
        ("-noI", "-noD", "-noF", "-noX"),
        ("-no-fragments",),
        ("-always-use-fragments",),
        ("-no-duplicates", "-no-sparse"),
        ("-exports",),
    ),
    ids=" ".join,
)
def test_options_of_mksquashfs(options: tuple[str, ...], tar: bytes, tmp_path: Path) -> None:
    compare(fuseimages.mksquashfs(tar, tmp_path / "i", *options), tmp_path / "out")


@pytest.mark.needs("mksquashfs", "tar2sqfs", "mmdebstrap")
def test_a_debian_with_python(tmp_path: Path) -> None:
    root = images.debian_root("bookworm", ("python3-numpy",))
    compare(fuseimages.from_cache(root, "fuse"), tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.needs("mksquashfs", "tar2sqfs", "mmdebstrap")
@pytest.mark.parametrize(
    "packages",
    (
        ("python3", "mpich"),
        ("python3-scipy", "python3-pandas", "python3-matplotlib", "python3-sklearn", "cython3"),
    ),
    ids=("mpi", "science"),
)
def test_other_real_images(packages: tuple[str, ...], tmp_path: Path) -> None:
    root = images.debian_root("bookworm", packages)
    compare(fuseimages.from_cache(root, "fuse"), tmp_path / "out")


@pytest.mark.needs("mksquashfs")
def test_100000_files_in_one_directory(tmp_path: Path) -> None:
    """Large directories are read through their index. (From a tar the tools take minutes.)"""
    names = [b"%06d-%s" % (n, b"x" * 24) for n in range(100_000)]
    folder = os.fsencode(tmp_path / "in/d")
    os.makedirs(folder)
    for name in names:
        os.mknod(folder + b"/" + name)
    argv = ["mksquashfs", str(tmp_path / "in"), str(tmp_path / "i"), "-quiet", "-no-progress"]
    subprocess.run(argv, check=True, capture_output=True, timeout=120)
    fd = os.open(tmp_path / "i", os.O_RDONLY)
    for indexed in (True, False):
        reader = Reader(fd, "i")
        if not indexed:  # tools may leave the index out: then the headers are walked once
            reader._own_index = lambda node: []  # type: ignore[method-assign]
        fs = FileSystem(reader)
        node = fs.lookup(ROOT, b"d")
        found = [entry[0] for entry in fs.entries(node, 0)][2:]
        assert found == names
        assert len(reader.segments(fs.inode(node))) > 100  # parsed in parts
        for n in (0, 1, 255, 256, 257, 49_999, 99_999):
            child = fs.lookup(node, names[n])
            assert child and fs.attributes(child)[1] == 0
        for absent in (b"", b"0", b"05", b"099999-y", b"zzz"):
            assert fs.lookup(node, absent) == 0
        middle = list(fs.entries(node, 0))[50_000][4]
        assert next(fs.entries(node, middle))[0] == names[49_999]
    os.close(fd)


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("size", (1 << 30, pytest.param(8 << 30, marks=pytest.mark.slow)))
def test_sparse_file(size: int, tmp_path: Path) -> None:
    sparse = tmp_path / "in/sparse"
    sparse.parent.mkdir()
    with open(sparse, "wb") as file:
        file.truncate(size)
        for at in (0, size // 8 + 5, size - 3):
            file.seek(at)
            file.write(b"abc")
    image = tmp_path / "i"
    argv = ["mksquashfs", str(tmp_path / "in"), str(image), "-noappend", "-quiet", "-no-progress"]
    subprocess.run([*argv, "-b", "65536"], check=True, capture_output=True, timeout=120)
    fd = os.open(image, os.O_RDONLY)
    fs = FileSystem(Reader(fd, "i"))
    node = fs.lookup(ROOT, b"sparse")
    assert fs.attributes(node)[1] == size
    assert fs.attributes(node)[2] <= 3 * 65536 // 512  # blocks: the holes take none
    for at in (0, size // 8 + 5, size - 3):
        assert b"".join(fs.read(node, at, 3)) == b"abc"
        assert b"".join(fs.read(node, max(at - 8, 0), 4)) in (b"abc\0", bytes(4))
    assert b"".join(fs.read(node, size - 1, 100)) == b"c"
    assert fs.read(node, size, 100) == []
    os.close(fd)


def refused(path: Path) -> UdiError:
    fd = os.open(path, os.O_RDONLY)
    try:
        with pytest.raises(UdiError) as caught:
            Reader(fd, "image.sqfs")
        return caught.value
    finally:
        os.close(fd)


@pytest.mark.needs("mksquashfs")
def test_what_is_no_image_is_refused_with_a_reason(tmp_path: Path) -> None:
    path = tmp_path / "i"
    path.write_bytes(b"")
    assert str(refused(path)) == (
        "mounting failed on image.sqfs: 0 bytes are too few for a squashfs image"
    )
    path.write_bytes(bytes(200))
    assert "not a squashfs image" in str(refused(path))
    good = fuseimages.mksquashfs(images.tar([("f", b"x", {})]), tmp_path / "good").read_bytes()
    path.write_bytes(good[:100])
    assert "it is cut short (100 of " in str(refused(path))
    assert "pull or copy it again" in refused(path).hint
    for at, value, reason in (
        (28, 3, "squashfs version 3.0, and only 4.0 is known"),
        (20, 99, "compressor number 99 is not known"),
        (12, 3, "is not possible"),
        (22, 30, "is not possible"),
        (26, 0, "owners"),
        (71, 0x7F, "inode and directory tables"),
        (79, 0x7F, "inode and directory tables"),
    ):
        bad = bytearray(good)
        bad[at] = value
        path.write_bytes(bad)
        assert reason in str(refused(path)), at


def test_a_missing_decompressor_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rootless_udi.fuse import decompress

    assert decompress.available("gzip")
    monkeypatch.setitem(decompress._CANDIDATES, "zstd", ())
    assert not decompress.available("zstd")
    with pytest.raises(UdiError, match="this machine has no decompressor for zstd") as caught:
        decompress.decompressor("zstd")
    assert "backports.zstd" in caught.value.hint and "udi doctor" in caught.value.hint


def test_importing_the_server_is_light() -> None:
    """What the launch path's helper imports: nothing that costs milliseconds, and no threading."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); "
        "import rootless_udi.fuse.raw_transport, rootless_udi.fuse.choice; "
        "print(*sorted(sys.modules))"
    )
    argv = [sys.executable, "-IS", "-c", code, str(TREE)]
    loaded = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split()
    heavy = {"re", "enum", "dataclasses", "typing", "subprocess", "logging", "threading", "json"}
    assert not heavy & set(loaded)
    served = {m for m in loaded if m.startswith("rootless_udi.fuse.")}
    groups = bundle.GROUPS
    assert served == {*groups["format"], *groups["serve"], "rootless_udi.fuse.choice"}
