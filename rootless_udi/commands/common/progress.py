"""Show how a pull goes on standard error: bars (rich) on a terminal, plain lines elsewhere."""

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from rootless_udi.base.errors import counted, plain
from rootless_udi.base.process import tell
from rootless_udi.commands.common import names
from rootless_udi.pull.progress import Progress, Silent

_SAID = {
    "resolve": "resolving {}",
    "wait": "waiting for {}, which is pulling the same image",
    "fetch": "fetching the layers",
    "pushed": "fetching the squashfs file that was pushed for it",
    "convert": "merging the layers into a squashfs file",
    "store": "putting the image into the store",
    "present": "the image is in the store already",
    "done": "the image is in the store: {}",
}


def _label(digest: str) -> str:
    """Return what a blob is called: a layer by its digest, what is pushed by its name."""
    return f"layer {names.digits(digest)}" if ":" in digest else digest


class _Total:
    """What was fetched and how long it took, as text for the last line."""

    def __init__(self) -> None:
        self.layers: dict[str, int] = {}
        self._began = time.monotonic()

    def __str__(self) -> str:
        layers, size = counted(len(self.layers), "layer"), sum(self.layers.values()) / 1e6
        return f"{layers}, {size:.1f} MB, in {time.monotonic() - self._began:.1f} s"


class Lines(Silent):
    """A line for each step, and for each layer that has been fetched."""

    def __init__(self, verbose: bool = False) -> None:
        self._verbose = verbose
        self._lock = threading.Lock()
        self._total = _Total()

    def detail(self, text: str) -> None:
        if self._verbose:
            self._say(text)

    def _say(self, text: str) -> None:
        with self._lock:
            tell(text)

    def stage(self, stage: str, text: str) -> None:
        self._say(_SAID[stage].format(self._total if stage == "done" else text))

    def blob(self, digest: str, done: int, total: int, state: str) -> None:
        self._total.layers[digest] = total
        if state == "done":
            self._say(f"{_label(digest)}: {total / 1e6:.1f} MB")

    def note(self, text: str) -> None:
        self._say(f"note: {text}")


class Bars(Silent):
    """rich's progress bars: one for each layer, and one for the bytes that have been merged."""

    def __init__(self, display: Any, verbose: bool = False) -> None:
        self._display = display
        self._verbose = verbose
        self._tasks: dict[str, Any] = {}
        self._total = _Total()
        self._lock = threading.Lock()

    def _task(self, key: str, text: str, total: int | None) -> Any:
        with self._lock:
            if key not in self._tasks:
                self._tasks[key] = self._display.add_task(text, total=total)
            return self._tasks[key]

    def stage(self, stage: str, text: str) -> None:
        if stage in ("wait", "present", "done"):
            self._print(_SAID[stage].format(self._total if stage == "done" else text))

    def blob(self, digest: str, done: int, total: int, state: str) -> None:
        self._total.layers[digest] = total
        task = self._task(digest, _label(digest), total)
        self._display.update(task, completed=done)

    def convert(self, done: int) -> None:
        self._display.update(self._task("convert", "merging", None), completed=done)

    def note(self, text: str) -> None:
        self._print(f"note: {text}")

    def detail(self, text: str) -> None:
        if self._verbose:
            self._print(text)

    def _print(self, text: str) -> None:
        from rich.text import Text

        # As Text, since in a str rich would read words in brackets as its own markup.
        self._display.console.print(Text(plain(text)))


@contextlib.contextmanager
def shown(quiet: bool = False, verbose: bool = False) -> Iterator[Progress]:
    """Yield the `Progress` that suits standard error; with `quiet` one that says nothing.

    `verbose`: also why a squashfs file that was pushed for the image is used, or not.
    """
    if quiet:
        yield Silent()
        return
    if not sys.stderr.isatty():
        yield Lines(verbose)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TransferSpeedColumn
    from rich.progress import Progress as Display

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
    )
    with Display(*columns, console=Console(stderr=True)) as display:
        yield Bars(display, verbose)
