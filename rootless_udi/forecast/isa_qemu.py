"""The qemu-user of this machine: is there one that can be used, and what does it emulate?"""

import os
import shutil
import subprocess

from rootless_udi.forecast import elfhead, imagetree
from rootless_udi.forecast.needs import Unreadable


class InstalledQemu:
    """What the qemu at `path` emulates (isa_models.Qemu). Each answer is asked for once."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._flags: frozenset[str] | None = None
        self._missing: dict[str, frozenset[str] | None] = {}

    def flags(self) -> frozenset[str]:
        """Return the names of CPU features that it knows."""
        if self._flags is None:
            said = self._said("-cpu", "help")[1]
            self._flags = frozenset(said.partition("Recognized CPUID flags:")[2].split())
        return self._flags

    def missing(self, cpu: str) -> frozenset[str] | None:
        """Return what it warns that it does not emulate of a model; None for an unknown model."""
        if cpu not in self._missing:
            # Any program will do, and qemu itself is a static one.
            status, said = self._said("-cpu", cpu, self.path, "--version")
            rows = [row for row in said.splitlines() if "support requested feature" in row]
            names = [row.rpartition(" [")[0].rpartition(".")[2] for row in rows]
            self._missing[cpu] = None if status else frozenset(names)
        return self._missing[cpu]

    def _said(self, *words: str) -> tuple[int, str]:
        try:
            done = subprocess.run(
                [self.path, *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=20,
            )
        except (OSError, subprocess.TimeoutExpired):
            return 1, ""
        return done.returncode, done.stdout.decode("utf-8", "replace")


def found() -> str:
    """Return the path of a static qemu for x86-64 programs, "" for none."""
    for name in ("qemu-x86_64-static", "qemu-x86_64"):
        path = shutil.which(name) or ""
        if path and _is_static(path):
            return path
    return ""


def _is_static(path: str) -> bool:
    try:
        with imagetree.opened(os.path.dirname(os.path.realpath(path))) as tree:
            content = tree.content("/" + os.path.basename(os.path.realpath(path)))
            head = elfhead.read(content) if content else None
    except (Unreadable, OSError):
        return False
    return head is not None and not head.interp
