"""What code for GPUs is in an image's files, and whether a site's GPUs run it."""

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rootless_udi.forecast import gpucode_check, gpucode_cuda, isa_process
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import FAILS, RUNS, UNKNOWN, UNLOOKED, WITH, CheckFinding, worst
from rootless_udi.forecast.gpucode import GpuCode
from rootless_udi.forecast.needs import ImageEntry
from rootless_udi.forecast.site import Capture
from rootless_udi.fuse import decompress
from rootless_udi.fuse.format import Corrupt
from rootless_udi.plan.options import Request
from tests.kit import gpucode as kit

pytestmark = [pytest.mark.alike, pytest.mark.needs("zstd")]


class Bytes:
    """A file's content; it counts what is read of it."""

    def __init__(self, data: bytes) -> None:
        self.data, self.taken = data, 0

    @property
    def head(self) -> bytes:
        return self.read(0, 4096)

    def read(self, at: int, size: int) -> bytes:
        self.taken += size
        return self.data[at : at + size] if at >= 0 else b""


def gathered(*files: tuple[str, bytes]) -> dict[str, Any]:
    """Return the facts of an image with these files."""
    gatherer = GpuCode()
    for path, data in files:
        entry = ImageEntry(path, "file", 0o755, 0, 0, len(data))
        if gatherer.wants(entry):
            gatherer.file(entry, Bytes(data))
    found = json.loads(json.dumps(gatherer.result()))
    assert isinstance(found, dict)
    return found


def library(path: str, *parts: bytes, needed: str = "") -> tuple[str, bytes]:
    """Return a library with these containers of NVIDIA's."""
    return path, kit.elf({".nv_fatbin": b"".join(parts)}, needed=needed)


def test_parts_of_a_program() -> None:
    data = kit.elf(
        {
            ".text": bytes(100),
            ".nv_fatbin": kit.fatbin("sm_80", "sm_90a", "compute_90@8.4") + kit.fatbin("lto_80"),
            "__nv_relfatbin": kit.fatbin("sm_100f"),
            ".hip_fatbin": kit.pages(
                kit.bundle("gfx90a:xnack-", "gfx908"),
                kit.compressed(kit.bundle("gfx942")),
                kit.compressed(kit.bundle("gfx1100"), 3, "zlib"),
                kit.compressed(kit.bundle("gfx1200"), 1),
            ),
        },
        needed="other.so",
    )
    found = gathered(("/opt/a", data), ("/opt/other.so", data))
    assert found["damaged"] == []
    assert found["files"][0] == {
        "path": "/opt/a",
        "nvidia": {"compute_90@8.4 sm_80 sm_90a": 1, "lto_80": 1, "sm_100f": 1},
        "amd": {"gfx908 gfx90a:xnack-": 1, "gfx942": 1, "gfx1100": 1, "gfx1200": 1},
        "needs": ["other.so"],
    }


REAL = (
    "010001015000000090010000000000008e01000040000000000009006400000000000000000000001180200000000000"
    "0000000000000000a20300000000000048000000000000000000000000000000",
    "0200010170000000601600000000000000000000400000000800010064000000000000000000000011002001000000000"
    "0000000000000000000000000000000480000002400000000020900000202010002050500030701010203000002060100"
    "040b08000900000000000000000000",
)
"""The headers of PTX and cubin for the family 100f, as `fatbinary` of CUDA 13.0 wrote them."""


def test_headers_of_nvidia_s_own_writer() -> None:
    entries = b""
    for text in REAL:
        head = bytes.fromhex(text)
        entries += head + bytes(int.from_bytes(head[8:16], "little"))
    container = bytes.fromhex("50ed55ba01001000") + len(entries).to_bytes(8, "little")
    found = gathered(("/a.so", kit.elf({".nv_fatbin": container + entries})))
    assert found["files"][0]["nvidia"] == {"compute_100f@9.0 sm_100f": 1}


def test_loose_code_is_counted_by_folder() -> None:
    found = gathered(
        ("/opt/rocblas/a.hsaco", kit.elf({}, kit.AMDGPU, 0x63F, 2)),
        ("/opt/rocblas/b.co", kit.bundle("gfx942") + bytes(4096)),
        ("/opt/kernels/x.cubin", kit.elf({}, kit.CUDA, 0x500550, 7)),
        ("/opt/kernels/y.cubin", kit.elf({}, kit.CUDA, 0x6006402, 8)),
        ("/opt/kernels/z.fatbin", kit.fatbin("sm_75", "sm_80", "compute_80@7.0")),
    )
    assert found["files"] == []
    assert found["folders"] == [
        {
            "path": "/opt/kernels/",
            "files": 3,
            "nvidia": {"cubin_80": 1, "cubin_100": 1, "compute_80@7.0 sm_75 sm_80": 1},
        },
        {"path": "/opt/rocblas/", "files": 2, "amd": {"gfx90a:xnack-": 1, "gfx942": 1}},
    ]


