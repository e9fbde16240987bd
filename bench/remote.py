#!/usr/bin/env python3
"""`import numpy` of an image that is nowhere local, against the same file on this disk.

    python3 -m bench.remote IMAGE [--optimize] [--rounds=N] [--sizes=GB,GB]

Prints medians, and ratios within a round:

- what checking costs a start of a local file (image.verify);
- over a link (`links`) by URL: against a local start, and against curl, which fetches the same
  bytes; requests and bytes before the command ends, against the windows that it touches;
- of images that are grown to these sizes, by tag with a token and by digest without one, out of a
  registry that has the squashfs as a referrer: all that is asked is counted.

IMAGE is copied with the list of its windows; with --optimize it is laid out for this command first.
"""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench import links
from bench.fuse_cold import COMMAND, TREE, forgetful, once, optimised
from bench.links import Link
from rootless_udi.commands import profile
from rootless_udi.fuse import profile as profiles
from rootless_udi.fuse.filesystem import ROOT, FileSystem
from rootless_udi.fuse.imagefile import WINDOW, ImageFile
from rootless_udi.fuse.reader import Reader
from rootless_udi.store import inside, resolve

LINKS = ((1, 10_000), (20, 1_000))
"""Milliseconds of a round trip, Mb/s."""
SIZES = (0.1, 1.0, 10.0)
"""GB of images that are read at the second of them."""
OURS = TREE / "build/joiner/udi-run"
RUN = str(OURS if OURS.exists() else TREE / "bin/udi-run")
UDI = str(TREE / "bin/udi")


def listed(image: str, target: Path) -> Path:
    """Return a copy of `image` with the list of its windows and its facts inside."""
    facts = resolve.local(image, image).facts
    with open(image, "rb") as source:
        out = links.sparsely(target)
        inside.copy(source.fileno(), image, facts, out.write)
        out.close()
    return target


