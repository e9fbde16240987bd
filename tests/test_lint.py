"""Format, lint, types, and the rules that a tool does not know."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import TREE

FOLDERS = ("rootless_udi", "fuse", "idmap", "mpi_inject")
PURE = (
    "rootless_udi/environment.py",
    "rootless_udi/newcalls.py",
    "rootless_udi/oci.py",
    "rootless_udi/options.py",
    "rootless_udi/parties.py",
    "rootless_udi/plan.py",
    "rootless_udi/records.py",
    "rootless_udi/shifterconfig.py",
    "rootless_udi/sizes.py",
    "rootless_udi/skeleton.py",
    "rootless_udi/steps.py",
    "rootless_udi/volumes.py",
    "fuse/server.py",
    "idmap/accounts.py",
    "idmap/maps.py",
)
IMPURE = {"os", "pathlib", "subprocess", "ctypes", "_ctypes", "socket", "_socket", "shutil"}


def sources() -> list[Path]:
    """Return the product's modules."""
    return [path for folder in FOLDERS for path in sorted((TREE / folder).glob("*.py"))]


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


@pytest.mark.parametrize("name", PURE)
def test_pure_modules_touch_nothing(name: str) -> None:
    found = imports(TREE / name)
    assert not found & IMPURE


def imports(path: Path) -> set[str]:
    """Return the first parts of what a module imports when it runs."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found


def test_nothing_imports_the_programs() -> None:
    """`run` is for the programs, `cli` for nobody."""
    allowed = {"cli.py", "shiftermain.py", "shifterimg.py"}
    for path in sources():
        text = path.read_text()
        if path.name not in allowed:
            assert "rootless_udi.run import" not in text, path
        started = 'child.argv("from rootless_udi.cli import'
        assert "from rootless_udi.cli import" not in text.replace(started, ""), path


def test_only_syscalls_touches_ctypes() -> None:
    allowed = {"syscalls.py", "decompress.py"}
    for path in sources():
        assert path.name in allowed or not imports(path) & {"ctypes", "_ctypes"}, path


def test_modules_and_functions_stay_small() -> None:
    for path in sources():
        text = path.read_text()
        assert text.count("\n") <= 420, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno <= 75, f"{path}: {node.name}"


def test_the_map_has_every_module() -> None:
    text = (TREE / "CONTRIBUTING.md").read_text()
    unnamed = {"__init__.py", "version.py"}
    for path in sorted((TREE / "rootless_udi").glob("*.py")):
        if path.name not in unnamed and not path.name.startswith("completion"):
            assert path.name in text, path.name
    assert text.count("\n") <= 120
