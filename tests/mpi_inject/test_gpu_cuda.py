"""NVIDIA_REQUIRE_CUDA, the image's own compatibility libraries, each rank's choice of cards."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.gpu import cuda_require, planner
from rootless_udi.mpi_inject.gpu.select import select
from rootless_udi.mpi_inject.libraries import cuda_compat, image_facts
from rootless_udi.plan.steps import Injection
from tests.kit import gpuhosts
from tests.kit.gpuhosts import OLD, Facts

NVIDIA_12_4 = (
    "cuda>=12.4 brand=tesla,driver>=470,driver<471 brand=unknown,driver>=470,driver<471"
    " brand=nvidia,driver>=535,driver<536"
)
"""What NVIDIA's images of CUDA 12.4 ask for, shortened."""


@pytest.mark.parametrize(
    ("requirement", "have", "met"),
    [
        ("", {}, True),
        ("cuda>=12.4", {"cuda": "12.4"}, True),
        ("cuda>=12.4", {"cuda": "12.2"}, False),
        ("cuda>=12.4", {"cuda": "13"}, True),
        ("cuda>=12", {"cuda": "12.0.0"}, True),
        ("cuda=12", {"cuda": "12.0"}, True),
        ("cuda!=12.1", {"cuda": "12.1"}, False),
        ("driver>470,driver<=471", {"driver": "470.82.01"}, True),
        ("driver>470,driver<=470.1", {"driver": "470.82.01"}, False),
        ("brand=tesla", {"brand": "tesla"}, True),
        ("brand!=tesla", {"brand": "tesla"}, False),
        (NVIDIA_12_4, {"cuda": "11.4", "driver": OLD, "brand": "tesla"}, True),
        (NVIDIA_12_4, {"cuda": "11.4", "driver": OLD, "brand": "geforce"}, False),
        (NVIDIA_12_4, {"cuda": "12.2", "driver": "535.161", "brand": "nvidia"}, True),
        ("arch>=7.0", {"cuda": "12.4"}, True),
        ("arch>=7.0 cuda>=12.4", {"cuda": "11.0"}, False),
        ("arch>=7.0,cuda>=12.4", {"cuda": "12.4"}, True),
    ],
)
def test_requirements(requirement: str, have: dict[str, str], met: bool) -> None:
    assert cuda_require.satisfied(requirement, have) is met


@pytest.mark.parametrize("factor", ["cuda", "cuda>=", ">=12", "cuda>=x", "brand>tesla", "cuda~1"])
def test_a_condition_that_is_none_is_refused(factor: str) -> None:
    with pytest.raises(UdiError, match="is no condition") as caught:
        cuda_require.satisfied(factor, {"cuda": "12.4", "brand": "tesla"})
    assert "NVIDIA_DISABLE_REQUIRE=1" in caught.value.hint


@given(st.text(alphabet="cudabrndivers<>=!,. 0123456789", max_size=60))
def test_any_requirement_is_met_or_not_or_a_udi_error(text: str) -> None:
    try:
        cuda_require.satisfied(text, {"cuda": "12.4", "driver": "550.54.14", "brand": "tesla"})
    except UdiError:
        pass


@pytest.mark.parametrize(
    ("driver", "cuda", "sure"),
    [
        ("550.54.14", "12.4", True),
        ("535.161.07", "12.2", True),
        ("545.23.08", "12.3", True),
        ("470.82.01", "11.4", True),
        ("396.26", "9.2", True),
        ("580.65.06", "13.0", True),
        ("390.157", "9.1", True),
        ("565.57.01", "12.7", True),
        ("595.45.04", "13.2", True),
        ("610.43.02", "13.3", True),
        ("615.1", "13.3", False),
        ("999.1", "13.3", False),
        ("340.1", "", True),
        ("nonsense", "", False),
    ],
)
def test_the_cuda_of_a_driver(driver: str, cuda: str, sure: bool) -> None:
    assert cuda_require.cuda_of(driver) == (cuda, sure)


