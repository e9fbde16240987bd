"""The start path is a budget: modules that it imports, files that it opens; and how it is found."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import CodeType

import pytest

from rootless_udi import bundle, version
from rootless_udi.base import boot
from tests.conftest import User
from tests.kit.calls import calls_of
from tests.kit.places import TREE

PYTHON = "/usr/bin/python3"

LAUNCH = ("join", "elect", "help", "publish", "early", "build")
OURS = {name for group in LAUNCH for name in bundle.GROUPS[group]} - {"rootless_udi"}
JOINER = set(bundle.GROUPS["join"]) - {"rootless_udi"}
FOREIGN = {"_ctypes", "_signal", "errno", "stat", "_stat"}
FOREIGN |= {"os", "os.path", "posixpath", "genericpath", "_collections_abc"}
# The os module's own, which a bare interpreter has already before Python 3.14.
FOREIGN |= {"abc", "_abc"}
LAUNCHER = {"_json", "_socket", "fcntl", "grp", "pwd", "time", "marshal"}


def imported(statement: str) -> set[str]:
    """Return the modules that `statement` adds to a bare interpreter."""
    code = (
        f"import sys; before = set(sys.modules); sys.path.insert(0, {str(TREE)!r}); {statement}; "
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_a_joiner_imports_next_to_nothing() -> None:
    found = imported("import rootless_udi.run")
    assert {n for n in found if n.startswith("rootless_udi.")} == JOINER
    assert {n for n in found if not n.startswith("rootless_udi")} <= FOREIGN


def test_a_launch_imports_what_the_bundle_has() -> None:
    found = imported(
        "import rootless_udi.run, rootless_udi.launch.shared, rootless_udi.serve.helper"
        "; import rootless_udi.launch.facts, rootless_udi.launch.container"
    )
    assert {n for n in found if n.startswith("rootless_udi.")} == OURS
    assert {n for n in found if not n.startswith("rootless_udi")} <= FOREIGN | LAUNCHER


def test_the_server_imports_what_the_bundle_has() -> None:
    found = imported("import rootless_udi.fuse.raw_transport")
    server = {n for n in found if n.startswith("rootless_udi.fuse.")}
    assert server == {*bundle.GROUPS["format"], *bundle.GROUPS["serve"]}
    # A package brings all of its group: were it the planner's, the server would load that too.
    assert "rootless_udi.fuse" in bundle.GROUPS["help"]


def test_who_fetches_a_remote_image_imports_what_the_bundle_has() -> None:
    """A child of udi-run, which has the rest."""
    found = imported("import rootless_udi.launch.facts, rootless_udi.launch.away")
    more = imported("import rootless_udi.remote.process") - found
    ours = {n for n in more if n.startswith("rootless_udi.")}
    groups = "fetch", "format", "windows"
    # Who serves the windows has compared some of them before (`serve.checked`): its group has both.
    theirs = {"rootless_udi.fuse.precheck"}
    assert ours == {name for group in groups for name in bundle.GROUPS[group]} - theirs
    assert more - ours <= FOREIGN | LAUNCHER | {"_queue", "_struct", "select"}


def test_a_builder_under_a_launcher_imports_what_the_bundle_has() -> None:
    found = imported(
        "import rootless_udi.run, rootless_udi.launch.shared, rootless_udi.idmap.userns"
        ", rootless_udi.node.pair"
    )
    assert set(bundle.GROUPS["pair"]) == {"rootless_udi.node.pair"} <= found
    # What removes the record at the end is loaded by then, in another process.
    assert not found & set(bundle.GROUPS["end"])


def lines(code: CodeType) -> list[tuple[str, list[tuple[int, int, int | None]]]]:
    """Return a code's lines, and those of all that is in it."""
    found = [(code.co_name, runs(code))]
    for one in code.co_consts:
        found += lines(one) if isinstance(one, CodeType) else []
    return found


