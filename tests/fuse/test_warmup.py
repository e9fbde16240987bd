"""What is decompressed before it is asked for, and the threads that do it."""

import errno
import os
import struct
import threading
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from rootless_udi.fuse import filesystem, warmup
from rootless_udi.fuse.filesystem import ROOT, FileSystem
from rootless_udi.fuse.format import Corrupt
from rootless_udi.fuse.profile import Tracer
from rootless_udi.fuse.reader import Reader
from rootless_udi.fuse.workers import Workers
from tests.fuse.test_protocol import Kernel
from tests.kit import fuseimages, images
from tests.kit.fusemount import Mount, ours

LOADER, LIBC, CACHE = fuseimages.LOADER, fuseimages.LIBC, fuseimages.CACHE
DEBIAN = fuseimages.debian()
FEDORA: list[images.Entry] = [
    ("lib64", "usr/lib64", {}),
    *((name, None, {}) for name in ("etc", "usr", "usr/lib64")),
    ("usr/lib64/ld-linux-x86-64.so.2", "ld-2.17.so", {}),
    ("usr/lib64/ld-2.17.so", LOADER, {}),
    ("usr/lib64/libc.so.6", "libc-2.17.so", {}),
    ("usr/lib64/libc-2.17.so", LIBC, {}),
    ("etc/ld.so.cache", CACHE, {}),
]
ALPINE: list[images.Entry] = [("lib", None, {}), ("lib/ld-musl-x86_64.so.1", LOADER, {})]


@pytest.fixture(autouse=True)
def x86(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmup, "uname", lambda: os.uname_result(("", "", "", "", "x86_64")))
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def opened(image: Path, threads: int = 0) -> FileSystem:
    return FileSystem(Reader(os.open(image, os.O_RDONLY), str(image)), threads=threads)


def drained(workers: Workers) -> None:
    """Wait until one worker has done all that it was asked for."""
    last = threading.Event()
    workers.ask(lambda _: last.set(), "the last job")
    assert last.wait(60)


