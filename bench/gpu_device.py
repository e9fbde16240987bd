"""Outside against inside on an NVIDIA GPU: a matrix product and a host-to-device copy.

    python bench/gpu_device.py [ROUNDS]

Needs torch or cupy. The image is this machine's own Python, so both sides run the same code;
torch comes in as a volume. Sides alternate, each round is a process of its own whose figures are
medians of 5; printed are the medians of the rounds and inside / outside. The figure to keep: 1.01.
"""

import importlib.util
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TREE))

from tests import gpuimages  # noqa: E402

PROGRAM = TREE / "tests/programs/cudatimes.py"


def site() -> Path:
    """Return the site-packages folder that has torch or cupy."""
    for name in ("torch", "cupy"):
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent.parent
    raise SystemExit("neither torch nor cupy is installed here")


def main() -> None:
    """Measure and print the table."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    with tempfile.TemporaryDirectory() as folder:
        image = gpuimages.pulled(Path(folder), gpuimages.python_entries(), ["PATH=/bin"])
        mounts = [f"--volume={PROGRAM.parent}:/programs:ro", f"--volume={site()}:/site:ro"]
        start = [TREE / "bin/udi-run", "--gpu", *mounts, "--env=PYTHONPATH=/site", image]
        sides = {
            "outside": [sys.executable, PROGRAM],
            "inside": [*start, "python3", f"/programs/{PROGRAM.name}"],
        }
        found: dict[str, list[dict[str, float]]] = {side: [] for side in sides}
        for _ in range(rounds):
            for side, argv in sides.items():
                done = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True)
                found[side].append(json.loads(done.stdout))
        print("median          outside      inside   ratio")
        for name in ("product", "copy"):
            one, two = (statistics.median(r[name] for r in found[s]) for s in sides)
            print(f"{name:12} {one * 1e3:8.3f} ms {two * 1e3:8.3f} ms  {two / one:6.4f}")


if __name__ == "__main__":
    main()
