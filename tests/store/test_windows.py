"""The list of an image's windows: its format, how it is made, and what stays whole in between."""

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rootless_udi.base import fastjson, windows
from rootless_udi.base.errors import UdiError
from rootless_udi.base.superblock import MAGIC, SIZE, USED
from rootless_udi.base.windows import WINDOW
from rootless_udi.store import adding, find
from rootless_udi.store import windows as files
from rootless_udi.store.store import Store
from tests.kit.places import TREE

A = "sha256:" + "a" * 64
SIZES = (SIZE, 4095, 4096, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW + 17)


def squashfs(size: int, seed: int = 1) -> bytes:
    """Return `size` bytes that begin with what is read here of a superblock."""
    import random

    head = MAGIC.to_bytes(4, "little").ljust(USED.start, b"\0") + size.to_bytes(8, "little")
    return head.ljust(SIZE, b"\0") + random.Random(seed).randbytes(size - SIZE)


def sums(data: bytes) -> bytes:
    parts = (data[at : at + WINDOW] for at in range(0, len(data), WINDOW))
    return b"".join(hashlib.sha256(part).digest() for part in parts)


@pytest.mark.parametrize("size", SIZES)
def test_a_list_made_of_a_file_and_of_a_stream(size: int, tmp_path: Path) -> None:
    data = squashfs(size)
    path = tmp_path / "x"
    path.write_bytes(data + b"whatever was there before" * 1000)
    with path.open("r+b") as file:
        known = files.append(file.fileno())
        assert files.behind(file.fileno(), size) == known
    assert known == windows.made(size, sums(data))
    written = path.read_bytes()
    place = windows.place(size)
    assert written[:size] == data and len(written) == place + windows.room(size)
    document = written[place : place + 24 + len(known.sums)]
    assert known.digest == f"sha256:{hashlib.sha256(document).hexdigest()}"
    for step in (1000, WINDOW, 3 * WINDOW + 1):
        stream = files.Summing(size)
        for at in range(0, len(written), step):
            stream.feed(written[at : at + step])
        assert stream.end() == known


def test_each_window_flipped_is_found(tmp_path: Path) -> None:
    size = 5 * WINDOW + 100
    path = tmp_path / "x"
    path.write_bytes(squashfs(size))
    with path.open("r+b") as file:
        fd = file.fileno()
        known = files.append(fd)
        assert files.damaged([files.Checked(fd, known)]) == [[]]
        for number in range(6):
            for at in (number * WINDOW, min((number + 1) * WINDOW, size) - 1):
                before = os.pread(fd, 1, at)
                os.pwrite(fd, bytes((before[0] ^ 1,)), at)
                assert files.damaged([files.Checked(fd, known)] * 2) == [[number]] * 2
                os.pwrite(fd, before, at)
        os.ftruncate(fd, 3 * WINDOW + 5)
        assert files.damaged([files.Checked(fd, known)]) == [[3, 4, 5]]
    assert files.said([3, 4, 5], size) == (
        "3 of 6 windows of 1 MiB are damaged, from byte 3145728, 4194304, 5242880"
    )
    assert files.said([0], 9) == "1 of 1 window of 1 MiB is damaged, from byte 0"


def test_each_byte_of_the_list_flipped_is_found(tmp_path: Path) -> None:
    size = 2 * WINDOW
    path = tmp_path / "x"
    path.write_bytes(squashfs(size))
    with path.open("r+b") as file:
        fd = file.fileno()
        known = files.append(fd)
        for at in range(size, size + 24 + 3 * 32):
            before = os.pread(fd, 1, at)
            os.pwrite(fd, bytes((before[0] ^ 1,)), at)
            if at < size + 8:
                # No list at all: whoever knows that there should be one says so.
                assert files.behind(fd, size) is None
            else:
                with pytest.raises(ValueError, match="its list of windows is "):
                    files.behind(fd, size)
            os.pwrite(fd, before, at)
        for cut in (0, 7, 8, 24, 56, 119):
            os.ftruncate(fd, size + cut)
            if cut < 8:
                assert files.behind(fd, size) is None
            else:
                with pytest.raises(ValueError):
                    files.behind(fd, size)
            files.put(fd, known)


def made(store: Store, seed: int) -> tuple[str, windows.WindowList]:
    path = store.temporary("images", A)
    Path(path).write_bytes(squashfs(2 * WINDOW, seed))
    with open(path, "r+b") as file:
        return path, files.append(file.fileno())


