"""Cold start of one rank: `udi-run IMAGE python3 -c "import numpy"`, each time a fresh mount.

    python3 -m bench.fuse_cold IMAGE [OTHER-IMAGE ...] [--optimize] [--rounds=N]

Alternates udi-run over our server (on each image given, and on the first one as `udi optimize` lays
it out for this command; each once as the node's first such start, and once as a later one) with
squashfuse_ll on the first image and bubblewrap on it unpacked; prints medians and ratios to
squashfuse_ll.
"""

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rootless_udi.commands import optimize, profile

TREE = Path(__file__).resolve().parent.parent
COMMAND = ("/usr/bin/python3", "-c", "import numpy")


def once(argv: list[str], env: dict[str, str] | None = None) -> float:
    """Return the seconds that `argv` takes. Raises CalledProcessError where it fails."""
    before = time.perf_counter()
    clean = {"PATH": "/usr/bin:/bin", "HOME": os.environ.get("HOME", "/"), **(env or {})}
    # Without a time-out: with one, subprocess looks for the end every 50 ms.
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, env=clean, cwd="/")
    return time.perf_counter() - before


def forgetful(folder: Path) -> dict[str, str]:
    """Return what makes each start the first one of this node: no start is kept there."""
    state = folder / "forgetful/rootless_udi"
    state.mkdir(mode=0o700, parents=True)
    (state / "starts").touch()
    return {"XDG_RUNTIME_DIR": str(state.parent)}


def unpacked(image: str, folder: Path) -> Path:
    """Return the image as a directory under `folder`."""
    target = folder / "unpacked"
    argv = ["unsquashfs", "-q", "-n", "-no-xattrs", "-d", str(target), image]
    subprocess.run(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return target


def bubblewrap(root: Path) -> list[str]:
    """Return the argv that runs COMMAND in `root` with bubblewrap."""
    return ["bwrap", "--bind", str(root), "/", "--dev", "/dev", "--proc", "/proc", *COMMAND]


def optimised(image: str, folder: Path) -> str:
    """Return a copy of `image` in `folder`, with its facts, laid out for COMMAND."""
    target, traced = folder / "optimised.sqfs", str(folder / "profile")
    if profile.traced([str(TREE / "bin/udi-run")], image, COMMAND, traced):
        raise SystemExit(f"{' '.join(COMMAND)} failed in {image}")
    optimize.rewrite(image, [traced], str(target))
    facts = Path(image).with_suffix(".json")
    if facts.exists():
        shutil.copy(facts, target.with_suffix(".json"))
    return str(target)


def report(times: dict[str, list[float]], base: str) -> None:
    """Print medians in ms and ratios to `base`, the median of ratios within a round."""
    for name, found in times.items():
        ratios = [a / b for a, b in zip(found, times[base], strict=True)]
        print(
            f"{name:32} {statistics.median(found) * 1000:8.0f} ms"
            f"   {statistics.median(ratios):5.2f} of {base}"
            f"   (min {min(found) * 1000:.0f})"
        )


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    rounds = next((int(w[9:]) for w in argv if w.startswith("--rounds=")), 5)
    images = [w for w in argv if not w.startswith("--")]
    run = str(TREE / "bin/udi-run")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        if "--optimize" in argv:
            images.append(optimised(images[0], Path(name)))
        first = forgetful(Path(name))
        cases: dict[str, list[str]] = {}
        for image in images:
            for when in ("first", "later"):
                case = f"ours {Path(image).name}, {when}"
                cases[case] = [run, "--fuse=udi", image, *COMMAND]
        if shutil.which("squashfuse_ll"):
            cases["squashfuse_ll"] = [run, "--fuse=squashfuse_ll", images[0], *COMMAND]
        if shutil.which("bwrap"):
            cases["bubblewrap"] = bubblewrap(unpacked(images[0], Path(name)))
        times: dict[str, list[float]] = {case: [] for case in cases}
        for round_ in range(rounds + 1):
            for case, words in cases.items():
                taken = once(words, first if case.endswith("first") else {})
                if round_:  # the first round warms the page cache of the image and of Python
                    times[case].append(taken)
        report(times, "squashfuse_ll" if "squashfuse_ll" in times else next(iter(times)))
        subprocess.run(["chmod", "-R", "u+rwX", name], check=False)


if __name__ == "__main__":
    main(sys.argv[1:])