def runs(code: CodeType) -> list[tuple[int, int, int | None]]:
    """Return (begin, end, line) with neighbours of one line together."""
    found: list[tuple[int, int, int | None]] = []
    for begin, end, line in code.co_lines():
        if found and found[-1][1:] == (begin, line):
            begin = found.pop()[0]
        found.append((begin, end, line))
    return found


def test_a_bundles_code_has_the_lines_of_the_source_and_no_columns() -> None:
    for names in bundle.GROUPS.values():
        for name in names:
            path = TREE / (name.replace(".", "/") + ".py")
            if not path.exists():
                continue
            whole = compile(path.read_bytes(), str(path), "exec", dont_inherit=True, optimize=2)
            narrow = bundle.narrow(whole)
            assert lines(narrow) == lines(whole), name
            assert {position[2:] for position in narrow.co_positions()} == {(None, None)}


def test_the_bundle_has_each_module_after_those_that_it_imports() -> None:
    for names in bundle.GROUPS.values():
        for number, name in enumerate(names):
            path = TREE / (name.replace(".", "/") + ".py")
            if not path.exists():
                continue
            for line in ast.parse(path.read_text()).body:
                if not isinstance(line, ast.ImportFrom) or line.module is None:
                    continue
                whole = {line.module, *(f"{line.module}.{alias.name}" for alias in line.names)}
                assert not whole & set(names[number:]), name


def opens(user: User, log: Path, *argv: object) -> int:
    """Return how many files udi-run itself opens before it becomes /bin/true."""
    user.env["PATH"] = f"{TREE}/bin:/usr/bin:/bin"
    done = user.run("strace", "-f", "-e", "trace=open,openat,execve", "-o", log, *argv)
    assert done.returncode == 0, done.stderr
    lines = calls_of(log)
    last = next(i for i, (_, x) in enumerate(lines) if '"/bin/true"], ' in x and "execve" in x)
    return len([x for pid, x in lines[:last] if pid == lines[0][0] and re.match(r"open(at)?\(", x)])


