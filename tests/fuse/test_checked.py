"""Each window is compared with the image's list before any of its bytes is used."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.base.windows import WINDOW
from rootless_udi.fuse import imagefile
from rootless_udi.fuse.checkedfile import CheckedFile, opener
from rootless_udi.fuse.filesystem import ROOT, FileSystem
from rootless_udi.fuse.format import REG, Corrupt, WrongWindow
from rootless_udi.fuse.imagefile import ImageFile
from rootless_udi.fuse.reader import Reader
from rootless_udi.store import windows
from tests.conftest import User
from tests.kit import fuseimages, images
from tests.kit.fusemount import Mount, ours
from tests.kit.places import TREE

pytestmark = pytest.mark.needs("mksquashfs")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of all types of files in several windows, with its list."""
    path = fuseimages.mksquashfs(
        fuseimages.everything(), tmp_path_factory.mktemp("image") / "i", "-comp", "zstd"
    )
    with path.open("r+b", buffering=0) as file:
        windows.append(file.fileno())
    return path


def used(path: Path) -> int:
    with path.open("rb") as file:
        return windows.used(file.fileno())


def files(fs: FileSystem, node: int = ROOT) -> Iterator[int]:
    """Yield the regular files below a directory."""
    for _, child, _, _, _ in fs.entries(node, 2):
        one = fs.inode(child)
        if one.kind == REG:
            yield child
        elif one.kind == 1:
            yield from files(fs, child)


def content(fs: FileSystem, node: int) -> bytes:
    return b"".join(fs.read(node, 0, fs.inode(node).size))


def test_one_size_of_windows() -> None:
    assert imagefile.WINDOW == WINDOW


