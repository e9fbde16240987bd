"""`udi sshd` on two nodes of a real Slurm: the image's own mpirun, of MPICH and Open MPI, rsync, a
terminal."""

import os
import pwd
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import images, mpiprogs
from tests.kit.cage import ok, reachable
from tests.kit.nodes import SHOW, squashfs, state_files
from tests.kit.slurm import Slurm

pytestmark = [
    pytest.mark.root,
    pytest.mark.needs(
        "sshd", "slurm", "userns", "fuse", "mksquashfs", "mmdebstrap", "mpich", "openmpi"
    ),
]
SSHD = ("srun", "-N2", "--ntasks-per-node=1", "--mpi=none", "udi", "sshd")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with Slurm(tmp_path_factory.mktemp("slurm")) as cluster:
        # As systemd mounts it; sshd gives no terminal of another group.
        cluster.cage.run("mount", "-t", "devpts", "-o", "gid=5,mode=620", "devpts", "/dev/pts")
        yield cluster


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distribution with MPICH, Open MPI, ssh and rsync, and the MPI program of each."""
    packages = ("mpich", "openmpi-bin", "openssh-client", "rsync")
    root = images.debian_root(mpiprogs.codename(), packages)
    inside = mpiprogs.INSIDE.strip("/")
    entries: list[images.Entry] = [(inside, None, {})]
    for kind in mpiprogs.KINDS.values():
        compiled = mpiprogs.program(kind).read_bytes()
        entries.append((f"{inside}/{kind.name}", compiled, {"mode": 0o755}))
    layer = images.tar(entries)
    folder = reachable(tmp_path_factory.mktemp("image"))
    return squashfs(folder / "ssh.squashfs", [root, layer])


@pytest.fixture(autouse=True)
def nothing_remains(slurm: Slurm, user: User) -> Iterator[None]:
    """After each test no process, no file of state and no job's folder is left."""
    reachable(user.home)
    yield
    state = Path(user.env["XDG_RUNTIME_DIR"])
    slurm.gone(lambda: state_files(state))
    assert not (user.home / ".local/state/rootless_udi/ssh-jobs").exists()


def test_ssh_from_inside_goes_to_that_nodes_container(
    slurm: Slurm, user: User, image: Path
) -> None:
    script = (
        f"for node in n0 n1; do ssh $node '{SHOW}'; ssh $node env; done; {SHOW}; "
        "mkdir -p /tmp/udi-rsync-$SLURM_JOB_ID/a/b; echo x > /tmp/udi-rsync-$SLURM_JOB_ID/a/b/c; "
        "rsync -a /tmp/udi-rsync-$SLURM_JOB_ID/a/ n1:/tmp/udi-rsync-$SLURM_JOB_ID/d && "
        "cat /tmp/udi-rsync-$SLURM_JOB_ID/d/b/c; rm -r /tmp/udi-rsync-$SLURM_JOB_ID; exit 4"
    )
    done = slurm.run(user, *SSHD, image, "sh", "-c", script)
    assert done.returncode == 4, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    spaces = [line for line in lines if line.startswith(("user:", "mnt:"))]
    assert spaces[:2] == spaces[4:] and len({*spaces[:2], *spaces[2:4]}) == 4
    assert not [line for line in lines if line.startswith(("SLURM_", "PMI"))]
    assert lines[-1] == "x"


def test_the_images_hydra_starts_ranks_on_both_nodes(slurm: Slurm, user: User, image: Path) -> None:
    """Each node's ranks share its container; MPI itself runs on the other node alone, since the two
    pretend nodes have one address."""
    spread = f"mpiexec.hydra -hosts n0,n1 -ppn 2 -n 4 sh -c 'echo $({SHOW})'"
    other = f"mpiexec.hydra -hosts n1 -n 4 {mpiprogs.INSIDE}/mpich 3 65536"
    shared(ok(slurm.run(user, *SSHD, image, "sh", "-c", f"{spread}; {other}")))


