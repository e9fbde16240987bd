"""An image's files without a mount: squashfs and directory show the same; damage is told."""

import os
import subprocess
from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.forecast import imagetree
from rootless_udi.forecast.needs import Unreadable


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    for folder in ("usr/bin", "etc/deep", "empty"):
        (root / folder).mkdir(parents=True)
    (root / "bin").symlink_to("usr/bin")
    (root / "usr/bin/big").write_bytes(os.urandom(300_000) + bytes(400_000) + b"end")
    (root / "usr/bin/small").write_bytes(b"small")
    (root / "usr/bin/small").chmod(0o4755)
    (root / "etc/none").write_bytes(b"")
    (root / "etc/deep/up").symlink_to("../../bin/small")
    (root / "etc/deep/circle").symlink_to("circle")
    (root / "etc/abs").symlink_to("/bin/../bin/big")
    (root / os.fsdecode(b"etc/\xff\x1b")).write_bytes(b"odd")
    os.mkfifo(root / "etc/fifo")
    return root


@pytest.fixture
def squashfs(root: Path, tmp_path: Path) -> Path:
    target = tmp_path / "image.sqfs"
    argv: list[str | Path] = [
        "mksquashfs",
        root,
        target,
        "-noappend",
        "-quiet",
        "-no-progress",
        "-b",
        "65536",
    ]
    subprocess.run(argv, check=True, capture_output=True)
    return target


@pytest.mark.needs("mksquashfs")
def test_both_show_the_same(root: Path, squashfs: Path) -> None:
    seen = []
    for path in (root, squashfs):
        with imagetree.opened(str(path)) as tree:
            rows = {}
            for entry, content in tree.walk():
                data = content.read(0, entry.size + 10) if content else None
                tail = content.read(entry.size - 2, 9) if content and entry.size > 2 else None
                # The mode of a link is the kernel's affair.
                mode = 0 if entry.kind == "link" else entry.mode
                rows[entry.path] = (entry.replace(mode=mode), data, tail)
            assert list(rows) == [path for path in rows if path.rpartition("/")[0] in ("", *rows)]
            seen.append(rows)
            assert sorted(tree.names("/etc")) == sorted(os.listdir(root / "etc"))
            assert tree.names("/nothing") == tree.names("/usr/bin/small") == []
    assert seen[0] == seen[1]
    assert seen[0]["/usr/bin/big"][2] == b"\x6ed"


@pytest.mark.needs("mksquashfs")
def test_links_stay_in_the_image(root: Path, squashfs: Path) -> None:
    wanted = {
        "/bin/small": "/usr/bin/small",
        "/etc/deep/up": "/usr/bin/small",
        "/etc/abs": "/usr/bin/big",
        "/../../bin/./small": "/usr/bin/small",
        "/bin": "/usr/bin",
        "/": "/",
        "/etc/deep/circle": None,
        "/nothing": None,
        "/usr/bin/small/x": None,
    }
    for path in (root, squashfs):
        with imagetree.opened(str(path)) as tree:
            for name, real in wanted.items():
                found = imagetree.find(tree, name)
                assert (found.path if found else None) == real, (path, name)


@pytest.mark.needs("mksquashfs")
def test_a_damaged_image_ends_with_a_word(squashfs: Path, tmp_path: Path) -> None:
    data = bytearray(squashfs.read_bytes())
    bent = tmp_path / "bent.sqfs"
    for at in range(96, len(data), max(1, len(data) // 150)):
        old, data[at] = data[at], data[at] ^ 0xFF
        bent.write_bytes(data)
        data[at] = old
        try:
            with imagetree.opened(str(bent)) as tree:
                for entry, content in tree.walk():
                    if content:
                        try:
                            content.read(0, entry.size)
                        except Unreadable:
                            continue
                imagetree.find(tree, "/etc/deep/up")
        except (Unreadable, UdiError):
            continue


def test_a_folder_that_may_not_be_read_is_passed_over(root: Path) -> None:
    (root / "etc/none").chmod(0)
    (root / "etc/deep").chmod(0)
    try:
        with imagetree.opened(str(root)) as tree:
            paths = {entry.path: content for entry, content in tree.walk()}
            assert "/etc/deep" in paths and "/etc/deep/up" not in paths
            content = paths["/etc/none"]
            assert content is not None
            with pytest.raises(Unreadable, match="Permission denied"):
                content.read(0, 1)
    finally:
        (root / "etc/deep").chmod(0o755)


def test_no_image(tmp_path: Path) -> None:
    with pytest.raises(UdiError, match="No such file"), imagetree.opened(str(tmp_path / "x")):
        pass
    (tmp_path / "x").write_bytes(b"x" * 200)
    with pytest.raises(UdiError), imagetree.opened(str(tmp_path / "x")):
        pass
