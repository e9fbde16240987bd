"""--gpu without CDI: drivers of several distributions found in host roots built on the spot."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.gpu import nvidia, planner, report
from rootless_udi.mpi_inject.libraries import rooted
from rootless_udi.mpi_inject.libraries.placing import BIN, LIB
from rootless_udi.plan.steps import Env, Injection, Mount, Symlink
from tests.kit import gpuhosts, mpihosts, places
from tests.kit.gpuhosts import MULTIARCH, OLD, VERSION, Facts, Host
from tests.kit.places import TREE

GOLDEN = places.GOLDEN / "gpu"

pytestmark = [pytest.mark.needs("gcc"), pytest.mark.needs("userns")]


def plan(host: Host, request: str = "auto", **more: Any) -> Injection:
    facts = more.pop("facts", Facts())
    devices = more.pop("devices", ())
    return planner.plan(request, devices, facts.json(), more.pop("environ", {}), host.root, **more)


def targets(injection: Injection) -> list[str]:
    return [s.target for s in injection.steps]


def source(injection: Injection, target: str) -> str:
    (found,) = [s for s in injection.steps if s.target == target]
    assert isinstance(found, Mount)
    return found.source


def golden(name: str, injection: Injection, root: str) -> None:
    """Compare with a golden file; UDI_GOLDEN=write writes it."""
    text = gpuhosts.text(injection, root)
    if os.environ.get("UDI_GOLDEN") == "write":
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


ALL = {"NVIDIA_DRIVER_CAPABILITIES": "all"}


@pytest.mark.skipif(not MULTIARCH, reason="golden plans are of x86_64 and aarch64")
@pytest.mark.parametrize(
    ("name", "build", "environ"),
    [
        ("debian", gpuhosts.debian, {}),
        ("rhel", gpuhosts.rhel, {}),
        ("rhel-all", gpuhosts.rhel, ALL),
        ("wsl", gpuhosts.wsl, {}),
        ("local", gpuhosts.local, {}),
        ("operator-all", gpuhosts.operator, ALL),
    ],
)
def test_plans_of_distributions(
    name: str, build: Callable[[Path], Host], environ: dict[str, str], tmp_path: Path
) -> None:
    host = build(tmp_path / "root")
    golden(f"{name}.txt", plan(host, environ=environ), host.root)


def test_every_step_has_a_reason(tmp_path: Path) -> None:
    found = plan(gpuhosts.rhel(tmp_path), environ=ALL)
    assert all(step.reason for step in found.steps)
    assert all(operation.reason for operation in found.environment)


def test_nothing_is_copied(tmp_path: Path) -> None:
    found = plan(gpuhosts.rhel(tmp_path), environ=ALL)
    assert {type(step).__name__ for step in found.steps} == {"Mount", "Symlink", "Directory"}


def test_driver_libraries_are_last_in_the_search_order(tmp_path: Path) -> None:
    found = plan(gpuhosts.local(tmp_path))
    operations = [(e.op, e.name, e.value) for e in found.environment]
    assert operations == [("append", "LD_LIBRARY_PATH", LIB), ("append", "PATH", BIN)]


def test_no_request_is_an_empty_plan(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path)
    assert plan(host, "") == plan(host, "none") == Injection()


@pytest.mark.parametrize("request_", ["cuda", "cdi:", "nvidia:0", "AUTO"])
def test_an_unknown_request_is_refused(request_: str, tmp_path: Path) -> None:
    with pytest.raises(UdiError, match=f"--gpu={request_}: unknown") as caught:
        plan(Host(tmp_path), request_)
    assert "auto, nvidia, amd, intel, cdi:NAME, none" in caught.value.hint


def test_a_node_without_a_gpu_names_what_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(UdiError, match="no GPU found on") as caught:
        plan(Host(tmp_path))
    for word in (
        "/proc/driver/nvidia/version",
        "/dev/nvidiactl",
        "/dev/dxg",
        "/dev/kfd",
        "0x1002",
        "0x8086",
        "Gaudi",
        "nvidia.com/gpu",
        "/etc/cdi",
        "/var/run/cdi",
    ):
        assert word in caught.value.message
    assert "srun --gpus=1" in caught.value.hint
    with pytest.raises(UdiError) as caught:
        plan(Host(tmp_path), "amd")
    assert "/dev/kfd" in caught.value.message and "nvidia" not in caught.value.message


def test_the_open_kernel_module_has_a_version_too() -> None:
    assert nvidia.kernel_version(gpuhosts.OPEN.format("565.57.01")) == "565.57.01"
    assert nvidia.kernel_version("") == ""


def test_capabilities_come_from_the_image_and_the_caller_wins(tmp_path: Path) -> None:
    host = gpuhosts.rhel(tmp_path)
    video = f"{LIB}/libnvidia-encode.so.{VERSION}"
    asks = Facts(env=("NVIDIA_DRIVER_CAPABILITIES=compute,video",))
    assert video in targets(plan(host, facts=asks))
    assert f"{BIN}/nvidia-smi" not in targets(plan(host, facts=asks))
    mine = {"NVIDIA_DRIVER_CAPABILITIES": "compute"}
    assert video not in targets(plan(host, facts=asks, environ=mine))
    graphics = targets(plan(host, environ={"NVIDIA_DRIVER_CAPABILITIES": "graphics"}))
    assert f"{LIB}/libGLX_nvidia.so.{VERSION}" in graphics
    assert "/usr/share/glvnd/egl_vendor.d/10_nvidia.json" in graphics
    assert f"{LIB}/libcuda.so.{VERSION}" not in graphics


def test_an_unknown_capability_is_refused_by_name(tmp_path: Path) -> None:
    environ = {"NVIDIA_DRIVER_CAPABILITIES": "compute,teleport"}
    with pytest.raises(UdiError, match="unknown capability 'teleport'"):
        plan(gpuhosts.local(tmp_path), environ=environ)


def test_compat32_alone_says_that_it_is_not_offered(tmp_path: Path) -> None:
    environ = {"NVIDIA_DRIVER_CAPABILITIES": "compute,compat32"}
    notes = plan(gpuhosts.local(tmp_path), environ=environ).notes
    assert any("compat32" in note for note in notes)


def test_vendor_neutral_libraries_never_go_in(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path)
    for name in ("libGL", "libEGL", "libGLX", "libGLdispatch", "libOpenGL", "libOpenCL"):
        library = f"{name}.so.{VERSION}"
        host.copy(f"/usr/local/nvidia/lib64/{library}", gpuhosts.compile(library))
    names = {t.rpartition("/")[2].partition(".so")[0] for t in targets(plan(host, environ=ALL))}
    assert not names & {"libGL", "libEGL", "libGLX", "libGLdispatch", "libOpenGL", "libOpenCL"}


def test_paths_are_resolved_as_the_kernel_does(tmp_path: Path) -> None:
    """By folders that are resolved once, and links to and through them."""
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/file").touch()
    for name, target in {
        "to": "a/b",
        "a/up": "../a/b",
        "a/b/link": "file",
        "far": f"{tmp_path}/to/link",
        "round": "round",
        "into": "into/file",
        "nowhere": "a/none",
        "through": "to/../b/file",
    }.items():
        (tmp_path / name).symlink_to(target)
    links = rooted.Links("/")
    names = ("a/b/file", "to/file", "a/up/link", "far", "round", "into", "into/x", "nowhere")
    for name in (*names, "through", "a/../a/b/file", "a/b/file/x", "none/x", "to/", "to/."):
        path = f"{tmp_path}/{name}"
        there = os.path.exists(path)
        assert links.resolve(path) == (os.path.realpath(path) if there else ""), name


def test_a_library_that_no_table_knows_goes_in(tmp_path: Path) -> None:
    library = f"libnvidia-newthing.so.{VERSION}"
    host = gpuhosts.local(tmp_path)
    host.copy(f"/usr/local/nvidia/lib64/{library}", gpuhosts.compile(library))
    assert f"{LIB}/{library}" in targets(plan(host))


def test_the_old_compiler_library_goes_in_by_its_own_version(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path)
    host.copy("/usr/local/nvidia/lib64/libnvidia-nvvm70.so.4", gpuhosts.compile("libnvvm70.so.4"))
    assert f"{LIB}/libnvidia-nvvm70.so.4" in targets(plan(host))


def test_of_two_versions_in_one_cache_the_kernels_is_taken(tmp_path: Path) -> None:
    host = Host(tmp_path)
    host.libraries(f"/usr/lib/{MULTIARCH}", OLD).libraries("/usr/lib64", VERSION)
    host.ldconfig(f"/usr/lib/{MULTIARCH}", "/usr/lib64")
    for version in (OLD, VERSION):
        host.kernel(version)
        found = plan(host)
        versions = {t.rpartition(".so.")[2] for t in targets(found) if "libnvidia-ml.so." in t}
        assert versions == {"1", version}


def test_a_second_version_beside_the_link_is_found(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path)
    host.copy(f"/usr/local/nvidia/lib64/libcuda.so.{OLD}", gpuhosts.compile("libcuda.so.1"))
    host.write("/proc/driver/nvidia/version", gpuhosts.NVRM.format(OLD))
    assert f"{LIB}/libcuda.so.{OLD}" in targets(plan(host))


def test_a_driver_of_another_version_than_the_kernel_module_is_refused(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path).kernel("565.57.01")
    with pytest.raises(UdiError, match=f"565.57.01 and libcuda {VERSION} do not match") as caught:
        plan(host)
    assert "reboot" in caught.value.hint


JETSONS = {
    "JetPack 6": ("nvidia", ("nvidiactl", "nvidia0", "nvmap", "nvhost-gpu", "nvgpu/igpu0/ctrl")),
    "JetPack 5": ("tegra", ("nvmap", "nvhost-gpu")),
    "JetPack 4": ("tegra", ("nvmap", "nvhost-ctrl-gpu")),
}


@pytest.mark.parametrize("name", JETSONS)
def test_a_jetson_is_named_as_such(name: str, tmp_path: Path) -> None:
    """Its libcuda.so.1.1 has no driver's number, and no reboot mends that."""
    folder, nodes = JETSONS[name]
    host, place = Host(tmp_path).nodes(*nodes), f"/usr/lib/{MULTIARCH}/{folder}"
    host.copy(f"{place}/libcuda.so.1.1", gpuhosts.compile("libcuda.so.1"))
    host.link(f"{place}/libcuda.so.1", "libcuda.so.1.1").ldconfig(place)
    if "nvidiactl" in nodes:
        host.write("/proc/driver/nvidia/version", gpuhosts.OPEN.format("540.4.0"))
    for request in ("auto", "nvidia"):
        with pytest.raises(UdiError, match="this node is an NVIDIA Jetson") as caught:
            plan(host, request)
        assert "nvidia-ctk cdi generate --mode=csv" in caught.value.hint