def test_each_window_flipped_is_an_error_or_unread(image: Path, tmp_path: Path) -> None:
    """Whatever window is damaged, what is read is right or not read at all."""
    fd = os.open(image, os.O_RDONLY)
    plain = FileSystem(Reader(fd, "i"))
    right = {node: content(plain, node) for node in files(plain)}
    damaged = tmp_path / "damaged"
    count = -(-used(image) // WINDOW)
    assert count >= 5
    for number in range(count):
        data = bytearray(image.read_bytes())
        data[min((number + 1) * WINDOW, used(image)) - 100] ^= 4
        damaged.write_bytes(data)
        copy = os.open(damaged, os.O_RDONLY)
        refused = 0
        try:
            fs = FileSystem(Reader(copy, "damaged", opener=opener(True)))
            for node, whole in right.items():
                try:
                    assert content(fs, node) == whole
                except WrongWindow as error:
                    assert error.number == number
                    refused += 1
            fs.close()
        except (WrongWindow, UdiError):
            refused += 1
        assert refused, number
        os.close(copy)
    plain.close()
    os.close(fd)


def test_the_list_itself(image: Path, tmp_path: Path) -> None:
    size = used(image)
    place = size + -size % 4096
    for at, why in (
        (place, "its list of windows is gone"),
        (place + 9, "for another size, or of a later version"),
        (place + 17, "for another size, or of a later version"),
        (place + 30, "its list of windows is damaged"),
        (place + 24 + 32 * -(-size // WINDOW), "its list of windows is damaged"),
    ):
        data = bytearray(image.read_bytes())
        data[at] ^= 1
        path = tmp_path / "damaged"
        path.write_bytes(data)
        fd = os.open(path, os.O_RDONLY)
        with pytest.raises(UdiError, match=f"mounting failed on i: .*{why}"):
            Reader(fd, "i", opener=opener(True))
        if at == place:
            # Nobody knows of a list: there is none to check with.
            assert type(Reader(fd, "i", opener=opener(False)).source) is ImageFile
        os.close(fd)


def test_the_superblock_was_read_unchecked(image: Path, tmp_path: Path) -> None:
    """It changes between the first read and the check, as a bad cable does."""
    fd = os.open(image, os.O_RDONLY)
    head = Reader(fd, "i").super
    changed = bytearray(head.head)
    changed[5] ^= 1
    head.head = bytes(changed)
    with pytest.raises(UdiError, match="its first bytes have changed"):
        opener(True)(fd, head, "i")
    os.close(fd)


def test_no_window_is_fetched_twice(image: Path) -> None:
    """Eight threads want the same window at once: one of them reads it, and sums it."""
    fd = os.open(image, os.O_RDONLY)
    known = windows.behind(fd, used(image))
    assert known is not None
    fetched: list[int] = []
    all_there, go_on = threading.Barrier(9), threading.Event()

    class Slow(CheckedFile):
        def fetch(self, number: int) -> bytes:
            fetched.append(number)
            assert go_on.wait(60)
            return super().fetch(number)

    source = Slow(fd, known, "i", known.size)
    results: list[bytes] = []

    def want() -> None:
        all_there.wait(60)
        results.append(source.load(2))

    threads = [threading.Thread(target=want) for _ in range(8)]
    for one in threads:
        one.start()
    all_there.wait(60)
    while not source._loading:
        pass
    go_on.set()
    for one in threads:
        one.join(60)
    assert len(results) == 8 and len(set(results)) == 1 and fetched == [2]
    os.close(fd)


def test_an_error_is_not_kept(image: Path, tmp_path: Path) -> None:
    """A window that is right again, as after a bad copy in memory, is read again."""
    path = tmp_path / "i"
    data = bytearray(image.read_bytes())
    path.write_bytes(data)
    fd = os.open(path, os.O_RDWR)
    known = windows.behind(fd, used(image))
    assert known is not None
    source = CheckedFile(fd, known, "i", known.size)
    os.pwrite(fd, bytes((data[WINDOW + 7] ^ 1,)), WINDOW + 7)
    for _ in range(2):
        with pytest.raises(
            Corrupt, match=r"window 1 of 1 MiB .from byte 1048576 of i. is not what"
        ):
            source.read(WINDOW - 5, 10)
    os.pwrite(fd, data[WINDOW + 7 : WINDOW + 8], WINDOW + 7)
    assert source.read(WINDOW - 5, 10) == data[WINDOW - 5 : WINDOW + 5]
    os.close(fd)


@pytest.mark.needs("userns", "fuse")
def test_a_mount_answers_eio_and_logs_a_line_for_a_window(image: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged"
    data = bytearray(image.read_bytes())
    data[2 * WINDOW + 9] ^= 1
    path.write_bytes(data)
    with Mount(ours("raw", "--verify=always"), path, tmp_path / "m") as one:
        done = one.run("sh", "-c", f"cat {one.point}/sizes/* {one.point}/many/* >/dev/null")
        assert done.returncode and "Input/output error" in done.stderr
        lines = one.log.read_text().splitlines()
        assert lines == [
            f"udi-image: {path}: the image is damaged: window 2 of 1 MiB (from byte 2097152 of "
            f"{path}) is not what its list says; `udi verify` checks all of it"
        ]
        assert one.run("cat", f"{one.point}/links/one").stdout == "hard"
    with Mount(ours("raw", "--verify=always"), image, tmp_path / "m2") as one:
        argv = ["python3", "-IS", TREE / "tests/kit/fusetree.py", one.point]
        assert one.run(*argv).returncode == 0 and one.log.read_text() == ""


@pytest.mark.needs("userns", "fuse", "busybox")
def test_image_verify_of_the_configuration(user: User, tmp_path: Path) -> None:
    layout = images.Layout(tmp_path / "layout")
    entries = [*images.busybox_entries(), ("noise", fuseimages.noise(3 << 20), {})]
    layout.image("1", [images.tar(entries)])
    name = f"oci:{layout.path}:1"
    done = user.run("udi", "pull", "-q", name)
    assert done.returncode == 0, done.stderr
    path = Path(user.env["UDI_STORE"], f"images/{done.stdout.strip().replace(':', '-')}.sqfs")
    config = user.home / "always.toml"
    config.write_text('[image]\nverify = "always"\n')
    env = {"UDI_CONFIG": str(config)}
    right = user.run("udi-run", name, "md5sum", "/noise", env=env)
    assert right.returncode == 0, right.stderr
    data = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        at = data.index(fuseimages.noise(64)) + (2 << 20)
        file.seek(at)
        file.write(bytes((data[at] ^ 1,)))
    wrong = user.run("udi-run", name, "md5sum", "/noise", env=env)
    assert wrong.returncode == 1 and "Input/output error" in wrong.stderr
    # Where nothing is checked, nobody sees it.
    other = user.run("udi-run", name, "md5sum", "/noise")
    assert other.returncode == 0 and other.stdout != right.stdout
    with path.open("r+b", buffering=0) as file:
        file.truncate(used(path) + -used(path) % 4096)
    gone = user.run("udi-run", name, "true", env=env)
    assert gone.returncode == 125 and "its list of windows is gone" in gone.stderr
    done = user.run("udi-run", "--fuse=directory", name, "true", env=env)
    assert done.returncode == 125 and "image.verify is always, and directory serves" in done.stderr
