"""--gpu and --device by CDI: edits as steps, hooks, checks, what is refused; `udi gpu cdi`."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.base.errors import UdiError
from rootless_udi.mpi_inject.cdi import registry
from rootless_udi.mpi_inject.cdi import spec as cdi
from rootless_udi.mpi_inject.gpu import planner, report
from rootless_udi.mpi_inject.libraries.placing import BIN, LIB
from rootless_udi.plan.steps import Directory, Injection, Mount, Symlink
from tests.kit import gpuhosts
from tests.kit.gpuhosts import MULTIARCH, VERSION, Facts, Host
from tests.mpi_inject.test_gpu_plan import golden, plan, targets

pytestmark = [pytest.mark.needs("gcc"), pytest.mark.needs("userns")]

FOLDER = f"/usr/lib/{MULTIARCH or 'x86_64-linux-gnu'}"
HOOK = "/usr/bin/nvidia-cdi-hook"


def hook(*args: str, path: str = HOOK, name: str = "createContainer") -> dict[str, Any]:
    return {"hookName": name, "path": path, "args": [path.rpartition("/")[2], *args]}


def mount(path: str, to: str = "", *options: str) -> dict[str, Any]:
    return {
        "hostPath": path,
        "containerPath": to or path,
        "options": list(options) or ["ro", "nosuid", "nodev", "rbind", "rprivate"],
    }


def nvidia(**edits: Any) -> dict[str, Any]:
    """What nvidia-ctk cdi generate writes for a node of two cards, in short."""
    cards = [
        {"name": name, "containerEdits": {"deviceNodes": [{"path": f"/dev/nvidia{n}"} for n in ns]}}
        for name, ns in (("0", "0"), ("1", "1"), ("GPU-1", "1"), ("all", "01"))
    ]
    common = {
        "env": ["NVIDIA_VISIBLE_DEVICES=void", "NVIDIA_CTK_LIBCUDA_DIR=" + FOLDER],
        "deviceNodes": [{"path": "/dev/nvidiactl"}, {"path": "/dev/nvidia-uvm"}],
        "hooks": [
            hook(
                "create-symlinks",
                *("--link", f"libcuda.so.1::{FOLDER}/libcuda.so"),
                *("--link", f"../libnvidia-allocator.so.1::{FOLDER}/gbm/nvidia-drm_gbm.so"),
            ),
            hook("enable-cuda-compat", f"--host-driver-version={VERSION}"),
            hook("update-ldcache", "--folder", FOLDER),
            hook("disable-device-node-modification"),
            hook("chmod", "--mode", "755", "--path", "/dev/dri"),
        ],
        "mounts": [
            mount(f"{FOLDER}/libcuda.so.{VERSION}"),
            mount(f"{FOLDER}/libnvidia-ml.so.{VERSION}"),
            mount("/usr/bin/nvidia-smi"),
            mount("/run/nvidia-persistenced/socket", "", "nosuid", "nodev", "rbind", "noexec"),
        ],
    }
    return {
        "cdiVersion": "0.5.0",
        "kind": "nvidia.com/gpu",
        "devices": cards,
        "containerEdits": common | edits,
    }


def host(path: Path, document: dict[str, Any] | None = None, name: str = "nvidia.json") -> Host:
    """A node of two cards with a driver in Debian's folder and a specification."""
    made = Host(path).libraries(FOLDER).kernel(cards=2)
    made.write("/usr/bin/nvidia-smi", "", 0o755).write("/run/nvidia-persistenced/socket")
    return made.write(f"/etc/cdi/{name}", json.dumps(document or nvidia()))


@pytest.mark.skipif(not MULTIARCH, reason="golden plans are of x86_64 and aarch64")
def test_the_plan_of_a_specification(tmp_path: Path) -> None:
    made = host(tmp_path / "root")
    golden("cdi.txt", plan(made, "cdi:all"), made.root)


def test_cdi_comes_before_discovery(tmp_path: Path) -> None:
    made = host(tmp_path)
    for request in ("auto", "nvidia", "cdi:all", "cdi:nvidia.com/gpu", "cdi:nvidia.com/gpu=all"):
        found = plan(made, request)
        assert any("/etc/cdi/nvidia.json" in note for note in found.notes)
        assert f"{LIB}/libcuda.so.{VERSION}" in targets(found)
        assert f"{LIB}/libcudadebugger.so.{VERSION}" not in targets(found)


