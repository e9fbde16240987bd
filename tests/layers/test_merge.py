"""The merge: what is visible in the end, in every way that layers can hide each other."""

import bz2
import gzip
import hashlib
import io
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.layers import blob as decompress
from rootless_udi.layers import merge as merging
from rootless_udi.layers.merge import Layer, merge
from rootless_udi.layers.squashfs_tools import Again
from rootless_udi.plan.mountpoints import DIRECTORIES, FILES, FOLLOWED, MOUNTED
from tests.kit import probes
from tests.kit.layerkit import (
    M,
    Refused,
    Seen,
    digest,
    directory,
    file,
    layer,
    link,
    merged,
    model,
    opaque,
    read,
    symlink,
    tar,
    whiteout,
)


def result(folder: Path, *layers: list[M], skeleton: bool = False) -> dict[str, Seen]:
    return read(merged([layer(folder, tar(x)) for x in layers])[0], skeleton)


def contents(folder: Path, *layers: list[M]) -> dict[str, Any]:
    """Return {path: content, link target, or None for directories}."""
    return {path: what for path, (_, _, what, _) in result(folder, *layers).items()}


def refused(folder: Path, *layers: list[M]) -> str:
    with pytest.raises(UdiError) as caught:
        result(folder, *layers)
    assert caught.value.hint
    return caught.value.message


# What takes quadratic time


