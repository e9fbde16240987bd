"""What a start-up reads: traced, merged, laid out first; the image's content stays what it was."""

import os
import stat
import struct
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.commands import optimize as optimizing
from rootless_udi.commands import profile as profiling
from rootless_udi.fuse import profile
from rootless_udi.fuse.imagefile import ImageFile
from rootless_udi.fuse.profile import Read, load, merge
from rootless_udi.fuse.relayout import reading, relayout
from rootless_udi.fuse.relayout_check import verify
from rootless_udi.fuse.workers import Workers
from tests.kit import fuseimages, fusetree, images
from tests.kit.fusemount import Mount, ours, squashfuse
from tests.kit.places import TREE

NEEDS = pytest.mark.needs("userns", "fuse", "mksquashfs")


@NEEDS
def test_a_trace_names_paths_ranges_and_their_order(tmp_path: Path) -> None:
    image = fuseimages.mksquashfs(fuseimages.everything(), tmp_path / "i", "-comp", "zstd")
    trace = tmp_path / "trace"
    with Mount(ours("raw", f"--trace={trace}"), image, tmp_path / "m") as one:
        files = "links/two sizes/words-131073 names/new*line"
        assert one.run("sh", "-c", f"cd {one.point}; cat {files} >&2; readlink links/soft").stdout
    found = load(str(trace))
    paths = [one.path for one in found if one.length]
    assert [p for n, p in enumerate(paths) if p not in paths[:n]] == [
        b"links/two",
        b"sizes/words-131073",
        b"names/new\nline",
    ]
    read = [(r.offset, r.length) for r in found if r.path == b"sizes/words-131073" and r.length]
    assert read[0][0] == 0 and sum(length for _, length in read) >= 131073
    assert any(one.path == b"links/soft" for one in found)
    assert [one.seconds for one in found] == sorted(one.seconds for one in found)


def reads(*names: str) -> list[Read]:
    return [Read(float(n), name.encode(), 0, 4096) for n, name in enumerate(names)]


def test_merging_keeps_what_came_first_first() -> None:
    one, other = reads("python", "numpy", "mpi"), reads("python", "scipy", "numpy")
    assert [r.path for r in merge([one, other])] == [b"python", b"numpy", b"scipy", b"mpi"]
    assert merge([]) == []
    twice = merge([one, one])
    assert [(r.path, r.offset, r.length) for r in twice] == [(r.path, 0, 4096) for r in one]


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 3)), max_size=9)))
def test_merging_loses_and_repeats_nothing(traces: list[list[tuple[str, int]]]) -> None:
    given_ = [[Read(0.0, p.encode(), at, 1) for p, at in trace] for trace in traces]
    found = [(r.path, r.offset) for r in merge(given_)]
    assert sorted(found) == sorted({(p.encode(), at) for trace in traces for p, at in trace})


@pytest.mark.parametrize(
    ("text", "why"),
    (
        (b"", "not a profile"),
        (b"\xff\xfe", "not a profile"),
        (b"udi profile 2\n", "not a profile"),
        (b"udi profile 1\n[1, 2]\n", "line 2 is damaged"),
        (b'udi profile 1\n[0.1, "a", 0, 1, "r"]\nx\n', "line 3 is damaged"),
        (b'udi profile 1\n[0.1, "a", 0, 1, "x"]\n', "line 2 is damaged"),
        (b'udi profile 1\n[0.1, "a", -1, 1, "r"]\n', "line 2 is damaged"),
        (b"udi profile 1 key\n", "not a profile"),
        (b"udi profile 1" + b"0" * 32 + b"\n", "not a profile"),
    ),
)
def test_what_is_no_profile_is_refused(text: bytes, why: str, tmp_path: Path) -> None:
    (tmp_path / "p").write_bytes(text)
    with pytest.raises(UdiError, match=why) as caught:
        load(str(tmp_path / "p"))
    assert "udi profile IMAGE" in caught.value.hint