def test_hooks_become_steps(tmp_path: Path) -> None:
    found = plan(host(tmp_path))
    links = {s.target: s.to for s in found.steps if isinstance(s, Symlink)}
    assert links[f"{LIB}/libcuda.so"] == "libcuda.so.1"
    assert links[f"{LIB}/libcuda.so.1"] == f"libcuda.so.{VERSION}"
    assert links[f"{LIB}/gbm/nvidia-drm_gbm.so"] == "../libnvidia-allocator.so.1"
    assert any(isinstance(s, Directory) and s.target == f"{LIB}/gbm" for s in found.steps)
    notes = "\n".join(found.notes)
    for word in ("update-ldcache", "disable-device-node-modification", "chmod"):
        assert f"hook {word}: " in notes


def test_the_variable_that_disarms_nvidias_own_hook_is_left_out(tmp_path: Path) -> None:
    names = [e.name for e in plan(host(tmp_path)).environment]
    assert "NVIDIA_VISIBLE_DEVICES" not in names and "NVIDIA_CTK_LIBCUDA_DIR" in names


def test_other_files_go_where_the_specification_says(tmp_path: Path) -> None:
    edits = [mount("/etc/cufile.json"), mount("/usr/share/nvidia/nvoptix.bin", "/opt/optix.bin")]
    made = host(tmp_path, nvidia(mounts=edits)).write("/etc/cufile.json")
    made.write("/usr/share/nvidia/nvoptix.bin")
    found = {s.target: s for s in plan(made).steps}
    step = found["/etc/cufile.json"]
    assert isinstance(step, Mount)
    assert step.options == ("ro", "nosuid", "nodev", "rec", "private")
    assert "/opt/optix.bin" in found


def test_the_usual_specification_needs_no_mount_point_in_the_image(tmp_path: Path) -> None:
    icd, gsp = "/usr/share/vulkan/icd.d/nvidia_icd.json", "/lib/firmware/nvidia/550/gsp_ga10x.bin"
    edits = nvidia()["containerEdits"]["mounts"] + [mount(icd), mount(gsp)]
    made = host(tmp_path, nvidia(mounts=edits)).write(icd).write(gsp)
    found = plan(made)
    places = ("/opt/udiImage/", "/run/")
    assert all(target.startswith(places) for target in targets(found))
    assert f"{BIN}/nvidia-smi" in targets(found)
    assert sum("left out" in note for note in found.notes) == 2
    asked = plan(made, environ={"NVIDIA_DRIVER_CAPABILITIES": "graphics"})
    assert icd in targets(asked) and gsp not in targets(asked)


def test_a_socket_comes_by_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = host(tmp_path)
    (tmp_path / "run/nvidia-persistenced/socket").unlink()
    monkeypatch.chdir(tmp_path / "run/nvidia-persistenced")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
        (step,) = [s for s in plan(made).steps if s.target.startswith("/run")]
    assert isinstance(step, Mount)
    assert step.target == "/run/nvidia-persistenced"
    assert step.options == ("nosuid", "nodev", "rec", "noexec")


def test_nvidia_ctk_as_hook_program_and_options_with_equals(tmp_path: Path) -> None:
    ctk = "/usr/bin/nvidia-ctk"
    hooks = [
        hook("hook", "update-ldcache", f"--folder={FOLDER}", path=ctk),
        hook("hook", "create-symlinks", f"--link=libcuda.so.1::{FOLDER}/libcuda.so", path=ctk),
    ]
    found = plan(host(tmp_path, nvidia(hooks=hooks)))
    assert {f"{LIB}/libcuda.so", f"{LIB}/libcuda.so.{VERSION}"} <= set(targets(found))


def test_a_specification_without_hooks_still_leads_to_its_libraries(tmp_path: Path) -> None:
    found = plan(host(tmp_path, nvidia(hooks=[])))
    assert f"{LIB}/libcuda.so.1" in targets(found)


