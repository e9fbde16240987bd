"""Mounted images, the same tests over every transport and over squashfuse_ll."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.kit import fuseimages, fusetree, images
from tests.kit.fusemount import Mount, ours, squashfuse
from tests.kit.places import TREE

NEEDS = pytest.mark.needs("userns", "fuse", "mksquashfs")
TRANSPORTS = (
    "raw",
    pytest.param("pyfuse3", marks=pytest.mark.needs("pyfuse3")),
    pytest.param("fuse-python", marks=pytest.mark.needs("fuse-python")),
    pytest.param("squashfuse_ll", marks=pytest.mark.needs("squashfuse")),
)
Mounter = Callable[..., Mount]


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("everything")
    return fuseimages.mksquashfs(fuseimages.everything(), folder / "i", "-comp", "zstd")


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mounter]:
    """Mount an image by a transport; ends it after the test and expects the server to end well."""
    made: list[Mount] = []

    def make(transport: str, image: Path, *options: str, **more: object) -> Mount:
        argv = squashfuse() if transport == "squashfuse_ll" else ours(transport, *options)
        inside = transport == "fuse-python"
        point = tmp_path / f"m{len(made)}"
        made.append(Mount(argv, image, point, inside=inside, **more))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for one in made:
        if one.server.returncode is None:
            assert one.close() == 0


def seen(one: Mount) -> dict[str, dict[str, object]]:
    done = one.run(sys.executable, "-IS", TREE / "tests/kit/fusetree.py", one.point)
    assert done.returncode == 0, done.stderr
    lines = (json.loads(line) for line in done.stdout.splitlines())
    return {line["path"]: line for line in lines}


@NEEDS
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_mount_shows_the_whole_image(transport: str, everything: Path, mount: Mounter) -> None:
    """But for owners, which a user namespace of one id can't show: the root tests compare these."""
    found = seen(mount(transport, everything))
    expected = {str(one["path"]): one for one in fusetree.of_image(str(everything))}
    assert set(found) == set(expected)
    for path, one in expected.items():
        other = found[path]
        for key in ("mode", "size", "mtime", "rdev", "target", "sha256", "nlink", "xattrs"):
            assert one.get(key) == other.get(key), (path, key)
        if transport != "squashfuse_ll":  # 0.1.105 gives each name of a hard link its own number
            assert one.get("same") == other.get("same"), path


@NEEDS
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_errors_are_those_of_a_read_only_file_system(
    transport: str, everything: Path, mount: Mounter
) -> None:
    code = """
import errno, os, sys
os.chdir(sys.argv[1])
def refused(call, *args):
    try:
        call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]
    return None
print(refused(open, "absent"), refused(open, "absent/more"), refused(open, "links/one/more"),
      refused(os.mkdir, "new"), refused(os.unlink, "links/one"), refused(os.open, "links/one", 2),
      refused(os.readlink, "links/one"), refused(os.listdir, "links/one"),
      refused(os.read, os.open("links", 0), 1), refused(os.getxattr, "links/one", "user.none"),
      refused(os.setxattr, "links/one", "user.x", b""), refused(os.chmod, "links/one", 0),
      refused(open, "n" * 300))
info = os.statvfs(".")
print(info.f_files > 100, info.f_bfree, info.f_bavail, info.f_blocks > 0)
file = os.open("sizes/words-8192", 0)
print(len(os.pread(file, 100, 8190)), os.pread(file, 100, 8192), os.pread(file, 100, 1 << 40))
print(os.lseek(file, 0, os.SEEK_END), os.access("links/one", os.R_OK))
print(sorted(os.listdir("empty")), os.path.samefile("links", "links/../links/."))
"""
    one = mount(transport, everything)
    lines = one.python(code, one.point).splitlines()
    words = lines[0].split()
    assert words[:3] == ["ENOENT", "ENOENT", "ENOTDIR"]
    assert words[3:6] == ["EROFS"] * 3
    assert words[6:9] == ["EINVAL", "ENOTDIR", "EISDIR"]
    assert words[9:12] == ["ENODATA", "EROFS", "EROFS"]
    assert words[12] == "ENAMETOOLONG" or transport == "squashfuse_ll"
    assert lines[1].split()[0] == "True" and lines[1].split()[3] == "True"
    assert lines[2:] == ["2 b'' b''", "8192 True", "[] True"]