def test_a_card_in_a_board_of_nvidias_is_used(tmp_path: Path) -> None:
    """An IGX with a card: libcuda of the kernel module's version beside the board's nodes."""
    assert plan(gpuhosts.local(tmp_path).nodes("nvmap")).steps


def test_a_driver_in_a_folder_of_ld_library_path(tmp_path: Path) -> None:
    """As --mpi finds an MPI; a stub or CUDA's compatibility library there is no driver."""
    host = Host(tmp_path).kernel().libraries("/opt/site/driver/lib64")
    host.libraries("/cuda/lib64/stubs", VERSION).libraries("/cuda/compat", VERSION)
    with pytest.raises(UdiError, match=r"no libcuda\.so\.1 of this machine") as caught:
        plan(host, environ={"LD_LIBRARY_PATH": "/cuda/lib64/stubs:/cuda/compat:relative"})
    assert "LD_LIBRARY_PATH" in caught.value.hint and "nvidia-ctk" in caught.value.hint
    environ = {"LD_LIBRARY_PATH": "/cuda/lib64/stubs::/opt/site/driver/lib64"}
    found = plan(host, environ=environ)
    assert f"{LIB}/libcuda.so.{VERSION}" in targets(found)
    assert report.report("auto", (), environ, host.root)[0].startswith("NVIDIA driver")
    assert "/opt/site/driver" in report.specifications(host.root, "", environ)["nvidia.json"]
    host.libraries(f"/usr/lib/{MULTIARCH}", VERSION)
    sources = [s.source for s in plan(host, environ=environ).steps if isinstance(s, Mount)]
    assert not any("/opt/site" in path for path in sources)