def touched(image: Path, folder: Path) -> int:
    """Return how many windows the command reads anything of: its reads, once more in here."""
    traced = str(folder / "touched")
    assert not profile.traced([RUN], str(image), COMMAND, traced)
    seen = {0}

    class Seen(ImageFile):
        def read(self, at: int, size: int) -> bytes:
            seen.update(range(at // WINDOW, (at + max(size, 1) - 1) // WINDOW + 1))
            return super().read(at, size)

    fd = os.open(image, os.O_RDONLY)
    reader = Reader(fd, str(image), opener=lambda fd, head, _: Seen(fd, head.bytes_used))
    fs = FileSystem(reader)
    for one in profiles.load(traced):
        node = ROOT
        for name in one.path.split(b"/") if one.path else ():
            node = fs.lookup(node, name)
            if not node:
                break
        if node and one.kind == "r":
            fs.read(node, one.offset, one.length)
        elif node and one.kind == "d":
            list(fs.entries(node, 0))
        elif node and one.kind == "l":
            fs.readlink(node)
    fs.close()
    os.close(fd)
    return len(seen)


def median(found: list[float]) -> float:
    return statistics.median(found)


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Return the median of the ratios within a round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def checking(path: Path, first: dict[str, str], folder: Path, rounds: int) -> None:
    """Print what each value of image.verify costs a start of a local file: a node's first one, and
    those after it, whose plan is known."""
    words = "never", "remote", "always"
    for word in words:
        (folder / f"{word}.toml").write_text(f'[image]\nverify = "{word}"\n')
    later = folder / "later"
    later.mkdir(mode=0o700)
    # What was changed within two seconds is not noted.
    time.sleep(2.1)
    for which, state in (
        ("a node's first start", first),
        ("later starts", {"XDG_RUNTIME_DIR": str(later)}),
    ):
        took: dict[str, list[float]] = {word: [] for word in words}
        for round_ in range(2 * rounds + 3):
            for word, found in took.items():
                env = {**state, "UDI_CONFIG": str(folder / f"{word}.toml")}
                one = once([RUN, "--quiet", str(path), *COMMAND], env)
                if round_ >= 3:
                    found.append(one)
        for word in words[1:]:
            of_never = ratio(took[word], took["never"])
            print(f"a local file, {which}, image.verify = {word}: {of_never:.3f} of never")


def fetched(link: Link, until: float) -> tuple[int, float]:
    """Return requests, and bytes in MB, before `until`."""
    asked = link.asked(until)
    return len(asked), sum(stop - at for _, at, stop, _ in asked) / 1e6


def curl(link: Link, until: float) -> list[str]:
    """Return the argv that fetches what was asked of the image's file, six at a time."""
    argv = [
        "curl",
        "--no-progress-meter",
        "--parallel",
        "--parallel-immediate",
        "--parallel-max",
        "6",
    ]
    for number, (_, at, stop, _) in enumerate(link.asked(until)):
        argv += ["--next"] if number else []
        argv += [
            "-sS",
            "-r",
            f"{at}-{stop - 1}",
            "-o",
            "/dev/null",
            f"http://{link.host}/image.sqfs",
        ]
    return argv


def by_url(path: Path, first: dict[str, str], folder: Path, rounds: int) -> None:
    """Print starts by URL over each link, against local ones and curl."""
    wanted = touched(path, folder) * WINDOW / 1e6
    documents: links.Documents = {"/image.sqfs": ("application/octet-stream", str(path))}
    for delay, rate in LINKS:
        here, away, bare = [], [], []
        with links.link(documents, folder, delay / 1000, rate * 1e6 / 8, False) as link:
            url = f"http://{link.host}/image.sqfs"
            for round_ in range(rounds + 1):
                local = once([RUN, "--fuse=udi", str(path), *COMMAND], first)
                link.settle()
                link.clear()
                remote = once([RUN, url, *COMMAND], {**first, **fresh(folder)})
                end = time.monotonic()
                requests, came = fetched(link, end)
                floor = once(curl(link, end)) if shutil.which("curl") else 0.0
                if round_:
                    here.append(local)
                    away.append(remote)
                    bare.append(floor)
        print(
            f"{delay} ms, {rate} Mb/s: local {median(here) * 1000:.0f} ms, by URL "
            f"{median(away) * 1000:.0f} ms: {ratio(away, here):.2f} of it (least / least "
            f"{min(away) / min(here):.2f}); curl of the same bytes {median(bare) * 1000:.0f} ms; "
            f"{requests} requests, {came:.1f} MB: {came / wanted:.2f} of the windows touched"
        )


def fresh(folder: Path) -> dict[str, str]:
    """Return what makes a store of its own, empty, for one start."""
    store = folder / f"store-{time.monotonic_ns()}"
    return {"UDI_STORE": str(store)}


def of_registry(path: Path, size: float, first: dict[str, str], folder: Path, rounds: int) -> None:
    """Print starts of a registry's image that is being filled, by tag and by digest."""
    delay, rate = LINKS[1]
    found, digest = links.documents(path, dict(resolve.local(str(path), str(path)).facts))
    for what, name, tokens in (
        ("by tag with a token", "app:1", True),
        ("by digest", f"app@{digest}", False),
    ):
        took = []
        with links.link(found, folder, delay / 1000, rate * 1e6 / 8, tokens) as link:
            config = folder / "trusted.toml"
            config.write_text(f'[registry."{link.host}"]\ntrusted = true\n')
            for round_ in range(rounds + 1):
                link.clear()
                env = {**first, **fresh(folder), "UDI_CONFIG": str(config)}
                full = f"{link.host}/{name}"
                one = once([RUN, "--pull=lazy", full, *COMMAND], env)
                requests, came = fetched(link, time.monotonic())
                subprocess.run([UDI, "rm", full], env={**os.environ, **env}, capture_output=True)
                link.settle()
                shutil.rmtree(env["UDI_STORE"])
                if round_:
                    took.append(one)
        print(
            f"{size:g} GB at {delay} ms, {rate} Mb/s, {what}: {median(took) * 1000:.0f} ms; "
            f"{requests} requests, {came:.1f} MB with what fills the store"
        )


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    words = dict(w[2:].partition("=")[::2] for w in argv if w.startswith("--"))
    rounds = int(words.get("rounds", "5"))
    sizes = [float(w) for w in words["sizes"].split(",")] if "sizes" in words else list(SIZES)
    image = next(w for w in argv if not w.startswith("--"))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        if "optimize" in words:
            image = optimised(image, folder)
        path = listed(image, folder / "listed.sqfs")
        first = forgetful(folder)
        checking(path, first, folder, rounds)
        by_url(path, first, folder, rounds)
        facts = resolve.local(image, image).facts
        for size in sizes:
            big, whole = folder / "big.sqfs", folder / "whole.sqfs"
            links.grown(Path(image), big, int(size * 1e9))
            big.with_suffix(".json").write_text(json.dumps(dict(facts)))
            of_registry(listed(str(big), whole), size, first, folder, rounds)
            big.unlink()


if __name__ == "__main__":
    main(sys.argv[1:])
