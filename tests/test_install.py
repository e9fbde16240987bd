"""Installing as people do: pip, pipx, uv; a newer version over an older; nothing is left."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from rootless_udi.version import VERSION
from tests.conftest import SYSTEM_PATH, User
from tests.kit.places import TREE

pytestmark = [pytest.mark.alike, pytest.mark.needs("installers", "userns", "fuse", "busybox")]

WHEELS = Path(sys.prefix) / "wheels"
TOOLS = {name: shutil.which(name) or name for name in ("uv", "pipx")}
NEWER = "0.99"
Ask = Callable[..., str]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the tree, in which a build may write."""
    target = tmp_path / "checkout"
    target.mkdir()
    skipped = {".git", ".venv", "build", "rootless_udi.egg-info", "tests", ".mypy_cache"}
    names = sorted(path.name for path in TREE.iterdir() if path.name not in skipped)
    subprocess.run(["cp", "-a", *names, target], cwd=TREE, check=True)
    return target


@pytest.fixture
def ask(user: User) -> Ask:
    """Run a command of a user with none of our programs on the PATH but those installed in HOME."""
    user.env["PATH"] = f"{user.home}/.local/bin:{user.home}/venv/bin:{SYSTEM_PATH}"
    user.env |= {
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(WHEELS),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_CONFIG_FILE": "/dev/null",
        "UV_NO_INDEX": "1",
        "UV_OFFLINE": "1",
        "UV_FIND_LINKS": str(WHEELS),
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_CACHE_DIR": str(user.home / "cache"),
    }

    def run(*argv: object) -> str:
        done = user.run(*argv)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def newer(checkout: Path) -> None:
    """Make the checkout a later version."""
    for name, old in (("pyproject.toml", "version = "), ("rootless_udi/version.py", "VERSION = ")):
        path = checkout / name
        text = path.read_text()
        assert f'{old}"{VERSION}"' in text
        path.write_text(text.replace(f'{old}"{VERSION}"', f'{old}"{NEWER}"'))


def works(ask: Ask, box: Path, home: Path, version: str) -> None:
    """The commands do their work, and the start path's modules are in bundles after the first."""
    assert ask("udi-run", "--version") == f"udi-run {version}\n"
    for _ in range(2):
        assert ask("udi-run", "--quiet", box, "echo", "works") == "works\n"
    found = sorted(path.name.partition(".")[0] for path in home.rglob("*.bundle"))
    assert found == ["udi-image", "udi-run", "udi-start"]
    assert [path.name for path in home.rglob("udi-run.1")]


def ours(home: Path) -> list[str]:
    """Return the package's files that are there; "rootless-udi" is how pipx and uv spell it.

    Not the state directory of a node, a cache, and what pipx locks. Empty folders are the tool's:
    uv leaves those of data files.
    """
    words, other = ("rootless_udi", "rootless-udi", "udi", "shifter"), {"cache", "run", "store"}
    return sorted(
        str(path.relative_to(home))
        for path in home.rglob("*")
        if (path.is_symlink() or path.is_file())
        and any(part.startswith(words) for part in path.relative_to(home).parts)
        and not other & {*path.relative_to(home).parts}
        and path.suffix != ".lock"
    )


@pytest.mark.parametrize(
    "tool",
    [
        "pip",
        "uv tool",
        pytest.param("uv pip", marks=pytest.mark.slow),
        pytest.param("pipx", marks=pytest.mark.slow),
    ],
)
def test_install_upgrade_uninstall(
    tool: str, user: User, ask: Ask, checkout: Path, box: Path
) -> None:
    uv, pipx, python = TOOLS["uv"], TOOLS["pipx"], user.home / "venv/bin/python3"
    base = Path(sys.executable).resolve()
    commands: dict[str, list[list[object]]] = {
        "pip": [
            [base, "-m", "venv", user.home / "venv"],
            [python, "-m", "pip", "install", checkout],
            [python, "-m", "pip", "install", "--upgrade", checkout],
            [python, "-m", "pip", "uninstall", "-y", "rootless_udi"],
        ],
        "uv pip": [
            [uv, "venv", "--python", base, user.home / "venv"],
            [uv, "pip", "install", "--python", python, checkout],
            [uv, "pip", "install", "--python", python, "--upgrade", checkout],
            [uv, "pip", "uninstall", "--python", python, "rootless_udi"],
        ],
        "uv tool": [
            ["true"],
            [uv, "tool", "install", "--python", base, checkout],
            [uv, "tool", "install", "--python", base, "--force", checkout],
            [uv, "tool", "uninstall", "rootless_udi"],
        ],
        "pipx": [
            ["true"],
            [pipx, "install", "--python", base, checkout],
            [pipx, "install", "--python", base, "--force", checkout],
            [pipx, "uninstall", "rootless_udi"],
        ],
    }
    prepare, install, upgrade, uninstall = commands[tool]
    ask(*prepare)
    before = ours(user.home)
    ask(*install)
    works(ask, box, user.home, VERSION)
    newer(checkout)
    ask(*upgrade)
    works(ask, box, user.home, NEWER)
    ask(*uninstall)
    # The store and the caller's own files are not the package's.
    assert ours(user.home) == before


def test_a_checkout_in_use_needs_no_other_install(user: User, ask: Ask, checkout: Path) -> None:
    """An editable install: what is changed in the checkout is what runs."""
    python = user.home / "venv/bin/python3"
    ask(Path(sys.executable).resolve(), "-m", "venv", user.home / "venv")
    ask(python, "-m", "pip", "install", "--editable", checkout)
    assert ask("udi", "--version") == f"udi {VERSION}\n"
    newer(checkout)
    assert ask("udi", "--version") == f"udi {NEWER}\n"
    assert ask("udi-run", "--version") == f"udi-run {NEWER}\n"
    ask(python, "-m", "pip", "uninstall", "-y", "rootless_udi")
    assert ours(user.home) == []
