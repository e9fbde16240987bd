"""A real Grid Engine cell of one host: qmaster and execd, all state in one folder.

Debian's programs are used from where they are, with an SGE_ROOT of our own (links to Debian's
folders beside a cell that is made here), so that it does not matter how the packages were
configured.
"""

import subprocess
import time
from pathlib import Path

from tests.conftest import User
from tests.kit.cage import Cage, Scheduler, reachable

_DEBIAN = Path("/var/lib/gridengine")
_SHARE = Path("/usr/share/gridengine")
_PROGRAMS = "/usr/lib/gridengine"

_BOOTSTRAP = """\
admin_user              sgeadmin
default_domain          none
ignore_fqdn             false
spooling_method         berkeleydb
spooling_lib            libspoolb
spooling_params         {folder}/spool/db
binary_path             /usr/sbin
qmaster_spool_dir       {folder}/spool/qmaster
security_mode           none
listener_threads        2
worker_threads          2
scheduler_threads       1
"""
_QUEUE = """\
qname all.q
hostlist {host}
load_thresholds NONE
pe_list make mpi
slots 8
tmpdir /tmp
shell /bin/sh
shell_start_mode posix_compliant
starter_method {starter}
"""
_PARALLEL = """\
pe_name mpi
slots 99
user_lists NONE
xuser_lists NONE
start_proc_args /bin/true
stop_proc_args /bin/true
allocation_rule $pe_slots
control_slaves TRUE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""


class GridEngine(Scheduler):
    """A running cell with the queue all.q and the parallel environment mpi; use it with `with`.

    `starter` is the queue's starter_method. Takes root.
    """

    DAEMONS = ("sge_qmaster", "sge_execd")

    def __init__(self, folder: Path, starter: str = "NONE") -> None:
        self.folder = folder
        reachable(folder).chmod(0o755)
        self.settings = {
            "SGE_ROOT": str(folder),
            "SGE_CELL": "default",
            "SGE_ARCH": "lx-amd64",
            "SGE_QMASTER_PORT": "6444",
            "SGE_EXECD_PORT": "6445",
        }
        self.cage = Cage(folder)
        try:
            self._cell()
            self._start()
            self._configure(starter)
        except BaseException:
            self.cage.close()
            raise

    def _cell(self) -> None:
        """Make the cell's files and its empty database."""
        for name in ("bin", "lib", "util", "utilbin"):
            (self.folder / name).symlink_to(_DEBIAN / name)
        common, spool = self.folder / "default/common", self.folder / "spool"
        for path in (common, spool / "db", spool / "qmaster/job_scripts", spool / "execd"):
            path.mkdir(parents=True)
        (common / "bootstrap").write_text(_BOOTSTRAP.format(folder=self.folder))
        (common / "act_qmaster").write_text(self.cage.name + "\n")
        config = (_SHARE / "default-configuration").read_text()
        config = config.replace("/var/spool/gridengine", str(spool))
        config = config.replace("load_report_time       00:00:40", "load_report_time 00:00:01")
        (self.folder / "configuration").write_text(config)
        subprocess.run(["chown", "-R", "sgeadmin:", common.parent, spool], check=True)
        self._admin("spoolinit", "berkeleydb", "libspoolb", spool / "db", "init")
        self._admin("spooldefaults", "configuration", self.folder / "configuration")
        self._admin("spooldefaults", "complexes", _SHARE / "util/resources/centry")
        self._admin("spooldefaults", "usersets", _SHARE / "util/resources/usersets")
        self._admin("spooldefaults", "managers", "sgeadmin", "root")

    def _admin(self, program: str, *argv: object) -> None:
        drop = ["setpriv", "--reuid=sgeadmin", "--regid=sgeadmin", "--clear-groups"]
        self.cage.run(*drop, f"{_PROGRAMS}/{program}", *argv, env=self.settings)

    def _start(self) -> None:
        self.cage.run("sge_qmaster", env=self.settings)
        self._until("qconf", "-sh")
        for option in ("-ah", "-as"):
            self.cage.run("qconf", option, self.cage.name, env=self.settings)
        self.cage.run("sge_execd", env=self.settings)

    def _until(self, *argv: str, shows: str = "", seconds: float = 120) -> None:
        """Ask until the answer holds `shows`: Grid Engine tells nobody when it is ready."""
        end = time.monotonic() + seconds
        while True:
            try:
                if shows in self.cage.run(*argv, env=self.settings).stdout:
                    return
            except RuntimeError:
                if time.monotonic() > end:
                    raise
            if time.monotonic() > end:
                raise TimeoutError(f"{argv} never showed {shows!r}")
            time.sleep(0.1)

    def _configure(self, starter: str) -> None:
        default = self._ask("-sq")  # qconf's own template: every attribute with its default
        changes = _QUEUE.format(host=self.cage.name, starter=starter)
        self._load("-Ap", _PARALLEL)
        self._load("-Aq", _overlaid(default, changes))
        quick = "schedule_interval 0:0:1\nflush_submit_sec 1\nflush_finish_sec 1\n"
        self._load("-Msconf", _overlaid(self._ask("-ssconf"), quick))
        self._until("qstat", "-f", shows="lx-amd64")

    def _ask(self, option: str) -> str:
        return self.cage.run("qconf", option, env=self.settings).stdout

    def _load(self, option: str, text: str) -> None:
        path = self.folder / "load"
        path.write_text(text)
        self.cage.run("qconf", option, path, env=self.settings)

    def submit(self, user: User, script: str, *options: str) -> str:
        """Run a job to its end and return what it printed; see `submitted`."""
        text, status = self.submitted(user, script, *options)
        assert status == 0, text + self.logs()
        return text

    def submitted(self, user: User, script: str, *options: str) -> tuple[str, int]:
        """Run a job to its end (`qsub -sync y`); return what it printed and its exit status.

        Options go before the script's name; the job gets the user's whole environment (-V).
        """
        path, out = user.home / "job.sh", user.home / "job.out"
        path.write_text(script)
        out.unlink(missing_ok=True)
        words = ["-sync", "y", "-V", "-cwd", "-j", "y", "-o", out, *options]
        done = self.run(user, "qsub", *words, path)
        assert "has been submitted" in done.stdout, done.stdout + done.stderr
        return out.read_text() if out.exists() else "", done.returncode

    def logs(self) -> str:
        """Return the last lines of the daemons' logs, for a failure's message."""
        paths = sorted((self.folder / "spool").glob("**/messages"))
        return "\n".join(f"{p.parent.name}: {p.read_text()[-1500:]}" for p in paths)


def _overlaid(text: str, changes: str) -> str:
    """Return the `name value` lines of `text` with those of `changes` in their place."""
    new = dict(line.split(None, 1) for line in changes.splitlines())
    text = text.replace("\\\n", " ")
    old = dict(line.split(None, 1) for line in text.splitlines() if line.strip())
    return "".join(f"{k} {v.strip()}\n" for k, v in {**old, **new}.items())
