"""Under a real Slurm: one container per node and step, whatever starts it and however it ends."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import mpi as mpis
from tests.kit import mpiprogs
from tests.kit.cage import ok, reachable
from tests.kit.nodes import SHOW, busybox, state_files
from tests.kit.slurm import Slurm

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs("slurm", "userns", "fuse", "mksquashfs", "busybox"),
]

PMIX = pytest.mark.needs("slurm-pmix")
LINE = 'echo "$SLURMD_NODENAME $SLURM_STEP_ID $SLURM_PROCID" $(' + SHOW + ")"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(reachable(tmp_path_factory.mktemp("image")))


@pytest.fixture(autouse=True)
def nothing_remains(slurm: Slurm, user: User) -> Iterator[None]:
    """After each test no process of the user's is left in the cluster, and no file of state."""
    reachable(user.home)
    yield
    gone(slurm, user)


def gone(slurm: Slurm, user: User, seconds: float = 60) -> None:
    state = Path(user.env["XDG_RUNTIME_DIR"])
    slurm.gone(lambda: state_files(state), seconds)


def together(user: User, count: int, name: str = "$SLURM_STEP_ID") -> str:
    """Return shell words that end when `count` ranks have come to them: all run at once then."""
    meeting = user.home / "meeting"
    if not meeting.exists():
        meeting.mkdir()
        os.chown(meeting, user.uid, user.gid)
    here = f"{meeting}/{name}"
    return (
        f"mkdir -p {here}; : > {here}/$SLURM_PROCID; "
        f"until [ $(ls {here} | wc -l) -ge {count} ]; do usleep 20000; done"
    )


def spaces(text: str) -> dict[tuple[str, str], set[tuple[str, str]]]:
    """Return the namespaces that the lines of LINE show, by (node, step)."""
    found: dict[tuple[str, str], set[tuple[str, str]]] = {}
    for line in text.splitlines():
        node, step, _, user, mnt = line.split()
        found.setdefault((node, step), set()).add((user, mnt))
    return found


def test_one_container_for_each_node_of_a_step(slurm: Slurm, user: User, image: Path) -> None:
    script = f"{LINE}; {together(user, 4)}"
    out = ok(slurm.run(user, "srun", "-N2", "-n4", "udi-run", image, "sh", "-c", script))
    assert len(out.splitlines()) == 4
    found = spaces(out)
    assert set(found) == {("n0", "0"), ("n1", "0")}
    assert [len(each) for each in found.values()] == [1, 1]
    assert found["n0", "0"] != found["n1", "0"]


def test_ranks_of_two_requests_have_one_user_namespace(
    slurm: Slurm, user: User, image: Path
) -> None:
    """Each rank has a volume with its number, and so a container of its own."""
    run = (
        f"exec udi-run --volume=/tmp:/mnt/$SLURM_PROCID {image} sh -c '{LINE}; {together(user, 3)}'"
    )
    found = spaces(ok(slurm.run(user, "srun", "-N1", "-n3", "sh", "-c", run)))
    (one,) = found.values()
    assert len({user for user, _ in one}) == 1
    assert len({mnt for _, mnt in one}) == 3


def test_many_ranks_that_end_at_once(slurm: Slurm, user: User, image: Path) -> None:
    argv = ["srun", "--quiet", "-N2", "-n16", "udi-run", image, "true"]  # it may have to queue
    for _ in range(3):
        done = slurm.run(user, *argv)
        assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("runtime", ["", "/run/user/nobody-made-this"])
def test_without_a_runtime_directory(slurm: Slurm, user: User, image: Path, runtime: str) -> None:
    """As on most clusters: the variable is of the login node, the folder is not on this one."""
    script = f"{LINE}; {together(user, 4)}"
    argv = ["srun", "-N2", "-n4", "udi-run", image, "sh", "-c", script]
    found = spaces(ok(slurm.run(user, *argv, env={"XDG_RUNTIME_DIR": runtime})))
    assert [len(each) for each in found.values()] == [1, 1]


def test_steps_of_a_batch_job_never_share(slurm: Slurm, user: User, image: Path) -> None:
    run = f"udi-run {image} sh -c '{LINE}; {together(user, 2)}'"
    srun = "srun --exact -N1 -n2"
    script = f"#!/bin/sh\n{srun} {run} & {srun} {run} & wait\n{srun} {run}\n"
    out = slurm.batch(user, script, "-N1", "-n4")
    found = spaces(out)
    assert len(out.splitlines()) == 6, out
    assert {step for _, step in found} == {"0", "1", "2"}
    assert [len(each) for each in found.values()] == [1, 1, 1]
    assert not found["n0", "0"] & found["n0", "1"]


def test_the_batch_script_itself_is_alone(slurm: Slurm, user: User, image: Path) -> None:
    """It is no rank of a step: what it runs is its own."""
    script = f"#!/bin/sh\nudi-run {image} sh -c '{LINE}'\nsrun -n1 udi-run {image} sh -c '{LINE}'\n"
    lines = slurm.batch(user, script, "-N1", "-n1").splitlines()
    assert len(lines) == 2, lines


