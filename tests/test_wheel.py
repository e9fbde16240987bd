"""What a wheel and a source distribution bring: the tree's modules, its programs, and share/."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from rootless_udi.commands.common import share
from rootless_udi.version import VERSION
from tests.kit import probes
from tests.kit.places import TREE

DATA = f"rootless_udi-{VERSION}.data"
SKIPPED = {".git", ".venv", "build", "__pycache__"}


def built(source: Path, what: str, target: Path, compiler: str = "gcc") -> Path:
    """Return the distribution that setuptools makes of `source`, as pip and build ask for it."""
    code = (
        "import sys; from setuptools import build_meta as b; getattr(b, sys.argv[1])(sys.argv[2])"
    )
    argv = [sys.executable, "-I", "-W", "ignore", "-c", code, what, str(target)]
    env = {**os.environ, "CC": compiler}
    done = subprocess.run(argv, cwd=source, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (made,) = target.iterdir()
    return made


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree, in which a build may write."""
    target = tmp_path_factory.mktemp("checkout")
    names = sorted(path.name for path in TREE.iterdir() if path.name not in SKIPPED)
    subprocess.run(["cp", "-a", *names, target], cwd=TREE, check=True)
    return target


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(checkout, "build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def unpacked(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tree that a source distribution has."""
    target = tmp_path_factory.mktemp("unpacked")
    archive = built(checkout, "build_sdist", tmp_path_factory.mktemp("sdist"))
    subprocess.run(["tar", "-xf", archive, "-C", target], check=True)
    (top,) = target.iterdir()
    return top


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the wheel's files but for its metadata."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if ".dist-info/" not in name]
        return {name: archive.read(name) for name in names}


def expected() -> dict[str, bytes]:
    """Return what the tree says is in it: every module, also of the rooms behind symbolic links.

    The scripts are those of a wheel that no compiler had a part in.
    """
    found = {}
    for folder, names, files in os.walk(TREE / "rootless_udi", followlinks=True):
        names[:] = [name for name in names if name not in SKIPPED]
        for name in files:
            path = Path(folder, name)
            example = folder.endswith("/forecast/sites") and path.suffix == ".json"
            shown = folder.endswith(("/gateway/templates", "/gateway/static"))
            if path.suffix == ".py" or name == "py.typed" or example or shown:
                found[str(path.relative_to(TREE))] = path.read_bytes()
    for name in ("udi-run", "udi", "shifter", "shifterimg"):
        found[f"{DATA}/scripts/{name}"] = (TREE / "bin" / name).read_bytes()
    for name, text in share.files().items():
        found[f"{DATA}/data/share/{name}"] = text.encode()
    for path in (TREE / "contrib").rglob("*"):
        name = str(path.relative_to(TREE / "contrib"))
        if path.is_file() and not name.startswith("demo/"):
            found[f"{DATA}/data/share/rootless_udi/{name}"] = path.read_bytes()
    return found


@pytest.mark.needs("gcc")
def test_a_wheel_is_the_tree(wheel: Path) -> None:
    """The program in C stands before the script, which has another name then."""
    found, wanted = contents(wheel), expected()
    for name in ("udi-run", "shifter"):
        assert found.pop(f"{DATA}/scripts/{name}").startswith(b"\x7fELF")
        wanted[f"{DATA}/scripts/udi-run-python"] = wanted.pop(f"{DATA}/scripts/{name}")
    assert sorted(found) == sorted(wanted)
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert not wheel.name.endswith("-any.whl") and wheel.name.count("-py3-none-") == 1


def test_a_wheel_without_a_compiler_is_for_any_platform(checkout: Path, tmp_path: Path) -> None:
    (tmp_path / "wheel").mkdir()
    source = tmp_path / "source"
    subprocess.run(["cp", "-a", checkout, source], check=True)
    subprocess.run(["rm", "-rf", source / "build"], check=True)
    pure = built(source, "build_wheel", tmp_path / "wheel", compiler="false")
    assert contents(pure) == expected()
    assert pure.name.endswith("-py3-none-any.whl")


@pytest.mark.needs("gcc")
def test_an_installed_program_finds_the_installed_python_one(prefix: Path, tmp_path: Path) -> None:
    """Also through a link, and by its other name; neither needs a shell."""
    (tmp_path / "link").symlink_to(prefix / "bin/udi-run")
    env = {"PATH": "/nowhere"}
    for program in (prefix / "bin/udi-run", tmp_path / "link"):
        done = subprocess.run([program, "--version"], env=env, capture_output=True, text=True)
        assert done.stdout == f"udi-run {VERSION}\n", done.stderr
    asked: list[str | Path] = [prefix / "bin/shifter", "--help"]
    done = subprocess.run(asked, env=env, capture_output=True, text=True)
    assert done.stdout.startswith("usage: shifter")
    doctor: list[str | Path] = [prefix / "bin/udi", "doctor", "--json"]
    done = subprocess.run(doctor, env={"PATH": "/bin"}, capture_output=True, text=True)
    assert "in C: a rank joins" in done.stdout
    (tmp_path / "bin").mkdir()
    for name in ("udi-run", "udi-run-python"):
        subprocess.run(["cp", prefix / "bin" / name, tmp_path / "bin"], check=True)
    alone: list[str | Path] = [tmp_path / "bin/udi-run", "--version"]
    done = subprocess.run(alone, env=env, capture_output=True, text=True)
    assert done.returncode == 125
    assert done.stderr.startswith("udi-run: executing python3 failed: No such file or directory\n")


def test_every_room_is_in_it(wheel: Path) -> None:
    folders = {os.path.dirname(name) for name in contents(wheel) if name.endswith(".py")}
    links = {"rootless_udi/fuse", "rootless_udi/idmap", "rootless_udi/mpi_inject/gpu"}
    assert links <= folders
    rooms = {path.name for path in (TREE / "rootless_udi").iterdir() if path.is_dir()}
    assert rooms - SKIPPED == {name.split("/")[1] for name in folders if "/" in name}


def test_a_wheel_of_the_source_distribution_is_the_same(
    wheel: Path, unpacked: Path, tmp_path: Path
) -> None:
    again = built(unpacked, "build_wheel", tmp_path)
    assert contents(again) == contents(wheel)


def installed(wheel: Path, venv: Path) -> Path:
    """Make `venv` and let pip install the wheel there."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "--python"]
    python = venv / "bin/python3"
    subprocess.run([*pip, python, "install", "--no-deps", "--no-index", wheel], check=True)
    return venv


@pytest.fixture(scope="module")
def prefix(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(wheel, tmp_path_factory.mktemp("venv"))


def test_shells_and_man_find_what_a_wheel_installs(prefix: Path) -> None:
    for name in share.files():
        assert (prefix / "share" / name).is_file()
    # bash-completion sources COMMAND's own file; it must know the command then.
    for name in ("udi-run", "udi", "shifter", "shifterimg"):
        code = f'. "$1/{name}" && complete -p {name}'
        folder = prefix / "share/bash-completion/completions"
        done = subprocess.run(["bash", "-c", code, "bash", folder], capture_output=True, text=True)
        assert done.stdout == f"complete -F _udi_complete {name}\n", done.stderr


def test_a_site_finds_what_it_takes_from_contrib(prefix: Path) -> None:
    """docs/site.md names them; a script stays one."""
    share = prefix / "share/rootless_udi"
    names = ("apparmor/udi-run", "lmod/rootless_udi.lua", "slurm/spank_udi.c", "site/udi.toml")
    for name in (*names, "site/modules.d/cvmfs.toml", "mpi/ucx.toml"):
        assert (share / name).read_bytes() == (TREE / "contrib" / name).read_bytes()
    assert os.access(share / "gridengine/udi-starter", os.X_OK)


@pytest.mark.needs("lmod")
def test_its_modulefile_is_loaded_and_unloaded(prefix: Path, tmp_path: Path) -> None:
    """By Lmod, from a tree of modules, with bash's completion; another version takes its place."""
    text = (prefix / "share/rootless_udi/lmod/rootless_udi.lua").read_text()
    (tmp_path / "modules/rootless_udi").mkdir(parents=True)
    for version in ("0.1", "0.2"):
        (tmp_path / "opt").mkdir(exist_ok=True)
        (tmp_path / "opt" / version).symlink_to(prefix)
        file = tmp_path / f"modules/rootless_udi/{version}.lua"
        file.write_text(text.replace("/opt/rootless_udi", f"{tmp_path}/opt"))
    script = """
        . "$1"
        module load rootless_udi
        command -v udi-run; complete -p udi-run
        module load rootless_udi/0.1
        command -v udi-run
        module unload rootless_udi
        command -v udi-run
    """
    init = probes.lmod()
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "MODULEPATH": f"{tmp_path}/modules"}
    done = subprocess.run(
        ["bash", "-c", script, "bash", init], env=env, capture_output=True, text=True
    )
    first, second = (f"{tmp_path}/opt/{version}/bin/udi-run" for version in ("0.2", "0.1"))
    assert done.stdout.split("\n") == [
        first,
        "complete -F _udi_complete udi-run",
        second,
        "",
    ], done.stderr


