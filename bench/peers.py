"""Peers, images and alternating rounds for the scripts of this folder.

Peers are looked for on PATH and in $UDI_PEERS/usr/bin (packages unpacked by `dpkg -x`, for example
of a newer suite). All run the same file system: the squashfs file, or the directory that it has
inside where a peer can't mount one.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

TREE = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TREE))

from tests.kit import images  # noqa: E402

PEERS = os.environ.get("UDI_PEERS", "/opt/peers/root")
OURS = f"{TREE}/build/joiner:{TREE}/bin"
PATH = f"{OURS}:{os.environ['PATH']}:{PEERS}/usr/bin:{PEERS}/usr/libexec/apptainer/bin"
ENV = {**os.environ, "PATH": PATH, "USER": os.environ.get("USER", "user")}


def find(name: str) -> str | None:
    """Return the path of a peer's program: $UDI_PEERS first, which is the newer one."""
    return shutil.which(name, path=f"{PEERS}/usr/bin") or shutil.which(name, path=PATH)


def version(program: str) -> str:
    """Return what a program calls its version."""
    done = subprocess.run([program, "--version"], capture_output=True, text=True, env=ENV)
    return (done.stdout + done.stderr).strip().splitlines()[0]


class Image:
    """One image in all the forms that the runs need: a tar, a squashfs file, a directory."""

    def __init__(self, name: str, suite: str, packages: tuple[str, ...] = ()) -> None:
        self.folder = images.cache() / f"bench-{name}"
        self.squashfs = self.folder / "image.sqfs"
        self.directory = self.folder / "tree"
        self.layout = self.folder / "layout"
        if not self.squashfs.exists():
            self._make(images.debian_root(suite, packages))

    def _make(self, root: Path) -> None:
        """Through `udi pull`, so that the image has its facts."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        images.Layout(self.layout).image(
            "latest", [root.read_bytes()], {"Env": ["PATH=/usr/bin:/bin"]}
        )
        store = self.folder / "store"
        argv = ["udi", "pull", "-q", f"oci:{self.layout}:latest"]
        env = {**ENV, "UDI_STORE": str(store)}
        digest = subprocess.run(argv, env=env, check=True, capture_output=True, text=True).stdout
        made = store / "images" / (digest.strip().replace(":", "-") + ".sqfs")
        subprocess.run(
            ["unsquashfs", "-q", "-n", "-no-xattrs", "-d", self.directory, made], check=True
        )
        made.with_suffix(".json").rename(self.folder / "image.json")
        made.rename(self.squashfs)


def runners(image: Image) -> dict[str, list[str]]:
    """Return, for each runtime that is here, the words before a command in `image`."""
    found = {"udi-run": ["udi-run", str(image.squashfs)]}
    if program := find("bwrap"):
        binds = ["--dev-bind", "/dev", "/dev", "--proc", "/proc", "--bind", "/tmp", "/tmp"]
        found["bwrap, directory"] = [program, "--ro-bind", str(image.directory), "/", *binds]
    if program := find("ch-run"):
        found["ch-run, squashfs"] = [program, str(image.squashfs), "--"]
        found["ch-run, directory"] = [program, str(image.directory), "--"]
    if program := find("apptainer"):
        found["apptainer, squashfs"] = [program, "-s", "exec", str(image.squashfs)]
    if program := find("podman"):
        found["podman, rootfs"] = [program, "run", "--rm", "--rootfs", f"{image.directory}:O"]
    working = {}
    for name, words in found.items():
        done = subprocess.run([*words, "/bin/true"], capture_output=True, text=True, env=ENV)
        if done.returncode == 0:
            working[name] = words
        else:
            print(f"left out: {name}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return working


def rounds(
    commands: Mapping[str, Sequence[str]], runs: int = 5, count: int = 4, prepare: str = ""
) -> dict[str, float]:
    """Return each command's median wall time in seconds, by hyperfine, over alternating rounds."""
    times: dict[str, list[float]] = {name: [] for name in commands}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(count):
            for name, argv in commands.items():
                out = Path(folder, "out.json")
                words = ["hyperfine", "-N", "--style=none", "-w1", f"-r{runs}"]
                words += [f"--export-json={out}"]
                if prepare:
                    words.append(f"--prepare={prepare}")
                line = " ".join(_quoted(word) for word in argv)
                subprocess.run([*words, line], check=True, env=ENV, stdout=subprocess.DEVNULL)
                times[name] += json.loads(out.read_text())["results"][0]["times"]
    return {name: statistics.median(found) for name, found in times.items()}


def _quoted(word: str) -> str:
    from shlex import quote

    return quote(word)


def table(title: str, times: dict[str, float], ours: str = "udi-run") -> None:
    """Print medians in ms and our time as a ratio of each peer's."""
    print(f"\n{title}")
    for name, seconds in times.items():
        ratio = "" if name == ours else f"   {ours} / this = {times[ours] / seconds:.2f}"
        print(f"  {name:<24}{seconds * 1000:9.1f} ms{ratio}")
