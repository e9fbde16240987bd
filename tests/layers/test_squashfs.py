"""Writers, checks and unpacking of squashfs files, with the real tools on real images."""

import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.base.trees import remove_tree
from rootless_udi.layers import squashfs_tools
from rootless_udi.layers.merge import Layer, Summary, merge
from rootless_udi.layers.tarwriter import Write
from tests.kit import fuseimages, images, probes
from tests.kit.layerkit import SKELETON, M, directory, file, layer, link, symlink, tar, whiteout
from tests.kit.places import TREE

WRITERS = ["tar2sqfs", "mksquashfs"]


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest) -> str:
    probes.need(request.param)
    path = shutil.which(request.param)
    assert path
    return str(path)


pytestmark = pytest.mark.needs("mksquashfs")


def feed(data: bytes) -> Callable[[Write], None]:
    def give(write: Write) -> None:
        write(data)

    return give


def build(
    target: Path, layers: list[Layer], compression: str = "zstd", writer: str = ""
) -> Summary:
    found: list[Summary] = []
    squashfs_tools.build(str(target), compression, lambda w: found.append(merge(layers, w)), writer)
    return found[-1]


def tree(top: Path) -> dict[str, tuple[str, int, Any, int]]:
    """Return {path: (kind, mode, content's digest or target, mtime)} of an unpacked tree."""
    found = {}
    for root, directories, files in os.walk(os.fsencode(top)):
        for one in directories + files:
            path = os.path.join(root, one)
            status = os.lstat(path)
            kind = stat.filemode(status.st_mode)[0]
            what: bytes | str | None = None
            if kind == "l":
                what = os.readlink(path)
            elif kind == "-":
                with open(path, "rb") as opened:
                    what = hashlib.sha256(opened.read()).hexdigest()
            mode = status.st_mode & 0o7777 if kind != "l" else 0o777
            name = os.fsdecode(os.path.relpath(path, os.fsencode(top)))
            found[name] = (kind, mode, what, int(status.st_mtime))
    return found


EVERYTHING = [
    [
        directory("d", 0o750, mtime=1_500_000_000),
        file("d/a", "a" * 1000, pax={"SCHILY.xattr.user.k": "v", "SCHILY.xattr.user.empty": ""}),
        file("d/" + "n" * 200, "long"),
        file("ü" * 100, "utf-8"),
        file("big", bytes(range(256)) * 4096, mode=0o4755),
        file("zeros", bytes(1_000_000)),
        file("late", "x", mtime=4_000_000_000),
        symlink("s", "t" * 300),
        link("h", "big"),
        M("pipe", "fifo", mode=0o600),
        M("null", "device"),
        directory("gone"),
        file("gone/x", "y"),
    ],
    [whiteout("gone"), link("h2", "d/a"), file("new/deep/f", "1"), file("big", "small")],
]


def everything(folder: Path) -> list[Layer]:
    layers = [layer(folder, tar(x), compress=True) for x in EVERYTHING]
    odd = tarfile.TarInfo("\udcff\udcfe")
    odd.size = 5
    data = odd.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape") + b"bytes"
    layers.append(layer(folder, data))
    return layers


def test_both_writers_make_the_same_tree(tmp_path: Path) -> None:
    trees = []
    for name in WRITERS:
        probes.need(name)
        image = tmp_path / f"{name}.sqfs"
        build(image, everything(tmp_path), writer=name)
        squashfs_tools.extract(str(image), str(tmp_path / name))
        trees.append(tree(tmp_path / name))
        listed = subprocess.run(
            ["unsquashfs", "-lln", "-UTC", image], capture_output=True, check=True
        ).stdout.split(b"\n")
        root = next(line for line in listed if line.endswith(b" squashfs-root"))
        assert root.startswith(b"drwxr-xr-x 0/0")
        assert b"1970-01-01 00:00" in root
        assert all(b" 0/0 " in line for line in listed if b"squashfs-root" in line)
    assert trees[0] == trees[1]
    found = trees[0]
    assert found["d"] == ("d", 0o750, None, 1_500_000_000)
    assert found["d/a"] == found["h2"]
    assert found["h"][:2] == ("-", 0o755)
    assert found["big"][2] == hashlib.sha256(b"small").hexdigest()
    assert found["late"][3] == 4_000_000_000
    assert found["pipe"][:2] == ("p", 0o600)
    assert found["zeros"][2] == hashlib.sha256(bytes(1_000_000)).hexdigest()
    assert found["s"][2] == b"t" * 300
    assert "gone" not in found
    assert "null" not in found
    assert "\udcff\udcfe" in found
    assert os.stat(tmp_path / "mksquashfs/h2").st_nlink == 2