@pytest.mark.parametrize(
    ("model", "brand"),
    [
        ("Tesla V100-SXM2-16GB", "tesla"),
        ("NVIDIA A100-SXM4-40GB", "nvidia"),
        ("NVIDIA GeForce RTX 4090", "geforce"),
        ("GeForce GTX 1080", "geforce"),
        ("Quadro RTX 6000", "quadrortx"),
        ("NVIDIA RTX A6000", "nvidiartx"),
        ("NVIDIA TITAN RTX", "titan"),
        ("NVS 510", "nvs"),
        ("", "unknown"),
    ],
)
def test_brands(model: str, brand: str) -> None:
    assert cuda_require.brand_of(model) == brand


def test_an_old_image_asks_by_its_cuda_version() -> None:
    assert cuda_require.asked({"CUDA_VERSION": "8.0.61"}) == "cuda>=8.0"
    assert cuda_require.asked({"CUDA_VERSION": "8.0.61", "NVIDIA_REQUIRE_CUDA": ""}) == ""
    assert cuda_require.asked({"CUDA_VERSION": "x"}) == ""


def plan(path: Path, version: str, env: tuple[str, ...], **more: Any) -> Injection:
    host = gpuhosts.Host(path).libraries("/usr/lib64", version).kernel(version)
    model = more.pop("model", "")
    if model:
        place = "/proc/driver/nvidia/gpus/0000:00:00.0/information"
        host.write(place, f"Model: \t {model}\nDevice Minor: \t 0\n")
    environ = more.pop("environ", {})
    facts = Facts(env=env, **more).json()
    return planner.plan("nvidia", (), facts, environ, host.root)