@NEEDS
@pytest.mark.parametrize("transport", [one for one in TRANSPORTS if one != "fuse-python"])
def test_a_program_runs_from_a_mount_under_an_overlay(
    transport: str, mount: Mounter, tmp_path: Path
) -> None:
    """fuse-python mounts by itself, over the overlay here; launch/test_run.py has its turn."""
    busybox = images.tar(images.busybox_entries())
    image = fuseimages.mksquashfs(busybox, tmp_path / "busybox")
    one = mount(transport, image, overlay=True)
    program = one.point / "bin/busybox"
    done = one.run(
        program, "sh", "-c", f"echo $((6*7)); echo new > {one.point}/x; cat {one.point}/x"
    )
    assert (done.returncode, done.stdout) == (0, "42\nnew\n"), done.stderr


@NEEDS
@pytest.mark.parametrize("threads", (0, 1, 4))
@pytest.mark.parametrize("block", ("4096", "131072", "1048576"))
def test_large_reads_by_threads(threads: int, block: str, mount: Mounter, tmp_path: Path) -> None:
    """Sequential, backwards, scattered and by many readers at once, with few bytes of cache."""
    data = fuseimages.words(12 << 20) + fuseimages.noise(100_001)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/file").write_bytes(data)
    argv: list[str | Path] = [
        "mksquashfs",
        tmp_path / "in",
        tmp_path / "i",
        "-comp",
        "zstd",
        "-b",
        block,
        "-quiet",
    ]
    subprocess.run([*argv, "-no-progress"], check=True, capture_output=True)
    one = mount("raw", tmp_path / "i", f"--threads={threads}", "--cache=2000000")
    code = """
import hashlib, os, random, sys
from concurrent.futures import ThreadPoolExecutor
path, size = sys.argv[1], int(sys.argv[2])
want = open(sys.argv[3], "rb").read()
def check(seed):
    file, chance = os.open(path, os.O_RDONLY), random.Random(seed)
    for _ in range(60):
        at, count = chance.randrange(size), chance.choice((1, 4096, 100_000, 1 << 20))
        assert os.pread(file, count, at) == want[at : at + count], (at, count)
    os.close(file)
    return True
with ThreadPoolExecutor(6) as pool:
    print(all(pool.map(check, range(6))))
os.posix_fadvise(os.open(path, 0), 0, 0, os.POSIX_FADV_DONTNEED)
file = os.open(path, os.O_RDONLY | os.O_DIRECT)
import mmap
area = mmap.mmap(-1, 1 << 20)
for at in range((size - 1) >> 20 << 20, -1, -(1 << 20)):
    count = os.preadv(file, [area], at)
    assert area[:count] == want[at : at + count]
print(hashlib.sha256(open(path, "rb").read()).hexdigest() == hashlib.sha256(want).hexdigest())
"""
    where = one.point / "file"
    assert one.python(code, where, len(data), tmp_path / "in/file").split() == ["True", "True"]
    assert one.log.read_text() == ""


def counted(path: Path) -> dict[str, int]:
    return {name: int(n) for name, n in (line.split() for line in path.read_text().splitlines())}


ASKED_ONCE = ("OPEN", "OPENDIR", "FLUSH", "GETXATTR", "ACCESS", "STATX", "INTERRUPT", "LSEEK")


