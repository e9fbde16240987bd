"""The proof of `udi check` with PyTorch: forecasts compared with runs, and with PyTorch itself.

Debian's PyTorch and the wheel of another, with CUDA, are computed with as processors that qemu-user
stands for: bubblewrap starts the same command on the same files under qemu. There is no GPU here,
so that the forecasts for GPUs are compared with what PyTorch's own code says of the GPU, in the
container: torch.cuda warns of one for which it was not built. Slow, and needs six gigabytes;
UDI_DOCS=write writes the table of docs/forecast.md, which is otherwise compared.
"""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.records import Record
from tests.conftest import User
from tests.forecast.test_proof_processors import CPUS, SAID, capture
from tests.kit import images, mpi, tables
from tests.kit.places import TREE

pytestmark = [
    pytest.mark.slow,
    pytest.mark.needs("userns", "mmdebstrap", "bwrap", "qemu-user"),
]
BEGIN, END = "<!-- pytorch: written by the run -->\n", "<!-- end of pytorch -->\n"
GPUS = {"V100": (7, 0), "A100": (8, 0), "H100": (9, 0)}
DRIVER = {"nvidia": {"version": "550.163.01", "cuda": "12.4", "product": "datacenter"}}
CPU = "import torch; print('sum', torch.ones(9, 9).matmul(torch.ones(9, 9)).sum().item())"
GPU = """
import warnings, torch
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: 1
torch.cuda.get_device_capability = lambda device=None: {capability}
torch.cuda.get_device_name = lambda device=None: "captured"
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always")
    torch.cuda._check_cubins()
print("sum", not any("not compatible" in str(one.message) for one in found))
"""
"""PyTorch's check of a GPU, which it makes when it first uses one, told that there is this GPU."""


class TorchImage(Record):
    """A root directory with PyTorch, and the path of its Python."""

    name: str
    root: Path
    python: str


@pytest.fixture(scope="module")
def roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[TorchImage]]:
    """Yield the images, and remove them: they are large (three gigabytes together)."""
    folder = tmp_path_factory.mktemp("torch")
    debian = unpacked("bookworm", ("python3-torch",), folder / "debian")
    wheel = unpacked("bullseye", ("python3", "libmpich12"), folder / "wheel")
    packages = wheel / "usr/lib/python3/dist-packages"
    for requirement in ("torch==1.12.1", "typing-extensions==4.7.1"):
        target = folder / "download"
        found = mpi.wheel(requirement, target, "--python-version=3.9")
        shutil.unpack_archive(found, packages, "zip")
        shutil.rmtree(target)
    try:
        yield [
            TorchImage("PyTorch 1.13, Debian's, CPU", debian, "/usr/bin/python3.11"),
            TorchImage("PyTorch 1.12, PyPI's, CUDA 10.2", wheel, "/usr/bin/python3.9"),
        ]
    finally:
        shutil.rmtree(folder)


def unpacked(suite: str, packages: tuple[str, ...], root: Path) -> Path:
    root.mkdir()
    archive = images.debian_root(suite, packages)
    words = ["--exclude=./dev/*", "--no-same-owner", "--no-same-permissions"]
    subprocess.run(["tar", "-xf", archive, *words, "-C", root], check=True)
    (root / "qemu").touch()
    return root


def forecast(user: User, image: TorchImage, site: Path, *words: str) -> str:
    """Return the words for the forecast."""
    argv = [sys.executable, "-m", "rootless_udi", "check", str(image.root), "--json", "--no-cwd"]
    argv += [f"--site={site}", *words]
    done = user.run(*argv, env={"PYTHONPATH": str(TREE)}, timeout=1200)
    assert done.returncode in (0, 1, 3), done.stderr
    (answer,) = json.loads(done.stdout)["sites"]
    decides = [one for one in answer["findings"] if one["verdict"] == answer["verdict"]]
    print(image.name, site.name, answer["verdict"], decides[0]["check"], decides[0]["what"])
    return SAID[answer["verdict"]] + "".join(f" `{one}`" for one in answer["options"])


def ran(image: TorchImage, model: str) -> bool:
    """Tell whether the command computes right as a processor, without anything of ours."""
    qemu = shutil.which("qemu-x86_64-static") or ""
    box = ["bwrap", "--ro-bind", str(image.root), "/", "--proc", "/proc", "--dev", "/dev"]
    box += ["--ro-bind", qemu, "/qemu", "--tmpfs", "/tmp", "--clearenv", "/qemu", "-cpu", model]
    argv = [*box, image.python, "-c", CPU]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=1200)
    return done.returncode == 0 and "sum 729" in done.stdout


def fits(user: User, image: TorchImage, capability: tuple[int, int]) -> bool:
    """Tell whether PyTorch itself finds nothing wrong with a GPU, in a container."""
    code = GPU.format(capability=capability)
    argv = [TREE / "bin/udi-run", "--no-cwd", image.root, image.python, "-c", code]
    done = user.run(*argv, timeout=600)
    assert done.returncode == 0 and "sum " in done.stdout, done.stderr
    return "sum True" in done.stdout


def with_gpu(folder: Path, name: str) -> Path:
    """Return the file of a capture of this machine, as if it had GPUs of this name."""
    document = json.loads(capture(folder, "zen3").read_text())
    major, minor = GPUS[name]
    gpu = {"vendor": "nvidia", "name": f"NVIDIA {name}", "capability": f"{major}.{minor}"}
    document |= {"gpus": [gpu], "drivers": DRIVER}
    target = folder / f"{name}.json"
    target.write_text(json.dumps(document))
    return target


@pytest.mark.timeout(3600)
def test_each_forecast_is_what_happens(user: User, tmp_path: Path, roots: list[TorchImage]) -> None:
    wrong, rows = [], []
    for image in roots:
        cells = []
        for name, model in CPUS.items():
            words = ("--", image.python, "-c", CPU)
            said = forecast(user, image, capture(tmp_path, name), *words)
            happened = ran(image, model)
            cells.append(f"{said}; {'ran' if happened else 'did not'}")
            if said != ("will run" if happened else "will not"):
                wrong.append(f"{image.name} as {name}: {cells[-1]}")
        for name, capability in GPUS.items():
            if "CUDA" not in image.name:
                cells.append("-")
                continue
            said = forecast(user, image, with_gpu(tmp_path, name), "--gpu")
            good = fits(user, image, capability)
            cells.append(f"{said}; PyTorch: {'fits' if good else 'not compatible'}")
            if said != ("will run" if good else "will not"):
                wrong.append(f"{image.name} on {name}: {cells[-1]}")
        rows.append(f"| {image.name} | " + " | ".join(cells) + " |")
    heads = [*CPUS, *(f"{name}, `--gpu`" for name in GPUS)]
    table = f"| image | {' | '.join(heads)} |\n{'|---' * (len(heads) + 1)}|\n"
    table += "\n".join(rows) + "\n"
    assert wrong == [], table
    assert tables.held("forecast", BEGIN, END, table)
