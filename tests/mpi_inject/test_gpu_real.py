"""On a machine with an NVIDIA GPU: nvidia-smi, a kernel, a matrix product, outside and inside."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bench import gpu_device
from tests.conftest import User
from tests.kit import gpuhosts, gpuimages, probes
from tests.kit.places import PROGRAMS

pytestmark = [pytest.mark.needs("userns", "fuse", "busybox")]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("python")
    return gpuimages.pulled(folder, gpuimages.python_entries(), ["PATH=/bin"])


def test_the_image_has_a_python_of_its_own(user: User, image: Path) -> None:
    code = "import ctypes, json, sys; print(sys.version_info[:2])"
    done = user.run("udi-run", image, "python3", "-c", code)
    assert done.stdout == f"{sys.version_info[:2]}\n", done.stderr


def driver(folder: Path) -> gpuhosts.Host:
    """A host whose driver runs no kernel but the one of cudakernel.py, on the processor.

    It needs what a real one needs of an image, see gpuimages.DRIVERS_NEEDS.
    """
    more = gpuimages.installed(*gpuimages.DRIVERS_NEEDS)
    source = (PROGRAMS / "fakecuda.c").read_text()
    linked = ",".join(map(str, more))
    fake = gpuhosts.compile("libcuda.so.1", source, f"-Wl,--no-as-needed,{linked}")
    made = gpuhosts.local(folder)
    return made.copy(f"/usr/local/nvidia/lib64/libcuda.so.{gpuhosts.VERSION}", fake)


COUNT = """
import ctypes
n = ctypes.c_int()
c = ctypes.CDLL("libcuda.so.1")
print(c.cuInit(0), c.cuDeviceGetCount(ctypes.byref(n)), n.value)
"""


@pytest.mark.needs("gcc")
def test_the_programs_are_right_by_a_driver_without_a_gpu(
    user: User, image: Path, tmp_path: Path
) -> None:
    run = [sys.executable, PROGRAMS / "gpurun.py", driver(tmp_path / "root").root, "nvidia"]
    mount = f"--volume={PROGRAMS}:/programs:ro"
    done = user.run(*run, mount, image, "python3", "/programs/cudakernel.py")
    assert done.stdout == "Fake A100\n", done.stderr
    for visible, out in (("0", "0 0 1\n"), ("", "100 3 1\n")):
        env = {"CUDA_VISIBLE_DEVICES": visible}
        done = user.run(*run, image, "python3", "-c", COUNT, env=env)
        assert done.stdout == out, done.stderr
    none = user.run(
        *run, mount, image, "python3", "/programs/cudakernel.py", env={"CUDA_VISIBLE_DEVICES": ""}
    )
    assert none.returncode == 1
    assert none.stderr == "cuInit: error 100: no CUDA-capable device is detected\n"


TORCH = """
import time
from types import SimpleNamespace

float16 = uint8 = None

class Event:
    def __init__(self, enable_timing): pass
    def record(self): self.at = time.monotonic()
    def elapsed_time(self, end): return 1e3 * (end.at - self.at)

class Tensor:
    def __matmul__(self, other): return self
    def copy_(self, source): return self

def randn(*args, **kwargs): return Tensor()

empty = randn
cuda = SimpleNamespace(Event=Event, synchronize=lambda: None)
"""


@pytest.mark.needs("gcc")
@pytest.mark.parametrize("kind", ["squashfs", "directory"])
def test_the_check_for_a_machine_with_a_gpu_by_a_driver_without_one(
    image: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The directory is for a machine where no squashfs writer and no busybox are installed."""
    if kind == "directory":
        image = gpuimages.unpacked(tmp_path / "image", gpuimages.python_entries(busybox=False))
    host = driver(tmp_path / "root")
    tools = host.path / "usr/local/nvidia/bin"
    source = '#include <stdio.h>\nint main() { puts("GPU 0: Fake A100"); }\n'
    argv: list[str | Path] = ["gcc", "-x", "c", "-", "-static", "-o", tools / "nvidia-smi"]
    subprocess.run(argv, input=source, text=True, check=True)
    site = tmp_path / "site"
    (site / "torch").mkdir(parents=True)
    (site / "torch/__init__.py").write_text(TORCH)
    library = f"{host.root}/usr/local/nvidia/lib64"
    path = f"PATH={tools}:/usr/bin:/bin"
    outside = ["env", path, f"LD_LIBRARY_PATH={library}", f"PYTHONPATH={site}"]
    inside = [sys.executable, str(PROGRAMS / "gpurun.py"), host.root, "nvidia"]
    inside += [f"--volume={PROGRAMS}:/programs:ro", f"--volume={site}:/site:ro"]
    status = gpu_device.report(
        gpu_device.Side(outside, sys.executable, str(PROGRAMS)),
        gpu_device.Side([*inside, "--env=PYTHONPATH=/site", str(image)], "python3", "/programs"),
        rounds=1,
    )
    out = capsys.readouterr().out
    assert status == 0, out
    assert out.startswith("nvidia-smi -L: GPU 0: Fake A100\na kernel: Fake A100\n"), out
    assert re.search(r"^copy +[\d.]+ ms +[\d.]+ ms +[\d.]+$", out, re.M)


@pytest.mark.gpu
@pytest.mark.needs("gpu")
class TestGpu:
    def test_nvidia_smi_shows_the_same_cards(self, user: User, image: Path) -> None:
        outside = user.run("nvidia-smi", "-L", check=True).stdout
        assert user.run("udi-run", "--gpu", image, "nvidia-smi", "-L").stdout == outside

    def test_a_kernel_runs_through_the_driver_api(self, user: User, image: Path) -> None:
        outside = user.run("python3", PROGRAMS / "cudakernel.py", check=True).stdout
        mount = f"--volume={PROGRAMS}:/programs:ro"
        inside = user.run("udi-run", "--gpu", mount, image, "python3", "/programs/cudakernel.py")
        assert inside.stdout == outside, inside.stderr

    def test_each_rank_sees_the_cards_that_it_chooses(self, user: User, image: Path) -> None:
        argv = ["udi-run", "--gpu", image, "python3", "-c", COUNT]
        assert user.run(*argv, env={"CUDA_VISIBLE_DEVICES": "0"}).stdout == "0 0 1\n"
        none = user.run(*argv, env={"CUDA_VISIBLE_DEVICES": ""}).stdout
        assert none.split()[0] == "100"

    def test_a_matrix_product_by_torch_or_cupy(self, user: User, image: Path) -> None:
        name = next((n for n in ("torch", "cupy") if importlib.util.find_spec(n)), "")
        if not name:
            probes.need("tensors")
        spec = importlib.util.find_spec(name)
        assert spec is not None and spec.origin is not None
        site = Path(spec.origin).parent.parent
        mounts = [f"--volume={PROGRAMS}:/programs:ro", f"--volume={site}:/site:ro"]
        run = ["python3", "/programs/cudatimes.py"]
        done = user.run("udi-run", "--gpu", *mounts, "--env=PYTHONPATH=/site", image, *run)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["product"] > 0


def test_the_programs_compile() -> None:
    for name in ("cudakernel.py", "cudatimes.py"):
        compile((PROGRAMS / name).read_text(), name, "exec")
