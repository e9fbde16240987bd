"""Real runs: a fake libcuda of the host is found, loaded and called by a program in an image."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import gpuhosts, gpuimages, images
from tests.kit.gpuhosts import MULTIARCH, OLD, VERSION
from tests.kit.nodes import Rank
from tests.kit.places import PROGRAMS
from tests.mpi_inject.test_gpu_cdi import host as cdi_host

pytestmark = pytest.mark.needs("userns", "fuse", "busybox", "gcc")

LIB = "/opt/udiImage/gpu/lib"


def program() -> Path:
    """Return the check program, compiled once for all."""
    target = images.cache() / "gpu" / "cudacheck"
    source = PROGRAMS / "cudacheck.c"
    if not target.exists() or target.stat().st_mtime < source.stat().st_mtime:
        target.parent.mkdir(exist_ok=True)
        subprocess.run(["gcc", "-o", target, source, "-ldl"], check=True)
    return target


def pulled(folder: Path, more: list[images.Entry], env: list[str]) -> Path:
    """Pull an image of busybox, the check program, this machine's C library, and `more`."""
    binary = program()
    found = images.busybox_entries()
    found.append(("bin/cudacheck", binary.read_bytes(), {"mode": 0o755}))
    found = gpuimages.with_files(found, gpuimages.needed(binary)) + more
    return gpuimages.pulled(folder, found, ["PATH=/bin", *env])


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pulled(tmp_path_factory.mktemp("image"), [], ["LD_LIBRARY_PATH=/nowhere"])


def run(
    user: User, host: gpuhosts.Host, request: str, image: Path, *argv: str, **env: str
) -> "subprocess.CompletedProcess[str]":
    runner = PROGRAMS / "gpurun.py"
    return user.run(sys.executable, runner, host.root, request, image, *argv, env=env)


@pytest.mark.parametrize("build", [gpuhosts.debian, gpuhosts.rhel, gpuhosts.local])
def test_a_program_finds_loads_and_calls_the_hosts_driver(
    build: "type[gpuhosts.Host]", user: User, image: Path, tmp_path: Path
) -> None:
    made = build(tmp_path / "root")
    for name in ("libcuda.so.1", "libcuda.so"):
        done = run(user, made, "nvidia", image, "cudacheck", name)
        assert done.returncode == 0, done.stdout + done.stderr
        version, path = done.stdout.split()
        assert (version, path.rpartition("/")[0]) == ("12040", LIB)


def test_without_a_request_there_is_no_driver(user: User, image: Path) -> None:
    done = user.run("udi-run", image, "cudacheck")
    assert done.returncode == 1 and "libcuda.so.1: cannot open" in done.stdout


def test_a_specification_of_cdi_leads_to_the_same(user: User, image: Path, tmp_path: Path) -> None:
    made = cdi_host(tmp_path / "root")
    done = run(user, made, "cdi:all", image, "cudacheck", "libcuda.so")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"12040 {LIB}/libcuda.so")


def test_tools_are_on_the_path_and_links_are_right(user: User, image: Path, tmp_path: Path) -> None:
    made = gpuhosts.debian(tmp_path / "root")
    made.write(
        "/usr/lib/nvidia/current/nvidia-smi", "#!/bin/sh\necho smi: $LD_LIBRARY_PATH\n", 0o755
    )
    done = run(user, made, "auto", image, "nvidia-smi")
    assert done.stdout == f"smi: /nowhere:{LIB}\n", done.stderr
    done = run(user, made, "auto", image, "readlink", f"{LIB}/libcuda.so.1")
    assert done.stdout == f"libcuda.so.{VERSION}\n"
    done = run(user, made, "auto", image, "sh", "-c", f": > {LIB}/x")
    assert done.returncode != 0 and "Read-only file system" in done.stderr


def test_not_one_byte_is_copied(user: User, image: Path, tmp_path: Path) -> None:
    made = gpuhosts.local(tmp_path / "root")
    real = made.path / f"usr/local/nvidia/lib64/libcuda.so.{VERSION}"
    done = run(user, made, "nvidia", image, "stat", "-L", "-c", "%d:%i", f"{LIB}/libcuda.so.1")
    info = real.stat()
    assert done.stdout == f"{info.st_dev}:{info.st_ino}\n", done.stderr


