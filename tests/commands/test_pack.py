"""udi pack: a directory as one squashfs file: all of it, the same every time, or nothing."""

import json
import os
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from rootless_udi.base.windows import MARK
from tests.conftest import User
from tests.kit.nodes import busybox

pytestmark = pytest.mark.needs("mksquashfs")


@pytest.fixture
def data(user: User) -> Path:
    folder = user.home / "data"
    (folder / "sub/deep").mkdir(parents=True)
    (folder / "empty").mkdir(mode=0o700)
    for number in range(5):
        (folder / f"sub/{number}").write_bytes(b"%d\n" % number * 3000)
    (folder / "sub/deep/zeros").write_bytes(bytes(1 << 20))
    os.link(folder / "sub/1", folder / "again")
    (folder / "link").symlink_to("sub/2")
    (folder / b"\xff\n name".decode("utf-8", "surrogateescape")).write_text("odd\n")
    (folder / ("n" * 200)).write_text("long\n")
    for path in (*folder.rglob("*"), folder):
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    return folder


def left(user: User) -> list[str]:
    """Return what is in the folder in which files are written."""
    return sorted(os.listdir(user.home / "out"))


@pytest.fixture(autouse=True)
def out(user: User) -> Path:
    (user.home / "out").mkdir()
    return user.home / "out"


@pytest.mark.parametrize(
    "writer",
    [pytest.param(name, marks=pytest.mark.needs(name)) for name in ("tar2sqfs", "mksquashfs")],
)
def test_the_same_tree_is_the_same_file(user: User, data: Path, out: Path, writer: str) -> None:
    real = shutil.which(writer, path="/usr/sbin:/usr/bin")
    assert real is not None
    (user.home / "bin").mkdir()
    other = "mksquashfs" if writer == "tar2sqfs" else "tar2sqfs"
    (user.home / "bin" / writer).symlink_to(real)
    env = {"PATH": f"{user.home}/bin:{Path(user.env['PATH'].split(':')[0])}:/usr/bin:/bin"}
    compression = "--compression=none" if writer == "mksquashfs" else "--compression=zstd:5"
    assert other not in os.listdir(user.home / "bin")
    shutil.copytree(data, user.home / "copy", symlinks=True)
    for name in ("again", "sub/1"):
        (user.home / "copy" / name).unlink()
    (user.home / "copy/sub/1").write_bytes((data / "sub/1").read_bytes())
    os.utime(user.home / "copy/sub/1", (1_600_000_000, 1_600_000_000))
    os.link(user.home / "copy/sub/1", user.home / "copy/again")
    for path in (*(user.home / "copy").rglob("*"), user.home / "copy"):
        os.utime(path, (1_600_000_000, 1_600_000_000), follow_symlinks=False)
    for name in ("data", "copy"):
        done = user.run("udi", "pack", compression, name, f"out/{name}.sqfs", env=env)
        assert done.stdout == f"out/{name}.sqfs\n", done.stderr
        assert re.search(r"9 files of 1\.1 MB, packed [\d.]+ [kM]B\n", done.stderr)
    assert (out / "data.sqfs").read_bytes() == (out / "copy.sqfs").read_bytes()
    assert MARK in (out / "data.sqfs").read_bytes()
    user.run("unsquashfs", "-q", "-n", "-d", "back", "out/data.sqfs", check=True)
    user.run("diff", "-r", "--no-dereference", "data", "back", check=True)
    assert os.path.samefile(user.home / "back/again", user.home / "back/sub/1")
    assert (user.home / "back/empty").stat().st_mode & 0o777 == 0o700
    assert (user.home / "back/sub/3").stat().st_mtime == 1_600_000_000


@pytest.mark.needs("userns", "fuse", "busybox")
def test_it_is_a_volume(user: User, data: Path, tmp_path: Path) -> None:
    user.run("udi", "pack", data, "out/data.sqfs", check=True)
    argv = ["udi-run", f"-V{user.home}/out/data.sqfs:/data", busybox(tmp_path)]
    done = user.run(
        *argv, "sh", "-c", "cat /data/link | wc -l; ls /data | wc -l; id -u; stat -c %u /data"
    )
    assert done.stdout.split() == ["3000", "6", str(user.uid), str(user.uid)], done.stderr


def test_a_profiles_files_come_first(user: User, out: Path) -> None:
    folder = user.home / "data"
    folder.mkdir()
    words = [os.urandom(200_000) for _ in range(6)]
    for number, word in enumerate(words):
        (folder / str(number)).write_bytes(word)
    reads = [[float(n), name, 0, 10, "r"] for n, name in enumerate(["4", "none", "2", "4"])]
    profile = "\n".join(["udi profile 1", *map(json.dumps, reads)]) + "\n"
    (user.home / "p").write_text(profile)
    user.run("udi", "pack", "--compression=none", "--profile=p", "data", "out/x.sqfs", check=True)
    packed = (out / "x.sqfs").read_bytes()
    places = [packed.index(word[:1000]) for word in words]
    assert sorted(range(6), key=places.__getitem__) == [4, 2, 0, 1, 3, 5]
    (user.home / "p").write_text("no profile\n")
    done = user.run("udi", "pack", "--profile=p", "data", "out/y.sqfs")
    assert "not a profile" in done.stderr and left(user) == ["x.sqfs"]