def fits(store: Store) -> bool:
    """Tell whether the facts name the list of each of the image's files, wherever it stands."""
    image = store.image(A)
    assert image is not None
    named = store.facts(image)["windows"]
    for suffix in (".sqfs", find.OPTIMIZED):
        path = f"{store.root}/images/{A.replace(':', '-')}{suffix}"
        if os.path.exists(path):
            with open(path, "rb") as file:
                known = files.behind(file.fileno(), files.used(file.fileno()))
            if known is None or known.digest not in named:
                return False
    return True


def test_facts_name_the_lists_of_what_is_there(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.create()
    path, first = made(store, 1)
    image = adding.add(store, A, path, {"version": 1}, first)
    assert store.facts(image)["windows"] == [first.digest]
    path, second = made(store, 2)
    adding.add_optimized(store, image, path, second)
    assert store.facts(image)["windows"] == [first.digest, second.digest] and fits(store)
    path, third = made(store, 3)
    adding.add_optimized(store, image, path, third)
    assert store.facts(image)["windows"] == [first.digest, third.digest] and fits(store)
    path, fourth = made(store, 4)
    image = adding.add(store, A, path, {"version": 1}, fourth)
    assert store.facts(image)["windows"] == [fourth.digest] and fits(store)
    assert [p.suffix for p in Path(store.root, "images").iterdir()].count(".sqfs") == 1


STEP = """
import os, signal, sys
from rootless_udi.base import windows
from rootless_udi.store import adding, windows as files
from rootless_udi.store.store import Store
store, path, kind, left = Store(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
def counted(event, arguments):
    global left
    if event in ("os.rename", "os.remove", "open", "os.truncate"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
with open(path, "rb") as file:
    known = files.behind(file.fileno(), files.used(file.fileno()))
digest = "sha256:" + "a" * 64
sys.addaudithook(counted)
if kind == "pull":
    adding.add(store, digest, path, {"version": 1}, known)
else:
    adding.add_optimized(store, store.image(digest), path, known)
"""


@pytest.mark.parametrize("kind", ("pull", "optimize"))
def test_kill_9_at_each_step_leaves_what_fits(kind: str, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.create()
    path, first = made(store, 1)
    adding.add(store, A, path, {"version": 1}, first)
    image = store.image(A)
    assert image is not None
    path, second = made(store, 2)
    adding.add_optimized(store, image, path, second)
    killed = 0
    for step in range(100):
        path, _ = made(store, 3 + step)
        argv = [sys.executable, "-c", STEP, store.root, path, kind, str(step)]
        done = subprocess.run(argv, cwd=TREE, capture_output=True, text=True)
        assert fits(store), step
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        killed += 1
    assert killed >= 8
    store.sweep()
    assert not [p for p in Path(store.root, "images").iterdir() if p.name.startswith(".")]


def test_a_full_disk_while_the_list_is_written(tmp_path: Path) -> None:
    """A limit of file sizes stands for it: the image is refused, and nothing is left."""
    store = Store(str(tmp_path / "store"))
    store.create()
    path = store.temporary("images", A)
    Path(path).write_bytes(squashfs(2 * WINDOW))
    code = (
        "import resource, signal, sys; from rootless_udi.store import adding; "
        "from rootless_udi.store.store import Store; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)"
        f"; resource.setrlimit(resource.RLIMIT_FSIZE, ({2 * WINDOW},) * 2); "
        f"adding.add(Store({store.root!r}), {A!r}, {path!r}, {{}})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=TREE, capture_output=True, text=True)
    assert f"storing image {A} failed on" in done.stderr and "File too large" in done.stderr
    assert store.image(A) is None


def test_facts_of_a_damaged_image_are_written_anew(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "store"))
    store.create()
    path, first = made(store, 1)
    image = adding.add(store, A, path, {"version": 1}, first)
    with open(image.squashfs, "r+b") as file:
        file.seek(2 * WINDOW + 30)
        file.write(b"rotten")
    path, second = made(store, 2)
    image = adding.add(store, A, path, {"version": 1}, second)
    assert store.facts(image)["windows"] == [second.digest]
    Path(image.facts).write_bytes(fastjson.dumps([]).encode())
    path, third = made(store, 3)
    with pytest.raises(UdiError, match="reading the facts of"):
        adding.add_optimized(store, image, path, third)