@pytest.mark.needs("userns", "fuse", "busybox", "strace")
def test_opens_of_a_launch_and_of_a_join(user: User, box: Path, tmp_path: Path) -> None:
    """The project's limits are 60 and 45, of which Debian's bare interpreter takes 24; an image
    with facts takes two more than this one."""
    assert user.run(PYTHON, "-IS", TREE / "bin/udi-run", box, "/bin/true").returncode == 0
    assert bundle.write(str(TREE / "rootless_udi")) or not os.access(TREE / "rootless_udi", os.W_OK)
    assert opens(user, tmp_path / "launch", "udi-run", box, "/bin/true") <= 58
    user.env["UDI_SHARE"] = "counted"
    holder = user.popen(
        "udi-run", box, "sh", "-c", "echo up; read x", stdin=-1, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None and holder.stdout.readline() == "up\n"
    assert opens(user, tmp_path / "join", "udi-run", box, "/bin/true") <= 45
    read = (tmp_path / "join").read_text()
    assert "/udi-run.cpython-" in read and "/udi-start.cpython-" not in read
    holder.communicate("\n", timeout=120)


def test_a_bundle_and_its_boot_code_have_one_format() -> None:
    assert (boot.FORMAT, boot.TAIL) == (bundle.FORMAT, bundle.TAIL)


def test_a_stale_bundle_is_left_aside(tmp_path: Path) -> None:
    """A module that changed is imported from its file; so is all where the bundle is of old."""
    for name in ("bin", "rootless_udi", "fuse", "idmap", "mpi_inject"):
        subprocess.run(["cp", "-a", TREE / name, tmp_path / name], check=True)
    package = tmp_path / "rootless_udi"
    subprocess.run(["rm", "-rf", package / "__pycache__"], check=True)
    assert bundle.write(str(package))
    launcher = tmp_path / "bin/udi-run"
    ask: list[str | Path] = [launcher, "--version"]
    assert subprocess.run(ask, capture_output=True, text=True).stdout == "udi-run 0.1.0\n"
    run = (package / "run.py").read_text()
    (package / "run.py").write_text(run.replace('"udi-run {VERSION}', '"changed {VERSION}'))
    assert subprocess.run(ask, capture_output=True, text=True).stdout == "changed 0.1.0\n"
    assert bundle.write(str(package))
    ask = [launcher, "/nowhere.sqfs", "true"]
    said = "udi-run: opening image /nowhere.sqfs failed: No such file or directory\n"
    assert subprocess.run(ask, capture_output=True, text=True).stderr == said
    resolve = (package / "store/resolve.py").read_text()
    (package / "store/resolve.py").write_text(resolve.replace('"opening image', '"changed image'))
    said = said.replace("opening", "changed")
    assert subprocess.run(ask, capture_output=True, text=True).stderr == said


@pytest.mark.parametrize("settled", [False, True])
def test_a_process_that_lives_long_imports_one_version(tmp_path: Path, settled: bool) -> None:
    """What a server imports at the end is of the files that were there when it began."""
    for name in ("rootless_udi", "fuse", "idmap", "mpi_inject"):
        subprocess.run(["cp", "-a", TREE / name, tmp_path / name], check=True)
    package = tmp_path / "rootless_udi"
    assert bundle.write(str(package))
    code = f"""if True:
        import marshal, os, sys
        data = open({bundle.path(str(package))!r}, "rb").read()
        head = marshal.loads(data)
        exec(head[1])
        assert boot(data, head, os.getuid())
        sys.path.append({str(tmp_path)!r})
        if {settled}:
            sys.meta_path[0].settle()
        for name in ("base/errors", "launch/shared"):
            os.utime({str(package)!r} + "/" + name + ".py", (1, 1))
        import rootless_udi.run, rootless_udi.launch.shared
        finders = [one for one in sys.meta_path if hasattr(one, "stale")]
        print(*[one.stale for one in finders], rootless_udi.__spec__.loader in finders)
    """
    done = subprocess.run([PYTHON, "-IS", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(not settled), str(settled)]


@pytest.mark.needs("userns", "fuse", "busybox")
def test_an_installation_from_the_wheel(user: User, box: Path, tmp_path: Path) -> None:
    """pip keeps the launcher's flags, and finds all three folders."""
    venv, wheel = tmp_path / "venv", tmp_path / "wheel"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    source = tmp_path / "source"
    source.mkdir()
    for name in ("bin", "rootless_udi", "fuse", "idmap", "mpi_inject", "pyproject.toml"):
        subprocess.run(["cp", "-a", TREE / name, source / name], check=True)
    for name in ("README.md", "LICENSE"):
        subprocess.run(["cp", "-a", TREE / name, source / name], check=True)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    build: list[str | Path] = ["wheel", "--no-deps", "--no-build-isolation", "-w", wheel, source]
    subprocess.run([*pip, *build], check=True)
    install: list[str | Path] = [
        "--python",
        venv / "bin/python3",
        "install",
        "--no-deps",
        *wheel.glob("*.whl"),
    ]
    subprocess.run([*pip, *install], check=True)
    user.env["PATH"] = "/usr/bin:/bin"
    done = user.run(venv / "bin/udi-run", box, "echo", "installed")
    assert done.stdout == "installed\n", done.stderr
    # Nor is anything imported from the current folder, or for PYTHON*.
    for name in ("json.py", "rootless_udi.py", "sitecustomize.py"):
        (tmp_path / name).write_text("raise SystemExit('not yours')")
    user.env["PYTHONPATH"] = f"{tmp_path}:"
    done = user.run(venv / "bin/udi", "ps", cwd=tmp_path)
    assert done.stderr in ("", "no container of yours is on this node\n")
    done = user.run(venv / "bin/shifterimg", "images", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    del user.env["PYTHONPATH"]
    code = "import rootless_udi.fuse.raw_transport, rootless_udi.mpi_inject.libraries.elf"
    code += ", rootless_udi.idmap.maps"
    assert user.run(venv / "bin/python3", "-c", code).returncode == 0


def test_version_is_the_projects() -> None:
    project = tomllib.loads((TREE / "pyproject.toml").read_text())["project"]
    assert project["version"] == version.VERSION
