"""A real Slurm cluster on one machine: munged, slurmctld, several slurmd, all state in one folder.

Debian's build has multiple-slurmd: every node daemon has a name and a port of its own, and the
host name of all of them is the machine's.
"""

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.conftest import User
from tests.kit.cage import Cage, Scheduler, reachable

_CONF = """
ClusterName=udi
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort=6817
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
TmpFS={folder}/tmp-%n
PlugStackConfig={folder}/etc/plugstack.conf
SlurmdParameters=config_overrides
InactiveLimit=0
KillWait=2
MessageTimeout=20
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""
# config_overrides: 8 CPUs a node are believed on a machine of two.
# TmpFS of each node's own: --mpi=pmix makes a folder in it, and two nodes must not share that.
_NODE = """\
NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 Boards=1 \
SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1 RealMemory=2000 State=UNKNOWN
"""


class Slurm(Scheduler):
    """A running cluster of `nodes` nodes n0, n1, ...; use it with `with`. Takes root.

    `spank` is a line for plugstack.conf.
    """

    DAEMONS = ("slurmctld", "slurmd", "munged")  # slurmscriptd is slurmctld's child

    def __init__(self, folder: Path, nodes: int = 2, spank: str = "") -> None:
        self.folder = folder
        reachable(folder).chmod(0o755)
        names = [f"n{i}" for i in range(nodes)]
        parts = ("etc", "log", "state", "run", "munge", *(f"spool-{n}" for n in names))
        for part in (*parts, *(f"tmp-{n}" for n in names)):
            (folder / part).mkdir()
            (folder / part).chmod(0o1777 if part.startswith("tmp-") else 0o755)
        self.cage = Cage(folder / "etc")
        try:
            self._start(names, spank)
        except BaseException:
            self.cage.close()
            raise

    def _start(self, names: list[str], spank: str) -> None:
        conf = _CONF.format(host=self.cage.name, folder=self.folder)
        for i, name in enumerate(names):
            conf += _NODE.format(name=name, host=self.cage.name, port=7000 + i)
        self.conf = self.folder / "etc/slurm.conf"
        self.settings = {"SLURM_CONF": str(self.conf)}
        self.conf.write_text(conf)
        (self.folder / "etc/plugstack.conf").write_text(spank + "\n")
        self._munge()
        self.cage.run("slurmctld", "-f", self.conf)
        for name in names:
            self.cage.run("slurmd", "-f", self.conf, "-N", name)
        self.cage.run("srun", f"-N{len(names)}", "true", env=self.settings)

    @contextmanager
    def plugins(self, *lines: str) -> Iterator[None]:
        """Have these lines in plugstack.conf, which each command and each slurmstepd reads anew."""
        path = self.folder / "etc/plugstack.conf"
        before = path.read_text()
        path.write_text("".join(f"{line}\n" for line in lines))
        try:
            yield
        finally:
            path.write_text(before)

    def commands_plugins(self, user: User, *lines: str) -> dict[str, str]:
        """Return variables by which srun and sbatch read these lines, and slurmstepd its own."""
        folder = reachable(user.home)
        stack, conf = folder / "plugstack.conf", folder / "slurm.conf"
        stack.write_text("".join(f"{line}\n" for line in lines))
        conf.write_text(
            self.conf.read_text().replace(f"{self.folder}/etc/plugstack.conf", str(stack))
        )
        return {"SLURM_CONF": str(conf)}

    def _munge(self) -> None:
        """Start a munged with a key and a socket of its own."""
        folder = self.folder / "munge"
        key = folder / "key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        for path in (folder, key):
            subprocess.run(["chown", "munge:munge", path], check=True)
        files = ("key", "socket", "pid", "log", "seed")
        words = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        options = [f"--{w}={folder / f}" for w, f in zip(words, files, strict=True)]
        drop = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"]
        self.cage.run(*drop, "munged", "--force", *options)

    def popen(self, user: User, *argv: object, **kwargs: object) -> "subprocess.Popen[str]":
        """Start a command in the cluster as `user`; keyword arguments as for subprocess.Popen."""
        env = self.env(user)
        return subprocess.Popen(self.argv(user, *argv), env=env, text=True, **kwargs)  # type: ignore[call-overload,no-any-return]

    def batch(self, user: User, script: str, *options: str, timeout: float = 120) -> str:
        """Submit a batch script, wait for its end and return what it printed.

        `sbatch --wait` looks every two to ten seconds; this looks ten times a second.
        """
        path, out = user.home / "job.sh", user.home / "job.out"
        path.write_text(script)
        done = self.run(user, "sbatch", "--parsable", f"--output={out}", *options, path)
        assert done.returncode == 0, done.stderr
        self.wait(user, done.stdout.strip(), timeout)
        assert out.exists(), f"the job printed nothing: {self.logs()}"
        return out.read_text()

    def wait(self, user: User, job: str, timeout: float = 120) -> None:
        """Wait until `job` and all its processes have ended (squeue lists it until then)."""
        end = time.monotonic() + timeout
        while self._listed(user, job):
            if time.monotonic() > end:
                raise TimeoutError(f"job {job} runs on: {self.logs()}")
            time.sleep(0.1)

    def _listed(self, user: User, job: str) -> bool:
        done = self.run(user, "squeue", "--noheader", "--jobs", job)
        # A busy slurmctld may not answer in time, which says nothing of the job.
        unknown = done.returncode != 0 and "Invalid job id" not in done.stderr
        return unknown or bool(done.stdout.strip())

    def logs(self) -> str:
        """Return the last lines of the daemons' logs, for a failure's message."""
        paths = sorted((self.folder / "log").glob("*.log"))
        return "\n".join(f"{p.name}: {p.read_text()[-1500:]}" for p in paths)