def test_a_large_section_is_read_by_its_headers() -> None:
    code = kit.fatbin("sm_80", size=1 << 20)
    content = Bytes(kit.elf({".text": bytes(8 << 20), ".nv_fatbin": code * 20}))
    gatherer = GpuCode()
    gatherer.file(ImageEntry("/a", "file", 0o755, 0, 0, len(content.data)), content)
    assert gatherer.result()["files"][0]["nvidia"] == {"sm_80": 20}
    assert content.taken < 64 << 10


GOOD = kit.elf(
    {
        ".nv_fatbin": kit.fatbin("sm_80", "compute_90@8.4") * 3,
        ".hip_fatbin": kit.pages(
            kit.bundle("gfx90a"), kit.compressed(kit.bundle("gfx942"), 2, "zlib")
        ),
    },
    needed="libx.so",
)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8)), max_size=6
    ),
    st.integers(0, len(GOOD)),
)
def test_lying_files_never_raise(changes: list[tuple[int, bytes]], cut: int) -> None:
    data = bytearray(GOOD)
    for at, new in changes:
        data[at : at + len(new)] = new
    gathered(("/a.so", bytes(data)), ("/b.fatbin", bytes(data[:cut])))


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (kit.elf({".nv_fatbin": kit.fatbin("sm_80")[:-8]}), "larger than the section"),
        (kit.elf({".nv_fatbin": kit.fatbin("sm_80") + b"nonsense" * 4}), "something unknown"),
        (
            kit.elf(
                {".nv_fatbin": kit.fatbin("sm_80").replace(b"\x40\0\0\0\x20", b"\x40\0\0\0\xff")}
            ),
            "larger than the container",
        ),
        (kit.elf({".hip_fatbin": kit.bundle("gfx90a")[:70]}), "cut off"),
        (kit.elf({".hip_fatbin": b"CCOB\x09\0\x01\0" + bytes(64)}), "unknown version 9"),
        (kit.elf({".hip_fatbin": b"CCOB\x02\0\x07\0" + bytes(64)}), "unknown compression 7"),
        (kit.elf({".hip_fatbin": b"CCOB\x02\0\x01\0" + b"x" * 64}), "damaged"),
        (kit.elf({".hip_fatbin": b"CCOB\x02\0\0\0" + b"x" * 64}), "damaged"),
        (kit.elf({".hip_fatbin": b"__CLANG_OFFLOAD_BUNDLE__" + b"\xff" * 64}), "entries"),
    ],
)
def test_damage_is_said_and_what_was_read_counts(data: bytes, why: str) -> None:
    found = gathered(("/a.so", data))
    assert [path for path, _why in found["damaged"]] == ["/a.so"]
    assert why in found["damaged"][0][1]


@pytest.mark.parametrize("attempt", [decompress._libzstd_start, decompress._zstd_module_start])
def test_the_beginning_of_a_zstd_frame(attempt: Callable[[bytes, int], bytes]) -> None:
    plain = bytes(range(256)) * 4096
    whole = subprocess.run(["zstd", "-c"], input=plain, capture_output=True, check=True).stdout
    assert attempt(whole, 5000) == plain[:5000]
    assert plain.startswith(attempt(whole[:-9], 1 << 21))
    with pytest.raises(Corrupt):
        attempt(b"no frame at all" * 20, 5000)


def test_without_zstd_a_bundle_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(data: bytes, most: int) -> bytes:
        raise ImportError

    for name in ("_libzstd_start", "_zstd_module_start"):
        monkeypatch.setattr(decompress, name, absent)
    found = gathered(("/a", kit.elf({".hip_fatbin": kit.compressed(kit.bundle("gfx90a"))})))
    assert "this machine has no zstd" in found["damaged"][0][1]


def test_facts_have_a_bound() -> None:
    codes = [kit.fatbin(f"sm_{a}", f"sm_{b}") for a in range(50, 100) for b in range(50, 100)]
    found = gathered(*(library(f"/lib/{n}.so", *codes) for n in range(20)))
    assert len(json.dumps(found)) < 100_000
    assert found["more"] > 0