HOT = reads("sizes/noise-131073", "sizes/holes", "links/three", "many/file-00007", "sizes/zeros")


@pytest.mark.needs("mksquashfs")
@pytest.mark.parametrize(
    "options",
    (
        ("-comp", "zstd"),
        ("-comp", "lz4", "-b", "4096"),
        ("-comp", "gzip", "-no-fragments"),
        ("-comp", "lzo", "-Xcompression-level", "1", "-always-use-fragments"),
        ("-noI", "-noD", "-noF", "-noX", "-exports"),
    ),
    ids=" ".join,
)
def test_an_optimised_image_is_the_same_to_every_reader(
    options: tuple[str, ...], tmp_path: Path
) -> None:
    raw = "lz4" not in options
    image = fuseimages.mksquashfs(fuseimages.everything(), tmp_path / "i", *options)
    target = tmp_path / "new"
    trace = tmp_path / "trace"
    trace.write_text(profile.VERSION + "\n" + "".join(line(one) for one in HOT))
    found = optimizing.rewrite(str(image), [str(trace)], str(target), raw=raw)
    assert found.files == 5 and found.size == target.stat().st_size
    assert list(fusetree.of_image(str(target))) == list(fusetree.of_image(str(image)))
    folders = [tmp_path / "old-out", tmp_path / "new-out"]
    for source, folder in zip((image, target), folders, strict=True):
        argv: list[str | Path] = ["unsquashfs", "-q", "-n", "-no-xattrs", "-d", folder, source]
        subprocess.run(argv, capture_output=True)  # can't make the device nodes
        subprocess.run(["chmod", "-R", "u+rwX", folder], check=True)
    old, new = (
        [o for o in fusetree.of_folder(os.fsencode(f)) if stat.S_IFMT(int(str(o["mode"]), 8))]
        for f in folders
    )
    assert old == new and len(new) > 700


def line(one: Read) -> str:
    import json

    where = os.fsdecode(one.path), one.offset, one.length, one.kind
    return json.dumps([one.seconds, *where]) + "\n"


@pytest.mark.needs("mksquashfs")
def test_hot_data_lies_first_in_order_and_uncompressed(tmp_path: Path) -> None:
    image = fuseimages.mksquashfs(fuseimages.everything(), tmp_path / "i", "-comp", "zstd")
    old = reading(str(image))
    with open(tmp_path / "new", "wb") as out:
        relayout(old, reads("sizes/words-1048576", "many/file-00100", "sizes/words-131072"), out)
    data = (tmp_path / "new").read_bytes()
    tables, hot = reading(str(tmp_path / "new")).reader.super.hot()
    assert hot[0] < 300
    begin = data[hot[0] : hot[0] + hot[1]]
    assert begin.startswith(fuseimages.words(131072))  # only the block that was read is raw
    assert fuseimages.words(131072) in begin[131072:] and b"100" in begin
    assert tables[0] == int.from_bytes(data[64:72], "little")
    assert hot[0] + hot[1] < tables[0]


@pytest.mark.needs("mksquashfs")
def test_a_difference_is_found(tmp_path: Path) -> None:
    one = fuseimages.mksquashfs(images.tar([("f", b"x" * 9000, {})]), tmp_path / "1")
    other = fuseimages.mksquashfs(images.tar([("f", b"y" * 9000, {})]), tmp_path / "2")
    with pytest.raises(UdiError, match="optimizing failed on /f: the new image differs there"):
        verify(reading(str(one)), reading(str(other)))
    assert verify(reading(str(one)), reading(str(one))) == 2


