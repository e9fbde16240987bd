"""Format, lint, types, spelling: what other programs know. The house's own rules: test_rooms.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.places import TREE

pytestmark = pytest.mark.alike


def tool(*argv: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *argv], cwd=TREE, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_lint() -> None:
    tool("ruff", "check", "--no-cache", ".", "bin/udi-run", "bin/udi")


def test_ruff_format() -> None:
    tool("ruff", "format", "--no-cache", "--check", ".")


def test_mypy_strict(tmp_path: Path) -> None:
    tool("mypy", f"--cache-dir={tmp_path}")


def shells() -> list[str]:
    """Return the shell scripts; udi-run is Python too, and has tests of its own."""
    found = []
    for path in sorted(TREE.rglob("*")):
        name = str(path.relative_to(TREE))
        if (
            path.is_symlink()
            or not path.is_file()
            or name.startswith((".git/", ".venv/", "build/"))
        ):
            continue
        with path.open("rb") as file:
            first = file.readline(40)
        if first in (b"#!/bin/sh\n", b"#!/bin/bash\n", b"# shellcheck shell=sh\n"):
            found.append(name)
    return [name for name in found if not name.startswith("bin/")]


def test_shellcheck() -> None:
    found = shells()
    assert {"tests/run", "tests/setup.sh", "bench/run", ".ci/run"} <= set(found)
    done = subprocess.run(["shellcheck", "-x", *found], cwd=TREE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_codespell() -> None:
    done = subprocess.run(["codespell", "."], cwd=TREE, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