A100 = {"vendor": "nvidia", "name": "NVIDIA A100-SXM4-40GB", "capability": "8.0"}
MI250 = {"vendor": "amd", "name": "AMD Instinct MI250X", "arch": "gfx90a"}


def site(
    gpus: list[dict[str, str]] | None, driver: str = "550.54.15", cuda: str = "12.4"
) -> Capture:
    """Return a site with these GPUs; None where nobody looked."""
    data: dict[str, Any] = {"drivers": {"nvidia": {"version": driver, "cuda": cuda}}}
    return Capture("there", data if gpus is None else {**data, "gpus": gpus})


def looked(
    where: Capture, code: dict[str, Any] | None, gpu: str | None = "", **facts: Any
) -> list[CheckFinding]:
    """Return what both checks find."""
    facts = {**facts, "forecast": {} if code is None else {"gpucode": code}}
    asked = Asked("image", "/image", Request(gpu=gpu), {})

    def both() -> Iterator[CheckFinding]:
        yield from gpucode_cuda.check(where, facts, asked)
        yield from gpucode_check.check(where, facts, asked)

    found = list(both())
    assert all(one.remedy for one in found if one.verdict == FAILS)
    return found


@pytest.mark.parametrize(
    ("codes", "capability", "verdict"),
    [
        (["sm_80"], "8.0", RUNS),
        (["sm_80"], "8.6", RUNS),
        (["sm_86"], "8.0", FAILS),
        (["sm_80"], "9.0", FAILS),
        (["sm_80", "compute_80@7.4"], "9.0", RUNS),
        (["compute_80@8.4"], "9.0", RUNS),
        (["compute_80@8.5"], "9.0", FAILS),  # of CUDA 12.5, the driver knows 12.4
        (["compute_80@99.0"], "9.0", UNKNOWN),
        (["compute_90@8.0"], "8.0", FAILS),
        (["sm_90a"], "9.0", RUNS),
        (["compute_90a@8.0"], "10.0", FAILS),
        (["sm_100f"], "10.3", RUNS),
        (["sm_100a"], "10.3", FAILS),
        (["sm_120"], "12.1", RUNS),
        (["sm_87"], "8.9", FAILS),  # Jetson's
        (["sm_86"], "8.7", FAILS),
        (["lto_80"], "8.0", UNKNOWN),
    ],
)
def test_nvidia(codes: list[str], capability: str, verdict: str) -> None:
    where = site([{**A100, "capability": capability}])
    assert worst(looked(where, gathered(library("/a.so", kit.fatbin(*codes))))) == verdict


@pytest.mark.parametrize(
    ("codes", "arch", "verdict"),
    [
        (["gfx90a"], "gfx90a", RUNS),
        (["gfx908"], "gfx90a", FAILS),
        (["gfx90a:xnack-"], "gfx90a:sramecc+:xnack-", RUNS),
        (["gfx90a:xnack+"], "gfx90a:sramecc+:xnack-", FAILS),
        (["gfx90a:xnack-"], "gfx90a", UNKNOWN),
        (["gfx90a:xnack-", "gfx90a:xnack+"], "gfx90a", RUNS),
        (["gfx9-generic"], "gfx906", RUNS),
        (["gfx9-generic"], "gfx90a", FAILS),
        (["gfx9-4-generic:xnack-"], "gfx942:xnack-:sramecc+", RUNS),
        (["gfx11-generic"], "gfx1101", RUNS),
    ],
)
def test_amd(codes: list[str], arch: str, verdict: str) -> None:
    code = gathered(("/a.so", kit.elf({".hip_fatbin": kit.bundle(*codes)})))
    assert worst(looked(site([{**MI250, "arch": arch}]), code)) == verdict


def test_no_kernel_image_names_file_both_sides_and_remedy() -> None:
    found = looked(
        site([A100]), gathered(library("/opt/app/bin/solver", kit.fatbin("sm_60", "sm_70")))
    )
    (one,) = found
    assert one.verdict == FAILS
    assert "no kernel image is available" in one.what
    assert (one.image.file, one.image.fact) == ("/opt/app/bin/solver", "sm_60 sm_70")
    assert one.site.fact == "NVIDIA A100-SXM4-40GB: sm_80"
    assert "-gencode arch=compute_80,code=sm_80" in one.remedy


def test_too_new_ptx_names_both_versions() -> None:
    code = gathered(library("/a", kit.fatbin("sm_75", "compute_80@8.7")))
    one = looked(site([A100]), code)[-1]
    assert one.verdict == FAILS
    assert "cudaErrorUnsupportedPtxVersion" in one.what
    assert "CUDA 12.8" in one.what
    assert "CUDA 12.4" in one.what