def test_the_entries_of_one_folder_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the finished tree, whatever kind they are and whichever layer they come from."""
    monkeypatch.setattr(merging, "ENTRIES", 30)
    lower = [file(f"d/a{n}") for n in range(10)] + [directory(f"d/b{n}") for n in range(5)]
    upper = [symlink(f"d/s{n}", "x") for n in range(5)]
    upper += [*(file(f"e/{n}") for n in range(30)), *(link(f"d/l{n}", "d/a0") for n in range(10))]
    assert len(result(tmp_path, lower, upper)) == 62
    hidden = [*upper, *(whiteout(f"d/a{n}") for n in range(1, 6))]
    assert len(result(tmp_path, [*lower, *(file(f"d/c{n}") for n in range(5))], hidden)) == 62
    for more in (file("d/x"), directory("d/x"), symlink("d/x", "y"), link("d/x", "d/a1")):
        said = refused(tmp_path, lower, [*upper, more])
        assert "the folder 'd' has more than 30 entries" in said or "folder d has more" in said


def test_hard_links_that_wait_through_many_layers_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = [file(f"a{n}") for n in range(100)]
    top = [link(f"h{n}", f"a{n}") for n in range(100)]
    between = [[file("x")]] * 9
    monkeypatch.setattr(merging, "STEPS_EACH", 0)
    monkeypatch.setattr(merging, "WAITS", 1000)
    assert len(result(tmp_path, base, *between, top)) == 201
    assert "100 hard links of higher layers wait" in refused(
        tmp_path, base, *between, [file("x")], [file("x")], top
    )


# What hides what


def test_higher_file_wins(tmp_path: Path) -> None:
    assert contents(tmp_path, [file("a", "1"), file("b", "1")], [file("a", "2")]) == {
        "a": b"2",
        "b": b"1",
    }


def test_whiteout(tmp_path: Path) -> None:
    lower = [directory("d"), file("d/a", "1"), file("d/b", "1"), file("da", "1")]
    assert contents(tmp_path, lower, [whiteout("d/a")]) == {"d": None, "d/b": b"1", "da": b"1"}
    assert contents(tmp_path, lower, [whiteout("d")]) == {"da": b"1"}


def test_whiteout_speaks_of_lower_layers_only(tmp_path: Path) -> None:
    found = contents(tmp_path, [file("d/a", "1")], [file("d/b", "2"), whiteout("d")])
    assert found == {"d": None, "d/b": b"2"}


def test_opaque_hides_lower_contents_in_any_order(tmp_path: Path) -> None:
    lower = [directory("d", 0o700), file("d/a", "1")]
    for upper in ([opaque("d"), file("d/b", "2")], [file("d/b", "2"), opaque("d")]):
        found = result(tmp_path, lower, upper)
        assert found["d"][:3] == ("dir", 0o700, None)
        assert set(found) == {"d", "d/b"}


def test_opaque_root(tmp_path: Path) -> None:
    assert contents(tmp_path, [file("a"), file("d/b")], [opaque(""), file("c", "3")]) == {"c": b"3"}


def test_whiteout_of_what_is_not_there(tmp_path: Path) -> None:
    assert contents(tmp_path, [file("a", "1")], [whiteout("no/such"), whiteout("b")]) == {"a": b"1"}


def test_aufs_metadata_is_no_content(tmp_path: Path) -> None:
    upper = [file(".wh..wh.aufs"), directory(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), file("a")]
    assert contents(tmp_path, upper) == {"a": b""}


def test_directory_becomes_file_and_link(tmp_path: Path) -> None:
    lower = [directory("d"), file("d/a", "1"), directory("e"), file("e/a", "1")]
    assert contents(tmp_path, lower, [file("d", "2"), symlink("e", "d")]) == {"d": b"2", "e": "d"}


def test_file_and_link_become_directory(tmp_path: Path) -> None:
    lower = [file("d", "1"), symlink("e", "d")]
    upper = [directory("d", 0o711), file("d/a", "2"), file("e/a", "2")]
    found = result(tmp_path, lower, upper)
    assert found["d"][:2] == ("dir", 0o711)
    assert found["e"][:2] == ("dir", 0o755)
    assert found["d/a"][2] == found["e/a"][2] == b"2"


def test_directory_over_lower_symlink_replaces_it(tmp_path: Path) -> None:
    """As overlayfs has it: lib/x does not go to usr/lib/x."""
    lower = [directory("usr/lib"), file("usr/lib/a", "1"), symlink("lib", "usr/lib")]
    found = contents(tmp_path, lower, [directory("lib"), file("lib/x", "2")])
    assert found["lib"] is None
    assert found["lib/x"] == b"2"
    assert "usr/lib/x" not in found
    assert found["usr/lib/a"] == b"1"


def test_file_in_between_hides_the_lowest_directory(tmp_path: Path) -> None:
    lowest = [directory("d", 0o700), file("d/old", "1")]
    found = result(tmp_path, lowest, [file("d", "2")], [file("d/new", "3")])
    assert found["d"][1] == 0o755
    assert set(found) == {"d", "d/new"}


def test_implied_directory_keeps_lower_mode(tmp_path: Path) -> None:
    found = result(tmp_path, [directory("d", 0o1770, mtime=5)], [file("d/a")])
    assert found["d"] == ("dir", 0o1770, None, 5)


def test_highest_listed_directory_decides(tmp_path: Path) -> None:
    stack = [[directory("d", 0o700)], [directory("d", 0o711)], [file("d/a")]]
    assert result(tmp_path, *stack)["d"][1] == 0o711


def test_missing_parents_are_made(tmp_path: Path) -> None:
    found = result(tmp_path, [file("a/b/c", "1")])
    assert found["a"] == found["a/b"] == ("dir", 0o755, None, 0)


# Hard links


def test_hard_links_of_one_layer(tmp_path: Path) -> None:
    data, summary = merged([layer(tmp_path, tar([file("a", "1"), link("b", "a"), link("c", "b")]))])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert [(m.name, m.linkname) for m in archive if m.islnk()] == [("b", "a"), ("c", "a")]
    assert (summary.files, summary.links) == (1 + len(FILES), 2)


def test_hard_link_into_lower_layer(tmp_path: Path) -> None:
    stack = [[file("a", "1")], [file("x", "2")], [link("b", "a")]]
    assert contents(tmp_path, *stack) == {"a": b"1", "b": b"1", "x": b"2"}


def test_hard_link_keeps_the_old_content(tmp_path: Path) -> None:
    stack = [[file("a", "1")], [link("b", "a")], [file("a", "3")]]
    assert contents(tmp_path, *stack) == {"a": b"3", "b": b"1"}
    stack = [[file("a", "1"), link("b", "a"), link("c", "a")], [whiteout("a")]]
    assert contents(tmp_path, *stack) == {"b": b"1", "c": b"1"}


def test_hard_link_sees_its_own_view(tmp_path: Path) -> None:
    """b was linked when a was the middle layer's."""
    stack = [[file("a", "1")], [file("a", "2")], [link("b", "a")], [whiteout("a")]]
    assert contents(tmp_path, *stack) == {"b": b"2"}