@pytest.mark.needs("mksquashfs")
def test_refusals_leave_nothing_behind(tmp_path: Path) -> None:
    image = fuseimages.mksquashfs(fuseimages.everything(), tmp_path / "i", "-comp", "zstd")
    trace = tmp_path / "trace"
    trace.write_text(profile.VERSION + "\n" + line(reads("no/such/file")[0]))
    target = str(tmp_path / "new")
    with pytest.raises(UdiError, match="none of the files that were read is in it"):
        optimizing.rewrite(str(image), [str(trace)], target)
    data = bytearray(image.read_bytes())
    table = int.from_bytes(data[64:72], "little")
    data[table + 6 : table + 40] = bytes(34)
    image.write_bytes(data)
    trace.write_text(profile.VERSION + "\n" + "".join(line(one) for one in HOT))
    with pytest.raises(UdiError, match="the image is damaged"):
        optimizing.rewrite(str(image), [str(trace)], target)
    assert sorted(os.listdir(tmp_path)) == ["i", "trace"]


@NEEDS
@pytest.mark.needs("squashfuse")
def test_other_servers_read_an_optimised_image(tmp_path: Path) -> None:
    image = fuseimages.mksquashfs(fuseimages.everything(), tmp_path / "i", "-comp", "zstd")
    with open(tmp_path / "new", "wb") as out:
        relayout(reading(str(image)), HOT, out)
    for number, server in enumerate((squashfuse(), ours())):
        with Mount(server, tmp_path / "new", tmp_path / f"m{number}", ready=False) as one:
            done = one.run("sha256sum", one.point / "sizes/holes", one.point / "links/one")
            old = {str(o["path"]): o for o in fusetree.of_image(str(image))}
            assert [text.split()[0] for text in done.stdout.splitlines()] == [
                old["/sizes/holes"]["sha256"],
                old["/links/one"]["sha256"],
            ]


def test_on_a_slow_file_system_windows_are_read_ahead(tmp_path: Path) -> None:
    """Slow is what answers late; here it is said to be, and what is read when is looked at."""
    path = tmp_path / "image"
    path.write_bytes(fuseimages.noise(20 << 20))
    fd = os.open(path, os.O_RDONLY)
    workers, idle = Workers(1), threading.Event()
    source = ImageFile(fd, 20 << 20)
    source.slow = True
    source.expect(((15 << 20, 1 << 20), (100, (10 << 20) - 100)), workers)
    data = path.read_bytes()
    assert source.read((15 << 20) + 5, 10) == data[(15 << 20) + 5 :][:10]
    workers.ask(lambda _: idle.set(), "the last job")
    assert idle.wait(60)
    assert all(window in source._windows for window in (15, *range(6)))
    assert 7 not in source._windows
    for at in range(0, 20 << 20, 3_000_000):
        assert source.read(at, 200_000) == data[at : at + 200_000]
    workers.close()
    os.close(fd)


@NEEDS
def test_profile_waits_for_the_server_and_passes_the_status_on(tmp_path: Path) -> None:
    """With a stand-in for udi-run that mounts, runs, and ends before the server has written."""
    image = fuseimages.mksquashfs(fuseimages.everything(), tmp_path / "i", "-comp", "zstd")
    stand_in = tmp_path / "run.py"
    stand_in.write_text(
        f"""
import subprocess, sys
sys.path.insert(0, {str(TREE)!r})
from pathlib import Path
from tests.kit.fusemount import Mount; from tests.kit.fusemount import ours
trace, image, *command = sys.argv[1:]
with Mount(ours("raw", trace), Path(image), Path({str(tmp_path / "m")!r})) as one:
    status = one.run(*command).returncode
sys.exit(status)
"""
    )
    target = tmp_path / "profile"
    command = ["sh", "-c", f"cat {tmp_path}/m/links/one; exit 3"]
    run = [sys.executable, str(stand_in)]
    assert profiling.traced(run, str(image), command, str(target)) == 3
    assert any(one.path == b"links/one" and one.length for one in load(str(target)))


def test_profile_without_a_profile_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiling, "WAIT", 0.05)
    with pytest.raises(UdiError, match="the image server left no profile"):
        profiling.traced(["true"], "image", ["x"], str(tmp_path / "p"))
    assert struct.calcsize("<8s4Q") == 40 and os.listdir(tmp_path) == []
