"""ELF files: the machine's own against pyelftools, hostile ones, other classes and machines."""

import os
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerDefSection, GNUVerNeedSection
from elftools.elf.sections import SymbolTableSection
from elftools.elf.segments import InterpSegment
from hypothesis import given, settings
from hypothesis import strategies as st

from rootless_udi.mpi_inject.libraries import elf
from rootless_udi.mpi_inject.libraries.symbols import Symbols

FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/bin", "/usr/lib/x86_64-linux-gnu")


def own_files(limit: int) -> list[Path]:
    """Every so-manyth ELF file of the machine."""
    found = []
    for folder in FOLDERS:
        for path in sorted(Path(folder).glob("*")):
            if path.is_file() and not path.is_symlink():
                with open(path, "rb") as file:
                    if file.read(4) == elf.MAGIC:
                        found.append(path)
    return found[:: max(1, len(found) // limit)]


def by_pyelftools(path: Path) -> tuple[object, ...]:
    needed, defines, needs = [], [], {}
    tag: Any  # its attributes come of the kind of tag
    soname = interp = ""
    paths = {"DT_RPATH": (), "DT_RUNPATH": ()}
    with open(path, "rb") as file:
        found = ELFFile(file)
        for segment in found.iter_segments():
            if isinstance(segment, InterpSegment):
                interp = segment.get_interp_name()
        for section in found.iter_sections():
            if isinstance(section, DynamicSection):
                for tag in section.iter_tags():
                    if tag.entry.d_tag == "DT_NEEDED":
                        needed.append(tag.needed)
                    elif tag.entry.d_tag == "DT_SONAME":
                        soname = tag.soname
                    elif tag.entry.d_tag in paths:
                        text = tag.rpath if tag.entry.d_tag == "DT_RPATH" else tag.runpath
                        paths[tag.entry.d_tag] = tuple(p for p in text.split(":") if p)
            elif isinstance(section, GNUVerNeedSection):
                for need, versions in section.iter_versions():
                    needs[need.name] = tuple(v.name for v in versions)
            elif isinstance(section, GNUVerDefSection):
                for define, names in section.iter_versions():
                    if not define.entry.vd_flags & 1:
                        defines.append(next(names).name)
    return (interp, soname, needed, paths["DT_RPATH"], paths["DT_RUNPATH"], needs, defines)


def ours(path: Path) -> tuple[object, ...]:
    e = elf.read(str(path))
    return (e.interp, e.soname, list(e.needed), e.rpath, e.runpath, e.needs, list(e.defines))


def test_the_machines_own_files_read_as_by_pyelftools() -> None:
    files = own_files(300)
    assert len(files) > 100
    for path in files:
        assert ours(path) == by_pyelftools(path), path


def test_the_symbols_read_as_by_pyelftools() -> None:
    for path in own_files(15):
        exported, undefined = set(), set()
        with open(path, "rb") as file:
            section = ELFFile(file).get_section_by_name(".dynsym")
            if not isinstance(section, SymbolTableSection):
                continue
            for symbol in section.iter_symbols():
                weak, local = (symbol.entry.st_info.bind == b for b in ("STB_WEAK", "STB_LOCAL"))
                if not symbol.name:
                    continue
                if symbol.entry.st_shndx == "SHN_UNDEF":
                    undefined |= set() if weak else {symbol.name}
                elif not local:
                    exported.add(symbol.name)
        reader = Symbols(path.read_bytes())
        assert reader.exported() == exported, path
        assert reader.undefined() == undefined, path
        some = sorted(exported)[:50]
        assert reader.missing([*some, "no_such_symbol_anywhere"]) == ["no_such_symbol_anywhere"]
        assert reader.missing([f"none_{i}" for i in range(500)] + some) == [
            f"none_{i}" for i in range(500)
        ]


def test_a_description() -> None:
    found = elf.read(os.path.realpath("/bin/sh"))
    assert (found.kind, found.dynamic) == ("shared", True)
    assert found.machine == os.uname().machine
    assert "libc.so.6" in found.needed
    assert found.interp.startswith("/lib")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "empty file"),
        (b"\x7fE", "truncated ELF file"),
        (b"\x7fELF", "truncated or damaged ELF header"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x03\0\x3e\0", "truncated"),
        (b"\x7fELF\x09\x01" + bytes(60), "damaged ELF header"),
        (b"/* GNU ld script */\nGROUP ( libc.so.6 )\n", "a linker script, not a library"),
        (b"INPUT(libmpi.so.12)\n", "a linker script, not a library"),
        (b"!<arch>\nlibmpi.a", "static library"),
        (b"#!/bin/sh\n", "not an ELF file"),
    ],
)
def test_what_is_no_elf_file_is_named(data: bytes, message: str) -> None:
    with pytest.raises(elf.ElfError, match=message):
        elf.parse(data)