def test_hard_link_to_a_hard_link_below(tmp_path: Path) -> None:
    stack = [[file("a", "1")], [link("b", "a")], [link("c", "b")], [whiteout("b")]]
    assert contents(tmp_path, *stack) == {"a": b"1", "c": b"1"}


def test_hard_link_before_a_whiteout_keeps_the_content(tmp_path: Path) -> None:
    """As where the layer is unpacked in its order; a directory above and an opaque one too."""
    lower = [file("d/a", "1"), file("e/a", "2"), file("x", "3")]
    upper = [link("b", "d/a"), whiteout("d/a"), link("c", "e/a"), opaque("e"), link("y", "x")]
    found = contents(tmp_path, lower, [*upper, whiteout("x")])
    assert found == {"d": None, "e": None, "b": b"1", "c": b"2", "y": b"3"}
    assert contents(tmp_path, lower, [link("b", "d/a"), whiteout("d"), whiteout("e")]) == {
        "b": b"1",
        "x": b"3",
    }


def test_hard_link_to_symlink(tmp_path: Path) -> None:
    assert contents(tmp_path, [symlink("s", "t"), link("h", "s")]) == {"s": "t", "h": "t"}
    stack = [[symlink("s", "t")], [link("h", "s")], [file("s", "2")]]
    assert contents(tmp_path, *stack) == {"s": b"2", "h": "t"}


def test_hard_link_to_a_file_whose_name_is_reused(tmp_path: Path) -> None:
    found = contents(tmp_path, [file("a", "1"), link("b", "a"), file("a", "2")])
    assert found == {"a": b"2", "b": b"1"}


def test_hard_link_to_device_is_left_out(tmp_path: Path) -> None:
    data, summary = merged([layer(tmp_path, tar([M("n", "device"), link("m", "n")]))])
    assert read(data) == {}
    assert summary.devices == ("/m", "/n")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ([[link("b", "a")]], "hard link b to a, which is not in the image"),
        ([[file("x")], [link("b", "a")]], "hard link b to a, which is not in the image"),
        ([[file("a")], [whiteout("a")], [link("b", "a")]], "b to a, which is not in the image"),
        ([[file("a")], [whiteout("a"), link("b", "a")]], "b to a, which is not in the image"),
        ([[file("d/a")], [opaque("d"), link("b", "d/a")]], "b to d/a, which is not in the image"),
        ([[file("d/a")], [file("d")], [link("b", "d/a")]], "b to d/a, which is not in the image"),
        ([[directory("d"), link("b", "d")]], "hard link b to the directory d"),
        ([[directory("d")], [link("b", "d")]], "hard link b of a higher layer to the directory d"),
        ([[file("a"), link("a", "a")]], "hard link a to itself"),
        ([[link("a", "./")]], "hard link a to the root"),
    ],
)
def test_hard_link_to_nothing(tmp_path: Path, layers: list[list[M]], words: str) -> None:
    assert words in refused(tmp_path, *layers)


# One layer


def test_last_of_the_same_name_wins(tmp_path: Path) -> None:
    assert contents(tmp_path, [file("a", "1"), file("b"), file("a", "2")])["a"] == b"2"
    found = contents(tmp_path, [file("a", "1"), file("a", "2")], [file("x"), file("x", "3")])
    assert found == {"a": b"2", "x": b"3"}


def test_merge_says_when_to_begin_again(tmp_path: Path) -> None:
    layers = [layer(tmp_path, tar([file("a", "1"), file("a", "2")]))]
    with pytest.raises(Again):
        merge(layers, lambda _: None)
    out = io.BytesIO()
    merge(layers, out.write)
    assert read(out.getvalue())["a"][2] == b"2"


def test_directory_replaced_in_its_own_layer(tmp_path: Path) -> None:
    found = contents(tmp_path, [directory("d"), file("d/a", "1"), symlink("d", "e")])
    assert found == {"d": "e"}
    assert contents(tmp_path, [file("d", "1"), directory("d"), file("d/a", "2")]) == {
        "d": None,
        "d/a": b"2",
    }