def test_what_is_refused_leaves_nothing(user: User, data: Path, out: Path) -> None:
    secret = data / "sub/secret"
    (out / "there.sqfs").write_text("mine\n")
    for words, why in (
        (("data", "out/there.sqfs"), "out/there.sqfs is there already"),
        (("data", "out/x.img"), "out/x.img does not end in .sqfs"),
        (("data/sub/1", "out/x.sqfs"), "it is no directory"),
        (("none", "out/x.sqfs"), "it is no directory"),
        (("data", "data/sub/x.sqfs"), "data/sub/x.sqfs lies in it"),
        ((".", "out/x.sqfs"), "out/x.sqfs lies in it"),
        (("data", "nowhere/x.sqfs"), "writing nowhere/x.sqfs failed: No such file or directory"),
        (("data", "out/x.sqfs", "--compression=zip"), "unknown compression 'zip'"),
        (("data", "out/x.sqfs", "--profile=none"), "No such file or directory"),
    ):
        done = user.run("udi", "pack", *words)
        assert done.returncode and why in done.stderr and not done.stdout, done.stderr
        assert left(user) == ["there.sqfs"] and "Traceback" not in done.stderr
    assert (out / "there.sqfs").read_text() == "mine\n"
    assert user.run("udi", "pack", "--force", "data", "out/there.sqfs").returncode == 0
    secret.touch(mode=0)
    done = user.run("udi", "pack", "data", "out/x.sqfs")
    assert "packing data failed on data/sub/secret: Permission denied" in done.stderr
    secret.unlink()
    (data / "empty").chmod(0)
    done = user.run("udi", "pack", "data", "out/x.sqfs")
    assert "packing data failed on data/empty: Permission denied" in done.stderr
    (data / "empty").chmod(0o700)
    os.mkfifo(data / "fifo")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(data / "sock"))
        done = user.run("udi", "pack", "data", "out/x.sqfs")
    assert "left out: 2 that are no file, as data/fifo\n" in done.stderr
    assert left(user) == ["there.sqfs", "x.sqfs"]


@pytest.mark.parametrize("writer", ["tar2sqfs", "mksquashfs"])
def test_a_writer_that_dies_and_a_packer_that_is_killed(
    user: User, data: Path, out: Path, writer: str
) -> None:
    (user.home / "bin").mkdir()
    program = user.home / "bin" / writer
    path = f"{user.home}/bin:{user.env['PATH'].split(':')[0]}:/usr/bin:/bin"
    for script, status, words in (
        ("head -c 1000 >/dev/null; kill -KILL $$", 125, f"{writer} was killed by signal SIGKILL"),
        ("echo broken >&2; exit 3", 125, f"{writer} ended with status 3: broken"),
        ("kill -KILL $PPID; cat >/dev/null", -9, ""),
        ("kill -TERM $PPID; cat >/dev/null", 143, ""),
    ):
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        compression = ["--compression=none"] if writer == "mksquashfs" else []
        done = user.run("udi", "pack", *compression, "data", "out/x.sqfs", env={"PATH": path})
        assert (done.returncode, done.stdout) == (status, ""), done.stderr
        assert words in done.stderr and left(user) == []


@pytest.mark.needs("userns")
def test_a_full_disk_and_a_limit_of_sizes(user: User, data: Path, out: Path) -> None:
    (data / "big").write_bytes(os.urandom(3 << 20))
    script = (
        "mount -t tmpfs -o size=1m tmpfs out; "
        "udi pack --compression=none data out/x.sqfs; echo $?; ls -A out"
    )
    own = ("unshare", "--user", "--map-current-user", "--mount", "--keep-caps")
    done = user.run(*own, "sh", "-c", script)
    assert done.stdout == "125\n", done.stderr
    words = f"writing out/x.sqfs failed: No space left on device (file system {out})"
    assert words in done.stderr, done.stderr
    done = user.run("prlimit", "--fsize=1000000", "udi", "pack", "data", "out/x.sqfs")
    assert "writing out/x.sqfs failed: File too large" in done.stderr
    assert left(user) == []


def test_a_file_that_shrinks_meanwhile(user: User, data: Path, out: Path) -> None:
    """The writer, which has read the names' part of the tar, cuts the file that comes next."""
    (data / "zz").write_bytes(bytes(8 << 20))
    (user.home / "bin").mkdir()
    program = user.home / "bin/tar2sqfs"
    program.write_text(
        f"#!/bin/sh\nhead -c 1500000 >/dev/null; truncate -s 5 {data}/zz\ncat >/dev/null\n"
    )
    program.chmod(0o755)
    path = f"{user.home}/bin:{user.env['PATH']}"
    done = user.run("udi", "pack", "data", "out/x.sqfs", env={"PATH": path})
    assert "packing data failed on data/zz: it changed meanwhile" in done.stderr
    assert left(user) == []
    assert subprocess.run(["pgrep", "-f", str(program)], check=False).returncode
