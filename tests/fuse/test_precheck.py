"""A process compares the windows that a start reads first, before they are read."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.windows import WINDOW
from rootless_udi.fuse import precheck
from rootless_udi.fuse.checkedfile import CheckedFile
from rootless_udi.fuse.format import WrongWindow, superblock
from rootless_udi.fuse.format_writer import hot
from rootless_udi.fuse.precheck import Beforehand
from rootless_udi.store import windows
from tests.kit import fuseimages

pytestmark = pytest.mark.needs("mksquashfs")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    path = fuseimages.mksquashfs(fuseimages.everything(), folder / "i", "-comp", "zstd")
    with path.open("r+b", buffering=0) as file:
        windows.append(file.fileno())
    return path


@pytest.fixture
def fd(image: Path, tmp_path: Path) -> Iterator[int]:
    """A copy of the image, which a test may change."""
    path = tmp_path / "copy"
    path.write_bytes(image.read_bytes())
    found = os.open(path, os.O_RDWR)
    yield found
    os.close(found)


def begun(fd: int) -> tuple[Beforehand, int]:
    """Return what is compared beforehand, and the process that does it."""
    before = children()
    found = precheck.begin(os.dup(fd))
    assert found is not None
    (process,) = children() - before
    return found, process


def children() -> set[int]:
    path = Path(f"/proc/self/task/{threading.get_native_id()}/children")
    return {int(word) for word in path.read_text().split()}


def ended(fd: int) -> Beforehand:
    """Return what a process has found that has ended."""
    found, process = begun(fd)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 0
    return found


class Noted(CheckedFile):
    """The windows that it has to compare itself are in `seen`."""

    __slots__ = ("seen",)

    def __init__(self, fd: int, found: Beforehand) -> None:
        head = superblock(fd, "i")
        known = windows.behind(fd, head.bytes_used)
        assert found.of(fd, head)
        self.seen: list[int] = []
        super().__init__(fd, known, "i", head.bytes_used, 0, found)

    def checked(self, number: int, data: "bytes | memoryview") -> None:
        self.seen.append(number)
        super().checked(number, data)


def test_what_is_right_is_not_compared_again(fd: int) -> None:
    found = ended(fd)
    source = Noted(fd, found)
    first, last = 0, (source.size - 1) // WINDOW
    assert {first, last} <= set(precheck.order(superblock(fd, "i")))
    source.read(0, 100)
    source.read(last * WINDOW, 100)
    assert not source.seen
    source.read(WINDOW, 100)
    assert source.seen == [1]


def test_a_wrong_window_is_for_who_reads_it(fd: int) -> None:
    size = superblock(fd, "i").bytes_used
    last = (size - 1) // WINDOW
    os.pwrite(fd, b"\0\1", size - 2)
    found = ended(fd)
    with pytest.raises(WrongWindow) as caught:
        Noted(fd, found).read(last * WINDOW, 100)
    assert caught.value.number == last


def test_what_it_found_grows_old(fd: int) -> None:
    found = ended(fd)
    found.until = 0.0
    source = Noted(fd, found)
    source.read(0, 100)
    assert source.seen == [0]
    assert not found.right(0)


def test_another_file_of_that_name(fd: int, image: Path) -> None:
    """The file was replaced between both: what was compared says nothing of the new one."""
    found = ended(fd)
    with image.open("rb") as other:
        assert not found.of(other.fileno(), superblock(other.fileno(), "i"))
        assert not found.right(0)


def test_it_is_killed(fd: int) -> None:
    """Nobody waits for it for ever, and all is compared."""
    found, process = begun(fd)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    source = Noted(fd, found)
    for number in range(-(-source.size // WINDOW)):
        source.read(number * WINDOW, 1)
    assert len(source.seen) == len(set(source.seen))


def test_a_window_far_ahead_is_not_waited_for(fd: int) -> None:
    """The process may be reading a slow disk; this one is stopped."""
    mine, theirs = os.pipe()
    os.set_blocking(mine, False)
    found = Beforehand(fd, mine)
    head = superblock(fd, "i")
    head.flags = 0
    head.bytes_used += 40 * WINDOW
    head.head = head.head[:96] + hot(((WINDOW, 30 * WINDOW), (0, 1)))
    assert found.of(fd, head)
    order = precheck.order(head)
    assert not found.right(order[20])
    os.write(theirs, bytes(range(5)))
    assert found.right(order[4]) and not found.right(order[-1])
    os.close(theirs)
    assert not found.right(order[5])
    os.close(mine)


def test_without_a_list_it_says_nothing(fd: int) -> None:
    os.ftruncate(fd, superblock(fd, "i").bytes_used)
    found = ended(fd)
    assert found.of(fd, superblock(fd, "i"))
    assert not found.right(0)


def test_no_room_for_a_process(fd: int, tmp_path: Path) -> None:
    """The limit is of one user's processes, which root does not have."""
    import resource

    if os.getuid() == 0:
        return
    before = resource.getrlimit(resource.RLIMIT_NPROC)
    resource.setrlimit(resource.RLIMIT_NPROC, (1, before[1]))
    try:
        assert precheck.begin(os.dup(fd)) is None
    finally:
        resource.setrlimit(resource.RLIMIT_NPROC, before)


def test_the_order_is_bounded(fd: int) -> None:
    """A marker that names terabytes."""
    head = superblock(fd, "i")
    head.bytes_used = 1 << 50
    head.inode_table = 1 << 49
    order = precheck.order(head)
    assert order[:3] == [0, (1 << 30) - 1, 1 << 29] and len(order) == 3
    head.flags = 0
    head.head = head.head[:96] + hot(((0, 1 << 50), (1 << 40, 1 << 45)))
    assert len(precheck.order(head)) == precheck.MOST
