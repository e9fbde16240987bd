"""What the tests of pulls share: images in a registry, a store, a sink, a look inside."""

import json
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rootless_udi.plan.reference import parse, platform_of
from rootless_udi.pull.pipeline import Options, pull_sync
from rootless_udi.pull.progress import Silent
from rootless_udi.pull.retry import Patience
from rootless_udi.store.find import StoredImage
from rootless_udi.store.store import Store
from tests.kit import images
from tests.kit.registry import Flaky, Registry, flaky, open_registry

HERE = platform_of(os.uname().machine)
QUICK = Patience(attempts=3, first=0.01, longest=0.02)
SIZE = 3 << 20


def noise(seed: int, size: int = SIZE) -> bytes:
    """Bytes that no compressor makes smaller."""
    return random.Random(seed).randbytes(size)


class Sink(Silent):
    """Remembers what it hears; `act` is called with each event."""

    def __init__(self, act: Callable[..., object] = lambda *event: None) -> None:
        self.stages: list[str] = []
        self.notes: list[str] = []
        self.states: dict[str, list[str]] = {}
        self.act = act

    def stage(self, stage: str, text: str) -> None:
        self.stages.append(stage)
        self.act("stage", stage)

    def blob(self, digest: str, done: int, total: int, state: str) -> None:
        seen = self.states.setdefault(digest, [])
        if state not in seen[-1:]:
            seen.append(state)
        self.act("blob", state, done, total)

    def convert(self, done: int) -> None:
        self.act("convert", done)

    def note(self, text: str) -> None:
        self.notes.append(text)


def pull(store: Store, text: str, sink: Sink | None = None, **options: Any) -> StoredImage:
    """Pull as `udi pull` does; `options` are fields of `Options`, with little patience."""
    chosen = Options(**{"patience": QUICK, **options})
    return pull_sync(parse(text), store, chosen, sink or Sink())


def inside(image: StoredImage) -> list[str]:
    argv = ["unsquashfs", "-l", "-d", "", image.squashfs]
    out = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [line for line in out.splitlines() if line.startswith("/")]


def leftovers(store: Store) -> list[str]:
    """Every file that is not a whole image, its facts or a name."""
    found = [p for p in Path(store.root).rglob("*") if not p.is_dir() or p.is_symlink()]
    return sorted(
        str(p.relative_to(store.root))
        for p in found
        if p.name.startswith(".") or p.parts[-2] in ("blobs", "locks", "dirs")
    )


def content(store: Store) -> list[str]:
    return sorted(p.name for p in Path(store.root).rglob("*") if p.is_file() or p.is_symlink())


def config_of(proxy: Flaky, name: str) -> str:
    argv = ["skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{proxy.target}/{name}"]
    body = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
    return str(body["config"]["digest"])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pull")


@pytest.fixture(scope="module")
def layout(place: Path) -> images.Layout:
    one = images.Layout(place / "layout")
    base = images.tar([("etc", None, {}), ("etc/base", noise(1), {})])
    config = {"Env": ["A=1"], "Cmd": ["/x"], "WorkingDir": "/etc", "Labels": {"l": "v"}}
    arch = HERE.architecture
    one.image("1", [base, images.tar([("top", noise(2, 1000), {})])], config, arch)
    one.image("2", [base, images.tar([("other", noise(3), {})])], config, arch)
    one.image("twice", [base, base], config, arch)
    return one


@pytest.fixture(scope="module")
def opened(place: Path, layout: images.Layout) -> Iterator[Registry]:
    with open_registry(place / "open", place / "data") as one:
        for tag in ("1", "2", "twice"):
            one.push(layout.path, tag, f"a:{tag}")
        yield one


@pytest.fixture
def proxy(opened: Registry) -> Iterator[Flaky]:
    with flaky(opened.host) as one:
        yield one


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))