def test_parts_for_one_gpu_by_design_count_only_where_they_fit() -> None:
    plain, special = kit.fatbin("sm_80", "sm_90"), kit.fatbin("sm_90a")
    code = gathered(library("/a.so", plain * 5 + special * 3))
    assert worst(looked(site([A100]), code)) == RUNS
    assert worst(looked(site([A100]), gathered(library("/a.so", special)))) == FAILS


def test_half_a_program_is_no_promise() -> None:
    code = gathered(library("/a.so", kit.fatbin("sm_80"), kit.fatbin("sm_90")))
    found = looked(site([A100]), code)
    assert worst(found) == UNKNOWN
    assert "1 of its 2 parts" in found[0].what


def test_a_library_with_parts_for_each_gpu_chooses_among_them() -> None:
    """As PyTorch 1.12 has cuDNN in it. With fewer that fit, or fewer lists, nothing is promised."""
    lists = (["sm_80"], ["sm_70", "sm_80"], ["sm_70", "sm_80", "sm_90"])
    fit = [part for each in lists for part in [kit.fatbin(*each)] * 6]
    code = gathered(library("/a.so", *fit, kit.fatbin("sm_90")))
    found = looked(site([A100]), code)
    assert worst(found) == RUNS
    assert any("1 of its 19 parts are for other GPUs" in one.what for one in found)
    for parts in ([*fit, *[kit.fatbin("sm_90")] * 3], [*fit[:12], kit.fatbin("sm_90")]):
        assert worst(looked(site([A100]), gathered(library("/a.so", *parts)))) == UNKNOWN


def test_what_needs_a_library_without_code_can_t_run_either() -> None:
    torch = library("/lib/libtorch_cuda.so", kit.fatbin("sm_90"))
    linalg = library("/lib/linalg.so", kit.fatbin("sm_80"), needed="libtorch_cuda.so")
    assert worst(looked(site([A100]), gathered(linalg, torch))) == FAILS
    alone = library("/lib/linalg.so", kit.fatbin("sm_80"))
    assert worst(looked(site([A100]), gathered(alone, torch))) == UNKNOWN


def test_the_maker_s_libraries_choose_for_themselves() -> None:
    mine = library("/opt/app", kit.fatbin("sm_80"))
    blas = library(
        "/usr/local/cuda/lib64/libcublas.so.12", kit.fatbin("sm_70"), kit.fatbin("sm_80")
    )
    sparse = library("/usr/lib/libcusparseLt.so.0", kit.fatbin("sm_90"))
    found = looked(site([A100]), gathered(mine, blas, sparse))
    assert worst(found) == RUNS
    assert [one.image.file for one in found if one.verdict == UNLOOKED] == [sparse[0]]


def test_options_and_absent_gpus() -> None:
    code = gathered(library("/a", kit.fatbin("sm_80")))
    (one,) = looked(site([A100]), code, gpu=None)
    assert (one.verdict, one.options) == (WITH, ("--gpu",))
    assert worst(looked(site([]), code, gpu=None)) == UNKNOWN
    assert worst(looked(site([]), code)) == FAILS
    assert worst(looked(site([MI250]), code)) == FAILS
    assert worst(looked(site([MI250]), code, gpu=None)) == UNKNOWN
    assert worst(looked(site(None), code)) == UNKNOWN
    assert worst(looked(site([{"vendor": "nvidia"}]), code)) == UNKNOWN
    assert worst(looked(site([A100]), None)) == UNKNOWN
    assert worst(looked(site([A100]), gathered())) == RUNS


def test_a_command_that_ran_without_a_gpu_does_so_elsewhere() -> None:
    code = {"forecast": {"gpucode": gathered(library("/a", kit.fatbin("sm_80")))}}
    for outcome, verdict in (("ended", RUNS), ("running", UNKNOWN)):
        memo: dict[str, Any] = {"run": isa_process.Outcome(outcome)}
        asked = Asked("image", "/image", Request(command=("/a",)), memo)
        assert worst(gpucode_check.check(site([]), code, asked)) == verdict


def test_damage_is_no_promise() -> None:
    code = gathered(library("/a", kit.fatbin("sm_80")[:-8]), library("/b", kit.fatbin("sm_80")))
    found = looked(site([A100]), code)
    assert worst(found) == UNKNOWN
    assert found[0].what.startswith("/a can't be read for GPU code:")
    assert worst(looked(site([A100]), {"files": [], "more": 7})) == UNKNOWN