def test_a_link_elsewhere_is_made_there(tmp_path: Path) -> None:
    hooks = [hook("create-symlinks", "--link", "/usr/lib/wsl/nvidia-smi::/usr/bin/nvidia-smi2")]
    assert "/usr/bin/nvidia-smi2" in targets(plan(host(tmp_path, nvidia(hooks=hooks))))


def test_libraries_of_wsl_stay_at_their_place_too(tmp_path: Path) -> None:
    path = "/usr/lib/wsl/drivers/nv_dispi.inf_amd64_1/libcuda.so.1.1"
    hooks = [hook("update-ldcache", "--folder", path.rpartition("/")[0])]
    made = host(tmp_path, nvidia(hooks=hooks, mounts=[mount(path)]))
    made.copy(path, gpuhosts.compile("libcuda.so.1"))
    assert {path, f"{LIB}/libcuda.so.1.1", f"{LIB}/libcuda.so.1"} <= set(targets(plan(made)))


@pytest.mark.parametrize(
    ("one", "what"),
    [
        (hook("frobnicate"), "unknown hook nvidia-cdi-hook frobnicate"),
        (hook("update-ldcache", path="/opt/vendor/magic"), "unknown hook magic update-ldcache"),
        ({"hookName": "poststart", "path": "/opt/vendor/magic"}, "unknown hook magic"),
        (hook("create-symlinks", "--link", "x"), "'x' is not TARGET::LINK"),
        (hook("create-symlinks", "--link", "x::y"), "'x::y' is not TARGET::LINK"),
        (hook("chmod", "--path", "/dev/dri,/opt/x"), "hook chmod of /opt/x can't be done here"),
        (hook("update-ldcache", "stray"), "hook update-ldcache: stray argument 'stray'"),
    ],
)
def test_unknown_hooks_are_refused_by_name(one: dict[str, Any], what: str, tmp_path: Path) -> None:
    with pytest.raises(UdiError, match=r"CDI file /etc/cdi/nvidia\.json") as caught:
        plan(host(tmp_path, nvidia(hooks=[one])))
    assert what in caught.value.message


