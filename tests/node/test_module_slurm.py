"""contrib's module `slurm`: batch commands inside, in an image of this distribution and of musl."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import mpiprogs
from tests.kit.cage import reachable
from tests.kit.nodes import busybox, state_files
from tests.kit.places import TREE
from tests.kit.slurm import Slurm

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("slurm", "userns", "fuse", "mksquashfs", "mmdebstrap", "mpich", "busybox"),
]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm"), nodes=1) as cluster:
        yield cluster


@pytest.fixture
def inside(slurm: Slurm, user: User) -> Iterator[dict[str, str]]:
    """Return variables by which a client has a SlurmUser other than root, as sites do."""
    reachable(user.home)
    folder = user.home / ".config/rootless_udi/modules.d"
    folder.mkdir(parents=True)
    text = (TREE / "contrib/site/modules.d/slurm.toml").read_text()
    (folder / "slurm.toml").write_text(text)
    (folder / "bare.toml").write_text(text.replace("accounts = ", "# "))
    own = user.home / "slurm.conf"
    own.write_text(slurm.conf.read_text().replace("SlurmUser=root", "SlurmUser=slurm"))
    for path in (user.home, *user.home.rglob("*")):
        os.chown(path, user.uid, user.gid)
    yield {"SLURM_CONF": str(own)}
    state = Path(user.env["XDG_RUNTIME_DIR"])
    slurm.gone(lambda: state_files(state))


def test_batch_commands_inside(slurm: Slurm, user: User, inside: dict[str, str]) -> None:
    """A job is submitted, seen and waited for, and a step of it started, all from a container."""
    image = reachable(mpiprogs.image(mpiprogs.MPICH))
    out = user.home / "out"
    script = (
        f"sbatch --wait --quiet --output={out} --wrap='id -u; srun -n1 -Q echo step' && "
        f"cat {out} && squeue --noheader | wc -l && srun -n1 -Q hostname && "
        "sinfo --noheader -o %N"
    )
    argv = ("udi-run", "--module=slurm", f"--volume={user.home}", image, "sh", "-c", script)
    done = slurm.run(user, *argv, env=inside)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [str(user.uid), "step", "0", slurm.cage.name, "n0"]


def test_without_the_account(slurm: Slurm, user: User, inside: dict[str, str]) -> None:
    """What the key of modules is for."""
    image = reachable(mpiprogs.image(mpiprogs.MPICH))
    argv = ("udi-run", "--module=bare", f"--volume={user.home}", image, "squeue")
    done = slurm.run(user, *argv, env=inside)
    assert done.returncode != 0 and "Invalid user for SlurmUser slurm" in done.stderr


def test_an_image_of_another_c_library(
    slurm: Slurm, user: User, inside: dict[str, str], tmp_path: Path
) -> None:
    """One without glibc, as musl's are: the hook says what is the matter."""
    image = reachable(busybox(tmp_path))
    done = slurm.run(user, "udi-run", "--module=slurm", image, "true", env=inside)
    assert done.returncode == 125
    assert "do not run in this image; with another or an older C library" in done.stderr