def test_without_the_kernels_version_the_loaders_first_is_taken(tmp_path: Path) -> None:
    host = Host(tmp_path).nodes("nvidiactl", "nvidia-uvm", "nvidia0")
    host.libraries(f"/usr/lib/{MULTIARCH}", OLD).libraries("/usr/lib64", VERSION)
    found = plan(host)
    assert f"{LIB}/libcuda.so.{OLD}" in targets(found)
    assert any("several libcuda" in note for note in found.notes)


@pytest.mark.skipif(gpuhosts.MACHINE != "x86_64", reason="32-bit x86 libraries")
def test_a_32_bit_libcuda_that_comes_first_is_passed_over(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path)
    small = gpuhosts.compile("libcuda.so.1", gpuhosts.SOURCE % 1, "-m32", "-nostdlib")
    for name in (f"libcuda.so.{VERSION}", "libcuda.so.1"):
        host.copy(f"/usr/lib/{MULTIARCH}/{name}", small)
    host.ldconfig(f"/usr/lib/{MULTIARCH}", "/usr/local/nvidia/lib64")
    found = source(plan(host), f"{LIB}/libcuda.so.{VERSION}")
    assert found.endswith(f"/usr/local/nvidia/lib64/libcuda.so.{VERSION}")


def test_dangling_links_are_passed_over_and_named(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path)
    host.link(f"/usr/lib/{MULTIARCH}/libcuda.so.1", f"libcuda.so.{OLD}")
    host.link(f"/usr/local/nvidia/lib64/libnvidia-pkcs11.so.{VERSION}", "/nowhere")
    found = plan(host)
    assert f"{LIB}/libcuda.so.{VERSION}" in targets(found)
    assert sum("leads nowhere" in note for note in found.notes) == 2


