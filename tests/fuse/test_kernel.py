"""What we read against the kernel's own squashfs, as root: owners, links, times and xattrs too."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kit import fuseimages, fusetree, images
from tests.kit.fusemount import Mount, ours
from tests.kit.places import TREE

pytestmark = [pytest.mark.root, pytest.mark.needs("fuse", "mksquashfs")]

Tree = dict[str, dict[str, object]]
COMPRESSORS = [name for name in fuseimages.COMPRESSORS if name != "lzma"]
"""lzma, of squashfs before 4.0, is not the kernel's; tests/fuse/test_reader.py has its turn."""


@contextmanager
def kernel(image: Path, folder: Path) -> Iterator[bytes]:
    """Mount an image by the kernel while the context lasts."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "squashfs", "-o", "ro,loop", image, folder], check=True)
    try:
        yield os.fsencode(folder)
    finally:
        subprocess.run(["umount", folder], check=True)


def shown(image: Path, folder: Path) -> Tree:
    """Return all that the kernel shows of an image."""
    with kernel(image, folder) as point:
        return {str(one["path"]): one for one in fusetree.of_folder(point)}


def seen(one: Mount) -> Tree:
    """Return all that a mount of ours shows."""
    done = one.run(sys.executable, "-IS", TREE / "tests/kit/fusetree.py", one.point, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = (json.loads(line) for line in done.stdout.splitlines())
    return {line["path"]: line for line in lines}


def same(image: Path, folder: Path) -> int:
    """Compare what our core reads of an image with the kernel; return how many inodes it has."""
    ours_, expected = (
        {str(o["path"]): o for o in fusetree.of_image(str(image))},
        shown(image, folder),
    )
    assert ours_ == expected
    return len(expected)


SCIENCE = ("python3-scipy", "python3-pandas", "python3-matplotlib", "python3-sklearn", "cython3")
REAL = {
    "python": ("python3-numpy",),
    "mpi": ("python3", "mpich"),
    "science": SCIENCE,
}


@pytest.mark.parametrize(
    "which",
    [
        "everything",
        "python",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("mpi", "science")),
    ],
)
@pytest.mark.timeout(1800)
def test_a_mount_shows_what_the_kernel_shows(which: str, tmp_path: Path) -> None:
    """Mounted without a user namespace, so that all owners are to be seen."""
    if which == "everything":
        image = fuseimages.mksquashfs(fuseimages.everything(), tmp_path / "i", "-comp", "zstd")
    else:
        image = fuseimages.from_cache(images.debian_root("bookworm", REAL[which]), "fuse")
    expected = shown(image, tmp_path / "kernel")
    for transport in ("raw", "pyfuse3"):
        with Mount(ours(transport), image, tmp_path / transport) as one:
            assert seen(one) == expected
            assert one.log.read_text() == ""


@pytest.mark.slow
@pytest.mark.needs("tar2sqfs")
@pytest.mark.parametrize("size", fuseimages.BLOCK_SIZES)
@pytest.mark.parametrize("compressor", COMPRESSORS)
def test_every_compressor_and_block_size(compressor: str, size: int, tmp_path: Path) -> None:
    tar = fuseimages.everything()
    image = fuseimages.mksquashfs(tar, tmp_path / "i", "-comp", compressor, "-b", str(size))
    assert same(image, tmp_path / "1") > 700
    image = fuseimages.tar2sqfs(tar, tmp_path / "i", "-c", compressor, "-b", str(size))
    assert same(image, tmp_path / "2") > 700


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_100000_files_in_one_directory(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for n in range(100_000):
        os.mknod(folder / f"{n * 7919 % 100_000:06d}{'x' * (n % 40)}")
    argv: list[str | Path] = [
        "mksquashfs",
        folder,
        tmp_path / "i",
        "-quiet",
        "-no-progress",
        "-comp",
        "zstd",
    ]
    subprocess.run(argv, check=True, capture_output=True, timeout=300)
    assert same(tmp_path / "i", tmp_path / "kernel") == 100_001


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_8_gib_sparse_file(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    with open(folder / "sparse", "wb") as file:
        file.truncate(8 << 30)
        for at in range(5, 8 << 30, 700_000_001):
            file.seek(at)
            file.write(fuseimages.noise(200_000))
    argv: list[str | Path] = [
        "mksquashfs",
        folder,
        tmp_path / "i",
        "-quiet",
        "-no-progress",
        "-comp",
        "zstd",
    ]
    subprocess.run(argv, check=True, capture_output=True, timeout=300)
    assert same(tmp_path / "i", tmp_path / "kernel") == 2
