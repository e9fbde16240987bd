"""Tar streams as real tools write them, and bytes that are none: UdiError and nothing else."""

import base64
import io
import os
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.layers.tarfields import Stream, shown
from rootless_udi.layers.tarreader import members


def walk(data: bytes, step: int = 1000) -> dict[bytes, Any]:
    """Return {path: (member, content)} of a tar that arrives in pieces of `step` bytes."""
    chunks = (data[at : at + step] for at in range(0, len(data), step))
    stream = Stream(chunks, "test")
    found = {}
    for member in members(stream):
        found[member.path] = (member, b"".join(member.body()))
    assert stream.offset == len(data)
    return found


def refused(data: bytes) -> str:
    with pytest.raises(UdiError) as caught:
        walk(data)
    assert caught.value.hint
    return caught.value.message


def one(
    name: str = "f",
    content: bytes = b"",
    format: Literal[0, 1, 2] = tarfile.PAX_FORMAT,
    **extra: Any,
) -> bytes:
    """Return a tar of one member, end blocks included."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for key, value in extra.items():
        setattr(info, key, value)
    return bytes(info.tobuf(format) + content + bytes(-len(content) % 512) + bytes(1024))


def raw(
    kind: bytes,
    name: bytes,
    size: int | bytes = 0,
    data: bytes = b"",
    at: int = 0,
    put: bytes = b"",
) -> bytes:
    """Return one header (field `put` at offset `at`) with a right checksum, and `data` padded."""
    info = bytearray(tarfile.TarInfo("x").tobuf(tarfile.GNU_FORMAT))
    info[:100] = name[:100].ljust(100, b"\0")
    info[124:136] = size.ljust(12, b"\0") if isinstance(size, bytes) else b"%011o\0" % size
    info[156:157] = kind
    info[at : at + len(put)] = put
    info[148:156] = b" " * 8
    info[148:156] = b"%06o\0 " % sum(info)
    return bytes(info) + data + bytes(-len(data) % 512)


def pax(records: dict[bytes, bytes], kind: bytes = b"x") -> bytes:
    data = b""
    for key, value in records.items():
        size = len(key) + len(value) + 3
        size += len(str(size + len(str(size))))
        data += b"%d %b=%b\n" % (size, key, value)
    return raw(kind, b"pax", len(data), data)


def gnu_tar(directory: Path, *options: str, names: tuple[str, ...] = (".",)) -> bytes:
    argv = ["tar", "--create", "--file=-", "--sort=name", *options, *names]
    return subprocess.run(argv, cwd=directory, check=True, capture_output=True).stdout


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("sample")
    (top / "d").mkdir(mode=0o750)
    (top / "d" / "file").write_bytes(b"content\n" * 100)
    os.utime(top / "d" / "file", ns=(0, 1_600_000_000_987_654_321))
    (top / "d" / ("n" * 200)).write_bytes(b"long")
    (top / "d" / ("ü" * 100)).write_bytes(b"utf-8")
    (top / "old").write_bytes(b"before 1970")
    os.utime(top / "old", (0, -1000))
    with open(os.fsencode(top) + b"/d/\xff\xfe", "wb") as file:
        file.write(b"bytes")
    (top / "link").symlink_to("d/file")
    (top / "longlink").symlink_to("t" * 300)
    os.link(top / "d" / "file", top / "zhard")
    (top / "empty").write_bytes(b"")
    os.mkfifo(top / "fifo")
    (top / "block").write_bytes(b"x" * 1024)
    return top


def check_sample(found: dict[bytes, Any], top: Path, names: bool = True) -> None:
    for path, (member, content) in found.items():
        if not path:
            continue
        real = os.path.join(os.fsencode(top), path)
        status = os.lstat(real)
        if member.kind == "file":
            with open(real, "rb") as file:
                assert content == file.read()
        if member.kind == "symlink":
            assert member.target == os.readlink(real)
        if member.kind != "hard link":
            assert (member.mode, member.mtime) == (
                status.st_mode & 0o7777,
                int(status.st_mtime // 1),
            )
    kinds = {path: member.kind for path, (member, _) in found.items()}
    assert kinds[b"d"] == "dir"
    assert kinds[b"fifo"] == "fifo"
    assert found[b"zhard"][0].kind == "hard link"
    assert found[b"zhard"][0].target == b"d/file"


@pytest.mark.parametrize("step", [1, 511, 4096, 1 << 20])
@pytest.mark.parametrize("format", ["gnu", "posix", "oldgnu"])
def test_gnu_tar(sample: Path, format: str, step: int) -> None:
    data = gnu_tar(sample, f"--format={format}")
    found = walk(data, step)
    assert len(found) == 13
    check_sample(found, sample)


def test_ustar_prefix(tmp_path: Path) -> None:
    deep = tmp_path / ("a" * 90) / ("b" * 90)
    deep.mkdir(parents=True)
    (deep / "c").write_bytes(b"x")
    found = walk(gnu_tar(tmp_path, "--format=ustar"))
    assert found[b"a" * 90 + b"/" + b"b" * 90 + b"/c"][1] == b"x"


def test_v7(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "f").write_bytes(b"x")
    found = walk(gnu_tar(tmp_path, "--format=v7"))
    assert found[b"d"][0].kind == "dir"
    assert found[b"d/f"][1] == b"x"


@pytest.mark.parametrize("fragments", [0, 1, 3, 5, 60])
@pytest.mark.parametrize(
    "options",
    [
        ("--format=gnu",),
        ("--format=posix", "--sparse-version=0.0"),
        ("--format=posix", "--sparse-version=0.1"),
        ("--format=posix", "--sparse-version=1.0"),
    ],
)
def test_sparse(tmp_path: Path, options: tuple[str, ...], fragments: int) -> None:
    path = tmp_path / "holes"
    with open(path, "wb") as file:
        for index in range(fragments):
            file.seek((2 * index + 1) * 65536)
            file.write(b"%04d" % index * 1025)
        file.truncate(fragments * 200_000 + 1_000_000)
    (tmp_path / "next").write_bytes(b"after")
    data = gnu_tar(tmp_path, "--sparse", *options)
    found = walk(data, 10_000)
    member, content = found[b"holes"]
    assert content == path.read_bytes()
    assert member.size == len(content)
    assert found[b"next"][1] == b"after"


def test_content_can_be_left_unread(sample: Path) -> None:
    stream = Stream([gnu_tar(sample, "--sparse")], "test")
    assert sum(1 for _ in members(stream)) == 13


def test_pax_records() -> None:
    data = pax(
        {b"path": b"long/" + b"p" * 200, b"mtime": b"1234.75", b"SCHILY.xattr.user.a": b"\0\n="}
    )
    found = walk(data + raw(b"0", b"short") + bytes(1024))
    member, _ = found[b"long/" + b"p" * 200]
    assert member.mtime == 1234
    assert member.xattrs == {b"user.a": b"\0\n="}


def test_pax_size_beats_the_header() -> None:
    found = walk(pax({b"size": b"3"}) + raw(b"0", b"f", 0, b"abc") + bytes(1024))
    assert found[b"f"][1] == b"abc"


def test_pax_linkpath_and_negative_mtime() -> None:
    data = pax({b"linkpath": b"t" * 300, b"mtime": b"-5"}) + raw(b"2", b"l")
    member, _ = walk(data)[b"l"]
    assert (member.target, member.mtime) == (b"t" * 300, -5)


def test_libarchive_xattr() -> None:
    value = base64.b64encode(b"\xff\0v").rstrip(b"=")
    found = walk(pax({b"LIBARCHIVE.xattr.user.%61": value}) + raw(b"0", b"f"))
    assert found[b"f"][0].xattrs == {b"user.a": b"\xff\0v"}


def test_global_header_holds_until_the_end() -> None:
    data = pax({b"mtime": b"77", b"comment": b"git"}, b"g")
    data += raw(b"0", b"a") + pax({b"mtime": b"88"}) + raw(b"0", b"b") + raw(b"0", b"c")
    found = walk(data)
    assert [found[n][0].mtime for n in (b"a", b"b", b"c")] == [77, 88, 77]


def test_base_256_numbers() -> None:
    size = b"\x80" + (5).to_bytes(11, "big")
    early = b"\xff" * 11 + b"\xfe"
    found = walk(raw(b"0", b"f", size, b"12345", 136, early))
    assert found[b"f"][1] == b"12345"
    assert found[b"f"][0].mtime == -2


def test_signed_checksum() -> None:
    header = bytearray(raw(b"0", b"\xff\xfe"))
    told = int(header[148:154], 8)
    header[148:156] = b"%06o\0 " % (told - 512)
    assert list(walk(bytes(header))) == [b"\xff\xfe"]


@pytest.mark.parametrize("cut", [512, 1024])
def test_without_end_blocks(cut: int) -> None:
    data = one("f", b"x" * 100)
    assert walk(data[: len(data) - cut])[b"f"][1] == b"x" * 100


def test_last_member_not_padded() -> None:
    data = raw(b"0", b"a", 3, b"abc") + raw(b"0", b"b", 4, b"defg")
    assert walk(data[:-508])[b"b"][1] == b"defg"
    assert walk(data[:-400])[b"b"][1] == b"defg"


def test_after_the_end_is_ignored() -> None:
    assert list(walk(one("f") + b"garbage" * 1000)) == [b"f"]
    assert list(walk(one("f") + bytes(10240))) == [b"f"]


def test_empty() -> None:
    assert walk(b"") == {}
    assert walk(bytes(1024)) == {}


def test_size_of_links_and_directories_is_no_data() -> None:
    data = raw(b"1", b"l", 5, at=157, put=b"f") + raw(b"5", b"d", 512) + raw(b"0", b"f", 1, b"x")
    assert set(walk(data)) == {b"l", b"d", b"f"}


def test_dumpdir_and_labels() -> None:
    data = raw(b"V", b"label") + raw(b"D", b"d", 8, b"Yname\0\0\0") + raw(b"0", b"f", 1, b"x")
    assert set(walk(data)) == {b"d", b"f"}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("./a", b"a"),
        ("./", b""),
        ("/", b""),
        ("a//b/./c", b"a/b/c"),
        (".a/..b/...", b".a/..b/..."),
        ("/nix/store/x", b"nix/store/x"),
        ("//usr//bin/", b"usr/bin"),
        ("/./etc", b"etc"),
        ("a/x/../y", b"a/y"),
        ("/a/b/../../c", b"c"),
        ("a/..", b""),
    ],
)
def test_paths(name: str, path: bytes) -> None:
    assert list(walk(raw(b"0", name.encode()))) == [path]


@pytest.mark.parametrize("target", [b"/usr/f", b"usr/f", b"./usr/x/../f", b"//usr/./f"])
def test_hard_link_target_is_below_the_root(target: bytes) -> None:
    assert walk(raw(b"1", b"l", at=157, put=target))[b"l"][0].target == b"usr/f"


def holes(fragments: bytes, size: bytes, data: bytes) -> bytes:
    records = {b"GNU.sparse.map": fragments, b"GNU.sparse.size": size}
    return pax(records) + raw(b"0", b"f", len(data), data)


def one_zero(major: bytes, data: bytes) -> bytes:
    records = {b"GNU.sparse.major": major, b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"}
    data += bytes(-len(data) % 512)
    return pax(records) + raw(b"0", b"f", len(data), data)


BAD: list[tuple[Callable[[], bytes], str]] = [
    (lambda: raw(b"0", b"../a"), "a member has a path that leads out of the image: ../a"),
    (lambda: raw(b"0", b"a/../../b"), "out of the image: a/../../b"),
    (lambda: raw(b"5", b".."), "out of the image: .."),
    (lambda: raw(b"5", b"/.."), "out of the image: /.."),
    (lambda: raw(b"2", b"/a/./../../b", at=157, put=b"x"), "out of the image: /a/./../../b"),
    (lambda: pax({b"path": b"/../etc/passwd"}) + raw(b"0", b"f"), "out of the image: /../etc"),
    (lambda: raw(b"0", b""), "a member has an empty path"),
    (lambda: raw(b"1", b"l", at=157, put=b"../../etc/shadow"), "hard link l to a path that leads"),
    (lambda: raw(b"1", b"l", at=157, put=b"/a/../../b"), "hard link l to a path that leads out"),
    (lambda: raw(b"1", b"l"), "hard link l to an empty path"),
    (lambda: raw(b"2", b"l"), "symbolic link l to nothing"),
    (lambda: pax({b"linkpath": b"x" * 5000}) + raw(b"2", b"l"), "symbolic link l to 5000 bytes"),
    (lambda: pax({b"path": b"a\0b"}) + raw(b"0", b"f"), "NUL byte in it: a\\x00b"),
    (lambda: pax({b"path": b"x" * 256}) + raw(b"0", b"f"), "longer than 255 bytes"),
    (lambda: pax({b"path": b"x/" * 2500}) + raw(b"0", b"f"), "a path of 5000 bytes"),
    (lambda: raw(b"0", b"f", b"\xff" * 12), "f has a size of -1 bytes"),
    (lambda: raw(b"0", b"f", b"\x80" + b"\x7f" * 11), "the layer ends"),
    (lambda: raw(b"0", b"f", b"0000000009x\0"), "size field has '0000000009x'"),
    (lambda: raw(b"0", b"f", b"-1\0"), "size field has '-1'"),
    (lambda: raw(b"0", b"f", at=100, put=b"rwxr-xr"), "mode field has 'rwxr-xr'"),
    (lambda: raw(b"0", b"f", at=136, put=b"yesterday"), "mtime field"),
    (lambda: one("f")[:148] + b"000000\0 " + one("f")[156:], "checksum is 0"),
    (lambda: b"\x7fELF" * 512, "checksum field"),
    (lambda: raw(b"0", b"f", 1000, b"short")[:-100], "ends 588 bytes before the end of f"),
    (lambda: one("f")[:300], "a header of 300 bytes"),
    (lambda: raw(b"Q", b"f"), "f is of unknown type 'Q'"),
    (lambda: raw(b"M", b"f"), "another volume"),
    (lambda: raw(b"x", b"pax", 1 << 30), "an extension header of 1.1 GB (at most 1.0 MB are"),
    (lambda: raw(b"L", b"long", 600, b"a" * 100)[:700], "ends 412 bytes before an extension head"),
    (lambda: raw(b"L", b"long", 101, b"a" * 100)[:612], "ends 1 byte before an extension header's"),
    (lambda: raw(b"x", b"p", 9, b"nonsense\n"), "no valid length: 'nonsense"),
    (lambda: raw(b"x", b"p", 8, b"99 a=b\n\0"), "no valid length"),
    (lambda: raw(b"x", b"p", 8, b"8 abcde\n"), "without a name"),
    (lambda: pax({b"size": b"-3"}) + raw(b"0", b"f"), "size is '-3'"),
    (lambda: pax({b"mtime": b"1.x"}) + raw(b"0", b"f"), "mtime is '1.x'"),
    (lambda: pax({b"LIBARCHIVE.xattr.user.a": b"!!"}) + raw(b"0", b"f"), "not in base64"),
    (lambda: holes(b"0,1,0,1", b"9", b"ab"), "goes backwards"),
    (lambda: holes(b"0,1,5,9", b"9", b"a" * 10), "does not fit"),
    (lambda: holes(b"0,1,5", b"9", b"a"), "does not fit"),
    (lambda: holes(b"0,1", b"9" * 15, b"a"), "a sparse file of 1.0 PB (at most 1.1 TB)"),
    (lambda: holes(b"0,x", b"9", b""), "a sparse map is 'x'"),
    (lambda: one_zero(b"2", b""), "not known"),
    (lambda: one_zero(b"1", b"9" * 512), "sparse map"),
    (lambda: one_zero(b"1", b"2\n0\n1\n"), "has no end"),
    (lambda: raw(b"S", b"f", at=482, put=b"\1"), "has no end"),
]  # fmt: skip


@pytest.mark.parametrize("make", [b for b, _ in BAD], ids=[w for _, w in BAD])
def test_refused(make: Callable[[], bytes]) -> None:
    words = dict(BAD)[make]
    message = refused(make())
    assert words in message
    assert message.startswith("reading layer test failed at byte ")


def test_shown_has_no_control_characters() -> None:
    assert shown(b"a\x1b[31m\n\xff") == "a\\x1b[31m\\n\\udcff"
    assert len(shown(b"x" * 5000)) == 203


def _features() -> bytes:
    out = io.BytesIO(pax({b"mtime": b"5"}, b"g"))
    out.seek(0, 2)
    out.write(
        pax({b"path": b"p" * 150, b"SCHILY.xattr.user.k": b"v"}) + raw(b"0", b"s", 7, b"content")
    )
    out.write(raw(b"L", b"long", 120, b"g" * 120) + raw(b"5", b"d"))
    out.write(raw(b"1", b"h", at=157, put=b"g" * 100) + raw(b"2", b"s", at=157, put=b"to"))
    out.write(
        pax({b"GNU.sparse.map": b"2,3", b"GNU.sparse.size": b"9"}) + raw(b"0", b"f", 3, b"abc")
    )
    out.write(
        pax({b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9"})
        + raw(b"0", b"f", 515, b"1\n2\n3\n".ljust(512, b"\0") + b"abc")
    )
    return out.getvalue() + bytes(1024)


FEATURES = _features()


@settings(max_examples=400)
@given(
    st.lists(st.tuples(st.integers(0, len(FEATURES) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(FEATURES)),
    st.booleans(),
)
def test_any_bytes_give_members_or_a_refusal(
    changes: list[tuple[int, int]], end: int, mend: bool
) -> None:
    data = bytearray(FEATURES)
    for at, value in changes:
        data[at] = value
        start = at // 512 * 512
        if mend and start + 512 <= len(data):
            data[start + 148 : start + 156] = b" " * 8
            data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
    try:
        walk(bytes(data[:end]))
    except UdiError as err:
        assert "reading layer test failed at byte" in err.message


@settings(max_examples=200)
@given(st.binary(max_size=2000))
def test_random_bytes(data: bytes) -> None:
    try:
        walk(data)
    except UdiError:
        pass