@pytest.mark.needs("gcc")
class TestPlans:
    ASKS = ("NVIDIA_REQUIRE_CUDA=cuda>=12.4",)

    def test_a_driver_too_old_is_refused_with_both_versions(self, tmp_path: Path) -> None:
        with pytest.raises(UdiError) as caught:
            plan(tmp_path, OLD, self.ASKS)
        assert "the image needs CUDA 12.4" in caught.value.message
        assert f"NVIDIA driver {OLD} runs CUDA 11.4 at most" in caught.value.message
        assert "a driver of branch 550 or newer" in caught.value.hint

    def test_the_check_can_be_switched_off(self, tmp_path: Path) -> None:
        note = "NVIDIA_DISABLE_REQUIRE is set"
        for number, (env, environ) in enumerate(
            [
                (("NVIDIA_DISABLE_REQUIRE=true",), {}),
                ((), {"NVIDIA_DISABLE_REQUIRE": "1"}),
            ]
        ):
            found = plan(tmp_path / str(number), OLD, (*self.ASKS, *env), environ=environ)
            assert any(note in text for text in found.notes)

    def test_a_driver_new_enough_passes(self, tmp_path: Path) -> None:
        assert plan(tmp_path, "550.54.14", self.ASKS).environment[0].op == "append"

    def test_a_driver_of_an_unknown_branch_passes_with_a_note(self, tmp_path: Path) -> None:
        found = plan(tmp_path, "901.1.1", ("NVIDIA_REQUIRE_CUDA=cuda>=15.0",))
        assert any("newer than this program knows" in note for note in found.notes)

    def test_compat_libraries_go_first_with_an_older_driver(self, tmp_path: Path) -> None:
        found = plan(tmp_path, OLD, self.ASKS, compat="550.54.15")
        operations = [(e.op, e.value) for e in found.environment if e.name == "LD_LIBRARY_PATH"]
        assert operations[-1] == ("prepend", "/usr/local/cuda-12.4/compat")
        assert "made for CUDA 12.4, the host's driver is 470.82.01" in found.environment[-1].reason

    def test_compat_libraries_stay_out_with_the_same_branch(self, tmp_path: Path) -> None:
        found = plan(tmp_path, "550.90.07", self.ASKS, compat="550.54.15")
        assert all(e.op == "append" for e in found.environment)

    def test_compat_libraries_do_not_work_on_geforce(self, tmp_path: Path) -> None:
        model = "NVIDIA GeForce RTX 3080"
        with pytest.raises(UdiError, match=r"image needs CUDA 12\.4"):
            plan(tmp_path, OLD, self.ASKS, compat="550.54.15", model=model)

    NOTE: ClassVar[dict[str, Any]] = {"compat": "575.57.08", "drivers": (535, 550, 570, 575)}

    @pytest.mark.parametrize(
        ("driver", "used"),
        [("550.54.14", True), ("575.10.10", True), ("575.57.08", False), ("575.99.99", False)],
    )
    def test_compat_libraries_say_which_drivers_they_suit(
        self, tmp_path: Path, driver: str, used: bool
    ) -> None:
        found = plan(tmp_path, driver, (), **self.NOTE)
        assert any(e.op == "prepend" for e in found.environment) is used

    def test_compat_libraries_do_not_suit_every_older_driver(self, tmp_path: Path) -> None:
        says = (
            "compatibility libraries 575.57.08 are for host drivers of the branches 535, 550, 570"
        )
        found = plan(tmp_path / "a", "560.28.03", (), **self.NOTE)
        assert all(e.op == "append" for e in found.environment)
        assert any(says in note and "not for 560.28.03" in note for note in found.notes)
        with pytest.raises(UdiError, match=says):
            plan(tmp_path / "b", "560.28.03", ("NVIDIA_REQUIRE_CUDA=cuda>=12.9",), **self.NOTE)

    def test_compat_libraries_for_jetson_suit_no_driver(self, tmp_path: Path) -> None:
        found = plan(tmp_path, OLD, (), compat="575.57.08", drivers=())
        assert all(e.op == "append" for e in found.environment)

    def test_a_note_does_not_make_them_work_on_geforce(self, tmp_path: Path) -> None:
        found = plan(tmp_path, "550.54.14", (), model="NVIDIA GeForce RTX 3080", **self.NOTE)
        assert all(e.op == "append" for e in found.environment)

    def test_nvidias_own_alternatives_are_evaluated(self, tmp_path: Path) -> None:
        env = (f"NVIDIA_REQUIRE_CUDA={NVIDIA_12_4}",)
        assert plan(tmp_path / "a", OLD, env, model="Tesla T4")
        with pytest.raises(UdiError, match="brand=tesla"):
            plan(tmp_path / "b", OLD, env, model="NVIDIA RTX A6000")


BRANCHES = [535, 550, 560, 565, 570, 575]
NOTE = '{"format":1,"CUDA version":"12.9","driver":[535,550,560,565,570,575],"device":[1,2,7]}'
"""As libcuda.so.575.57.08 has it."""


def noted(text: str = NOTE, owner: str = "NVIDIA Corporation") -> bytes:
    """A libcuda with the note, as NVIDIA's compatibility libraries have it."""
    rows = (
        '.section .note.cuda.fwd_compatibility,"a",@note',
        ".balign 4",
        ".long 2f-1f, 4f-3f, 0",
        f'1: .asciz "{owner}"',
        "2: .balign 4",
        '3: .asciz "' + text.replace('"', r"\"") + '"',
        "4: .balign 4",
        ".text",
    )
    lines = "".join(f"    {json.dumps(row + chr(10))}\n" for row in rows)
    return gpuhosts.compile("libcuda.so.1", f"__asm__(\n{lines});\nint cuInit;\n").read_bytes()


def without(data: bytes, *fields: int) -> bytes:
    """The file with these 16-bit numbers of its ELF header zero."""
    changed = bytearray(data)
    for at in fields:
        changed[at : at + 2] = b"\0\0"
    return bytes(changed)