@pytest.mark.parametrize(
    ("edits", "what"),
    [
        ({"mounts": [mount("/usr", "/x", "bind", "sync")]}, "unknown mount option 'sync' on /x"),
        (
            {"mounts": [{"hostPath": "/usr", "containerPath": "/x", "type": "tmpfs"}]},
            "a mount of type tmpfs on /x",
        ),
        ({"intelRdt": {"closID": "a"}}, "intelRdt can't be done here: resctrl needs root"),
        ({"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}, "netDevices can't be done"),
    ],
)
def test_edits_that_need_root_are_refused(edits: dict[str, Any], what: str, tmp_path: Path) -> None:
    document = nvidia(**edits) | {"cdiVersion": "1.1.0"}
    with pytest.raises(UdiError) as caught:
        plan(host(tmp_path, document))
    assert what in caught.value.message


def test_a_stale_specification_is_an_error_where_it_is_asked_for(tmp_path: Path) -> None:
    made = host(tmp_path)
    (tmp_path / FOLDER.lstrip("/") / f"libnvidia-ml.so.{VERSION}").unlink()
    with pytest.raises(UdiError, match=r"/etc/cdi/nvidia.json is out of date: .*libnvidia-ml"):
        plan(made, "cdi:all")
    with pytest.raises(UdiError, match="out of date") as caught:
        plan(made, "none", devices=("nvidia.com/gpu=0",))
    assert "nvidia-ctk cdi generate" in caught.value.hint


def test_a_stale_specification_gives_way_to_discovery(tmp_path: Path) -> None:
    made = host(tmp_path, nvidia(mounts=[mount(f"{FOLDER}/libcuda.so.1.2.3")]))
    found = plan(made)
    assert f"{LIB}/libcudadebugger.so.{VERSION}" in targets(found)
    assert "is out of date" in found.notes[0] and "found without it" in found.notes[0]


def test_a_stale_specification_on_a_node_without_a_driver_is_an_error(tmp_path: Path) -> None:
    made = Host(tmp_path).write("/etc/cdi/nvidia.json", json.dumps(nvidia()))
    with pytest.raises(UdiError, match="/dev/nvidiactl does not exist"):
        plan(made)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{", "not JSON"),
        (json.dumps(nvidia() | {"cdiVersion": "9.0.0"}), "cdiVersion '9.0.0' is not known here"),
        (json.dumps(nvidia() | {"surprise": 1}), "surprise: unknown field"),
    ],
)
def test_a_broken_specification_of_the_asked_kind_stops_the_run(
    text: str, what: str, tmp_path: Path
) -> None:
    made = host(tmp_path).write("/etc/cdi/nvidia.json", text + ' "nvidia.com/gpu"' * (text == "{"))
    for request in ("auto", "nvidia", "cdi:nvidia.com/gpu=all"):
        with pytest.raises(UdiError, match=r"CDI file /etc/cdi/nvidia\.json failed") as caught:
            plan(made, request)
        assert what in caught.value.message


def test_a_broken_specification_of_another_kind_does_not(tmp_path: Path) -> None:
    made = host(tmp_path).write("/etc/cdi/fpga.json", "{")
    assert plan(made).steps


def test_conflicting_specifications_are_named(tmp_path: Path) -> None:
    made = host(tmp_path).write("/etc/cdi/other.json", json.dumps(nvidia()))
    with pytest.raises(UdiError, match=r"both /etc/cdi/nvidia.json and /etc/cdi/other.json"):
        plan(made)


def test_yaml_is_read_without_pyyaml(tmp_path: Path) -> None:
    import yaml

    made = Host(tmp_path / "json")
    by_json = plan(host(tmp_path / "json"))
    by_yaml = host(tmp_path / "yaml", name="gone.json")
    (tmp_path / "yaml/etc/cdi/gone.json").unlink()
    by_yaml.write("/etc/cdi/nvidia.yaml", yaml.safe_dump(nvidia()))
    found = gpuhosts.text(plan(by_yaml), by_yaml.root)
    assert found.replace("nvidia.yaml", "nvidia.json") == gpuhosts.text(by_json, made.root)


def devices(made: Host, *names: str) -> Injection:
    return plan(made, "", devices=tuple(f"nvidia.com/gpu={n}" for n in names))


def visible(found: Injection) -> list[str]:
    return [e.value for e in found.environment if e.name == "NVIDIA_VISIBLE_DEVICES"]


def test_single_cards_are_named_by_uuid(tmp_path: Path) -> None:
    made = host(tmp_path)
    assert visible(devices(made, "1")) == ["GPU-00000001-aaaa-bbbb-cccc-dddddddddddd"]
    assert visible(devices(made, "GPU-1")) == ["GPU-1"]
    assert visible(devices(made, "all")) == []
    made.write("/proc/driver/nvidia/gpus/0000:01:00.0/information", "GPU UUID: \t GPU-????\n")
    assert visible(devices(made, "0", "1"))[0].endswith(",1")


def test_an_unknown_device_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UdiError, match=r"CDI device nvidia.com/gpu=7: not found") as caught:
        devices(host(tmp_path), "7")
    assert "nvidia.com/gpu=0, nvidia.com/gpu=1" in caught.value.hint


def test_a_device_that_may_not_be_used_is_an_error_by_name_and_a_note_in_all(
    tmp_path: Path,
) -> None:
    made = host(tmp_path).nodes("nvidia0", mode=0)
    with pytest.raises(UdiError, match="/dev/nvidia0: no permission") as caught:
        devices(made, "0")
    assert "usermod -aG" in caught.value.hint
    assert any("/dev/nvidia0: no permission" in note for note in plan(made).notes)
    made.nodes("nvidia1", mode=0)
    with pytest.raises(UdiError, match="/dev/nvidia0: no permission"):
        plan(made)
    made.nodes("nvidia0", "nvidia1").nodes("nvidia-uvm", mode=0)
    with pytest.raises(UdiError, match="/dev/nvidia-uvm: no permission"):
        plan(made)


def test_display_nodes_may_be_closed(tmp_path: Path) -> None:
    nodes = [
        {"path": "/dev/nvidiactl"},
        {"path": "/dev/dri/card0"},
        {"path": "/dev/dri/renderD128"},
    ]
    made = host(tmp_path, nvidia(deviceNodes=nodes))
    made.nodes("dri/card0", "dri/renderD128", mode=0)
    assert any("/dev/dri/card0: no permission" in note for note in devices(made, "0").notes)