def test_a_driver_with_nothing_but_dangling_links_is_an_error(tmp_path: Path) -> None:
    host = Host(tmp_path).kernel().link("/usr/lib64/libcuda.so.1", f"libcuda.so.{VERSION}")
    with pytest.raises(UdiError, match=r"/usr/lib64/libcuda.so.1 leads nowhere") as caught:
        plan(host)
    assert "no libcuda.so.1 of this machine" in caught.value.message
    assert "/usr/local/nvidia/lib64" in caught.value.message and caught.value.hint


def test_links_that_go_in_circles_are_dangling(tmp_path: Path) -> None:
    host = Host(tmp_path).kernel()
    host.link("/usr/lib64/libcuda.so.1", "libcuda.so").link("/usr/lib64/libcuda.so", "libcuda.so.1")
    with pytest.raises(UdiError, match="leads nowhere"):
        plan(host)


def test_a_damaged_library_is_an_error(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path)
    host.write(f"/usr/local/nvidia/lib64/libnvidia-ml.so.{VERSION}", "\x7fELF?")
    with pytest.raises(UdiError, match=r"reading driver library .*libnvidia-ml.* failed"):
        plan(host)


def test_a_damaged_cache_is_passed_over(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path).write("/etc/ld.so.cache", "nonsense")
    found = plan(host)
    assert f"{LIB}/libcuda.so.{VERSION}" in targets(found)
    assert any("ld.so.cache of the host is passed over" in note for note in found.notes)


def test_a_node_without_access_names_the_group(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path).nodes("nvidiactl", mode=0)
    with pytest.raises(
        UdiError, match=r"/dev/nvidiactl: no permission \(mode 0000, group"
    ) as caught:
        plan(host)
    assert "usermod -aG" in caught.value.hint