def test_link_of_the_same_layer_is_followed(tmp_path: Path) -> None:
    members = [directory("usr/lib"), symlink("lib", "usr/lib"), file("lib/a/b", "1")]
    found = contents(tmp_path, members)
    assert found["usr/lib/a/b"] == b"1"
    assert found["lib"] == "usr/lib"
    members = [symlink("x/up", "../y/./z"), symlink("y", "w"), file("x/up/f", "1")]
    assert contents(tmp_path, members)["w/z/f"] == b"1"
    members = [symlink("usr/lib64", "/usr/lib"), file("usr/lib64/c", "1"), link("d", "usr/lib64/c")]
    found = contents(tmp_path, members)
    assert (found["usr/lib/c"], found["d"], found["usr/lib64"]) == (b"1", b"1", "/usr/lib")


def test_absolute_names_are_below_the_root(tmp_path: Path) -> None:
    """Whiteouts, hard links and links between layers see the same names with and without it."""
    lower = [directory("/nix"), file("/nix/a", "1"), file("./nix/b", "2"), file("nix/c", "3")]
    upper = [whiteout("/nix/b"), link("/d", "/nix/a"), file("nix/x/../e", "4"), opaque("/o")]
    found = {"nix": None, "nix/a": b"1", "nix/c": b"3", "d": b"1", "nix/e": b"4", "o": None}
    assert contents(tmp_path, lower, upper) == found


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([symlink("a", "/../etc"), file("a/x")], "a -> /../etc, which leads out of the image"),
        ([symlink("a", "../../etc"), file("a/x")], "a -> ../../etc, which leads out of the image"),
        ([symlink("d/a", "../.."), file("d/a/x")], "leads out of the image"),
        ([symlink("a", "b"), symlink("b", "a"), file("a/x")], "too many levels"),
        ([symlink("a", "/"), link("b", "a/etc/shadow")], "b to etc/shadow, which is not in the im"),
        ([file("a"), file("a/x")], "a/x is beneath a, a file in the same layer"),
        ([M("a", "fifo"), file("a/x")], "a/x is beneath a, a fifo in the same layer"),
        ([file(".wh.")], "whiteout .wh. of nothing"),
        ([file("d/.wh..")], "whiteout d/.wh.. of ."),
        ([file("d/.wh...")], "whiteout d/.wh... of .."),
        ([file(".wh.a/b")], ".wh.a/b is beneath a whiteout"),
        ([file("d/.wh.a/.wh.b")], "beneath a whiteout"),
        ([file("../a")], "a path that leads out of the image"),
        ([M("./", "symlink", target="etc")], "the root directory is a symlink"),
    ],
)
def test_refused(tmp_path: Path, members: list[M], words: str) -> None:
    assert words in refused(tmp_path, members)


def test_lower_link_is_never_followed(tmp_path: Path) -> None:
    found = contents(
        tmp_path, [symlink("a", "/"), symlink("b", "../..")], [file("a/x"), file("b/x")]
    )
    assert found == {"a": None, "a/x": b"", "b": None, "b/x": b""}


# Attributes


def test_bits_times_owners_and_nodes(tmp_path: Path) -> None:
    members = [
        file("su", mode=0o4755, mtime=2**32 + 5),
        directory("sg", 0o2775, mtime=-5),
        directory("t", 0o1777),
        M("null", "device"),
        M("pipe", "fifo", mode=0o600),
    ]
    data, summary = merged([layer(tmp_path, tar(members))])
    found = read(data)
    assert found["su"][1::2] == (0o755, 2**32 - 1)
    assert found["sg"][1::2] == (0o775, 0)
    assert found["t"][1] == 0o1777
    assert found["pipe"][:2] == ("fifo", 0o600)
    assert "null" not in found
    assert summary.setuid == ("/sg", "/su")
    assert summary.devices == ("/null",)
    assert (summary.fifos, summary.bytes) == (1, 0)


def test_extended_attributes(tmp_path: Path) -> None:
    pax = {
        f"SCHILY.xattr.{name}": "v"
        for name in ("user.a", "security.capability", "trusted.b", "user.overlay.opaque", "user.")
    }
    data, summary = merged([layer(tmp_path, tar([file("f", pax=pax), directory("d", pax=pax)]))])
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for name in ("f", "d"):
            assert archive.getmember(name).pax_headers == {"SCHILY.xattr.user.a": "v"}
    assert summary.xattrs == 8


