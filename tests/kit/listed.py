"""What the tests know of an image's file: its squashfs, the list of its windows."""

from pathlib import Path

from rootless_udi.base import windows as base
from rootless_udi.store import windows


def used(path: Path) -> int:
    """Return the size of the squashfs in a file."""
    with path.open("rb") as file:
        return windows.used(file.fileno())


def listed(path: Path) -> base.WindowList:
    """Return the list of windows in a file."""
    with path.open("rb") as file:
        known = windows.behind(file.fileno(), windows.used(file.fileno()))
    assert known is not None
    return known