@NEEDS
@pytest.mark.needs("tar2sqfs", "mmdebstrap")
def test_the_second_start_costs_the_server_no_message(mount: Mounter, tmp_path: Path) -> None:
    """`python3 -c "import numpy"` in a container under the overlay, which answers IOCTL itself."""
    root = images.debian_root("bookworm", ("python3-numpy",))
    image = fuseimages.from_cache(root, "fuse")
    path = tmp_path / "counts"
    one = mount("raw", image, f"--counts={path}", overlay=True)

    def run() -> None:
        done = one.run(
            *("unshare", "--user", "--map-root-user", "--root", one.point),
            *("/usr/bin/python3", "-c", "import numpy; print(numpy.arange(3).sum())"),
        )
        assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr

    run()
    # Is answered after all that the kernel has asked for without waiting.
    assert one.run("test", "-e", f"{one.point}/absent").returncode == 1
    one.server.send_signal(signal.SIGUSR1)
    while not path.exists():
        assert one.server.poll() is None
    first = counted(path)
    run()
    run()
    assert one.close() == 0
    assert one.log.read_text() == ""
    third = counted(path)
    for name in ("FORGET", "BATCH_FORGET", "DESTROY"):  # at unmounting
        third.pop(name, None)
    assert first["READ"] > 100 and first["LOOKUP"] > 100
    # A loaded machine drops a page, or reads ahead in a later run what it had not in the first.
    assert sum(third.values()) < 1.1 * sum(first.values()), (first, third)
    for name in ASKED_ONCE:
        assert third.get(name, 0) <= 1, name


@NEEDS
def test_absent_names_links_and_listings_are_asked_once(
    everything: Path, mount: Mounter, tmp_path: Path
) -> None:
    counts = []
    for rounds in (1, 4):
        path = tmp_path / f"counts{rounds}"
        one = mount("raw", everything, f"--counts={path}")
        code = f"""
import os, sys
os.chdir(sys.argv[1])
for _ in range({rounds}):
    print(os.path.exists("sizes/absent"), os.readlink("links/soft"), len(os.listdir("many")))
    print(len(open("sizes/words-131073", "rb").read()), os.access("links", os.X_OK))
    print(len([os.stat("many/" + name) for name in os.listdir("many")]))
"""
        one.python(code, one.point)
        one.python(code, one.point)
        one.close()
        counts.append(counted(path))
    for one_count in counts:
        for name in ("FORGET", "BATCH_FORGET", "IOCTL"):  # IOCTL: isatty(3) of each open
            one_count.pop(name, None)
    assert counts[0] == counts[1]


@NEEDS
def test_the_server_is_named_and_small_and_in_its_own_session(
    everything: Path, mount: Mounter
) -> None:
    one = mount("raw", everything)
    assert one.run("sh", "-c", f"cat {one.point}/sizes/* | wc -c").stdout.strip()
    pid = one.server.pid
    assert Path(f"/proc/{pid}/comm").read_text() == "udi-image\n"
    assert os.getsid(pid) == pid
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    assert resident < 100 << 10, "KiB"