def test_long_and_strange_names(tmp_path: Path) -> None:
    names = ["x" * 255, "/".join(["d" * 100] * 5), "ü" * 100, "\udcff\udcfe" + "y" * 150, "a\nb"]
    out = io.BytesIO()
    with tarfile.open(
        fileobj=out, mode="w", format=tarfile.GNU_FORMAT, errors="surrogateescape"
    ) as t:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = 1
            t.addfile(info, io.BytesIO(b"1"))
            info = tarfile.TarInfo(name + ".l")
            info.name = "l-" + name[:200].replace("/", "_")
            info.type, info.linkname = tarfile.SYMTYPE, name * 3
            t.addfile(info)
    data, _ = merged([layer(tmp_path, out.getvalue())])
    found = read(data)
    for name in names:
        assert found[name][2] == b"1"
        assert found["l-" + name[:200].replace("/", "_")][2] == name * 3


def test_huge_file_needs_pax(tmp_path: Path) -> None:
    """Over 8 GiB the size does not fit the header: a sparse one, and nothing held in memory."""
    (tmp_path / "in").mkdir()
    with open(tmp_path / "in" / "f", "wb") as sparse:
        sparse.truncate(9 << 30)
    argv = ["tar", "--create", "--sparse", "--format=posix", "--file=-", "f"]
    data = subprocess.run(argv, cwd=tmp_path / "in", check=True, capture_output=True).stdout
    written = 0
    head = b""

    def count(part: bytes | bytearray | memoryview) -> None:
        nonlocal written, head
        written += len(part)
        head = head or bytes(part[:2048])

    merge([layer(tmp_path, data)], count)
    assert written > 9 << 30
    assert b" size=9663676416\n" in head


# The standard mount points


def test_mount_points_are_made(tmp_path: Path) -> None:
    found = result(tmp_path, [directory("etc", 0o700, mtime=9)], skeleton=True)
    for name in DIRECTORIES:
        assert found[name[1:]][0] == "dir"
    assert found["etc"] == ("dir", 0o700, None, 9)
    assert found["tmp"][1] == found["var/tmp"][1] == 0o1777
    assert found["etc/passwd"] == ("file", 0o644, b"", 0)
    assert found["etc/mtab"][2] == "/proc/mounts"
    assert found["var/run"][2] == "/run"


def test_what_the_image_has_stays(tmp_path: Path) -> None:
    members = [file("etc/passwd", "root"), link("etc/group", "etc/passwd"), directory("var/run")]
    found = result(tmp_path, [*members, file("etc/mtab", "x")], skeleton=True)
    assert found["etc/passwd"][2] == found["etc/group"][2] == b"root"
    assert found["var/run"][0] == "dir"
    assert found["etc/mtab"][2] == b"x"


def test_symbolic_links_at_mount_points(tmp_path: Path) -> None:
    members = [
        symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf"),
        symlink("tmp", "/"),
        symlink("run", "../.."),
        symlink("var/tmp", "/tmp"),
    ]
    found = result(tmp_path, members, skeleton=True)
    assert found["etc/resolv.conf"][:3] == ("file", 0o644, b"")
    assert found["tmp"][:2] == found["var/tmp"][:2] == ("dir", 0o1777)
    assert found["run"][:2] == ("dir", 0o755)


def whole(folder: Path, *members: M) -> tuple[bool, dict[str, Seen]]:
    data, summary = merged([layer(folder, tar(list(members)))])
    return summary.mount_points, read(data, skeleton=True)


@pytest.mark.parametrize("point", sorted(MOUNTED))
@pytest.mark.parametrize("target", ["/", "usr", "/nothing", "../../..", "self"])
def test_a_link_where_something_is_mounted_becomes_a_directory(
    tmp_path: Path, point: str, target: str
) -> None:
    target = point.rpartition("/")[2] if target == "self" else target
    ready, found = whole(tmp_path, directory("usr"), symlink(point[1:], target))
    assert ready and found[point[1:]][0] == "dir"


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("point", sorted(FOLLOWED))
def test_a_link_that_leads_to_a_directory_of_the_image_stays(
    tmp_path: Path, point: str, absolute: bool
) -> None:
    name = point[1:]
    members = [
        directory("nix/env", 0o555),
        directory(f"nix/env{point}", 0o555),
        file(f"nix/env{point}/passwd", "mine"),
        symlink("current", "/nix/env"),
        symlink(name, f"{'/' * absolute}current{point}"),
    ]
    ready, found = whole(tmp_path, *members)
    assert ready and found[name][0] == "symlink"
    place = f"nix/env{point}"
    assert found[place][:2] == ("dir", 0o555) and found[f"{place}/passwd"][2] == b"mine"
    inside = [p for p in (*DIRECTORIES, *FILES) if p.startswith(f"{point}/")]
    assert inside and all(place + p.removeprefix(point) in found for p in inside)


