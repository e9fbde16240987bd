"""Under a real Grid Engine: the tasks of a job on one host share; jobs, and array tasks, do not."""

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import mpiprogs
from tests.kit.cage import reachable
from tests.kit.gridengine import GridEngine
from tests.kit.nodes import SHOW, busybox, state_files
from tests.kit.places import TREE

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("gridengine", "userns", "fuse", "mksquashfs", "busybox"),
]


def found(user: User) -> str | None:
    """Return the path of the user's udi-run: Grid Engine sets the PATH itself."""
    return shutil.which("udi-run", path=user.env["PATH"])


@pytest.fixture(scope="module")
def cell(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GridEngine]:
    starter = TREE / "contrib/gridengine/udi-starter"
    with GridEngine(tmp_path_factory.mktemp("gridengine"), str(starter)) as running:
        yield running


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(reachable(tmp_path_factory.mktemp("image")))


SWEEP = """
import os, sys
from rootless_udi.node.sweep import sweep
path = os.environ["XDG_RUNTIME_DIR"] + "/rootless_udi"
if os.path.isdir(path):
    sweep(os.open(path, os.O_RDONLY))
"""


@pytest.fixture(autouse=True)
def nothing_remains(cell: GridEngine, user: User) -> Iterator[None]:
    """After each test no process of the user's is left on the host, and after a sweep no file.

    Grid Engine kills all processes that have the job's group when the job ends, helpers too.
    """
    reachable(user.home)
    yield
    cell.gone()
    state = Path(user.env["XDG_RUNTIME_DIR"])
    user.run("python3", "-c", SWEEP, cwd=TREE, check=True)
    assert state_files(state) == []


def tasks(user: User, image: Path, count: int, folder: Path) -> str:
    """Return a script's lines that run `count` tasks at once, each of which shows where it is."""
    meet = f": > {folder}/$1; until [ $(ls {folder} | wc -l) -ge {count} ]; do usleep 20000; done"
    inner = f"echo $({SHOW}); {meet}"
    one = f"{found(user)} {image} sh -c '{inner}' task $i &"
    return f"mkdir -p {folder}\nfor i in $(seq {count}); do {one} done\nwait\n"


def test_tasks_of_a_parallel_environment_share(cell: GridEngine, user: User, image: Path) -> None:
    script = "#!/bin/sh\n" + tasks(user, image, 4, user.home / "meeting")
    lines = cell.submit(user, script, "-pe", "mpi", "4").splitlines()
    assert len(lines) == 4
    assert len(set(lines)) == 1
    assert lines[0].split()[0] != os.readlink("/proc/self/ns/user")


def test_array_tasks_do_not_share(cell: GridEngine, user: User, image: Path) -> None:
    """Two tasks that run at the same time on one host."""
    folder = user.home / "meeting"
    meet = f": > {folder}/$SGE_TASK_ID; until [ $(ls {folder} | wc -l) -ge 2 ]; do sleep 1; done"
    script = f"#!/bin/sh\nmkdir -p {folder}\n{found(user)} {image} sh -c 'echo $({SHOW}); {meet}'\n"
    lines = cell.submit(user, script, "-t", "1-2").splitlines()
    assert len(lines) == len(set(lines)) == 2, lines


@pytest.mark.needs("mpich", "mmdebstrap")
def test_mpi_in_a_parallel_environment(cell: GridEngine, user: User) -> None:
    """hydra knows Grid Engine and reads PE_HOSTFILE; on one host it forks its ranks."""
    image = reachable(mpiprogs.image(mpiprogs.MPICH))
    run = f"{found(user)} {image} {mpiprogs.INSIDE}/mpicheck 2 8192"
    script = f"#!/bin/sh\nmpiexec.hydra -launcher fork -n $NSLOTS {run}\n"
    result = mpiprogs.parse(cell.submit(user, script, "-pe", "mpi", "2"))
    assert result.done
    assert len(set(result.namespaces.values())) == 1
    assert set(result.vm_readv.values()) == {"ok"}


# The starter_method of contrib/gridengine


def test_a_job_with_an_image_runs_in_it(cell: GridEngine, user: User, image: Path) -> None:
    """Its script, though it lies in execd's spool; its arguments, its task number, its status."""
    script = f"#!/bin/sh\n{SHOW}\necho $JOB_NAME $#\nls /bin/busybox\nexit 3\n"
    env = f"UDI_IMAGE={image},PATH={TREE}/bin:/usr/bin:/bin"
    out, status = cell.submitted(user, script, "-v", env, "-N", "inside")
    lines = out.splitlines()
    assert lines[0] != os.readlink("/proc/self/ns/user")
    assert lines[2:] == ["inside 0", "/bin/busybox"]
    assert status == 3


def test_a_job_without_an_image_runs_as_ever(cell: GridEngine, user: User) -> None:
    script = f'#!/bin/sh\n{SHOW}\nread line; echo "($line)"\n'
    lines = cell.submit(user, script).splitlines()
    assert lines[0] == os.readlink("/proc/self/ns/user")
    assert lines[2] == "()"


def test_qdel_leaves_nothing(cell: GridEngine, user: User, image: Path) -> None:
    up = user.home / "up"
    script = f"#!/bin/sh\n{found(user)} {image} sh -c ': > {up}; sleep 1000' &\nwait\n"
    path = user.home / "job.sh"
    path.write_text(script)
    words = ["-terse", "-V", "-cwd", "-j", "y", "-o", "/dev/null"]
    done = cell.run(user, "qsub", *words, path)
    assert done.returncode == 0, done.stderr
    end = time.monotonic() + 60
    while not up.exists():
        assert time.monotonic() < end, cell.logs()
        time.sleep(0.05)
    assert cell.run(user, "qdel", done.stdout.strip()).returncode == 0