@pytest.mark.needs("gcc")
class TestNotes:
    """The pull reads from a compatibility library which host drivers it suits."""

    def test_the_branches_are_among_the_images_facts(self) -> None:
        inspector = image_facts.Inspector()
        place = "/usr/local/cuda-12.9/compat/libcuda.so.575.57.08"
        inspector.file(place, noted())
        inspector.file("/usr/lib/libcuda.so.470.1.1", gpuhosts.compile("libcuda.so.1").read_bytes())
        with_note, without_note = sorted(
            inspector.result()["libraries"], key=lambda one: "drivers" not in one
        )
        assert (with_note["path"], with_note["drivers"]) == (place, BRANCHES)
        assert "drivers" not in without_note

    def test_one_of_the_tables_of_headers_suffices(self) -> None:
        data = noted()
        assert cuda_compat.branches(without(data, 60)) == BRANCHES
        assert cuda_compat.branches(without(data, 56)) == BRANCHES
        assert cuda_compat.branches(without(data, 56, 60)) is None

    @pytest.mark.parametrize(
        ("text", "branches"),
        [
            ('{"format":1,"CUDA version":"13.2"}', []),
            ('{"driver":[535,-1,99999]}', [535]),
            ('{"driver":[535,true]}', None),
            ('{"driver":{"535":1}}', None),
            ("[535]", None),
            ('{"format":1,', None),
            ("[" * 2000, None),
        ],
    )
    def test_what_else_a_note_may_say(self, text: str, branches: list[int] | None) -> None:
        assert cuda_compat.branches(noted(text)) == branches

    def test_another_owners_note_is_passed_over(self) -> None:
        assert cuda_compat.branches(noted(owner="GNU")) is None

    @given(st.data())
    def test_damaged_files_are_read_or_passed_over(self, data: st.DataObject) -> None:
        content = bytearray(noted())
        at = content.find(b"NVIDIA Corporation")
        steering = st.integers(0, 1024) | st.integers(at - 12, at + 140)
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(steering)] = data.draw(st.integers(0, 255))
        cuda_compat.branches(bytes(content[: data.draw(st.integers(0, len(content)))]))
        cuda_compat.branches(bytes(content))


@pytest.mark.parametrize(
    ("caller", "inside", "value"),
    [
        ({}, {}, None),
        ({"NVIDIA_VISIBLE_DEVICES": "all"}, {"NVIDIA_VISIBLE_DEVICES": "all"}, None),
        ({}, {"NVIDIA_VISIBLE_DEVICES": "void"}, None),
        ({"NVIDIA_VISIBLE_DEVICES": "1, 0"}, {"NVIDIA_VISIBLE_DEVICES": "all"}, "1,0"),
        ({"NVIDIA_VISIBLE_DEVICES": "none"}, {}, ""),
        ({"NVIDIA_VISIBLE_DEVICES": "GPU-8f,MIG-01"}, {}, "GPU-8f,MIG-01"),
        ({"NVIDIA_VISIBLE_DEVICES": "nvidia.com/gpu=0"}, {}, None),
        ({"NVIDIA_VISIBLE_DEVICES": "0"}, {"NVIDIA_VISIBLE_DEVICES": "GPU-8f"}, "GPU-8f"),
        ({"NVIDIA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "3"}, None),
        ({}, {"CUDA_VISIBLE_DEVICES": "", "NVIDIA_VISIBLE_DEVICES": "0"}, None),
    ],
)
def test_each_rank_chooses(
    caller: dict[str, str], inside: dict[str, str], value: str | None
) -> None:
    found = {name: value for _op, name, value in select(caller, inside)}
    assert found.get("CUDA_VISIBLE_DEVICES") == value
    counted = value is not None and value[:1].isdigit()
    assert ("CUDA_DEVICE_ORDER" in found) is counted


def test_a_rank_with_an_order_of_its_own_keeps_it() -> None:
    inside = {"NVIDIA_VISIBLE_DEVICES": "0", "CUDA_DEVICE_ORDER": "FASTEST_FIRST"}
    assert select({}, inside) == [("set", "CUDA_VISIBLE_DEVICES", "0")]