def at_hand(fs: FileSystem, *names: bytes) -> bool:
    """Tell whether all blocks of a file are decompressed."""
    node = ROOT
    for name in names:
        node = fs.lookup(node, name)
    one = fs.inode(node)
    count = -(-one.size // fs.blocks.size)
    return all(fs.blocks.place(one, n) in fs.blocks.cache for n in range(count))


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("compressor", ("gzip", "zstd"))
def test_the_loader_its_cache_and_the_c_library_are_decompressed(
    compressor: str, tmp_path: Path
) -> None:
    options = ("-comp", compressor, "-no-tailends")
    fs = opened(fuseimages.mksquashfs(images.tar(DEBIAN), tmp_path / "i", *options))
    assert list(warmup.steps(fs)).count(None) > 10
    drained(fs.workers)
    lib = (b"usr", b"lib", b"m")
    assert at_hand(fs, *lib, b"ld-linux-x86-64.so.2") and at_hand(fs, *lib, b"libc.so.6")
    assert at_hand(fs, b"etc", b"ld.so.cache")
    assert not at_hand(fs, *lib, b"libm.so.6")
    fs.close()


@pytest.mark.needs("mksquashfs")
def test_links_within_a_folder_and_a_musl(tmp_path: Path) -> None:
    fs = opened(fuseimages.mksquashfs(images.tar(FEDORA), tmp_path / "f"))
    list(warmup.steps(fs))
    drained(fs.workers)
    assert at_hand(fs, b"usr", b"lib64", b"ld-2.17.so")
    assert at_hand(fs, b"usr", b"lib64", b"libc-2.17.so")
    fs.close()
    fs = opened(fuseimages.mksquashfs(images.tar(ALPINE), tmp_path / "a"))
    list(warmup.steps(fs))
    drained(fs.workers)
    assert at_hand(fs, b"lib", b"ld-musl-x86_64.so.1")
    fs.close()


LONG: list[images.Entry] = [("lib64", None, {}), ("lib64/ld-linux-x86-64.so.2", "a/" * 9000, {})]
LOOP: list[images.Entry] = [("lib64", "lib", {}), ("lib", "lib64", {})]
ABOVE: list[images.Entry] = [
    ("lib64", None, {}),
    ("lib64/ld-linux-x86-64.so.2", "../../../../../there", {}),
    ("there", LOADER, {}),
]
HUGE: list[images.Entry] = [
    ("lib64", None, {}),
    ("lib64/ld-linux-x86-64.so.2", LOADER, {}),
    ("lib64/libc.so.6", fuseimages.words(5 << 20, 4), {}),
]
NO_FILE: list[images.Entry] = [("lib64", None, {}), ("lib64/ld-linux-x86-64.so.2", None, {})]


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize(
    ("tree", "found"),
    (
        ([], ""),
        (LOOP, ""),
        (LONG, ""),
        (NO_FILE, ""),
        (ABOVE, "there"),
        (HUGE, "lib64/ld-linux-x86-64.so.2"),
    ),
    ids=("static", "loop", "long", "directory", "above", "huge"),
)
def test_odd_images_are_no_trouble(tree: list[images.Entry], found: str, tmp_path: Path) -> None:
    tar = images.tar([("x", b"x", {}), *tree])
    fs = opened(fuseimages.mksquashfs(tar, tmp_path / "i", "-no-tailends"))
    assert len(list(warmup.steps(fs))) < 200
    drained(fs.workers)
    assert not found or at_hand(fs, *found.encode().split(b"/"))
    kept = sum(len(d) for d in (*fs.blocks.cache._young.values(), *fs.blocks.cache._old.values()))
    assert kept <= warmup.MOST
    fs.close()


@pytest.mark.needs("mksquashfs")
def test_a_damaged_loader_is_met_by_who_reads_it(tmp_path: Path) -> None:
    """In the server: what was done early failed, all else is answered, the reader gets EIO."""
    image = fuseimages.mksquashfs(images.tar(ALPINE), tmp_path / "i", "-comp", "zstd")
    data = bytearray(image.read_bytes())
    data[96 + 200 : 96 + 400] = bytes(200)
    image.write_bytes(data)
    fs = opened(image)
    list(warmup.steps(fs))
    drained(fs.workers)
    node = fs.lookup(fs.lookup(ROOT, b"lib"), b"ld-musl-x86_64.so.1")
    with pytest.raises(Corrupt):
        fs.read(node, 0, 4096)
    fs.close()


@pytest.mark.needs("mksquashfs")
def test_a_program_is_decompressed_whole_once_its_start_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = filesystem.ELF + fuseimages.words(1_000_000)
    tree: list[images.Entry] = [
        ("program", code, {}),
        ("other", fuseimages.words(1_000_000, 2), {}),
        ("huge", filesystem.ELF + fuseimages.words(filesystem.PROGRAM, 3), {}),
        ("empty", b"", {}),
        ("tiny", b"\x7fE", {}),
    ]
    image = fuseimages.mksquashfs(images.tar(tree), tmp_path / "i", "-comp", "zstd")
    monkeypatch.setattr(filesystem, "has_idle_cpu", lambda: True)
    fs = opened(image)
    for name, _, _ in tree:
        node = fs.lookup(ROOT, name.encode())
        assert b"".join(fs.read(node, 0, 4096)) == tree_data(tree, name)[:4096]
        drained(fs.workers)
        assert at_hand(fs, name.encode()) is (name in ("program", "empty", "tiny")), name
    node = fs.lookup(ROOT, b"program")
    assert b"".join(fs.read(node, 0, 1 << 20)) == code
    fs.close()
    few = FileSystem(Reader(os.open(image, os.O_RDONLY), "i"), 2_000_000)
    few.read(few.lookup(ROOT, b"program"), 0, 4096)
    drained(few.workers)
    assert not at_hand(few, b"program")  # half of a small cache
    few.close()
    for place, name, answer in (
        (filesystem, "has_idle_cpu", lambda: False),
        (os, "sched_getaffinity", lambda _: {3}),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(place, name, answer)
            fs = opened(image)
            fs.read(fs.lookup(ROOT, b"program"), 0, 4096)
            drained(fs.workers)
            assert not at_hand(fs, b"program")
            fs.close()


@pytest.mark.needs("mksquashfs")
def test_the_command_is_decompressed_too(tmp_path: Path) -> None:
    """By its path, by a link, or by its name on the usual PATH; what is not there is no trouble."""
    code = fuseimages.words(300_000)
    tree: list[images.Entry] = [
        *DEBIAN,
        ("usr/local", None, {}),
        ("usr/local/bin", None, {}),
        ("usr/local/bin/tool", code, {}),
        ("usr/bin", None, {}),
        ("usr/bin/tool", "../lib/tool", {}),
        ("usr/lib/tool", fuseimages.words(300_000, 2), {}),
    ]
    image = fuseimages.mksquashfs(images.tar(tree), tmp_path / "i", "-no-tailends")
    for program, found in (
        (b"/usr/bin/tool", b"usr/lib/tool"),
        (b"/usr/local/bin/tool", b"usr/local/bin/tool"),
        (b"tool", b"usr/local/bin/tool"),
        (b"usr/bin/tool", b"usr/lib/tool"),
        (b"/none", b""),
        (b"none", b""),
        (b"/" + b"x" * 5000, b""),
        (b"", b""),
    ):
        fs = opened(image)
        list(warmup.steps(fs, program))
        drained(fs.workers)
        for name in (b"usr/lib/tool", b"usr/local/bin/tool"):
            assert at_hand(fs, *name.split(b"/")) is (name == found), program
        fs.close()


@pytest.mark.needs("mksquashfs")
def test_a_program_in_use_is_offered_whole_and_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "has_idle_cpu", lambda: True)
    code = filesystem.ELF + fuseimages.words(300_000) + bytes(400_000) + fuseimages.noise(99_999)
    tree: list[images.Entry] = [("code", code, {}), ("text", fuseimages.words(200_000), {})]
    image = fuseimages.mksquashfs(images.tar(tree), tmp_path / "i", "-comp", "zstd")
    fs = opened(image)
    offers: list[tuple[int, int, bytes]] = []
    fs.offer_to(lambda node, offset, data: offers.append((node, offset, bytes(data))))
    fs.workers.ask(lambda _: None, "waits before")
    node = fs.lookup(ROOT, b"code")
    for name in (b"text", b"code"):
        fs.read(fs.lookup(ROOT, name), 0, 4096)
    drained(fs.workers)
    assert [offset for _, offset, _ in offers] == sorted(offset for _, offset, _ in offers)
    made = bytearray(len(code))  # what is not offered is a hole, or was just read
    made[:4096] = code[:4096]
    assert offers[0][1] == 4096
    for who, offset, data in offers:
        assert who == node
        made[offset : offset + len(data)] = data
    assert made == code
    fs.close()
    # A profile notes what the kernel asks for, so it has to ask.
    traced = Tracer()(Reader(os.open(image, os.O_RDONLY), "i"), 40 << 20, 0)
    traced.offer_to(lambda *_: offers.clear())
    traced.read(traced.lookup(ROOT, b"code"), 0, 4096)
    drained(traced.workers)
    assert offers
    traced.close()


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("error", (errno.ENOENT, errno.EINVAL))
def test_an_offer_that_is_refused_loses_nothing(
    error: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ENOENT: the kernel has forgotten that inode. EINVAL: it takes no offers at all."""
    monkeypatch.setattr(filesystem, "has_idle_cpu", lambda: True)
    codes = [filesystem.ELF + fuseimages.words(400_000, n) for n in (1, 2)]
    tree: list[images.Entry] = [(f"p{n}", code, {}) for n, code in enumerate(codes)]
    fs = opened(fuseimages.mksquashfs(images.tar(tree), tmp_path / "i", "-no-tailends"))
    offered = []

    def refuse(node: int, offset: int, data: filesystem.Buffer) -> None:
        offered.append((node, offset))
        raise OSError(error, "refused")

    fs.offer_to(refuse)
    for n, code in enumerate(codes):
        node = fs.lookup(ROOT, b"p%d" % n)
        fs.read(node, 0, 4096)
        drained(fs.workers)
        if n == 0 or error == errno.ENOENT:
            assert len({one for one in offered if one[0] == node}) in (1, 4)
        else:
            assert not [one for one in offered if one[0] == node]
        assert at_hand(fs, b"p%d" % n) is (n == 1 or error == errno.ENOENT)
        assert b"".join(fs.read(node, 0, 1 << 20)) == code
    fs.close()


@pytest.mark.needs("mksquashfs")
def test_a_root_that_is_no_directory(tmp_path: Path) -> None:
    image = fuseimages.mksquashfs(images.tar(ALPINE), tmp_path / "i")
    fs = opened(image)
    file = fs.lookup(fs.lookup(ROOT, b"lib"), b"ld-musl-x86_64.so.1")
    fs.close()
    with open(image, "r+b") as data:
        data.seek(32)  # the superblock's reference to the root
        data.write(struct.pack("<Q", file - 2))
    fs = opened(image)
    assert set(warmup.steps(fs)) <= {None}
    fs.close()


@pytest.mark.needs("mksquashfs")
def test_what_is_read_early_is_in_no_profile(tmp_path: Path) -> None:
    image = fuseimages.mksquashfs(images.tar(DEBIAN), tmp_path / "i")
    tracer = Tracer()
    fs = tracer(Reader(os.open(image, os.O_RDONLY), "i"), 40 << 20, 0)
    list(warmup.steps(fs, b"/usr/bin/none"))
    drained(fs.workers)
    assert tracer.reads == []
    fs.close()


@pytest.mark.needs("mksquashfs")
def test_what_is_offered_goes_to_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filesystem, "has_idle_cpu", lambda: True)
    code = filesystem.ELF + fuseimages.words(400_000)
    kernel = Kernel(fuseimages.mksquashfs(images.tar([("code", code, {})]), tmp_path / "i"))
    try:
        node = struct.unpack_from("=Q", kernel.ask(1, 1, b"code\0")[1])[0]
        kernel.send(15, node, struct.pack("=QQIIQII", 0, 0, 4096, 0, 0, 0, 0))
        made, answered = bytearray(code), False
        made[4096:] = bytes(len(code) - 4096)
        while bytes(made) != code or not answered:
            message = kernel.ours.recv(1 << 21)
            length, error, unique = struct.unpack_from("=IiQ", message)
            assert length == len(message)
            if unique:
                answered = True
                assert (error, message[16:]) == (0, code[:4096])
                continue
            assert error == 4  # FUSE_NOTIFY_STORE
            who, offset, size, _ = struct.unpack_from("=QQII", message, 16)
            assert who == node and size == length - 40 and offset + size <= len(code)
            made[offset : offset + size] = message[40:]
    finally:
        kernel.close()


@pytest.mark.needs("userns", "fuse", "mksquashfs")
def test_many_readers_of_programs_that_are_offered(tmp_path: Path) -> None:
    """Offers and answers for the same pages at once: all bytes are right, and nobody hangs."""
    codes = [filesystem.ELF + fuseimages.words(900_000 + n, n) for n in range(1, 9)]
    tree: list[images.Entry] = [(f"p{n}", code, {}) for n, code in enumerate(codes)]
    image = fuseimages.mksquashfs(images.tar(tree), tmp_path / "i", "-comp", "zstd")
    read = "for i in 1 2 3; do for f in p*; do dd if=$f bs=9k skip=$i count=40 status=none; done; "
    read += "done >/dev/null; sha256sum p*"
    for _ in range(3):
        with Mount(ours(), image, tmp_path / "m") as one:
            shells = f"cd {one.point}; for n in 1 2 3 4; do ({read}) & done; wait"
            lines = one.run("sh", "-c", shells).stdout.split("\n")[:-1]
            wanted = [f"{sha256(code).hexdigest()}  p{n}" for n, code in enumerate(codes)]
            assert sorted(lines) == sorted(wanted * 4)
            assert one.log.read_text() == ""


def tree_data(tree: list[images.Entry], name: str) -> bytes:
    return next(data for n, data, _ in tree if n == name and isinstance(data, bytes))


def damaged_directories(path: Path) -> Path:
    options = ("-noI", "-noD", "-noF", "-noX", "-noId")
    data = bytearray(fuseimages.mksquashfs(images.tar(DEBIAN), path, *options).read_bytes())
    table = struct.unpack_from("<Q", data, 72)[0]
    data[table + 2 : table + 300] = b"\xff" * 298
    path.write_bytes(data)
    return path


@pytest.mark.needs("mksquashfs")
def test_requests_are_answered_during_and_after_the_steps(tmp_path: Path) -> None:
    for image in (
        fuseimages.mksquashfs(images.tar(DEBIAN), tmp_path / "good", "-comp", "zstd"),
        damaged_directories(tmp_path / "bad"),
    ):
        kernel = Kernel(image)
        try:
            for _ in range(300):
                assert kernel.ask(3, 1, bytes(16))[0] == 0
            assert kernel.ask(1, 1, b"usr\0")[0] == (0 if image.name == "good" else 5)
        finally:
            kernel.close()


@pytest.fixture
def workers() -> Iterator[Workers]:
    one = Workers(1)
    yield one
    one.close()


def test_who_wants_a_job_that_waits_takes_it_back(workers: Workers) -> None:
    go, begun, done = threading.Event(), threading.Event(), []

    def slow(name: object) -> None:
        begun.set()
        assert go.wait(60)
        done.append(name)

    workers.ask(slow, "slow")
    assert begun.wait(60)
    workers.ask(done.append, "second")
    workers.ask(done.append, "third")
    workers.wait("second")  # returns at once: the only thread is at "slow"
    assert done == []
    workers.ask(done.append, "second")  # again, behind the third; its first turn does it
    go.set()
    workers.wait("slow")
    assert done[0] == "slow"
    drained(workers)
    assert sorted(map(str, done)) == ["second", "slow", "third"] and not workers._pending
    workers.wait("never asked for")


def test_two_that_wait_for_one_job_that_waits() -> None:
    """One takes it back; the other, which had seen it too, must not wait for ever."""
    workers = Workers(1)
    go, both = threading.Event(), threading.Barrier(2)
    workers.ask(lambda _: go.wait(60), "keeps the only thread")
    workers.ask(lambda _: None, "wanted")

    class Pending(dict[object, object]):
        def get(self, key: object, default: object = None) -> object:
            found = super().get(key, default)
            if key == "wanted":
                both.wait(60)
            return found

    workers._pending = Pending(workers._pending)  # type: ignore[assignment]
    two = [threading.Thread(target=workers.wait, args=("wanted",), daemon=True) for _ in range(2)]
    for one in two:
        one.start()
    for one in two:
        one.join(60)
        assert not one.is_alive()
    go.set()
    workers.close()
    workers.ask(lambda _: None, "after the end")
    workers.wait("after the end")


def test_what_is_urgent_comes_first(workers: Workers) -> None:
    go, begun = threading.Event(), threading.Event()
    done: list[object] = []

    def slow(_: object) -> None:
        begun.set()
        go.wait(60)

    workers.ask(slow, "slow")
    assert begun.wait(60)
    for name in ("one", "two"):
        workers.ask(done.append, name)
    for name in ("urgent", "more so"):
        workers.ask(done.append, name, first=True)
    go.set()
    drained(workers)
    assert done == ["more so", "urgent", "one", "two"]


def test_a_job_is_done_once_and_its_errors_are_nobodys(workers: Workers) -> None:
    calls = []

    def fail(name: object) -> None:
        calls.append(name)
        raise ValueError

    go = threading.Event()
    workers.ask(lambda _: go.wait(60), "first")
    for _ in range(5):
        workers.ask(fail, "bad")
    go.set()
    drained(workers)
    assert calls == ["bad"]
    assert not workers._pending and not workers._idle


@pytest.mark.parametrize("threads", (1, 4))
def test_asked_and_wanted_by_many_threads_at_once(threads: int) -> None:
    """Every wait ends, and what is left over is nothing."""
    workers = Workers(threads)
    made: dict[object, int] = {}

    def make(name: object) -> None:
        made[name] = made.get(name, 0) + 1
        if isinstance(name, int) and name % 3 == 0:
            workers.ask(make, name + 1)

    def run(start: int) -> None:
        for n in range(start, start + 3000):
            workers.ask(make, n)
            workers.ask(make, n + 1)
            workers.wait(n - 5)
            workers.wait(n)

    many = [threading.Thread(target=run, args=(n,)) for n in (0, 100, 100)]
    for one in many:
        one.start()
    for one in many:
        one.join(120)
        assert not one.is_alive()
    while workers._pending:
        workers.wait(next(iter(workers._pending), None))
    assert not workers._idle
    workers.close()


@pytest.mark.needs("userns", "fuse", "mksquashfs")
def test_a_mount_with_a_loader(tmp_path: Path) -> None:
    image = fuseimages.mksquashfs(images.tar(DEBIAN), tmp_path / "i", "-comp", "zstd")
    with Mount(ours(), image, tmp_path / "m") as one:
        for name, data in (("usr/lib/m/libc.so.6", LIBC), ("etc/ld.so.cache", CACHE)):
            assert one.run("sha256sum", one.point / name).stdout[:64] == sha256(data).hexdigest()
        assert one.log.read_text() == ""
