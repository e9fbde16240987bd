"""Heads of ELF files: notes of compiled ones, and whatever bytes an image may have."""

import subprocess
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import NoteSection
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.forecast import elfhead


class Bytes:
    """A file's content in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    @property
    def head(self) -> bytes:
        return self.data[:4096]

    def read(self, at: int, size: int) -> bytes:
        return self.data[at : at + size]


def compiled(folder: Path, *flags: str) -> bytes:
    source, out = folder / "a.c", folder / "a.out"
    source.write_text("int main(void) { return 0; }\n")
    subprocess.run(["gcc", *flags, "-o", out, source], check=True)
    return out.read_bytes()


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("level", [2, 3, 4])
def test_a_level_that_the_linker_was_told(tmp_path: Path, level: int) -> None:
    found = elfhead.read(Bytes(compiled(tmp_path, f"-Wl,-z,x86-64-v{level}")))
    assert found is not None
    assert (found.machine, found.bits, found.needed.bit_length()) == ("x86_64", 64, level)


@pytest.mark.needs("gcc")
def test_an_instruction_set_leaves_no_note(tmp_path: Path) -> None:
    """So that the check of instructions has to look at the code, or run it."""
    found = elfhead.read(Bytes(compiled(tmp_path, "-march=x86-64-v3")))
    assert found is not None and found.needed.bit_length() <= 1


def test_the_same_as_pyelftools_says_of_this_machines_programs() -> None:
    for path in sorted(Path("/usr/bin").iterdir())[:80]:
        if path.is_symlink() or path.read_bytes()[:4] != b"\x7fELF":
            continue
        found = elfhead.read(Bytes(path.read_bytes()))
        assert found is not None, path
        with path.open("rb") as file:
            notes = [
                note
                for section in ELFFile(file).iter_sections()
                if isinstance(section, NoteSection)
                for note in section.iter_notes()
            ]
        kernels = [
            "{abi_major}.{abi_minor}.{abi_tiny}".format(**note["n_desc"])
            for note in notes
            if note["n_type"] == "NT_GNU_ABI_TAG"
        ]
        assert found.kernel == (kernels or [""])[0], path


@given(st.binary(max_size=300), st.sampled_from([b"", b"\x7fELF\x01\x01", b"\x7fELF\x02\x01"]))
def test_any_bytes(data: bytes, start: bytes) -> None:
    elfhead.read(Bytes(start + data))


@pytest.mark.needs("gcc")
def test_each_bent_byte_of_a_real_head(tmp_path: Path) -> None:
    data = bytearray(compiled(tmp_path))
    for at in range(4, 900):
        for value in (0, 0xFF):
            old, data[at] = data[at], value
            elfhead.read(Bytes(bytes(data)))
            data[at] = old
    for size in range(0, 1000, 7):
        elfhead.read(Bytes(bytes(data[:size])))