def test_a_node_with_another_name_on_the_host_is_bound(tmp_path: Path) -> None:
    node = {"path": "/dev/nvidiactl", "hostPath": "/dev/special", "permissions": "r"}
    made = host(tmp_path, nvidia(deviceNodes=[node])).nodes("special", mode=0o444)
    (step,) = [s for s in plan(made).steps if s.target == "/dev/nvidiactl"]
    assert isinstance(step, Mount) and step.source.endswith("/dev/special")


def test_a_group_that_can_not_be_added_is_a_note(tmp_path: Path) -> None:
    document = nvidia(additionalGids=[0, 12345]) | {"cdiVersion": "0.7.0"}
    notes = plan(host(tmp_path, document)).notes
    assert [n for n in notes if "group" in n] == [
        "CDI: group 12345 of /etc/cdi/nvidia.json is not yours and can't be added"
    ]


def test_vendor_neutral_libraries_of_a_specification_stay_out(tmp_path: Path) -> None:
    made = host(tmp_path, nvidia(mounts=[mount(f"{FOLDER}/libGL.so.1.7.0")]))
    made.copy(f"{FOLDER}/libGL.so.1.7.0", gpuhosts.compile("libGL.so.1"))
    found = plan(made)
    assert not any("libGL" in target for target in targets(found))
    assert any("vendor-neutral" in note for note in found.notes)


def test_what_the_host_shares_anyway_is_not_mounted_again(tmp_path: Path) -> None:
    made = host(tmp_path, nvidia(mounts=[mount("/tmp/nvidia-mps")])).write("/tmp/nvidia-mps/log")
    found = plan(made)
    assert "/tmp/nvidia-mps" not in targets(found)
    assert "/tmp/nvidia-mps: already there, the host's own" in found.notes


def test_checks_are_made_for_cdi_too(tmp_path: Path) -> None:
    made = host(tmp_path)
    with pytest.raises(UdiError, match="musl"):
        plan(made, facts=Facts(libc="musl"))
    with pytest.raises(UdiError, match=r"needs CUDA 99\.0"):
        plan(made, facts=Facts(env=("NVIDIA_REQUIRE_CUDA=cuda>=99.0",)))


def test_compat_libraries_wait_for_the_hook(tmp_path: Path) -> None:
    facts = Facts(compat="570.1.2")
    assert any(e.op == "prepend" for e in plan(host(tmp_path / "a"), facts=facts).environment)
    made = host(tmp_path / "b", nvidia(hooks=[]))
    assert not any(e.op == "prepend" for e in plan(made, facts=facts).environment)


def test_a_bare_name_of_two_kinds_is_refused(tmp_path: Path) -> None:
    other: dict[str, object] = {"cdiVersion": "0.5.0", "kind": "amd.com/gpu"}
    other |= {"devices": [{"name": "0", "containerEdits": {}}]}
    made = host(tmp_path).write("/etc/cdi/amd.json", json.dumps(other))
    with pytest.raises(UdiError, match="more than one CDI kind has it") as caught:
        plan(made, "cdi:0")
    assert "cdi:amd.com/gpu=0, cdi:nvidia.com/gpu=0" in caught.value.hint
    assert plan(made, "cdi:GPU-1")


def test_other_directories_can_be_given(tmp_path: Path) -> None:
    made = host(tmp_path).write("/site/cdi/x.json", json.dumps(nvidia()))
    (tmp_path / "etc/cdi/nvidia.json").unlink()
    found = plan(made, "cdi:all", directories=("/site/cdi",))
    assert any("/site/cdi/x.json" in note for note in found.notes)


def test_no_directory_is_no_cdi(tmp_path: Path) -> None:
    made = host(tmp_path)
    assert not any("CDI:" in note for note in plan(made, directories=()).notes)
    with pytest.raises(UdiError, match=r"nvidia.com/gpu=all: the site has switched CDI off") as no:
        plan(made, "cdi:all", directories=())
    assert "--gpu" in no.value.hint
    with pytest.raises(UdiError, match="no GPU found") as none:
        plan(Host(tmp_path / "none"), directories=())
    assert "CDI" not in none.value.message