def test_the_images_own_compat_library_goes_first(
    user: User, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    compat = "usr/local/cuda-12.8/compat"
    folders: list[images.Entry] = [
        (d, None, {}) for d in ("usr/local", "usr/local/cuda-12.8", compat)
    ]
    newer = gpuhosts.compile("libcuda.so.1", gpuhosts.SOURCE % 12080).read_bytes()
    more: list[images.Entry] = [
        *folders,
        (f"{compat}/libcuda.so.570.1.2", newer, {"mode": 0o755}),
        (f"{compat}/libcuda.so.1", "libcuda.so.570.1.2", {}),
    ]
    env = ["NVIDIA_REQUIRE_CUDA=cuda>=12.8"]
    image = pulled(tmp_path_factory.mktemp("compat"), more, env)
    made = gpuhosts.local(tmp_path / "root")
    done = run(user, made, "nvidia", image, "cudacheck")
    assert done.stdout == f"12080 /{compat}/libcuda.so.1\n", done.stderr
    newest = gpuhosts.Host(tmp_path / "new").libraries("/usr/lib64", "570.9.9").kernel("570.9.9")
    done = run(user, newest, "nvidia", image, "cudacheck")
    assert done.stdout == f"12040 {LIB}/libcuda.so.1\n", done.stderr


def test_an_image_for_a_newer_cuda_is_refused_at_the_start(
    user: User, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    image = pulled(tmp_path_factory.mktemp("new"), [], ["NVIDIA_REQUIRE_CUDA=cuda>=12.4"])
    made = gpuhosts.Host(tmp_path / "root").libraries("/usr/lib64", OLD).kernel(OLD)
    done = run(user, made, "nvidia", image, "cudacheck")
    assert done.returncode == 125
    assert f"image needs CUDA 12.4; the host's NVIDIA driver {OLD} runs CUDA 11.4" in done.stderr
    done = run(user, made, "nvidia", image, "cudacheck", NVIDIA_DISABLE_REQUIRE="1")
    assert done.returncode == 0, done.stderr


def test_explain_gives_every_reason(user: User, image: Path, tmp_path: Path) -> None:
    made = gpuhosts.debian(tmp_path / "root")
    runner = PROGRAMS / "gpurun.py"
    done = user.run(sys.executable, runner, made.root, "auto", "--explain=json", image, "true")
    steps = [s for s in json.loads(done.stdout)["steps"] if s["target"].startswith(LIB)]
    assert len(steps) > 10 and all(s["reason"] for s in steps)
    assert any(MULTIARCH in s.get("source", "") for s in steps)


def test_the_site_says_where_cdi_files_are(user: User, image: Path) -> None:
    folder = user.home / "cdi"
    folder.mkdir()
    (user.home / "secret").write_text("from the host\n")
    (user.home / "tool").write_text("#!/bin/sh\necho executed\n")
    (user.home / "tool").chmod(0o755)
    tool = {"hostPath": f"{user.home}/tool", "containerPath": "/opt/vendor/tool"}
    edits = {
        "env": ["DEVICE=here"],
        "mounts": [
            {"hostPath": f"{user.home}/secret", "containerPath": "/opt/vendor/secret"},
            tool,
            {**tool, "containerPath": "/opt/vendor/data", "options": ["bind", "noexec"]},
        ],
    }
    device = {"name": "x", "containerEdits": edits}
    document = {"cdiVersion": "0.6.0", "kind": "vendor.com/device", "devices": [device]}
    (folder / "vendor.json").write_text(json.dumps(document))
    config = user.home / "udi.toml"
    config.write_text(f'[gpu]\ncdi_spec_dirs = ["{folder}"]\n')
    env = {"UDI_CONFIG": str(config)}
    show = "cat /opt/vendor/secret; echo $DEVICE; /opt/vendor/tool; /opt/vendor/data"
    done = user.run("udi-run", "--device=vendor.com/device=x", image, "sh", "-c", show, env=env)
    assert done.stdout == "from the host\nhere\nexecuted\n", done.stderr
    assert done.returncode == 126 and "/opt/vendor/data: Permission denied" in done.stderr
    done = user.run("udi", "gpu", "--device=vendor.com/device=x", env=env)
    assert f"CDI device vendor.com/device=x of {folder}/vendor.json" in done.stdout, done.stderr
    assert f"/opt/vendor/secret <- {user.home}/secret" in done.stdout
    done = user.run("udi", "config", "show", env=env)
    assert f'gpu.cdi_spec_dirs = ["{folder}"]' in done.stdout and f"{config}:2" in done.stdout


def test_ranks_of_one_container_each_choose_their_cards(
    user: User, image: Path, tmp_path: Path
) -> None:
    made = gpuhosts.rhel(tmp_path / "root")
    runner = PROGRAMS / "gpurun.py"
    start = [sys.executable, runner, made.root, "nvidia", "--share=job", image]
    chosen = [
        {"NVIDIA_VISIBLE_DEVICES": "1"},
        {"CUDA_VISIBLE_DEVICES": "0", "NVIDIA_VISIBLE_DEVICES": "1"},
        {"ROCR_VISIBLE_DEVICES": "2"},
    ]
    ranks = [Rank(user, *start, env=env).ready() for env in chosen]
    assert len({rank.namespaces for rank in ranks}) == 1
    show = f'echo "$CUDA_VISIBLE_DEVICES,$ROCR_VISIBLE_DEVICES"; cudacheck >/dev/null; ls {LIB}'
    outputs = [rank.end(show)[1].split() for rank in ranks]
    assert [words[0] for words in outputs] == ["1,", "0,", ",2"]
    assert all(f"libcuda.so.{VERSION}" in words for words in outputs)


@pytest.mark.parametrize(
    ("option", "what"),
    [
        ("--gpu=cuda", "--gpu=cuda: unknown"),
        ("--gpu=cdi:vendor.com/device=x", "CDI device vendor.com/device=x: not found in /etc/cdi"),
        ("--device=vendor.com/device=x", "CDI device vendor.com/device=x: not found in /etc/cdi"),
        ("--device=x", "--device x: no CDI device name"),
    ],
)
def test_what_is_not_there_is_an_error_of_udi_run(
    option: str, what: str, user: User, image: Path
) -> None:
    done = user.run("udi-run", option, image, "true")
    assert done.returncode == 125 and what in done.stderr and "hint" in done.stderr


@pytest.mark.needs("no-gpu")
def test_a_node_without_a_gpu_is_an_error_of_udi_run(user: User, image: Path) -> None:
    done = user.run("udi-run", "--gpu", image, "true")
    assert done.returncode == 125
    assert "no GPU found on" in done.stderr and "/dev/nvidiactl" in done.stderr