def test_one_card_that_may_be_used_is_enough(tmp_path: Path) -> None:
    host = gpuhosts.rhel(tmp_path).nodes("nvidia0", mode=0)
    assert plan(host)
    host.nodes("nvidia1", mode=0)
    with pytest.raises(UdiError, match=r"/dev/nvidia0: no permission"):
        plan(host)


def test_uvm_that_is_not_loaded_has_its_own_remedy(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path)
    (tmp_path / "dev/nvidia-uvm").unlink()
    with pytest.raises(UdiError, match="/dev/nvidia-uvm: does not exist") as caught:
        plan(host)
    assert "nvidia-modprobe" in caught.value.hint
    assert plan(host, environ={"NVIDIA_DRIVER_CAPABILITIES": "utility"})


def test_a_driver_without_cards_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UdiError, match="/dev/nvidia0: does not exist"):
        plan(Host(tmp_path).libraries("/usr/lib64").kernel(cards=0))


def test_an_image_of_musl_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UdiError, match="C library is musl"):
        plan(gpuhosts.local(tmp_path), facts=Facts(libc="musl"))


def test_an_image_of_another_machine_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UdiError, match="programs are for s390x, the GPU driver's") as caught:
        plan(gpuhosts.local(tmp_path), facts=Facts(machine="s390x"))
    assert "--platform" in caught.value.hint


def test_an_older_glibc_than_the_driver_needs_is_refused(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path)
    library = f"libnvidia-newthing.so.{VERSION}"
    code = "#include <dlfcn.h>\nvoid *f(void) { return dlopen(0, RTLD_NOW); }\n"
    host.copy(f"/usr/local/nvidia/lib64/{library}", gpuhosts.compile(library, code, "-ldl"))
    with pytest.raises(
        UdiError, match=r"newthing.* needs glibc 2\.\d+; the image has 2\.1"
    ) as caught:
        plan(host, facts=Facts(glibc="2.1"))
    assert "newer C library" in caught.value.hint
    assert plan(host, facts=Facts(glibc="2.99"))


@pytest.mark.skipif(MULTIARCH != "x86_64-linux-gnu", reason="the image's trees are of x86_64")
def test_the_hosts_glibc_comes_along_for_a_driver(tmp_path: Path) -> None:
    """All of it over an older image's, nothing for a newer one; never where that is asked for."""
    host = gpuhosts.local(tmp_path / "root")
    library = f"libnvidia-newthing.so.{VERSION}"
    made = mpihosts.library(library, versions=mpihosts.needs("2.38"))
    (host.path / f"usr/local/nvidia/lib64/{library}").write_bytes(made)
    mpihosts.write(mpihosts.whole_glibc("2.41"), host.path)
    old, new = (
        {"elf": mpihosts.facts({**mpihosts.whole_glibc(v), "/bin/x": mpihosts.library()})}
        for v in ("2.36", "2.41")
    )
    found = planner.plan("auto", (), old, {}, host.root)
    libc = f"{mpihosts.ARCH}/libc.so.6"
    assert source(found, libc) == host.root + libc
    assert libc in found.together
    assert f"the host's glibc is laid over the image's: {library} needs GLIBC_2.38" in found.notes
    assert libc not in targets(planner.plan("auto", (), new, {}, host.root))
    with pytest.raises(UdiError, match=r"needs glibc 2\.38; the image has 2\.36\Z") as caught:
        planner.plan("auto", (), old, {}, host.root, glibc="never")
    assert caught.value.hint.startswith("--mpi-glibc=auto brings")


def test_a_foreign_image_without_facts_is_not_checked(tmp_path: Path) -> None:
    assert planner.plan("auto", (), {}, {}, gpuhosts.local(tmp_path).root).steps


def test_persistence_and_fabric_sockets_come_by_their_folder(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path).write("/run/nvidia-fabricmanager/socket")
    found = [s for s in plan(host).steps if s.target == "/run/nvidia-fabricmanager"]
    assert isinstance(found[0], Mount) and "ro" not in found[0].options