def test_extended_attributes_are_kept(tmp_path: Path, writer: str) -> None:
    value = "binary\n=\0x" * 20
    members = [
        file("f", pax={"SCHILY.xattr.user.k": value}),
        directory("d", pax={"SCHILY.xattr.user.e": ""}),
    ]
    build(tmp_path / "i.sqfs", [layer(tmp_path, tar(members))], writer=writer)
    argv: list[str | Path] = [
        "unsquashfs",
        "-user-xattrs",
        "-quiet",
        "-no-progress",
        "-dest",
        tmp_path / "x",
    ]
    subprocess.run([*argv, tmp_path / "i.sqfs"], check=True, capture_output=True)
    assert os.getxattr(tmp_path / "x/f", "user.k") == value.encode()
    assert os.getxattr(tmp_path / "x/d", "user.e") == b""


def test_same_bytes_every_time(
    tmp_path: Path, writer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, on one processor, with SOURCE_DATE_EPOCH set, in another time zone."""
    members = [file(f"f{n}", os.urandom(n * 999) + bytes(n * 5000), mtime=n) for n in range(150)]
    layers = [*everything(tmp_path), layer(tmp_path, tar(members))]
    digests = set()
    everywhere = os.sched_getaffinity(0)
    for n in range(3):
        if n == 1:
            os.sched_setaffinity(0, {min(everywhere)})
            monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
            monkeypatch.setenv("TZ", "Asia/Tokyo")
        try:
            build(tmp_path / f"{n}.sqfs", layers, writer=writer)
        finally:
            os.sched_setaffinity(0, everywhere)
        digests.add(hashlib.sha256((tmp_path / f"{n}.sqfs").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_a_file_twice_begins_again(tmp_path: Path, writer: str) -> None:
    summary = build(
        tmp_path / "i.sqfs", [layer(tmp_path, tar([file("a", "1"), file("a", "2")]))], writer=writer
    )
    squashfs_tools.extract(str(tmp_path / "i.sqfs"), str(tmp_path / "x"))
    assert (tmp_path / "x/a").read_bytes() == b"2"
    assert summary.bytes == 1


@pytest.mark.parametrize(
    ("compression", "number"),
    [
        ("zstd", 6), ("zstd:19", 6), ("gzip", 1), ("gzip:1", 1), ("lz4", 5), ("xz", 4), ("lzo", 3),
        ("lzo:3", 3), ("none", None),
    ],
)  # fmt: skip
def test_compressions(tmp_path: Path, writer: str, compression: str, number: int | None) -> None:
    image = tmp_path / "i.sqfs"
    layers = [layer(tmp_path, tar([file("f", "text " * 100_000)]))]
    if number is None and "tar2sqfs" in writer:
        with pytest.raises(UdiError, match="tar2sqfs can't leave it uncompressed"):
            build(image, layers, compression, writer)
        assert not image.exists()
        return
    build(image, layers, compression, writer)
    if number is not None:
        assert int.from_bytes(image.read_bytes()[20:22], "little") == number
    assert (image.stat().st_size > 500_000) == (number is None)


@pytest.mark.parametrize(
    "wrong", ["", "zstd:0", "zstd:23", "zstd:", "gzip:10", "xz:1", "brotli", "zstd:x"]
)
def test_unknown_compression(tmp_path: Path, wrong: str) -> None:
    with pytest.raises(UdiError, match="unknown compression") as caught:
        squashfs_tools.build(str(tmp_path / "i"), wrong, feed(b""))
    assert "zstd:1" in caught.value.hint


def test_no_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squashfs_tools, "PLACES", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UdiError, match="no tar2sqfs or mksquashfs here") as caught:
        squashfs_tools.build(str(tmp_path / "i"), "zstd", feed(b""))
    assert "squashfs-tools-ng" in caught.value.hint
    with pytest.raises(UdiError, match="no mksquashfs here"):
        squashfs_tools.build(str(tmp_path / "i"), "none", feed(b""))
    with pytest.raises(UdiError, match=r"starting /no/such/tar2sqfs failed: No such file"):
        squashfs_tools.build(str(tmp_path / "i"), "zstd", feed(b""), "/no/such/tar2sqfs")


def test_refusal_of_a_layer_leaves_nothing(tmp_path: Path, writer: str) -> None:
    layers = [layer(tmp_path, tar([file("big", os.urandom(5_000_000)), file("../x")]))]
    with pytest.raises(UdiError, match="leads out of the image"):
        build(tmp_path / "i.sqfs", layers, writer=writer)
    assert not (tmp_path / "i.sqfs").exists()


def test_interrupt_leaves_nothing(tmp_path: Path, writer: str) -> None:
    def stopped(write: Write) -> None:
        write(tar([file("big", os.urandom(5_000_000))]))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        squashfs_tools.build(str(tmp_path / "i.sqfs"), "zstd", stopped, writer)
    assert not (tmp_path / "i.sqfs").exists()


def test_stream_that_is_cut_short(tmp_path: Path, writer: str) -> None:
    data = tar([file("big", os.urandom(5_000_000))])[:3_000_000]
    with pytest.raises(UdiError, match=r"writing .* failed: .* ended with status"):
        squashfs_tools.build(str(tmp_path / "i.sqfs"), "zstd", feed(data), writer)
    assert not (tmp_path / "i.sqfs").exists()


def test_file_size_limit(tmp_path: Path, writer: str) -> None:
    program = f"""
import os, resource, sys
from rootless_udi.layers import squashfs_tools as squashfs
from rootless_udi.base.errors import UdiError
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
data = open({str(tmp_path / "tar")!r}, "rb").read()
try:
    squashfs.build({str(tmp_path / "i.sqfs")!r}, "zstd", lambda write: write(data), {writer!r})
except UdiError as err:
    print(err.message, "|", err.hint)
"""
    (tmp_path / "tar").write_bytes(tar([file("big", os.urandom(5_000_000))]))
    done = subprocess.run([sys.executable, "-c", program], cwd=TREE, capture_output=True, text=True)
    assert "i.sqfs failed: File too large | raise the limit" in done.stdout, done.stderr
    assert not (tmp_path / "i.sqfs").exists()


def full_disk(folder: Path, body: str) -> str:
    """Return what Python `body` prints in a user namespace with 2 MiB of tmpfs at `small`."""
    small = folder / "small"
    small.mkdir()
    program = f"""
import os, sys
from rootless_udi.layers import squashfs_tools as squashfs
from rootless_udi.base.errors import UdiError
small = {str(small)!r}
try:
{body}
except UdiError as err:
    print(err.message, "|", err.hint, "|", os.listdir(small))
"""
    mount = f'mount -t tmpfs -o size=2m tmpfs {small} && exec {sys.executable} -c "$0"'
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, program]
    done = subprocess.run(argv, cwd=TREE, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr
    return done.stdout.strip()


@pytest.mark.needs("userns")
def test_full_disk(tmp_path: Path, writer: str) -> None:
    (tmp_path / "tar").write_bytes(tar([file("big", os.urandom(9_000_000))]))
    body = f"""
    data = open({str(tmp_path / "tar")!r}, "rb").read()
    squashfs.build(small + "/i.sqfs", "zstd", lambda write: write(data), {writer!r})"""
    small = tmp_path / "small"
    assert full_disk(tmp_path, body) == (
        f"writing {small}/i.sqfs failed: No space left on device (file system {small}) | "
        "make room there, or put the store elsewhere with UDI_STORE | []"
    )


@pytest.mark.needs("userns")
def test_full_disk_when_unpacking(tmp_path: Path) -> None:
    members = [file(f"d/{n}", os.urandom(100_000)) for n in range(50)]
    build(tmp_path / "i.sqfs", [layer(tmp_path, tar(members))])
    small = tmp_path / "small"
    body = f"""
    squashfs.extract({str(tmp_path / "i.sqfs")!r}, small + "/x")"""
    assert full_disk(tmp_path, body) == (
        f"unpacking {small}/x failed: No space left on device (file system {small}) | "
        "make room there, or put the store elsewhere with UDI_STORE | []"
    )


def script(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "words", "hint"),
    [
        ("echo 'write: Disk quota exceeded' >&2; exit 1", "Disk quota exceeded (file sys", "quota"),
        ("kill -9 $$", "was killed by signal SIGKILL", "out of memory"),
        ("kill -11 $$", "was killed by signal SIGSEGV", ""),
        ("echo 'x: invalid option' >&2; exit 1", "can't read a tar", "4.5 or later"),
        ("echo hm >&2; cat >/dev/null; exit 3", "ended with status 3: hm", "doctor"),
        ("exit 3", "ended with status 3: it says nothing", "doctor"),
        ("exit 0", "ended with status 0: it says nothing", "doctor"),
    ],
)
def test_writer_that_fails(tmp_path: Path, body: str, words: str, hint: str) -> None:
    program = script(tmp_path, "mksquashfs", body)
    with pytest.raises(UdiError) as caught:
        squashfs_tools.build(
            str(tmp_path / "i"), "zstd", feed(tar([file("a", "x" * 5_000_000)])), program
        )
    assert words in caught.value.message
    assert hint in caught.value.hint


def test_writer_that_makes_nothing_good(tmp_path: Path) -> None:
    program = script(tmp_path, "tar2sqfs", 'cat >/dev/null; for t; do :; done; echo no > "$t"')
    with pytest.raises(UdiError, match="corrupt squashfs"):
        squashfs_tools.build(str(tmp_path / "i"), "zstd", feed(b""), program)
    assert not (tmp_path / "i").exists()


# Checks


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("image")
    build(folder / "i.sqfs", everything(folder))
    return folder / "i.sqfs"


def test_check_takes_what_the_writers_make(image: Path) -> None:
    squashfs_tools.check(str(image))


@pytest.mark.parametrize(
    ("at", "value", "words"),
    [
        (0, b"sqsh", "no squashfs magic at its start"),
        (28, b"\3\0", "version 3.0"),
        (12, b"\0\0\0\0", "block size 0 "),
        (22, b"\x15\0", "block size "),
        (20, b"\x09\0", "compressor number 9 is not known"),
        (40, b"\xff" * 8, "cut short"),
        (64, b"\xff" * 8, "tables lie outside"),
        (72, b"\0" * 8, "tables lie outside"),
        (48, b"\xff" * 7, "table of owners lies outside"),
        (32, b"\xff" * 8, "root directory lies outside"),
    ],
)
def test_check_refuses(tmp_path: Path, image: Path, at: int, value: bytes, words: str) -> None:
    data = bytearray(image.read_bytes())
    data[at : at + len(value)] = value
    bad = tmp_path / "bad.sqfs"
    bad.write_bytes(data)
    with pytest.raises(UdiError, match=f"reading {bad} failed: corrupt squashfs: .*{words}"):
        squashfs_tools.check(str(bad))
    with pytest.raises(UdiError, match="corrupt squashfs"):
        squashfs_tools.extract(str(bad), str(tmp_path / "x"))


@pytest.mark.parametrize("size", [0, 3, 95, 96, -1])
def test_check_of_a_file_cut_short(tmp_path: Path, image: Path, size: int) -> None:
    bad = tmp_path / "bad.sqfs"
    data = image.read_bytes()
    used = int.from_bytes(data[40:48], "little")
    bad.write_bytes(data[: size if size >= 0 else used - 1])
    with pytest.raises(UdiError, match="corrupt squashfs"):
        squashfs_tools.check(str(bad))


# Unpacking


def test_extract_of_a_corrupt_image(tmp_path: Path, image: Path) -> None:
    data = bytearray(image.read_bytes())
    data[96:4000] = fuseimages.noise(3904)
    data[-3000:-1000] = fuseimages.noise(2000, 2)
    (tmp_path / "bad.sqfs").write_bytes(data)
    with pytest.raises(UdiError, match=r"unpacking .* failed"):
        squashfs_tools.extract(str(tmp_path / "bad.sqfs"), str(tmp_path / "x"))
    assert os.listdir(tmp_path) == ["bad.sqfs"]


def test_extract_is_done_once(tmp_path: Path, image: Path) -> None:
    squashfs_tools.extract(str(image), str(tmp_path / "x"))
    before = os.stat(tmp_path / "x").st_ino
    squashfs_tools.extract(str(image), str(tmp_path / "x"))
    assert os.stat(tmp_path / "x").st_ino == before
    assert os.listdir(tmp_path) == ["x"]


def test_extract_takes_over_what_a_killed_one_left(tmp_path: Path) -> None:
    members = [directory("closed", 0o500), file("closed/f", "x")]
    members += [file(f"d{n % 50}/{n}", os.urandom(20_000)) for n in range(1000)]
    build(tmp_path / "i.sqfs", [layer(tmp_path, tar(members))])
    program = "import sys; from rootless_udi.layers import squashfs_tools; "
    program += "squashfs_tools.extract(*sys.argv[1:])"
    with subprocess.Popen(
        [sys.executable, "-c", program, tmp_path / "i.sqfs", tmp_path / "x"],
        cwd=TREE,
        start_new_session=True,
    ) as child:
        while child.poll() is None and not list(tmp_path.glob(".x.partial-*/root/*")):
            pass
        os.killpg(child.pid, signal.SIGKILL)
    assert not (tmp_path / "x").exists() or child.returncode == 0
    squashfs_tools.extract(str(tmp_path / "i.sqfs"), str(tmp_path / "x"))
    assert len(tree(tmp_path / "x")) >= 1052
    assert sorted(p.name for p in tmp_path.iterdir() if "x" in p.name) == ["x"]


def test_extract_leaves_device_nodes_out(tmp_path: Path) -> None:
    image = tmp_path / "nodes.sqfs"
    data = tar([M("null", "device"), file("f", "1")])
    argv: list[str | Path] = ["mksquashfs", "-", image, "-tar", "-quiet", "-no-progress"]
    subprocess.run(argv, input=data, check=True, capture_output=True)
    squashfs_tools.extract(str(image), str(tmp_path / "x"))
    assert os.listdir(tmp_path / "x") == ["f"]


def test_extract_lets_nobody_else_write(tmp_path: Path) -> None:
    members = [directory("open", 0o777), file("open/f", mode=0o666), directory("r", 0o555)]
    build(tmp_path / "i.sqfs", [layer(tmp_path, tar([*members, directory("group", 0o775)]))])
    squashfs_tools.extract(str(tmp_path / "i.sqfs"), str(tmp_path / "x"))
    found = tree(tmp_path / "x")
    assert [found[n][1] for n in ("open", "open/f", "r", "group", "tmp")] == [
        0o755,
        0o644,
        0o555,
        0o755,
        0o1755,
    ]


def test_extract_of_a_root_without_write_permission(tmp_path: Path) -> None:
    argv: list[str | Path] = [
        "mksquashfs",
        "-",
        tmp_path / "i.sqfs",
        "-tar",
        "-quiet",
        "-root-mode",
        "0555",
    ]
    subprocess.run(argv, input=tar([file("f", "1")]), check=True, capture_output=True)
    squashfs_tools.extract(str(tmp_path / "i.sqfs"), str(tmp_path / "x"))
    assert (tmp_path / "x/f").read_bytes() == b"1"


def test_no_unsquashfs(tmp_path: Path, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(squashfs_tools, "PLACES", "")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UdiError, match="there is no unsquashfs here") as caught:
        squashfs_tools.extract(str(image), str(tmp_path / "x"))
    assert "squashfs-tools" in caught.value.hint


def test_remove_tree_with_closed_directories(tmp_path: Path) -> None:
    (tmp_path / "t/a/b").mkdir(parents=True)
    (tmp_path / "t/a/b/f").write_text("x")
    (tmp_path / "outside").mkdir(mode=0o500)
    (tmp_path / "t/a/l").symlink_to(tmp_path / "outside")
    (tmp_path / "t/a/b").chmod(0)
    (tmp_path / "t/a").chmod(0o500)
    remove_tree(str(tmp_path / "t"))
    assert os.listdir(tmp_path) == ["outside"]
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o500


# Real images, and what umoci makes of them


def umoci(*argv: object) -> None:
    words = ["umoci", *map(str, argv)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert not done.returncode, done.stderr


def oci_layers(path: Path, tag: str) -> list[Layer]:
    """Return the layers of an image in an OCI image layout."""

    def load(descriptor: dict[str, Any]) -> Any:
        return json.loads((path / "blobs/sha256" / descriptor["digest"][7:]).read_bytes())

    index = json.loads((path / "index.json").read_text())
    name = "org.opencontainers.image.ref.name"
    manifest = load(next(m for m in index["manifests"] if m["annotations"][name] == tag))
    ids = load(manifest["config"])["rootfs"]["diff_ids"]
    return [
        Layer(str(path / "blobs/sha256" / blob["digest"][7:]), diff_id)
        for blob, diff_id in zip(manifest["layers"], ids, strict=True)
    ]


@pytest.mark.needs("umoci", "busybox")
def test_same_tree_as_umoci(tmp_path: Path, writer: str) -> None:
    """Three layers by umoci: a busybox root, changes to it, an opaque directory."""
    oci = tmp_path / "oci"
    layout = images.Layout(oci)
    extra: list[images.Entry] = [
        ("usr/share", None, {}),
        *[(f"usr/share/f{n}", os.urandom(n * 10), {"mtime": 1_600_000_000 + n}) for n in range(50)],
        ("usr/share/sub", None, {"mode": 0o700}),
        ("usr/share/sub/x", b"x" * 5000, {"mode": 0o4755}),
        ("usr/share/ln", "sub/x", {}),
        ("old", None, {}),
        ("old/a", b"old", {}),
        ("old/deep", None, {}),
        ("old/deep/b", b"old", {}),
    ]
    layout.image("one", [images.tar([*images.busybox_entries(), *extra])])
    bundle = tmp_path / "bundle"
    umoci("unpack", "--rootless", "--image", f"{oci}:one", bundle)
    root = bundle / "rootfs"
    (root / "usr/share/f1").unlink()
    (root / "usr/share/f2").write_text("changed")
    (root / "usr/share/ln").unlink()
    (root / "usr/share/ln").mkdir()
    (root / "usr/share/ln/now").write_text("a directory")
    shutil.rmtree(root / "usr/share/sub")
    (root / "usr/share/sub").symlink_to("ln")
    (root / "usr/share/ü").write_text("new")
    os.link(root / "usr/share/f3", root / "usr/share/f3-linked")
    umoci("repack", "--image", f"{oci}:two", bundle)
    fresh = tmp_path / "fresh"
    (fresh / "c").mkdir(parents=True)
    (fresh / "c/f").write_text("fresh")
    umoci("insert", "--rootless", "--opaque", "--image", f"{oci}:two", fresh, "/old")
    umoci("insert", "--rootless", "--whiteout", "--image", f"{oci}:two", "/usr/share/f4")
    layers = oci_layers(oci, "two")
    assert len(layers) >= 4
    umoci("unpack", "--rootless", "--image", f"{oci}:two", tmp_path / "theirs")
    build(tmp_path / "i.sqfs", layers, writer=writer)
    squashfs_tools.extract(str(tmp_path / "i.sqfs"), str(tmp_path / "ours"))
    ours, theirs = tree(tmp_path / "ours"), tree(tmp_path / "theirs/rootfs")
    for name in SKELETON:
        ours.pop(name, None)
        theirs.pop(name, None)
    assert _comparable(ours) == _comparable(theirs)
    assert "old/a" not in ours
    assert ours["old/c/f"][2] == hashlib.sha256(b"fresh").hexdigest()
    assert "usr/share/f4" not in ours


def _comparable(
    found: dict[str, tuple[str, int, Any, int]],
) -> dict[str, tuple[str, int, Any, int]]:
    """Leave out setuid bits, others' permission to write, and times that no layer tells."""
    return {
        name: (kind, mode & 0o1755, what, mtime if kind == "-" else 0)
        for name, (kind, mode, what, mtime) in found.items()
    }


@pytest.mark.slow
@pytest.mark.needs("mmdebstrap", "umoci")
def test_debian_same_tree_as_umoci(tmp_path: Path, writer: str) -> None:
    data = images.debian_root("bookworm").read_bytes()
    layout = images.Layout(tmp_path / "oci")
    layout.image("one", [data])
    umoci("unpack", "--rootless", "--image", f"{tmp_path}/oci:one", tmp_path / "theirs")
    build(tmp_path / "i.sqfs", oci_layers(tmp_path / "oci", "one"), writer=writer)
    squashfs_tools.extract(str(tmp_path / "i.sqfs"), str(tmp_path / "ours"))
    ours, theirs = tree(tmp_path / "ours"), tree(tmp_path / "theirs/rootfs")
    for name in SKELETON:
        ours.pop(name, None)
        theirs.pop(name, None)
    for name in [n for n in theirs if n.startswith("dev/")]:
        ours.pop(name, None)
        theirs.pop(name)  # umoci --rootless makes empty files of device nodes
    assert _comparable(ours) == _comparable(theirs)


def test_threads_do_not_share_anything(tmp_path: Path) -> None:
    """Two builds at once in one process, as when two images are pulled."""
    layers = everything(tmp_path)
    ends: list[bytes] = []

    def run(n: int) -> None:
        build(tmp_path / f"{n}.sqfs", layers)
        ends.append((tmp_path / f"{n}.sqfs").read_bytes())

    threads = [threading.Thread(target=run, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ends) == 3
    assert len(set(ends)) == 1