@pytest.mark.parametrize("with_hook", [False, True])
def test_the_written_specification_is_valid_and_leads_to_the_same(
    with_hook: bool, tmp_path: Path
) -> None:
    made = gpuhosts.rhel(tmp_path)
    if with_hook:
        made.write(HOOK, "", 0o755)
    before = plan(made, environ={"NVIDIA_DRIVER_CAPABILITIES": "all"})
    written = report.specifications(made.root)
    assert list(written) == ["nvidia.json"]
    spec = cdi.parse(written["nvidia.json"], "nvidia.json")
    uuid = "GPU-00000001-aaaa-bbbb-cccc-dddddddddddd"
    assert {"0", "1", "all", uuid} <= set(spec.devices)
    assert ("hooks" in spec.edits) is with_hook
    made.write("/etc/cdi/nvidia.json", written["nvidia.json"])
    after = plan(made, "cdi:all")
    names = {t for t in targets(before) if t.startswith((LIB, BIN))}
    assert names <= set(targets(after))
    assert f"{BIN}/nvidia-smi" in targets(after)


def test_specifications_of_amd_intel_and_gaudi(tmp_path: Path) -> None:
    made = Host(tmp_path).nodes("kfd").drm(0, "0x1002", "amdgpu").drm(1, "0x8086", "xe").gaudi(0)
    written = report.specifications(made.root)
    assert sorted(written) == ["amd.json", "intel-gaudi.json", "intel.json"]
    for name, text in written.items():
        made.write(f"/etc/cdi/{name}", text)
    assert json.loads(written["amd.json"])["devices"][0]["containerEdits"]["deviceNodes"] == [
        {"path": "/dev/kfd"},
        {"path": "/dev/dri/renderD128"},
    ]
    assert {"amd.com/gpu", "intel.com/gaudi", "intel.com/gpu"} == set(
        registry.kinds(registry.load(root=made.root))
    )
    assert plan(made, "amd") and plan(made, "intel")


def test_specifications_of_a_node_without_a_gpu_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(UdiError, match="no GPU found"):
        report.specifications(Host(tmp_path).root)


def test_the_report_says_what_and_why(tmp_path: Path) -> None:
    made = gpuhosts.rhel(tmp_path).drm(0, "0x8086", "xe").write("/etc/cdi/x.json", "{")
    made.write("/etc/cdi/y.json", json.dumps(nvidia() | {"kind": "nvidia.com/mig"}))
    text = "\n".join(report.report("auto", (), {}, made.root))
    for part in (
        f"NVIDIA driver {VERSION}, CUDA 12.4",
        "/dev/nvidia1  NVIDIA A100-SXM4-40GB  GPU-00000001-",
        "Intel xe 0x740c  /dev/dri/renderD128",
        "CDI device nvidia.com/mig=0 of /etc/cdi/y.json",
        "CDI: reading CDI file /etc/cdi/x.json failed",
        f"{LIB}/libcuda.so.1 -> libcuda.so.{VERSION}  (the loader looks for libcuda.so.1)",
        f"{BIN}/nvidia-smi <- {made.root}/usr/bin/nvidia-smi  (NVIDIA driver {VERSION}",
        f"LD_LIBRARY_PATH += {LIB}",
        "note: device nodes of the host",
    ):
        assert part in text


def test_the_report_of_a_card_that_the_kernel_says_little_of(tmp_path: Path) -> None:
    made = gpuhosts.local(tmp_path).write("/proc/driver/nvidia/gpus/0000:03:00.0/information", "")
    lines = report.report("auto", (), {}, made.root)
    assert "  0000:03:00.0" in lines


def test_the_report_of_amd_says_that_dev_is_all(tmp_path: Path) -> None:
    made = Host(tmp_path).nodes("kfd").drm(0, "0x1002", "amdgpu").gaudi(0)
    text = "\n".join(report.report("auto", (), {}, made.root))
    assert "would be put into a container: nothing but /dev, which every container has" in text
    assert "Intel 0x1020  /dev/accel/accel0 /dev/accel/accel_controlD0" in text


def test_a_request_needs_no_registry(tmp_path: Path) -> None:
    assert planner.parse("cdi:nvidia.com/gpu=0") == ("cdi", "nvidia.com/gpu=0")
    assert planner.parse("") == ("none", "")
