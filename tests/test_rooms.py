"""The map of the house: which rooms there are, and which way imports run between them.

CONTRIBUTING.md shows the same table to people; a test compares the two. Imports within functions
and those for types alone count as well: they say as much about who knows whom.
"""

import ast
import re
from pathlib import Path

import pytest

from tests.kit.places import TREE

pytestmark = pytest.mark.alike

ROOMS = {
    "base": ("", True),
    "idmap": ("base", True),
    "plan": ("base idmap", True),
    "fuse": ("base", True),
    "mpi_inject": ("base plan", True),
    "host": ("base plan", True),
    "store": ("base plan", True),
    "config": ("base plan mpi_inject", True),
    "node": ("base plan config", True),
    "serve": ("base plan idmap fuse node bundle", True),
    "launch": ("base plan idmap mpi_inject host config store node serve bundle", True),
    "run": ("base plan node serve launch version", True),
    "layers": ("base plan fuse", False),
    "pull": ("base plan store layers mpi_inject", False),
    "remote": ("base plan fuse store config pull serve", False),
    "shifter": ("base plan config store pull run", False),
    "forecast": ("base idmap plan mpi_inject host config store fuse version", False),
    "gateway": ("base plan config store pull shifter mpi_inject", False),
    "ssh": ("base plan node serve launch", False),
    "commands": (
        "base idmap plan fuse mpi_inject host store config node serve launch run layers pull "
        "remote shifter forecast gateway ssh bundle version",
        False,
    ),
    "__main__": ("commands", False),
    "bundle": ("base", True),
    "version": ("", True),
}
"""Room (a folder, or a module at the top): the rooms that it may import; may udi-run load it?"""

INNER = {
    "mpi_inject.libraries": "",
    "mpi_inject.cdi": "mpi_inject.libraries",
    "mpi_inject.mpi": "mpi_inject.libraries",
    "mpi_inject.gpu": "mpi_inject.libraries mpi_inject.cdi",
}
"""The same within a room."""

START = {"shifter.main", "shifter.options"}
"""Of a room that udi-run never loads: `shifter`, which is udi-run by another name, does."""

IMPURE = {"os", "pathlib", "subprocess", "ctypes", "_ctypes", "socket", "_socket", "shutil"}
"""What touches the machine. A pure module reaches none of it, by whatever it imports."""


def modules() -> dict[str, Path]:
    """Return module (below rootless_udi) -> file; the folders at the top by their own place."""
    found = {}
    for folder in ("rootless_udi", "fuse", "idmap", "mpi_inject"):
        top = TREE / folder
        for path in sorted(top.rglob("*.py")):
            parts = (
                path.relative_to(top if folder == "rootless_udi" else TREE).with_suffix("").parts
            )
            if folder == "rootless_udi" and parts[0] in ("fuse", "idmap", "mpi_inject"):
                continue  # the symbolic links
            if parts[-1] != "__init__":
                found[".".join(parts)] = path
    return found


MODULES = modules()
TREES = {name: ast.parse(path.read_text()) for name, path in MODULES.items()}