def header(bits: int, order: str, machine: int, count: int = 0) -> bytes:
    """An ELF header with `count` program headers right behind it."""
    ident = elf.MAGIC + bytes([bits // 32, 1 if order == "<" else 2, 1]) + bytes(9)
    if bits == 64:
        rest = struct.pack(
            order + "HHIQQQIHHHHHH", 3, machine, 1, 0, 64, 0, 0, 64, 56, count, 0, 0, 0
        )
    else:
        rest = struct.pack(
            order + "HHIIIIIHHHHHH", 3, machine, 1, 0, 52, 0, 0, 52, 32, count, 0, 0, 0
        )
    return ident + rest


@pytest.mark.parametrize(("bits", "size"), [(32, 52), (64, 64)])
@pytest.mark.parametrize("order", ["<", ">"])
def test_other_classes_and_byte_orders(bits: int, size: int, order: str) -> None:
    """A library with one NEEDED of another machine is read, so that it can be refused by name."""
    strings = b"\0libother.so.1\0libme.so.2\0"
    word = "q" if bits == 64 else "i"
    entries = [(1, 1), (14, 15), (5, 0x1000), (10, len(strings)), (0, 0)]
    dynamic = b"".join(struct.pack(order + word * 2, *e) for e in entries)
    base = size + 2 * (56 if bits == 64 else 32)
    where = base + len(strings)
    if bits == 64:
        loads = struct.pack(order + "IIQQQQQQ", 1, 4, base, 0x1000, 0, len(strings), 999, 1)
        loads += struct.pack(order + "IIQQQQQQ", 2, 4, where, 0, 0, len(dynamic), 0, 1)
    else:
        loads = struct.pack(order + "IIIIIIII", 1, base, 0x1000, 0, len(strings), 999, 4, 1)
        loads += struct.pack(order + "IIIIIIII", 2, where, 0, 0, len(dynamic), 0, 4, 1)
    found = elf.parse(header(bits, order, 22, 2) + loads + strings + dynamic)
    assert (found.bits, found.little, found.machine) == (bits, order == "<", "s390x")
    assert (found.soname, found.needed) == ("libme.so.2", ("libother.so.1",))


def test_an_unknown_machine_is_said() -> None:
    assert elf.parse(header(64, "<", 9999)).machine == "machine 9999"


@pytest.mark.needs("gcc")
def test_a_library_without_soname_and_one_with_the_old_hash(tmp_path: Path) -> None:
    source = tmp_path / "a.c"
    long = "a" * 100
    text = 'int one(void){return 1;} const char word[]="12:3:4"; int two(void);\n'
    source.write_text(f"{text}int {long}(void){{return 2;}}\n")
    for style in ("sysv", "gnu"):
        out = tmp_path / f"{style}.so"
        argv = ["gcc", "-shared", "-fPIC", f"-Wl,--hash-style={style}", "-o", str(out), str(source)]
        subprocess.run(argv, check=True)
        reader = Symbols(out.read_bytes())
        assert reader.elf().soname == ""
        assert {"one", "word", "two"} <= reader.exported() | {"two"}
        assert reader.missing(["one", "two", long, "three"]) == ["two", "three"]
        assert reader.constant("word") == "12:3:4"
        assert reader.constant("nothing") == ""


def everything(data: bytes) -> None:
    """Ask a damaged file all that can be asked."""
    try:
        reader = Symbols(data)
    except elf.ElfError:
        return
    for ask in (
        reader.elf,
        reader.exported,
        lambda: reader.undefined(("MPI_",)),
        lambda: reader.missing(["a", "malloc"]),
        lambda: reader.constant("stdout"),
    ):
        try:
            ask()
        except elf.ElfError:
            pass


@settings(max_examples=300)
@given(st.data())
def test_damaged_files_are_refused_or_read(data: st.DataObject) -> None:
    """Bytes changed where they steer the reading, files cut anywhere: ElfError or an answer."""
    path = sorted(Path("/usr/lib/x86_64-linux-gnu").glob("libz.so.1*"))[-1]
    content = bytearray(path.read_bytes())
    steering = st.integers(0, 4096) | st.integers(0, len(content) - 1)
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(steering)] = data.draw(st.integers(0, 255))
    everything(bytes(content[: data.draw(st.sampled_from([len(content), 64, 5000, 20000]))]))


@settings(max_examples=100)
@given(st.binary(max_size=600))
def test_any_bytes_behind_a_header(tail: bytes) -> None:
    everything(header(64, "<", 62, 3) + tail)
    everything(header(32, ">", 8, 2) + tail)


def test_a_file_that_ends_while_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "cut.so"
    content = Path(os.path.realpath("/bin/sh")).read_bytes()
    path.write_bytes(content[:1000])
    with pytest.raises(elf.ElfError, match="truncated"):
        elf.read(str(path))