@pytest.mark.parametrize("point", sorted(FOLLOWED))
@pytest.mark.parametrize(
    "target", ["/", "..", "/nothing", "usr/file", "tmp/x", "/etc", "/dev", "loop", "/proc/1/root"]
)
def test_a_link_that_leads_elsewhere_becomes_a_directory(
    tmp_path: Path, point: str, target: str
) -> None:
    members = [file("usr/file"), directory("tmp/x"), symlink("loop", "loop")]
    ready, found = whole(tmp_path, *members, symlink(point[1:], target))
    assert ready and found[point[1:]][0] == "dir"
    assert found["etc/passwd"][:3] == ("file", 0o644, b"")


@pytest.mark.parametrize(
    "member",
    [
        file("tmp"),
        file("var"),
        file("etc"),
        directory("etc/hosts"),
        directory("etc/passwd"),
        file("etc/mtab"),
    ],
    ids=lambda member: member.name,
)
def test_files_and_directories_in_each_others_place_stay(tmp_path: Path, member: M) -> None:
    """Each start lays over them what must be there."""
    ready, found = whole(tmp_path, member)
    assert not ready and found[member.name][0] == ("file" if member.kind == "file" else "dir")


def test_the_link_of_other_distributions_at_mtab_is_replaced(tmp_path: Path) -> None:
    """../proc/self/mounts, in images of the Red Hat family: no start could change it."""
    ready, found = whole(tmp_path, symlink("etc/mtab", "../proc/self/mounts"))
    assert ready and found["etc/mtab"][2] == "/proc/mounts"


def test_a_fifo_at_a_mount_point_is_replaced(tmp_path: Path) -> None:
    ready, found = whole(tmp_path, M("run", "fifo"), M("etc/hosts", "fifo"))
    assert ready and (found["run"][0], found["etc/hosts"][0]) == ("dir", "file")


# Blobs


ZSTD = shutil.which("zstd")


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-q", "-c"], input=data, capture_output=True, check=True).stdout


def blob(folder: Path, content: bytes, plain: bytes) -> Layer:
    (folder / "blob").write_bytes(content)
    return Layer(str(folder / "blob"), digest(plain))


DATA = tar([file("a", bytes(range(256)) * 4000), file("b", "2")])


PACKS: dict[str, Callable[[bytes], bytes]] = {
    "tar": bytes,
    "gzip": gzip.compress,
    "zstd": zstd,
    "xz": lzma.compress,
    "bzip2": bz2.compress,
}


@pytest.mark.parametrize("kind", PACKS)
def test_compressions(tmp_path: Path, kind: str) -> None:
    """The first bytes decide; no media type is asked."""
    if kind == "zstd" and not ZSTD:
        probes.need("zstd")
    assert decompress.sniff(PACKS[kind](DATA)[:512]) == kind
    found = read(merged([blob(tmp_path, PACKS[kind](DATA), DATA)])[0])
    assert set(found) == {"a", "b"}


def test_a_tar_whose_first_name_looks_compressed(tmp_path: Path) -> None:
    assert contents(tmp_path, [file("BZh91AY&SY", "1")]) == {"BZh91AY&SY": b"1"}
    for kind, pack in PACKS.items():
        if kind != "zstd":
            head = bytearray(tar([file("x")])[:512])
            head[:10] = pack(DATA)[:10]
            assert decompress.sniff(bytes(head)) == "tar"
    assert decompress.sniff(b"BZh-file" + bytes(504)) == "tar"