@NEEDS
def test_memory_stays_bounded_with_default_caches(mount: Mounter, tmp_path: Path) -> None:
    """400 MB of data and 20,000 names pass through; what is kept is bounded."""
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "big").write_bytes(fuseimages.noise(1 << 20) * 400)
    for n in range(20_000):
        os.mknod(folder / f"{n:x}-{n * n:x}")
    argv: list[str | Path] = [
        "mksquashfs",
        folder,
        tmp_path / "i",
        "-comp",
        "zstd",
        "-no-duplicates",
    ]
    options = ["-Xcompression-level", "1", "-quiet", "-no-progress"]
    subprocess.run([*argv, *options], check=True, capture_output=True)
    one = mount("raw", tmp_path / "i")
    command = f"cat {one.point}/big | wc -c; ls -l {one.point} | wc -l"
    assert one.run("sh", "-c", command).stdout.split() == [str(400 << 20), "20002"]
    status = Path(f"/proc/{one.server.pid}/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0])
    assert peak < 100 << 10, "KiB"


@NEEDS
def test_a_killed_server_is_an_error_and_not_a_hang(everything: Path, mount: Mounter) -> None:
    one = mount("raw", everything)
    one.server.send_signal(signal.SIGKILL)
    assert one.server.wait() == -signal.SIGKILL
    done = one.run("cat", one.point / "links/one")
    assert done.returncode == 1 and "Transport endpoint is not connected" in done.stderr


@NEEDS
def test_an_interrupted_reader_leaves_the_server_well(everything: Path, mount: Mounter) -> None:
    one = mount("raw", everything, "--threads=0")
    script = f"""
for n in 1 2 3 4 5 6 7 8 9 10; do
  timeout -s KILL 0.0$n cat {one.point}/sizes/* {one.point}/sizes/* >/dev/null
done
cat {one.point}/links/one"""
    assert one.run("sh", "-c", script).stdout == "hard"
    assert one.log.read_text() == ""


@NEEDS
def test_a_damaged_image_gives_eio_and_a_log_line(mount: Mounter, tmp_path: Path) -> None:
    data = fuseimages.words(1 << 20)
    entries: list[images.Entry] = [("bad", data, {}), ("good", fuseimages.noise(300_000), {})]
    image = fuseimages.mksquashfs(images.tar(entries), tmp_path / "i", "-comp", "zstd")
    raw = bytearray(image.read_bytes())
    raw[96 + 500 : 96 + 700] = bytes(200)  # in the first file's first block
    image.write_bytes(raw)
    one = mount("raw", image)
    done = one.run("cat", one.point / "bad")
    assert done.returncode == 1 and "Input/output error" in done.stderr
    assert one.run("sh", "-c", f"wc -c < {one.point}/good").stdout.strip() == "300000"
    log = one.log.read_text()
    assert str(image) in log and "READ of inode " in log
    assert "data block at 9" in log and "zstd block is damaged" in log


@NEEDS
def test_an_image_that_vanishes_under_the_server(mount: Mounter, tmp_path: Path) -> None:
    """Truncated by a careless copy: EIO with a reason, and the server lives."""
    image = fuseimages.mksquashfs(fuseimages.everything(), tmp_path / "i", "-comp", "zstd")
    one = mount("raw", image)
    os.truncate(image, 4096)
    done = one.run("cat", one.point / "sizes/noise-1048576")
    assert done.returncode == 1 and "Input/output error" in done.stderr
    assert "before the image does" in one.log.read_text()
    assert one.server.poll() is None


def test_the_command_says_what_is_wrong_with_its_words(tmp_path: Path) -> None:
    def said(*words: str) -> tuple[int, str]:
        argv = [sys.executable, "-m", "rootless_udi.fuse.main", *words]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=TREE)
        return done.returncode, done.stderr

    assert said()[1].startswith("udi-fuse: serving failed: an image and a mount are needed")
    assert "reading the options failed on --what=1: unknown" in said("--what=1", "a", "b")[1]
    assert "not a number" in said("--threads=x", "a", "/dev/fd/9")[1]
    assert "there is no transport x" in said("--transport=x", "a", "/dev/fd/9")[1]
    assert "not of the form /dev/fd/N" in said("a", "/mnt")[1]
    status, text = said(str(tmp_path / "absent"), "/dev/fd/9")
    assert status == 125 and "No such file" in text
    counted = ("--counts=x", "a", "/mnt")
    assert "only the raw transport counts" in said("--transport=fuse-python", *counted)[1]


@pytest.mark.parametrize(
    ("transport", "module", "extra"),
    [("fuse-python", "fuse", "fuse2"), ("pyfuse3", "trio", "fuse")],
)
def test_a_transport_that_is_not_installed(transport: str, module: str, extra: str) -> None:
    """-S leaves site-packages out; the folder `fuse` of this tree is no fuse-python."""
    argv = [sys.executable, "-S", "-m", "rootless_udi.fuse.main", f"--transport={transport}"]
    done = subprocess.run([*argv, "a", "/dev/fd/9"], capture_output=True, text=True, cwd=TREE)
    assert done.returncode == 125
    assert done.stderr == (
        f"udi-fuse: serving through {transport} failed: the module {module} is missing\n"
        f"udi-fuse: hint: pip install rootless_udi[{extra}]\n"
    )