def named(node: ast.AST) -> set[str]:
    """Return the modules of ours that an import statement names."""
    if isinstance(node, ast.Import):
        names = {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom) and node.module:
        names = {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    else:
        return set()
    return {name.removeprefix("rootless_udi.") for name in names} & set(MODULES)


def imported(name: str) -> set[str]:
    """Return all modules of ours that a module imports, anywhere in it."""
    return set().union(*(named(node) for node in ast.walk(TREES[name])))


def at_import(body: list[ast.stmt]) -> list[ast.stmt]:
    """Return the import statements that run when the module is imported."""
    found: list[ast.stmt] = []
    for node in body:
        if isinstance(node, ast.If):
            types = isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
            found += at_import([*([] if types else node.body), *node.orelse])
        elif isinstance(node, ast.Try):
            found += at_import([*node.body, *node.orelse, *node.finalbody])
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found.append(node)
    return found


def reached(name: str) -> dict[str, tuple[str, ...]]:
    """Return the modules that importing `name` brings, each with the way that leads to it."""
    found: dict[str, tuple[str, ...]] = {name: (name,)}
    todo = [name]
    while todo:
        one = todo.pop()
        for node in at_import(TREES[one].body):
            for other in named(node) - set(found):
                found[other] = (*found[one], other)
                todo.append(other)
    return found


def room(name: str) -> str:
    return name.partition(".")[0]


def pure(name: str) -> bool:
    """Tell whether a module must be pure: all of `plan`, and who says so in its docstring."""
    return room(name) == "plan" or "Pure" in (ast.get_docstring(TREES[name]) or "")


def test_every_module_has_a_room() -> None:
    assert {room(name) for name in MODULES} == set(ROOMS)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_imports_run_one_way(name: str) -> None:
    allowed = {room(name), *ROOMS[room(name)][0].split()}
    assert not sorted(other for other in imported(name) if room(other) not in allowed)


@pytest.mark.parametrize("name", sorted(n for n in MODULES if n.startswith("mpi_inject.")))
def test_imports_run_one_way_within_a_room(name: str) -> None:
    own = name.rpartition(".")[0]
    allowed = {own, *INNER[own].split()}
    inner = {other.rpartition(".")[0] for other in imported(name) if room(other) == "mpi_inject"}
    assert inner <= allowed


def test_no_circles() -> None:
    state: dict[str, bool] = {}

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in state:
            for other in sorted(imported(name)):
                visit(other, (*way, name))
            state[name] = True

    for name in sorted(MODULES):
        visit(name, ())


@pytest.mark.parametrize("name", sorted(name for name in MODULES if pure(name)))
def test_pure_by_everything_that_it_imports(name: str) -> None:
    for one, way in reached(name).items():
        for node in at_import(TREES[one].body):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {n.partition(".")[0] for n in names} & IMPURE, " -> ".join(way)


@pytest.mark.parametrize("name", ["run", *sorted(START)])
def test_the_start_path_never_loads_the_rest(name: str) -> None:
    """By imports in functions too: what udi-run might ever load is in a room that it may."""
    found, todo = {name}, [name]
    while todo:
        for other in imported(todo.pop()) - found:
            found.add(other)
            todo.append(other)
    off = {other for other in found if not ROOMS[room(other)][1] and other not in START}
    assert not off - LAZY


LAZY = {"config.merge"}
"""What the start path loads where no flattened copy of the configuration fits."""


def test_only_two_modules_touch_ctypes() -> None:
    """`base.syscalls` for the kernel, `fuse.decompress` for the libraries that decompress."""
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if {"ctypes", "_ctypes"} & set(names):
                assert name in ("base.syscalls", "fuse.decompress")


def test_no_two_public_classes_have_one_name() -> None:
    """Who searches the tree for a class finds one."""
    places: dict[str, list[str]] = {}
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    assert not {name: where for name, where in places.items() if len(where) > 1}


def test_names_with_an_underscore_stay_in_their_module() -> None:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("rootless_udi"):
                assert not [a.name for a in node.names if a.name.startswith("_")], name


def test_modules_and_functions_stay_small() -> None:
    for name, path in MODULES.items():
        assert path.read_text().count("\n") <= 400, name
        for node in ast.walk(TREES[name]):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                assert lines <= 60, f"{name}.{node.name}: {lines} lines"


def test_contributing_shows_the_same_map() -> None:
    text = (TREE / "CONTRIBUTING.md").read_text()
    rows = re.findall(r"^\| `([a-z_]+)` \|[^|]*\|([^|]*)\|([^|]*)\|$", text, re.M)
    shown = {name: (tuple(may.split()), loads.strip()) for name, may, loads in rows}
    everything = tuple(ROOMS["commands"][0].split())
    for name, (may, start) in ROOMS.items():
        words, loads = shown.pop(name)
        said = everything if words == ("all",) else () if words == ("-",) else words
        assert set(said) == set(may.split()), name
        assert loads.startswith("never") != start, name
    assert not shown
    assert text.count("\n") <= 120


def test_one_file_a_command() -> None:
    """`udi X` is commands/X.py, parts of it commands/X_*.py; `import` is no name of a module."""
    from rootless_udi.commands.udi import parser

    known = {name for action in parser()._actions for name in action.choices or ()}
    files = {path.stem for path in (TREE / "rootless_udi/commands").glob("*.py")} - {"udi"}
    assert known <= {file.removesuffix("_") for file in files}
    assert {file.partition("_")[0] for file in files} == known


TEXTS = sorted(
    path
    for folder, pattern in (
        *((".", name) for name in ("*.md", "Makefile")),
        *((folder, "**/*") for folder in (".ci", "bin", "bench", "contrib", "docs", "tests")),
    )
    for path in (TREE / folder).glob(pattern)
    if path.is_file() and path.suffix not in (".json", ".pyc") and path.name != "CHANGELOG.md"
)
A_FILE = r"(?<![\w./$-])(?:tests|rootless_udi|contrib|bench|docs|mpi_inject)/[\w/.-]*\w"
A_MODULE = r"\b(?:from|import|-m) ((?:tests|bench|rootless_udi)\.[\w.]*\w)"


def test_what_scripts_and_documents_name_is_there() -> None:
    """Imports are checked elsewhere; a shell script's Python, a hint or a document is by no one."""
    lost = []
    for path in TEXTS:
        text = path.read_text()
        found = [m[0] for m in re.finditer(A_FILE, text)] if path.suffix != ".py" else []
        found += [m[1].replace(".", "/") for m in re.finditer(A_MODULE, text)]
        lost += [
            f"{path.relative_to(TREE)}: {name}"
            for name in found
            if not (TREE / name).exists() and not (TREE / f"{name}.py").exists()
        ]
    assert not lost