def cuda_libraries(*rows: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Return the facts `elf` with these libraries."""
    return {"libraries": [{"path": p, "names": [p.rpartition("/")[2]], **more} for p, more in rows]}


@pytest.mark.parametrize(
    ("env", "libraries", "driver", "verdict", "says"),
    [
        (["NVIDIA_REQUIRE_CUDA=cuda>=12.4"], [], "550.54.15", RUNS, "the driver runs the CUDA"),
        (["NVIDIA_REQUIRE_CUDA=cuda>=12.4"], [], "470.57.02", FAILS, "CUDA 11.4 at most"),
        (["CUDA_VERSION=12.4.1"], [], "470.57.02", FAILS, "the image needs CUDA 12.4"),
        (["NVIDIA_REQUIRE_CUDA=cuda>=13.9"], [], "999.1", UNKNOWN, "newer than this program"),
        ([], [("/l/libcudart.so.12", {})], "550.54.15", RUNS, "runs this CUDA runtime"),
        ([], [("/l/libcudart.so.12.6.77", {})], "535.1", RUNS, "minor version compatibility"),
        ([], [("/l/libcudart.so.12", {})], "470.57.02", FAILS, "insufficient"),
        ([], [("/l/libcudart.so.10.2", {})], "418.1", FAILS, "insufficient"),
        ([], [("/l/libcudart.so.11.0", {})], "550.54.15", RUNS, "runs this CUDA runtime"),
        (
            [],
            [("/l/libcudart.so.12", {}), ("/l/libcudart.so.11.0", {})],
            "470.57.02",
            UNKNOWN,
            "insufficient",
        ),
        (
            ["CUDA_VERSION=12.4.1"],
            [("/usr/local/cuda-12.4/compat/libcuda.so.550.54.15", {"drivers": [470, 535]})],
            "470.57.02",
            RUNS,
            "with the image's own libraries in /usr/local/cuda-12.4/compat",
        ),
        (
            ["CUDA_VERSION=12.4.1"],
            [("/usr/local/cuda-12.4/compat/libcuda.so.550.54.15", {"drivers": [535]})],
            "470.57.02",
            FAILS,
            "for host drivers of the branches 535",
        ),
    ],
)
def test_cuda(env: list[str], libraries: list[Any], driver: str, verdict: str, says: str) -> None:
    where = site([A100], driver, "")
    facts = {"env": env, "elf": cuda_libraries(*libraries)}
    asked = Asked("image", "/image", Request(gpu=""), {})
    found = list(gpucode_cuda.check(where, facts, asked))
    assert worst(found) == verdict
    assert any(says in one.what for one in found)
    assert any(driver in one.site.fact for one in found)


def test_forward_compatibility_compiles_newer_ptx() -> None:
    code = gathered(library("/a", kit.fatbin("compute_80@8.4")))
    compat = ("/usr/local/cuda-12.4/compat/libcuda.so.550.54.15", {"drivers": [470]})
    facts: dict[str, Any] = {"env": ["CUDA_VERSION=12.4.1"], "elf": cuda_libraries(compat)}
    assert worst(looked(site([A100], "470.57.02", "11.4"), code, **facts)) == RUNS
    assert worst(looked(site([A100], "470.57.02", "11.4"), code)) == FAILS


def test_an_unknown_driver_is_no_promise() -> None:
    facts: dict[str, Any] = {"env": ["CUDA_VERSION=12.4.1"]}
    code = gathered(library("/a", kit.fatbin("compute_80@8.4")))
    assert worst(looked(site([A100], "", ""), code, **facts)) == UNKNOWN


@pytest.mark.skipif(not shutil.which("nvcc"), reason="a comparison with NVIDIA's compiler")
def test_as_nvidia_s_compiler_says(tmp_path: Path) -> None:
    source = tmp_path / "k.cu"
    source.write_text("__global__ void f(float *x) { x[threadIdx.x] *= 2; }\n")
    want = ["compute_120f", "compute_90", "lto_80", "sm_100f", "sm_75", "sm_80", "sm_90a"]
    argv: list[str | Path] = ["nvcc", "-fatbin", "-o", tmp_path / "k.fatbin", source]
    for code in want:
        arch = "compute_" + code.partition("_")[2]
        argv += ["-gencode", f"arch={arch},code={code}"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = gathered((str(tmp_path / "k.fatbin"), (tmp_path / "k.fatbin").read_bytes()))
    (key,) = found["folders"][0]["nvidia"]
    assert [code.partition("@")[0] for code in key.split()] == want
