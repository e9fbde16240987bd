"""ld.so.cache: the machine's own against ldconfig -p, both formats, both byte orders, garbage."""

import shutil
import struct
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootless_udi.mpi_inject.libraries import ldcache

LDCONFIG = shutil.which("ldconfig", path="/sbin:/usr/sbin") or "ldconfig"
ENTRIES = [("liba.so.1", "/lib/liba.so.1"), ("libmpi.so.12", "/opt/m/libmpi.so.12")]


def old(order: str, entries: list[tuple[str, str]] = ENTRIES, flags: int = 0x303) -> bytes:
    """The format of glibc 2.1."""
    strings, table = b"", b""
    for name, path in entries:
        key, value = len(strings), len(strings) + len(name) + 1
        strings += name.encode() + b"\0" + path.encode() + b"\0"
        table += struct.pack(order + "iII", flags, key, value)
    return b"ld.so-1.7.0\0" + struct.pack(order + "I", len(entries)) + table + strings


def new(order: str, flag: int, hwcap: int = 0, extension: bytes = b"") -> bytes:
    """The format of glibc 2.2 and later."""
    count = len(ENTRIES)
    begin = 48 + 24 * count
    strings, table = b"", b""
    for name, path in ENTRIES:
        key, value = begin + len(strings), begin + len(strings) + len(name) + 1
        strings += name.encode() + b"\0" + path.encode() + b"\0"
        table += struct.pack(order + "iIIIQ", 0x303, key, value, 0, hwcap)
    strings += bytes(-len(strings) % 4)
    at = begin + len(strings) if extension else 0
    head = struct.pack(order + "IIB3xI12x", count, len(strings), flag, at)
    return b"glibc-ld.so.cache1.1" + head + table + strings + extension


def pairs(data: bytes) -> list[tuple[str, str]]:
    return [(e.name, e.path) for e in ldcache.parse(data)]


def test_the_machines_own_as_ldconfig_prints_it() -> None:
    text = subprocess.run([LDCONFIG, "-p"], capture_output=True, text=True, check=True).stdout
    lines = [line.strip().partition(" => ") for line in text.splitlines() if " => " in line]
    wanted = [(left.partition(" (")[0], path) for left, _, path in lines]
    assert pairs(Path(ldcache.PATH).read_bytes()) == wanted


def test_one_name_is_found_as_by_parsing_all() -> None:
    for data in (Path(ldcache.PATH).read_bytes(), old("<"), new("<", 2), new(">", 3)):
        entries = ldcache.parse(data)
        for name in {e.name for e in entries}:
            assert ldcache.Names(data).find(name) == [e for e in entries if e.name == name]
        assert ldcache.Names(data).find("so.1") == []
        assert ldcache.Names(data).find("libnone.so.1") == []
    with pytest.raises(ldcache.LdCacheError, match="truncated"):
        ldcache.Names(new("<", 2)[:60]).find("liba.so.1")


def test_names_by_how_they_begin() -> None:
    for data in (old("<"), new("<", 2), new(">", 3)):
        assert ldcache.Names(data).names("lib") == ["liba.so.1", "libmpi.so.12"]
        assert ldcache.Names(data).names("libm") == ["libmpi.so.12"]


def test_one_that_ldconfig_writes_for_another_root(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "etc/ld.so.conf").write_text("/usr/lib\n")
    shutil.copy("/lib/x86_64-linux-gnu/libz.so.1", tmp_path / "usr/lib/libz.so.1")
    for kind in ("new", "old", "compat"):
        run = subprocess.run(
            [LDCONFIG, "-r", str(tmp_path), "-c", kind, "-X"], capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
        data = (tmp_path / "etc/ld.so.cache").read_bytes()
        assert pairs(data) == [("libz.so.1", "/usr/lib/libz.so.1")], kind
        assert ldcache.parse(data)[0].machine == "x86_64"


@pytest.mark.parametrize("order", ["<", ">"])
def test_both_formats_in_both_byte_orders(order: str) -> None:
    assert pairs(old(order)) == ENTRIES
    for flag in (0, 2 if order == "<" else 3):
        assert pairs(new(order, flag)) == ENTRIES


@pytest.mark.parametrize("order", ["<", ">"])
def test_the_new_format_behind_the_old_one(order: str) -> None:
    first = old(order, [("libold.so.1", "/lib/libold.so.1")])
    header, strings = first[:28], first[28:]
    data = header + bytes(-len(header) % 8) + new(order, 0)
    assert pairs(data) == ENTRIES
    assert strings


def test_hwcaps_subdirectories() -> None:
    base = len(new("<", 2))
    names = base + 8 + 16 + 4
    extension = struct.pack("<II", 0xEAA42174, 1) + struct.pack("<IIII", 1, 0, names - 4, 4)
    extension += struct.pack("<I", names) + b"x86-64-v3\0"
    found = ldcache.parse(new("<", 2, 1 << 62, extension))
    assert [e.hwcaps for e in found] == ["x86-64-v3"] * 2
    assert ldcache.parse(new("<", 2, 4))[0].hwcaps == "legacy"


def test_only_the_names_asked_for() -> None:
    assert [e.name for e in ldcache.parse(old("<"), ("libmpi",))] == ["libmpi.so.12"]


def test_machines() -> None:
    assert ldcache.parse(old("<", flags=0xA03))[0].machine == "aarch64"
    assert ldcache.parse(old("<", flags=0x3))[0].machine == "i386"
    assert ldcache.parse(old("<", flags=0x1))[0].machine == ""


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"garbage" * 9, "not an ld.so.cache"),
        (b"ld.so-1.7.0\0", "truncated"),
        (old("<")[:30], "truncated"),
        (old("<")[:50], "no string"),
        (new("<", 2)[:40], "truncated"),
        (new("<", 2)[:80], "truncated"),
        (new("<", 2, 1 << 62), "glibc-hwcaps 0 of 0"),
    ],
)
def test_garbage_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ldcache.LdCacheError, match=message):
        ldcache.parse(data)


@settings(max_examples=300)
@given(st.data())
def test_damaged_caches_are_refused_or_read(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from([old("<"), new("<", 2), new(">", 0)])))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(content[: data.draw(st.integers(0, len(content)))])
    for ask in (ldcache.parse, lambda data: ldcache.Names(data).find("liba.so.1")):
        with suppress(ldcache.LdCacheError):
            ask(cut)