@pytest.mark.parametrize("kind", ["gzip", "zstd", "xz", "bzip2"])
def test_several_members_and_padding(tmp_path: Path, kind: str) -> None:
    pack = PACKS[kind]
    content = b"".join(pack(DATA[at : at + 200_000]) for at in range(0, len(DATA), 200_000))
    assert set(read(merged([blob(tmp_path, content, DATA)])[0])) == {"a", "b"}
    if kind != "zstd":
        content += bytes(300_000)
        assert set(read(merged([blob(tmp_path, content, DATA)])[0])) == {"a", "b"}


def _without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.parametrize(
    "absent",
    [
        (),
        ("compression.zstd", "backports.zstd"),
        ("compression.zstd", "backports.zstd", "zstandard"),
    ],
)
@pytest.mark.needs("zstd")
def test_each_way_to_read_zstd(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: tuple[str, ...]
) -> None:
    _without(monkeypatch, *absent)
    content = zstd(DATA) + zstd(b"")
    assert set(read(merged([blob(tmp_path, content, DATA)])[0])) == {"a", "b"}
    for bad in (content[:50], content[:40] + b"\xff" * 20 + content[60:]):
        with pytest.raises(UdiError, match="reading layer sha256:"):
            merged([blob(tmp_path, bad, DATA)])


@pytest.mark.needs("zstd")
def test_no_way_to_read_zstd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = zstd(DATA)
    _without(monkeypatch, "compression.zstd", "backports.zstd", "zstandard")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UdiError) as caught:
        merged([blob(tmp_path, content, DATA)])
    assert "rootless_udi[speed]" in caught.value.hint


