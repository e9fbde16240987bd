"""What our programs import: nothing of the current folder or of PYTHON*, and little at a start."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from rootless_udi.base import program as child
from tests.conftest import User
from tests.kit import images
from tests.kit.places import TREE
from tests.launch.test_run import wait_for
from tests.test_start import FOREIGN, LAUNCHER, imported


@pytest.fixture
def hostile(user: User, tmp_path: Path) -> Path:
    """A folder with a module of every name, as the current one and wherever PYTHON* can say so.

    Each leaves a word in the file `planted` when it is imported.
    """
    folder = tmp_path / "anybody"
    planted = f"open({str(user.home / 'planted')!r}, 'a').write(__name__ + ' ')\n"
    below = f"lib/python{sys.version_info[0]}.{sys.version_info[1]}/site-packages"
    for place in (folder, folder / below):
        place.mkdir(parents=True)
        for name in (*sys.stdlib_module_names, "rootless_udi", "trio", "rich", "sitecustomize"):
            (place / f"{name}.py").write_text(planted)
        (place / "usercustomize.py").write_text(planted)
        (place / "planted.pth").write_text(f"import os; {planted}")
    user.env |= {
        "PYTHONPATH": f"{folder}:",
        "PYTHONHOME": str(folder),
        "PYTHONUSERBASE": str(folder),
        "PYTHONSTARTUP": str(folder / "os.py"),
        "PYTHONPYCACHEPREFIX": str(folder / "cache"),
        "PYTHONBREAKPOINT": "os.getcwd",
        "PYTHONINSPECT": "1",
        "PYTHONVERBOSE": "1",
        "PYTHONPLATLIBDIR": str(folder),
    }
    user.run("touch", user.home / "writable", check=True)
    return folder


def clean(user: User, done: "subprocess.CompletedProcess[str]", status: int = 0) -> None:
    assert (done.returncode, done.stderr) == (status, "")
    assert not (user.home / "planted").exists(), (user.home / "planted").read_text()


@pytest.mark.parametrize("words", ["udi --version", "udi images", "udi doctor", "udi config show"])
def test_udi_imports_nothing_of_others(user: User, hostile: Path, words: str) -> None:
    done = user.run(*words.split(), cwd=hostile)
    assert done.returncode in (0, 1)
    # There is none: one line says so.
    assert not done.stderr or (words == "udi images" and done.stderr.startswith("no image is in "))
    clean(user, user.run("shifterimg", "images", cwd=hostile))
    assert not (hostile / "cache").exists()


@pytest.mark.needs("userns", "fuse", "busybox")
def test_a_start_imports_nothing_of_others(user: User, box: Path, hostile: Path) -> None:
    for words in (("udi-run", "--version"), ("udi-run", box, "true"), ("shifter", "--help")):
        clean(user, user.run(*words, cwd=hostile))
    # As the first start from a checkout: without bundle and compiled modules.
    tree = user.home / "tree"
    subprocess.run(["cp", "-a", TREE, tree], check=True)
    for path in tree.rglob("__pycache__"):
        subprocess.run(["rm", "-rf", path], check=True)
    clean(user, user.run(tree / "bin/udi-run", box, "true", cwd=hostile))


@pytest.mark.needs("mksquashfs", "busybox")
def test_a_pull_imports_nothing_of_others(user: User, hostile: Path, tmp_path: Path) -> None:
    images.busybox_layout(tmp_path / "layout")
    image = f"oci:{tmp_path}/layout:latest"
    clean(user, user.run("udi", "pull", "-q", image, cwd=hostile))
    clean(user, user.run("udi", "rm", image, cwd=hostile))
    # Of udi-run, and that of shifterimg, which goes on in the background.
    assert user.run("udi-run", image, "/bin/true", cwd=hostile).returncode == 0
    clean(user, user.run("udi", "rm", image, cwd=hostile))
    clean(user, user.run("shifterimg", "pullnb", image, cwd=hostile))
    wait_for(lambda: user.run("udi", "inspect", image, cwd=hostile).returncode == 0)
    assert not (user.home / "planted").exists(), (user.home / "planted").read_text()


@pytest.mark.needs("userns", "fuse", "busybox")
def test_a_profile_imports_nothing_of_others(user: User, box: Path, hostile: Path) -> None:
    words = ("udi", "profile", "-o", user.home / "profile", box, "--", "true")
    done = user.run(*words, cwd=hostile)
    assert done.returncode == 0 and (user.home / "profile").exists(), done.stderr
    assert not (user.home / "planted").exists(), (user.home / "planted").read_text()


@pytest.mark.parametrize("site", [True, False])
def test_a_child_imports_nothing_of_others(user: User, hostile: Path, site: bool) -> None:
    code = "import json, rootless_udi.base.errors; print(sys.argv[1:], rootless_udi.__file__)"
    done = user.run(*child.argv(code, "word", site=site), cwd=hostile)
    assert done.stdout == f"['word'] {TREE}/rootless_udi/__init__.py\n"
    clean(user, done)


def test_no_other_way_to_start_a_python() -> None:
    """Each Python that we start is started by `child`, or is a program of bin/."""
    for folder in ("rootless_udi", "fuse", "idmap", "mpi_inject"):
        for path in (TREE / folder).rglob("*.py"):
            text = path.read_text()
            if path.name != "program.py":
                assert not re.search(r"sys\.executable[^}]*,[^}]*\"-[a-zA-Z]\"", text), path
                assert not re.search(r"(spawn|Popen|exec\w*|run)\([^)]*python", text), path
    for program in ("udi", "udi-run"):
        lines = (TREE / "bin" / program).read_text().splitlines()
        starts = [line for line in lines if line.strip().startswith('exec "$')]
        assert starts and all(re.search(r'exec "\$\w*python" -I ', line) for line in starts)


# The start path


CDI = """{"cdiVersion": "0.6.0", "kind": "example.org/card", "devices":
[{"name": "0", "containerEdits": {"env": ["CARD=0"]}}]}"""
OPTIONS = ("rootless_udi.plan.modules", "rootless_udi.host.globs", "rootless_udi.launch.hooks")
CACHES = (
    "rootless_udi.plan.pernodecache",
    "rootless_udi.host.cachefacts",
    "rootless_udi.serve.cachefile",
)
MPI = ("rootless_udi.mpi_inject.mpi.planner", "rootless_udi.mpi_inject.mpi.gather")
GPU = ("rootless_udi.mpi_inject.gpu.planner", "rootless_udi.mpi_inject.cdi.registry")
MORE = {"select", "_struct", "_operator"}
"""Of extension modules, which are in the interpreter itself or cost an open each."""


@pytest.mark.parametrize(
    "modules", [OPTIONS, CACHES, MPI, GPU], ids=["module", "cache", "mpi", "gpu"]
)
def test_what_options_import(modules: tuple[str, ...]) -> None:
    found = imported(
        f"import rootless_udi.run, rootless_udi.launch.container, {', '.join(modules)}"
    )
    foreign = {name for name in found if not name.startswith("rootless_udi")}
    assert foreign <= FOREIGN | LAUNCHER | MORE


def start(user: User, *words: object) -> set[str]:
    """Return the foreign modules that a start imports, to the exec of its command."""
    argv = (sys.executable, "-I", "-S", "-X", "importtime", TREE / "bin/udi-run", *words)
    done = user.run(*argv, "/bin/true")
    # An image without glibc is refused by MPI's planner, as the last of what it does.
    assert done.returncode == 0 or "image has no glibc" in done.stderr, done.stderr
    names = re.findall(r"^import time:[^|]*\|[^|]*\| *(\S+)$", done.stderr, re.M)
    # What the interpreter itself brings.
    bare = user.run(sys.executable, "-I", "-S", "-X", "importtime", "-c", "pass").stderr
    own = set(re.findall(r"^import time:[^|]*\|[^|]*\| *(\S+)$", bare, re.M))
    return {name for name in names if not name.startswith("rootless_udi")} - own


@pytest.mark.needs("userns", "fuse", "busybox")
@pytest.mark.parametrize(
    "what",
    [
        *("plain", "module", "hook", "cache", "gpu"),
        pytest.param("file", marks=pytest.mark.needs("fuse2fs")),
        pytest.param("mpi", marks=pytest.mark.needs("mpich")),
    ],
)
def test_what_a_start_with_options_imports(
    user: User, box: Path, tmp_path: Path, what: str
) -> None:
    site = tmp_path / "site"
    for folder in (site, site / "modules.d", tmp_path / "cdi"):
        folder.mkdir(mode=0o755)
    user.env["UDI_SITE_DIR"] = str(site)
    texts = {
        site / "udi.toml": f"[gpu]\ncdi_spec_dirs = ['{tmp_path}/cdi']\n",
        site / "modules.d/module.toml": "[[bind]]\nsource = '/etc/host*'\ndestination = '/mnt/'\n",
        site / "modules.d/hook.toml": "[hook]\ncommand = 'true'\n",
        tmp_path / "cdi/card.json": CDI,
    }
    for path, text in texts.items():
        path.write_text(text)
        path.chmod(0o644)
    words: dict[str, tuple[object, ...]] = {
        "plain": (),
        "module": ("--module=module",),
        "hook": ("--module=hook",),
        "cache": (f"--volume={user.home}:/mnt:perNodeCache=size=1M",),
        "file": (f"--volume={user.home}:/mnt:perNodeCache=size=64M,method=file",),
        "mpi": ("--mpi=mpich",),
        "gpu": ("--device=example.org/card=0",),
    }
    # The configuration is TOML once, and a flattened copy from then on; the first start a bundle.
    user.run("udi-run", box, "/bin/true", check=True)
    assert start(user, *words[what], box) <= FOREIGN | LAUNCHER | MORE | {"gc", "sys"}