def test_gpudirect_storage_brings_its_configuration(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path).write("/etc/cufile.json").write("/run/udev/data/x")
    assert "/etc/cufile.json" not in targets(plan(host))
    host.nodes("nvidia-fs0")
    assert {"/etc/cufile.json", "/run/udev"} <= set(targets(plan(host)))


def test_mps_pipes_outside_of_tmp_are_mounted(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path).write("/var/spool/mps/control")
    environ = {"CUDA_MPS_PIPE_DIRECTORY": "/var/spool/mps"}
    assert "/var/spool/mps" in targets(plan(host, environ=environ))
    assert "/tmp/mps" not in targets(plan(host, environ={"CUDA_MPS_PIPE_DIRECTORY": "/tmp/mps"}))


def test_amd_needs_nodes_and_nothing_else(tmp_path: Path) -> None:
    host = Host(tmp_path).drm(0, "0x1002", "amdgpu").drm(1, "0x1002", "amdgpu").nodes("kfd")
    found = plan(host, "amd")
    assert not found.steps and not found.environment
    assert any("/dev/kfd /dev/dri/renderD129" in note for note in found.notes)


def test_amd_without_kfd_or_without_access_is_an_error(tmp_path: Path) -> None:
    host = Host(tmp_path).drm(0, "0x1002", "amdgpu")
    with pytest.raises(UdiError, match="no GPU found"):
        plan(host, "amd")
    host.nodes("kfd", mode=0)
    with pytest.raises(UdiError, match="/dev/kfd: no permission"):
        plan(host, "amd")
    host.nodes("kfd").nodes("dri/renderD128", mode=0)
    with pytest.raises(UdiError, match=r"/dev/dri/renderD128: no permission"):
        plan(host)
    host.drm(1, "0x1002", "amdgpu")
    assert any("renderD128: no permission" in note for note in plan(host).notes)


def test_intel_and_gaudi_cards_are_found_by_their_vendor(tmp_path: Path) -> None:
    host = Host(tmp_path).drm(0, "0x8086", "xe", "0x0bd5").gaudi(0).drm(1, "0x1a03", "ast")
    notes = "\n".join(plan(host, "intel").notes)
    assert "xe 0x0bd5: /dev/dri/renderD128" in notes
    assert "/dev/accel/accel0 /dev/accel/accel_controlD0" in notes
    assert "renderD129" not in notes


def test_auto_takes_every_vendor_and_passes_over_a_closed_second_one(tmp_path: Path) -> None:
    host = gpuhosts.local(tmp_path).drm(0, "0x8086", "i915").nodes("dri/renderD128", mode=0)
    found = plan(host)
    assert f"{LIB}/libcuda.so.{VERSION}" in targets(found)
    assert any("intel is left out: GPU device /dev/dri/renderD128" in n for n in found.notes)
    with pytest.raises(UdiError, match="renderD128"):
        plan(host, "intel")


def test_auto_stops_at_a_broken_first_vendor(tmp_path: Path) -> None:
    host = Host(tmp_path).kernel().drm(0, "0x8086", "i915")
    with pytest.raises(UdiError, match="no libcuda"):
        plan(host)


def test_planning_imports_nothing_slow() -> None:
    import subprocess

    code = "import sys, rootless_udi.mpi_inject.gpu.planner\n"
    code += "import rootless_udi.mpi_inject.gpu.select\n"
    code += "slow = 're json dataclasses typing pathlib subprocess collections enum yaml ctypes'\n"
    code += "print([m for m in slow.split() if m in sys.modules])"
    tree = str(TREE)
    argv = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {tree!r}); {code}"]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_links_lead_to_what_is_mounted(tmp_path: Path) -> None:
    found = plan(gpuhosts.rhel(tmp_path), environ=ALL)
    names = {t.removeprefix(LIB + "/") for t in targets(found)}
    for step in found.steps:
        if isinstance(step, Symlink):
            assert step.to in names
    assert {"libcuda.so", "libcuda.so.1", f"libcuda.so.{VERSION}"} <= names
    assert Env("append", "LD_LIBRARY_PATH", LIB, found.environment[0].reason) in found.environment
