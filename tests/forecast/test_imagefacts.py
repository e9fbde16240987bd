"""Facts of an image: gathered once, kept as long as its file is the same."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from rootless_udi.forecast import imagefacts
from rootless_udi.plan.image import Image
from tests.kit import mpihosts


def squashfs(root: Path, target: Path) -> Path:
    argv: list[str | Path] = ["mksquashfs", root, target, "-noappend", "-quiet", "-no-progress"]
    subprocess.run(argv, check=True, capture_output=True)
    return target


@pytest.fixture
def root(tmp_path: Path) -> Path:
    mpihosts.write(mpihosts.mpich_image(), tmp_path / "root")
    return tmp_path / "root"


def image(path: Path, facts: dict[str, object] | None = None) -> Image:
    if path.is_dir():
        return Image("x", "", "", str(path), facts or {})
    return Image("x", "", str(path), "", facts or {})


@pytest.mark.needs("gcc", "mksquashfs")
def test_made_for_an_image_of_another_tool_and_kept(root: Path, tmp_path: Path) -> None:
    one = squashfs(root, tmp_path / "a.sqfs")
    environ = {"HOME": str(tmp_path / "home")}
    found = imagefacts.facts(image(one), environ)
    assert found["elf"]["libc"] == "glibc" and "mpich" in found["elf"]["consumers"]
    assert found["forecast"]["programs"]["machines"]["x86_64"][0] == 4
    assert found["forecast"]["unread"] == []
    (kept,) = (tmp_path / "home/.cache/rootless_udi/forecast").iterdir()
    document = json.loads(kept.read_text())
    document["facts"]["programs"]["entries"] = 77
    kept.write_text(json.dumps(document))
    again = imagefacts.facts(image(one), environ)
    assert again["forecast"]["programs"]["entries"] == 77 and again["elf"] == found["elf"]
    kept.write_text('{"key": 1, "fac')
    assert imagefacts.facts(image(one), environ)["forecast"] == found["forecast"]
    (root / "usr/more").write_text("x")
    squashfs(root, one)
    assert imagefacts.facts(image(one), environ)["forecast"]["programs"]["entries"] != 77


@pytest.mark.needs("gcc")
def test_a_directory_is_read_each_time(root: Path, tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    before = imagefacts.facts(image(root), environ)["forecast"]["programs"]["entries"]
    (root / "usr/more").write_text("x")
    after = imagefacts.facts(image(root), environ)["forecast"]["programs"]["entries"]
    assert (after, (tmp_path / "cache").exists()) == (before + 1, False)


@pytest.mark.needs("gcc", "mksquashfs")
def test_where_nothing_can_be_kept(
    root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    one = squashfs(root, tmp_path / "a.sqfs")
    (tmp_path / "file").write_text("")
    for environ in ({}, {"XDG_CACHE_HOME": str(tmp_path / "file")}):
        assert imagefacts.facts(image(one, {"elf": {"x": 1}}), environ)["elf"] == {"x": 1}
    assert "is not kept" in capfd.readouterr().err


def test_what_is_kept_has_a_bound(tmp_path: Path) -> None:
    folder = tmp_path / "rootless_udi/forecast"
    folder.mkdir(parents=True)
    for number in range(80):
        (folder / f"{number}.json").write_text("{}")
        os.utime(folder / f"{number}.json", (number, number))
    (tmp_path / "root/usr").mkdir(parents=True)
    one = squashfs(tmp_path / "root", tmp_path / "a.sqfs")
    imagefacts.facts(image(one), {"XDG_CACHE_HOME": str(tmp_path)})
    left = sorted(
        int(path.stem) for path in folder.iterdir() if path.stem.isdigit() and len(path.stem) < 3
    )
    assert len(list(folder.iterdir())) == 64 and left == list(range(17, 80))


@pytest.mark.needs("gcc", "mksquashfs")
def test_files_that_can_not_be_read_are_named(root: Path) -> None:
    (root / "usr/bin").mkdir(parents=True, exist_ok=True)
    secret = root / "usr/bin/secret"
    secret.write_bytes(b"\x7fELF" + bytes(100))
    secret.chmod(0o111)
    found = imagefacts.facts(image(root), {})
    assert ["/usr/bin/secret", "Permission denied"] in found["forecast"]["unread"]