@pytest.mark.alike
@pytest.mark.needs("openmpi4")
def test_the_images_open_mpi_starts_ranks_on_both_nodes(
    slurm: Slurm, user: User, image: Path
) -> None:
    """As hydra does. Slots are counted by tasks of the step; the cage has no interface but lo.

    Not on Debian 13, whose mpirun, 5.0.7, ends with a segmentation fault here.
    """
    mpirun = "mpirun.openmpi --map-by :OVERSUBSCRIBE --mca oob_tcp_if_include lo"
    spread = f"{mpirun} --host n0:2,n1:2 -n 4 sh -c 'echo $({SHOW})'"
    other = f"{mpirun} --host n1:4 -n 4 {mpiprogs.INSIDE}/openmpi 3 65536"
    shared(ok(slurm.run(user, *SSHD, image, "sh", "-c", f"{spread} && {other}")))


def shared(out: str) -> None:
    """Check the two nodes' containers of the first command, and the contents of the second's."""
    pairs = [tuple(line.split()) for line in out.splitlines() if line.startswith("user:")]
    assert len(pairs) == 4 and sorted(pairs.count(one) for one in {*pairs}) == [2, 2], out
    result = mpiprogs.parse(out)
    assert result.done and len({*result.namespaces.values()}) == 1
    assert set(result.vm_readv.values()) == {"ok"}


@pytest.fixture
def serving(slurm: Slurm, user: User, image: Path) -> Iterator[Path]:
    """Return the ssh configuration of a job that serves on one node until it is ended."""
    process = slurm.popen(user, "srun", "-wn0", "-n1", "udi", "sshd", image, stdout=subprocess.PIPE)
    assert process.stdout
    line = process.stdout.readline()
    while "ssh -F" not in line:
        line = process.stdout.readline()
    yield Path(line.split()[3])
    ok(slurm.run(user, "scancel", "--user", user.name))
    process.communicate(timeout=60)


def test_a_terminal(slurm: Slurm, user: User, serving: Path) -> None:
    argv = ("ssh", "-tt", "-F", serving, "n0")
    text = ok(slurm.run(user, *argv, "tty; stty size; test -t 0 && echo yes"))
    assert text.split()[0].startswith("/dev/pts/") and "yes" in text
    shell = slurm.popen(user, *argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    out, _ = shell.communicate("echo in $((40 + 2)); exit 5\n", timeout=60)
    assert "in 42" in out and shell.returncode == 5


def test_start_up_files_break_nothing(slurm: Slurm, user: User, serving: Path) -> None:
    """A .bashrc that prints, as it breaks any sshd's SFTP, and one that ends the shell."""
    rc = Path(pwd.getpwnam(user.name).pw_dir) / ".bashrc"
    before = rc.read_bytes() if rc.exists() else None
    rc.write_text("echo HELLO\nexit 3\n")
    os.chown(rc, user.uid, user.gid)
    try:
        assert ok(slurm.run(user, "ssh", "-F", serving, "n0", "echo in")) == "in\n"
        argv = ("scp", "-q", "-F", serving, "n0:/etc/passwd", user.home / "got")
        ok(slurm.run(user, *argv))
    finally:
        rc.unlink() if before is None else rc.write_bytes(before)
    assert user.name in (user.home / "got").read_text()


def test_scancel_leaves_nothing(slurm: Slurm, user: User, image: Path) -> None:
    up = user.home / "up"
    path = user.home / "job.sh"
    words = " ".join(SSHD)
    path.write_text(f"#!/bin/sh\n{words} {image} sh -c 'ssh n1 \": > {up}; sleep 1000\"'\n")
    argv = ("sbatch", "--parsable", "-N2", "--ntasks-per-node=1", f"--output={user.home}/out", path)
    job = ok(slurm.run(user, *argv)).strip()
    end = time.monotonic() + 60
    while not up.exists():
        out = user.home / "out"
        assert time.monotonic() < end, out.read_text() if out.exists() else slurm.logs()
        time.sleep(0.05)
    ok(slurm.run(user, "scancel", job))
    slurm.wait(user, job)


def test_two_tasks_on_a_node(slurm: Slurm, user: User, image: Path) -> None:
    done = slurm.run(user, "srun", "-N1", "-n2", "udi", "sshd", image, "true")
    assert "2 tasks on 1 of the job's nodes, and it is one on each" in done.stderr
    assert done.returncode != 0