@pytest.mark.parametrize("isal", [True, False])
@pytest.mark.parametrize(
    ("cut", "words"),
    [
        (lambda b: b[:-4], "ends in the middle of the compressed data"),
        (lambda b: b[: len(b) // 2], "ends in the middle of the compressed data"),
        (lambda b: b[:2000] + bytes(100) + b[2100:], "of the blob: "),
        (lambda b: b[:-8] + bytes(4) + b[-4:], "of the blob: "),
        (lambda b: b + b"garbage", "of the blob: "),
        (lambda b: b[:3], "ends in the middle"),
    ],
)
def test_damaged_gzip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isal: bool, cut: Any, words: str
) -> None:
    if not isal:
        _without(monkeypatch, "isal", "isal.isal_zlib")
    plain = tar([file("a", os.urandom(50_000))])
    with pytest.raises(UdiError) as caught:
        merged([blob(tmp_path, cut(gzip.compress(plain)), plain)])
    assert words in caught.value.message
    assert caught.value.message.startswith(f"reading layer {digest(plain)} failed at byte ")
    assert "pull the image again" in caught.value.hint


def test_wrong_digest(tmp_path: Path) -> None:
    one = layer(tmp_path, DATA)
    one.diff_id = digest(b"other")
    with pytest.raises(UdiError, match=f"has digest {digest(DATA)} where the image's"):
        merged([one])
    one.diff_id = "md5:1234"
    with pytest.raises(UdiError, match="no sha256 or sha512 digest"):
        merged([one])


def test_digest_counts_what_follows_the_end(tmp_path: Path) -> None:
    one = layer(tmp_path, DATA + b"more")
    assert set(read(merged([one])[0])) == {"a", "b"}


@pytest.mark.parametrize("name", ["lzma", "bz2"])
def test_a_python_without_a_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    _without(monkeypatch, name)
    content = PACKS[{"lzma": "xz", "bz2": "bzip2"}[name]](DATA)
    with pytest.raises(UdiError, match=f"this Python was built without the module {name}"):
        merged([blob(tmp_path, content, DATA)])


def test_an_xz_blob_that_asks_for_more_memory_than_any_image(tmp_path: Path) -> None:
    content = bytearray(lzma.compress(DATA))
    assert content[12:16] == b"\x02\0\x21\x01"
    content[16] = 36  # the dictionary: 1 GiB (The .xz File Format 1.2, 5.3.1)
    content[20:24] = zlib.crc32(bytes(content[12:20])).to_bytes(4, "little")
    with pytest.raises(UdiError, match=r"[Mm]emory"):
        merged([blob(tmp_path, bytes(content), DATA)])


def test_bomb_stays_small(tmp_path: Path) -> None:
    """256 MiB of zeros in 256 KiB, in a process with 64 MiB of address space to spare."""
    pack = zlib.compressobj(9, wbits=31)
    header = tarfile.TarInfo("z")
    header.size = 256 << 20
    plain = header.tobuf()
    content = pack.compress(plain)
    hashed = hashlib.sha256(plain)
    for _ in range(256):
        content += pack.compress(bytes(1 << 20))
        hashed.update(bytes(1 << 20))
    content += pack.flush()
    (tmp_path / "blob").write_bytes(content)
    program = f"""
import resource
from rootless_udi.layers.merge import Layer; from rootless_udi.layers.merge import merge
from rootless_udi.layers import blob as decompress
from rootless_udi.layers import merge as merging
size = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (size + (64 << 20),) * 2)
one = Layer({str(tmp_path / "blob")!r}, "sha256:{hashed.hexdigest()}")
print(merge([one], lambda part: None).bytes)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == str(256 << 20), done.stderr


# The observer


class Listener:
    def __init__(self) -> None:
        self.asked: dict[str, tuple[int, bytes]] = {}
        self.files: dict[str, bytes] = {}
        self.links: dict[str, str] = {}

    def wants(self, path: str, size: int, head: bytes) -> bool:
        self.asked[path] = (size, head)
        return path.endswith("wanted")

    def file(self, path: str, data: bytes) -> None:
        self.files[path] = data

    def link(self, path: str, target: str) -> None:
        self.links[path] = target

    def same(self, path: str, other: str) -> None:
        self.links[path] = f"same as {other}"


def test_observer(tmp_path: Path) -> None:
    big = os.urandom(3_000_000)
    lower = [file("wanted", "old"), file("x/wanted", "1"), link("x/h", "x/wanted")]
    upper = [file("wanted", big), file("other", "2" * 100), symlink("s", "wanted"), file("e")]
    heard = Listener()
    layers = [layer(tmp_path, tar(x), compress=True) for x in (lower, upper)]
    data, _ = merged(layers, heard)
    assert heard.files == {"/wanted": big, "/x/wanted": b"1"}
    assert heard.asked["/other"] == (100, b"2" * 64)
    assert heard.asked["/e"] == (0, b"")
    assert heard.asked["/wanted"] == (3_000_000, big[:64])
    assert heard.links["/s"] == "wanted"
    assert heard.links["/x/h"] == "same as /x/wanted"
    assert read(data)["wanted"][2] == big


# Against the model, and any bytes

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
TARGETS = st.sampled_from(
    ["a", "b", "c", "a/b", "../a", "../b/c", ".", "..", "/a", "/", "/b/../c", "../../.."]
)
MEMBERS = st.one_of(
    st.builds(file, PATHS, st.integers(0, 99).map(str), mode=st.sampled_from([0o644, 0o4755])),
    st.builds(directory, PATHS, st.sampled_from([0o755, 0o700, 0o2775, 0o1777])),
    st.builds(symlink, PATHS, TARGETS),
    st.builds(link, PATHS, PATHS),
    st.builds(link, PATHS, PATHS),
    st.builds(whiteout, PATHS),
    st.builds(opaque, PATHS),
    st.builds(lambda p: M(p, "device"), PATHS),
)
STACKS = st.lists(st.lists(MEMBERS, max_size=7), min_size=1, max_size=4)


@settings(max_examples=300)
@given(STACKS)
@example([[file("a", "1")], [link("b", "a"), file("a", "2")]])
@example([[directory("a", 0o700)], [file("a")], [opaque("a/b")]])
def test_same_as_the_model(tmp_path_factory: pytest.TempPathFactory, stack: list[list[M]]) -> None:
    folder = tmp_path_factory.getbasetemp()
    try:
        expected = model(stack)
    except Refused:
        with pytest.raises(UdiError):
            result(folder, *stack)
        return
    assert result(folder, *stack) == expected


@settings(max_examples=150)
@given(STACKS, st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=4))
def test_any_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    stack: list[list[M]],
    changes: list[tuple[int, int]],
) -> None:
    folder = tmp_path_factory.getbasetemp()
    layers = []
    for members in stack:
        data = bytearray(gzip.compress(tar(members), 1, mtime=0))
        for at, value in changes:
            data[at % len(data)] = value
        layers.append(blob(folder, bytes(data), tar(members)))
    try:
        merged(layers)
    except UdiError as err:
        assert err.hint