@pytest.mark.needs("fish")
def test_fish_finds_it_by_the_command(prefix: Path, tmp_path: Path) -> None:
    env = {"PATH": f"{prefix}/bin:/usr/bin:/bin", "HOME": str(tmp_path)}
    env["XDG_DATA_DIRS"] = f"{prefix}/share"
    for line, words in {"udi-run --cl": "--clearenv", "shifterimg pu": "pull pullnb"}.items():
        argv = ["fish", "-c", 'complete -C "$argv[1]"', line]
        done = subprocess.run(argv, env=env, cwd=tmp_path, capture_output=True, text=True)
        found = [one.partition("\t")[0] for one in done.stdout.splitlines()]
        assert found == words.split(), done.stderr


@pytest.mark.needs("zsh")
def test_zsh_finds_it_by_its_first_line(prefix: Path, tmp_path: Path) -> None:
    code = (
        'fpath=("$1/share/zsh/site-functions" $fpath); autoload -U compinit; compinit -D -u; '
        "print ${_comps[udi-run]} ${_comps[shifter]}"
    )
    argv: list[str | Path] = ["zsh", "-f", "-c", code, "zsh", prefix]
    env = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    assert subprocess.run(argv, env=env, capture_output=True, text=True).stdout == "_udi _udi\n"


@pytest.mark.needs("man")
def test_man_finds_its_pages_beside_the_programs(prefix: Path) -> None:
    """man(1) looks into PREFIX/share/man for each PREFIX/bin of the PATH."""
    env = {"PATH": f"{prefix}/bin:/usr/bin:/bin"}
    for name in ("udi-run", "udi", "shifter", "shifterimg"):
        done = subprocess.run(["man", "-w", name], env=env, capture_output=True, text=True)
        assert done.stdout == f"{prefix}/share/man/man1/{name}.1\n", done.stderr


def test_an_editable_install_runs_the_checkout(checkout: Path, tmp_path: Path) -> None:
    """It has no share/: setuptools installs no data files of an editable wheel."""
    (tmp_path / "wheel").mkdir()
    prefix = installed(built(checkout, "build_editable", tmp_path / "wheel"), tmp_path / "venv")
    code = "import rootless_udi.mpi_inject.gpu.planner as m; print(m.__file__)"
    done = subprocess.run(
        [prefix / "bin/python3", "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout == f"{checkout}/rootless_udi/mpi_inject/gpu/planner.py\n", done.stderr
