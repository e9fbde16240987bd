"""Who serves an image: a table of hosts, and every refusal."""

from pathlib import Path

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.fuse.choice import Facts, choose, importable
from rootless_udi.host import facts
from rootless_udi.serve import choose as ladder
from rootless_udi.store import resolve
from tests.kit import fuseimages, images

FULL = Facts("auto", True, "zstd", True, "/usr/bin/squashfuse_ll", True, True, True)


@pytest.mark.parametrize(
    ("changes", "name", "reason"),
    (
        ({}, "udi", "preferred"),
        (
            {"decompressor": False},
            "squashfuse_ll",
            "not udi: there is no decompressor for zstd here",
        ),
        (
            {"decompressor": False, "squashfuse": ""},
            "directory",
            "not squashfuse_ll: it is not installed",
        ),
        (
            {"decompressor": False, "squashfuse": "", "classic": "/usr/bin/squashfuse"},
            "squashfuse",
            "not squashfuse_ll: it is not installed",
        ),
        ({"fuse": False}, "directory", "not udi: /dev/fuse is missing or may not be opened"),
        ({"wanted": "squashfuse_ll"}, "squashfuse_ll", "asked for"),
        ({"wanted": "pyfuse3"}, "pyfuse3", "asked for"),
        ({"wanted": "fuse-python"}, "fuse-python", "asked for"),
        ({"wanted": "directory"}, "directory", "asked for"),
        ({"squashfuse": "", "directory": False}, "udi", "preferred"),
    ),
)
def test_choice(changes: dict[str, object], name: str, reason: str) -> None:
    found = choose(FULL.replace(**changes))
    assert found.name == name
    assert reason in found.reason


@pytest.mark.parametrize(
    ("changes", "why"),
    (
        (
            {"fuse": False, "directory": False},
            "not udi: /dev/fuse is missing or may not be opened; "
            "not squashfuse_ll: /dev/fuse is missing or may not be opened; "
            "not squashfuse: /dev/fuse is missing or may not be opened; "
            "not directory: there is no unsquashfs, or the image is elsewhere",
        ),
        ({"wanted": "squashfuse_ll", "squashfuse": ""}, "not squashfuse_ll: it is not installed"),
        ({"wanted": "squashfuse"}, "not squashfuse: it is not installed"),
        ({"wanted": "udi", "decompressor": False}, "no decompressor for zstd"),
        ({"wanted": "pyfuse3", "pyfuse3": False}, "pip install rootless_udi[fuse]"),
        ({"wanted": "fuse-python", "fuse_python": False}, "pip install rootless_udi[fuse2]"),
        ({"wanted": "directory", "directory": False}, "there is no unsquashfs"),
        ({"wanted": "best"}, "choosing an image server failed on best: there is none of that name"),
    ),
)
def test_refusals_name_what_is_lacking_and_udi_doctor(changes: dict[str, object], why: str) -> None:
    with pytest.raises(UdiError) as caught:
        choose(FULL.replace(**changes))
    assert why in str(caught.value)
    assert "udi doctor" in caught.value.hint


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize("compressor", ["xz", "gzip", "zstd"])
def test_the_choice_for_a_real_image(compressor: str, tmp_path: Path) -> None:
    image = fuseimages.mksquashfs(
        images.tar([("f", b"x", {})]), tmp_path / "i", "-comp", compressor
    )
    here = facts.gather({}).replace(fuse=True, squashfuse="/x/squashfuse_ll")
    found = resolve.local("i", str(image))
    assert found.compressor == compressor
    root = ladder.choose("auto", here, found)
    assert (root.server, root.path) == ("udi", str(image))
    assert ladder.choose("squashfuse_ll", here, found).program == "/x/squashfuse_ll"
    asked: list[str] = []

    def which(name: str) -> str:
        asked.append(name)
        return f"/x/{name}"

    assert ladder.choose("auto", here, found, which).server == "udi" and not asked
    assert ladder.choose("squashfuse", here, found, which).program == "/x/squashfuse"
    other = found.replace(compressor="unknown", offset=4096)
    root = ladder.choose("auto", here.replace(squashfuse=""), other, which)
    assert (root.server, root.program, root.offset) == ("squashfuse", "/x/squashfuse", 4096)
    with pytest.raises(UdiError, match="/dev/fuse is missing"):
        ladder.choose("auto", here.replace(fuse=False, squashfuse=""), found)


def test_our_own_folder_is_no_fuse_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onlyafolder").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not importable("onlyafolder")
    assert importable("json")
