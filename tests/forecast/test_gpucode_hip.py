"""AMD's code in real files: of a wheel that AMD's compiler made, and of clang, if it is here."""

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.forecast import gpucode, imagetree
from tests.kit import mpi

SOURCE = """
typedef int hipError_t; typedef void *hipStream_t;
struct dim3 { unsigned x, y, z; };
extern "C" hipError_t hipLaunchKernel(
    const void *, dim3, dim3, void **, unsigned long, hipStream_t);
extern "C" hipError_t __hipPushCallConfiguration(dim3, dim3, unsigned long, hipStream_t);
extern "C" hipError_t __hipPopCallConfiguration(dim3 *, dim3 *, unsigned long *, hipStream_t *);
__attribute__((global)) void k(float *a) { a[0] = 2; }
void f(float *a) { k<<<dim3{1,1,1}, dim3{1,1,1}, 0, 0>>>(a); }
"""
ID = re.compile(rb"hipv4-amdgcn-amd-amdhsa--(gfx\w+(?:-generic)?(?::\w+[+-])*)")


def found(path: Path) -> dict[str, int]:
    """Return what is found of AMD's code in a file: processors -> parts."""
    one = gpucode.GpuCode()
    with imagetree.opened(str(path.parent)) as tree:
        entry, content = tree.at(f"/{path.name}"), tree.content(f"/{path.name}")
        assert entry and content and one.wants(entry)
        one.file(entry, content)
    result: dict[str, Any] = one.result()
    assert result["damaged"] == []
    parts: dict[str, int] = result["files"][0]["amd"]
    return parts


def section(path: Path, folder: Path) -> bytes:
    target = folder / "section"
    argv: list[str | Path] = ["objcopy", "-O", "binary", "-j", ".hip_fatbin", path, target]
    subprocess.run(argv, check=True)
    return target.read_bytes()


@pytest.mark.slow
@pytest.mark.needs("gcc", "zstd")
def test_a_wheel_of_amd_s_compiler(tmp_path: Path) -> None:
    """bitsandbytes 0.50 has a library for each ROCm from 6.4 to 7.15, with compressed bundles of
    versions 2 and 3; zstd(1) undoes them, and the names in them are compared."""
    wheel = mpi.wheel("bitsandbytes==0.50.2", tmp_path, "--platform=manylinux_2_24_x86_64")
    shutil.unpack_archive(wheel, tmp_path, "zip")
    libraries = sorted((tmp_path / "bitsandbytes").glob("libbitsandbytes_rocm*.so"))
    assert len(libraries) >= 6
    versions = set()
    for path in libraries:
        data = section(path, tmp_path)
        starts = [at for at in range(0, len(data), 4096) if data[at : at + 4] == b"CCOB"]
        names: dict[str, int] = {}
        for at in starts:
            versions.add(data[at + 4])
            wide = data[at + 4] == 3
            size = int.from_bytes(data[at + 8 : at + (16 if wide else 12)], "little")
            packed = data[at + (32 if wide else 24) : at + size]
            plain = subprocess.run(["zstd", "-dc"], input=packed, capture_output=True).stdout
            ids = sorted(one.decode() for one in set(ID.findall(plain[:65536])))
            names[" ".join(ids)] = names.get(" ".join(ids), 0) + 1
        assert found(path) == names
        assert all("gfx90a" in one.split() and "gfx906" not in one.split() for one in names)
    assert versions == {2, 3}


def clang() -> list[str]:
    """Return clang and its bundler with a target for AMD, [] where they aren't here."""
    for tail in ("-19", ""):
        both = [shutil.which(f"clang{tail}"), shutil.which(f"clang-offload-bundler{tail}")]
        if all(both) and (shutil.which(f"ld.lld{tail}") or shutil.which("ld.lld")):
            return [path for path in both if path]
    return []


@pytest.mark.skipif(not clang(), reason="a comparison with clang's offload bundler")
@pytest.mark.parametrize("compressed", [False, True])
def test_as_clang_says(compressed: bool, tmp_path: Path) -> None:
    compiler, bundler = clang()
    (tmp_path / "a.hip").write_text(SOURCE)
    argv = [compiler, "-x", "hip", "-nogpulib", "-nogpuinc", "-fPIC", "-c"]
    argv += [f"--offload-arch={name}" for name in ("gfx90a", "gfx942:xnack+", "gfx1100")]
    argv += ["--offload-compress"] if compressed else []
    subprocess.run([*argv, "a.hip", "-o", "a.o"], cwd=tmp_path, check=True)
    subprocess.run(["gcc", "-shared", "a.o", "-o", "a.so"], cwd=tmp_path, check=True)
    section(tmp_path / "a.so", tmp_path)
    words = [bundler, "--list", "--type=o", f"--input={tmp_path}/section"]
    said = subprocess.run(words, capture_output=True, check=True).stdout
    assert found(tmp_path / "a.so") == {" ".join(sorted(n.decode() for n in ID.findall(said))): 1}
