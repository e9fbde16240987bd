"""On a machine with an NVIDIA GPU: the same inside as outside, and as fast?

    python3 bench/gpu_device.py [ROUNDS]

Needs nothing but a Python with torch or cupy. Called by root it runs the container as an ordinary
user ($UDI_TEST_USER, else nobody), who must be able to read that Python's site-packages. The image
is this machine's own Python, so that both sides run the same code: a squashfs file where an
ordinary user can write and mount one, else a directory; torch comes in as a volume.

Three checks come first: nvidia-smi -L, a kernel through the driver API, no card where
CUDA_VISIBLE_DEVICES is empty. Then the times of a matrix product and a host-to-device copy: sides
alternate, each round is a process of its own whose figures are medians of 5; printed are the
medians of the rounds and inside / outside. The figure to keep: 1.01.
"""

import importlib.util
import json
import os
import pwd
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

TREE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TREE))

from tests.kit import gpuimages  # noqa: E402

PARTS = ("bin", "rootless_udi", "fuse", "idmap", "mpi_inject", "tests/programs")
INIT = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"
NO_DEVICE = "100"
"""CUDA_ERROR_NO_DEVICE."""

Done = subprocess.CompletedProcess[str]


class Side(NamedTuple):
    """Words before a command, the Python of that side, and where it sees tests/programs."""

    words: list[str]
    python: str
    programs: str

    def run(self, *argv: str, **env: str) -> Done:
        """Run `argv`; a missing program is status 127, and standard error comes through."""
        everything = {**os.environ, **env}
        argv = ("env", *self.words, *argv)
        return subprocess.run(argv, env=everything, stdout=subprocess.PIPE, text=True)

    def program(self, name: str) -> Done:
        """Run a program of tests/programs."""
        return self.run(self.python, f"{self.programs}/{name}")


def differences(outside: Side, inside: Side) -> list[str]:
    """Return what is not inside as it is outside, or not as it must be."""
    found = []
    for what, one, two in (
        ("nvidia-smi -L", outside.run("nvidia-smi", "-L"), inside.run("nvidia-smi", "-L")),
        ("a kernel", outside.program("cudakernel.py"), inside.program("cudakernel.py")),
    ):
        print(f"{what}: {two.stdout.strip()}")
        if one.returncode or two.returncode or one.stdout != two.stdout:
            sides = [f"{done.stdout!r} (status {done.returncode})" for done in (one, two)]
            found.append(f"{what}: {sides[0]} outside, {sides[1]} inside")
    for side, name in ((outside, "outside"), (inside, "inside")):
        none = side.run(side.python, "-c", INIT, CUDA_VISIBLE_DEVICES="").stdout.strip()
        if none != NO_DEVICE:
            found.append(f"no card chosen: cuInit says {none!r} {name}")
    return found


def times(sides: tuple[Side, Side], rounds: int) -> dict[str, list[float]]:
    """Return each figure's medians outside and inside, in seconds."""
    rows: list[list[dict[str, float]]] = [[], []]
    for _ in range(rounds):
        for side, row in zip(sides, rows, strict=True):
            done = side.program("cudatimes.py")
            if done.returncode:
                raise SystemExit(f"measuring failed: {side.words} ended with {done.returncode}")
            row.append(json.loads(done.stdout))
    return {
        name: [statistics.median(each[name] for each in row) for row in rows]
        for name in ("product", "copy")
    }


def report(outside: Side, inside: Side, rounds: int) -> int:
    """Print the checks and the table; return the exit status, which no time decides."""
    wrong = differences(outside, inside)
    for line in wrong:
        print(f"WRONG {line}")
    print("median          outside      inside   ratio")
    for name, (one, two) in times((outside, inside), rounds).items():
        print(f"{name:12} {one * 1e3:8.3f} ms {two * 1e3:8.3f} ms  {two / one:6.4f}")
    return 1 if wrong else 0


def site() -> Path:
    """Return the site-packages folder that has torch or cupy."""
    for name in ("torch", "cupy"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent.parent
    raise SystemExit("neither torch nor cupy is installed here")


def ordinary(folder: Path) -> list[str]:
    """Return the words that make a command an ordinary user's, to whom `folder` is given."""
    kept = ["env", "-u", "XDG_RUNTIME_DIR", "-u", "UDI_STORE", f"HOME={folder}"]
    if os.getuid() != 0:
        return kept
    user = pwd.getpwnam(os.environ.get("UDI_TEST_USER", "nobody"))
    subprocess.run(["chown", "-R", f"{user.pw_uid}:{user.pw_gid}", folder], check=True)
    who = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
    return [*kept, "setpriv", *who]


def main() -> int:
    """Prepare, check, measure."""
    rounds, packages = int((*sys.argv[1:], "5")[0]), site()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in PARTS:
            shutil.copytree(TREE / part, folder / part, symlinks=True)
        image = gpuimages.usable(folder)
        user = ordinary(folder)
        found = Side(user, "", "").run(f"{folder}/bin/udi", "gpu")
        print(f"image: {image.name}\n{found.stdout}")
        programs = f"{folder}/tests/programs"
        mounts = [f"--volume={programs}:/programs:ro", f"--volume={packages}:/site:ro"]
        start = [f"{folder}/bin/udi-run", "--gpu", *mounts, "--env=PYTHONPATH=/site", str(image)]
        outside = Side([], sys.executable, programs)
        inside = Side([*user, *start], "python3", "/programs")
        return found.returncode or report(outside, inside, rounds)


if __name__ == "__main__":
    sys.exit(main())