def test_a_batch_script_keeps_a_container_until_the_job_ends(
    slurm: Slurm, user: User, image: Path
) -> None:
    """Its commands share it, whichever shell of theirs starts them; afterwards nothing remains."""
    run = f"udi-run --keep=3600 {image} sh -c '{SHOW}'"
    script = f"#!/bin/sh\n{run}\nsh <<'end'\n{run}\ntrue\nend\nudi ps\n"
    lines = slurm.batch(user, script, "-N1", "-n1").splitlines()
    assert lines[:2] == lines[2:4], lines
    assert "keep SLURM_JOB_ID=" in lines[5] and " of 1h 0m" in lines[5], lines


def test_a_rank_has_its_own_variables(slurm: Slurm, user: User, image: Path) -> None:
    script = f"echo $SLURM_PROCID $SLURM_LOCALID $SLURM_NODEID; {together(user, 4)}"
    out = ok(slurm.run(user, "srun", "-N2", "-n4", "udi-run", image, "sh", "-c", script))
    assert {line.split()[0] for line in out.splitlines()} == {"0", "1", "2", "3"}


def test_the_status_of_a_rank_comes_through(slurm: Slurm, user: User, image: Path) -> None:
    done = slurm.run(user, "srun", "-n2", "udi-run", image, "sh", "-c", "exit 7")
    assert done.returncode == 7


def test_scancel_leaves_nothing(slurm: Slurm, user: User, image: Path) -> None:
    """Slurm ends the ranks; the image server, which it does not know, ends with them."""
    up = user.home / "up"
    up.mkdir()
    up.chmod(0o777)
    script = f"#!/bin/sh\nsrun -n4 udi-run {image} sh -c ': > {up}/$SLURM_PROCID; sleep 1000'\n"
    path = user.home / "job.sh"
    path.write_text(script)
    job = ok(slurm.run(user, "sbatch", "--parsable", "-N2", "-n4", "--output=/dev/null", path))
    end = time.monotonic() + 60
    while len(list(up.iterdir())) < 4:
        assert time.monotonic() < end, slurm.logs()
        time.sleep(0.05)
    ok(slurm.run(user, "scancel", job.strip()))
    slurm.wait(user, job.strip())
    gone(slurm, user)


# MPI by Slurm's own PMI


def mpi(slurm: Slurm, user: User, kind: mpiprogs.Kind, pmi: str, *options: str) -> mpiprogs.Result:
    program = f"{mpiprogs.INSIDE}/mpicheck"
    image = reachable(mpiprogs.image(kind))
    argv = ["srun", f"--mpi={pmi}", *options, "udi-run", image, program, 3, 65536]
    return mpiprogs.parse(ok(slurm.run(user, *argv)))


@pytest.mark.needs("mpich", "mmdebstrap")
def test_mpich_by_pmi2(slurm: Slurm, user: User) -> None:
    """On one node: between two of one address, MPI_Finalize waits for ever at times (UCX)."""
    result = mpi(slurm, user, mpiprogs.MPICH, "pmi2", "-N1", "-n4")
    assert result.done and len(result.namespaces) == 4
    assert len(set(result.namespaces.values())) == 1
    assert set(result.vm_readv.values()) == {"ok"}
    assert all(text.startswith("MPICH") for text in result.library.values())


@pytest.mark.needs("openmpi", "mmdebstrap", "slurm-pmix")
def test_openmpi_by_pmix(slurm: Slurm, user: User) -> None:
    """On one node: two that have one address are beyond Open MPI's TCP."""
    result = mpi(slurm, user, mpiprogs.OPENMPI, "pmix", "-N1", "-n4")
    assert result.done and len(result.namespaces) == 4
    assert len(set(result.namespaces.values())) == 1
    assert set(result.vm_readv.values()) == {"ok"}
    assert all(text.startswith("Open MPI") for text in result.library.values())


@pytest.mark.needs("mpich", "openmpi", "mmdebstrap")
@pytest.mark.parametrize(
    ("pmi", "image", "host"),
    [
        ("pmi2", "slurm-mpich", "mpich-5.0.2"),
        ("pmi2", "slurm-mpich", "debian-mpich"),
        pytest.param("pmix", "slurm-openmpi", "openmpi-4.1.8", marks=PMIX),
        pytest.param("pmix", "slurm-openmpi", "debian-openmpi", marks=PMIX),
        # Older than this machine's C library, which comes along.
        ("pmi2", "bullseye-mpich", "debian-mpich"),
        pytest.param("pmix", "bullseye-openmpi", "debian-openmpi", marks=PMIX),
    ],
)
def test_the_hosts_mpi_inside(slurm: Slurm, user: User, pmi: str, image: str, host: str) -> None:
    """`--mpi` under srun: contents are checked, and the maps say whose libraries they are.

    Open MPI 5 is not among them: with the PMIx 4 of this Slurm it fails without a container too.
    """
    reference = mpis.pulled(image)
    argv = ["srun", f"--mpi={pmi}", "-N1", "-n4", "udi-run", "--mpi", reference]
    made = {**mpis.IMAGES, **mpis.OTHERS}[image]
    words = [mpis.PROGRAM] if made.built else ["python3", "-c", mpis.PYTHON]
    done = slurm.run(user, *argv, *words, env=mpis.environment(user, host))
    mpis.verify(ok(done), host, 4)
