"""--keep: a container that waits for the next start, and who may join it."""

import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit import images
from tests.kit.nodes import SHOW, Leftovers, Rank, busybox, counted
from tests.launch.test_run import wait_for

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")

KEEP = ("udi-run", "--keep=600")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    """Nothing may remain, once what is kept has been stopped."""
    with counted(user) as found:
        yield found
        user.run("udi", "stop", "--all", check=True)


def spaces(user: User, *argv: object, **how: object) -> tuple[str, ...]:
    """Return the namespaces of one start, whose command ends at once."""
    done = user.run(*argv, "sh", "-c", SHOW, **how)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return tuple(done.stdout.split())


def helpers(left: Leftovers, name: str) -> list[int]:
    return [pid for pid, words in left.processes().items() if words == name]


def kill(pids: list[int]) -> None:
    """Kill processes, and wait until they have ended."""
    for pid in pids:
        fd = os.pidfd_open(pid)
        os.kill(pid, signal.SIGKILL)
        select.select([fd], [], [])
        os.close(fd)


def table(user: User) -> list[list[str]]:
    return [line.split() for line in user.run("udi", "ps").stdout.splitlines()[1:]]


# Who joins


def test_the_next_start_joins(user: User, image: Path, left: Leftovers) -> None:
    first = spaces(user, *KEEP, image)
    assert spaces(user, *KEEP, image) == first
    assert spaces(user, "udi-run", image, env={"UDI_KEEP": "600"}) == first
    assert spaces(user, "udi-run", image) != first
    assert spaces(user, "udi-run", "--keep=0", image, env={"UDI_KEEP": "600"}) != first
    assert spaces(user, *KEEP, "--env=A=1", "--workdir=/tmp", image) == first
    assert spaces(user, *KEEP, "--home", image) != first
    assert len(helpers(left, "udi-keep")) == 2


def test_it_ends_so_long_after_the_last_process(user: User, image: Path, left: Leftovers) -> None:
    began = time.monotonic()
    first = spaces(user, "udi-run", "--keep=1", image)
    long = Rank(user, "udi-run", "--keep=1", image).ready()
    assert long.namespaces == first
    long.end("sleep 1.2")
    assert spaces(user, "udi-run", "--keep=1", image) == first
    left.check()
    assert time.monotonic() - began > 2.2


@pytest.mark.parametrize(
    "server",
    [
        pytest.param("squashfuse_ll", marks=pytest.mark.needs("squashfuse")),
        pytest.param("pyfuse3", marks=pytest.mark.needs("pyfuse3")),
        pytest.param("fuse-python", marks=pytest.mark.needs("fuse-python")),
        pytest.param("directory", marks=pytest.mark.needs("mksquashfs")),
    ],
)
def test_whoever_serves_the_image(
    user: User, image: Path, left: Leftovers, server: str, tmp_path: Path
) -> None:
    words: list[object] = [f"--fuse={server}", image]
    if server == "directory":
        subprocess.run(["unsquashfs", "-q", "-n", "-d", tmp_path / "tree", image], check=True)
        words = [tmp_path / "tree"]
    first = spaces(user, *KEEP, *words)
    assert spaces(user, *KEEP, *words) == first
    user.run("udi", "stop", "--all", check=True)
    left.check()
    long = Rank(user, "udi-run", "--keep=1", *words).ready()
    assert long.end()[0] == 0
    left.check()


def test_many_at_once_find_one_container(user: User, image: Path, left: Leftovers) -> None:
    """Where none is there, and where one waits."""
    for _ in range(2):
        starts = [Rank(user, *KEEP, image) for _ in range(16)]
        assert len({rank.ready().namespaces for rank in starts}) == 1
        for rank in starts:
            assert rank.end()[0] == 0
    assert len(helpers(left, "udi-keep")) == 1


def test_it_belongs_to_the_folder_that_is_mounted(user: User, image: Path, left: Leftovers) -> None:
    """Unless the folder is outside, or comes by a volume with all around it."""
    one, two = user.home / "one", user.home / "two"
    one.mkdir()
    two.mkdir()
    (one / "mine").touch()
    seen = [user.run(*KEEP, image, "ls", cwd=folder).stdout for folder in (one, two, one)]
    assert seen == ["mine\n", "", "mine\n"]
    assert spaces(user, *KEEP, image, cwd=one) != spaces(user, *KEEP, image, cwd=two)
    for words in (["--no-cwd"], [f"--volume={user.home}"]):
        apart = [spaces(user, *KEEP, *words, image, cwd=folder) for folder in (one, two)]
        assert apart[0] == apart[1]
    # A folder that was made anew is another one.
    (one / "mine").unlink()
    one.rmdir()
    one.mkdir()
    (one / "new").touch()
    assert user.run(*KEEP, image, "ls", cwd=one).stdout == "new\n"


def test_what_one_start_would_leave_to_the_next(user: User, image: Path, left: Leftovers) -> None:
    """An error where it was asked for, not kept where a variable asks; --share=NAME allows it."""
    for words, why in (
        (["--writable"], "--writable"),
        (["--volume=/tmp:/var/tmp/x:perNodeCache=size=1M"], "a perNodeCache"),
        ([f"--trace={user.home}/trace"], "--trace"),
    ):
        done = user.run(*KEEP, *words, image, "true")
        assert done.returncode == 125 and f"udi-run: --keep with {why}: " in done.stderr
        done = user.run("udi-run", *words, image, "true", env={"UDI_KEEP": "600"})
        assert done.returncode == 0, done.stderr
    done = user.run(*KEEP, "--pull=always", image, "true")
    assert done.returncode == 125 and "--keep with --pull=always" in done.stderr
    done = user.run(*KEEP, "--share=off", image, "true")
    assert done.returncode == 125 and "--keep with --share=off" in done.stderr
    spaces(user, "udi-run", "--share=off", image, env={"UDI_KEEP": "600"})
    assert table(user) == []
    mine = (*KEEP, "--share=mine", "--writable", image)
    assert user.run(*mine, "touch", "/left").returncode == 0
    assert user.run(*mine, "ls", "/left").stdout == "/left\n"


def test_ranks_of_a_launcher_share_by_it(user: User, image: Path, left: Leftovers) -> None:
    """And leave nothing to wait for nobody."""
    rank = {"PMI_RANK": "0"}
    alone = spaces(user, *KEEP, image)
    assert spaces(user, *KEEP, image, env=rank) != alone
    assert len(helpers(left, "udi-keep")) == 1


def test_a_batch_job_has_its_own(user: User, image: Path, left: Leftovers) -> None:
    """It is joined within the job, and ends with the job's first process."""
    script = (
        'udi-run --keep=600 "$0" sh -c "$1"; sh -c "$2" "$0" "$1"; '
        "udi ps; ps -o pid,args -u $(id -u) >&2"
    )
    inner = 'udi-run --keep=600 "$0" sh -c "$1"; true'
    for job in ({"PBS_JOBID": "7.x"}, {"SLURM_JOB_ID": "7"}, {"JOB_ID": "7", "SGE_TASK_ID": "1"}):
        done = user.run("sh", "-c", script, image, SHOW, inner, env=job)
        lines = done.stdout.splitlines()
        assert lines[:2] == lines[2:4], done.stderr
        name = next(iter(job))
        assert f"keep {name}={job[name]}" in lines[5] and " of 10m" in lines[5]
        left.check()
    spaces(user, *KEEP, image)
    (row,) = table(user)
    assert row[2] == "keep"


def test_the_site_keeps(user: User, image: Path, left: Leftovers) -> None:
    """A start that says nothing joins what the site's key has kept, and nothing else."""
    site = user.home / "site"
    site.mkdir()
    (site / "udi.toml").write_text("[user]\nkeep = 600\n")
    env = {"UDI_SITE_DIR": str(site)}
    first = spaces(user, "udi-run", image, env=env)
    assert spaces(user, "udi-run", image, env=env) == first
    assert spaces(user, "udi-run", "--keep=0", image, env=env) != first
    assert spaces(user, "udi-run", "--writable", image, env=env) != first
    assert spaces(user, *KEEP, image, env=env) != first
    before = set(helpers(left, "udi-keep"))
    (site / "udi.toml").write_text("[user]\nkeep = 599\n# another size\n")
    spaces(user, "udi-run", image, env=env)
    assert set(helpers(left, "udi-keep")) - before
    # A variable that a path of it has.
    words = f'[user]\nkeep = 600\n[[mount]]\nsource = "{user.home}/$WHICH"\n'
    (site / "udi.toml").write_text(words + 'destination = "/data"\n')
    for name in ("one", "two"):
        (user.home / name).mkdir()
        (user.home / name / name).touch()
    for name in ("one", "two", "one"):
        done = user.run("udi-run", image, "ls", "/data", env={**env, "WHICH": name})
        assert done.stdout == f"{name}\n", done.stderr
    (site / "udi.toml").write_text("[user]\nkeep = 86401\n")
    assert user.run("udi-run", image, "true", env=env).returncode == 125


# What ends it


def test_an_image_that_is_another_one_by_now(
    user: User, image: Path, left: Leftovers, tmp_path: Path
) -> None:
    file = tmp_path / "mine.sqfs"
    file.write_bytes(image.read_bytes())
    spaces(user, *KEEP, file)
    # The kernel may give a new container the numbers of one that has ended.
    (first,) = helpers(left, "udi-keep")
    new = tmp_path / "new.sqfs"
    new.write_bytes(image.read_bytes())
    new.rename(file)
    second = spaces(user, *KEEP, file)
    end = time.monotonic() + 60
    while not set(helpers(left, "udi-keep")) - {first}:
        # It gets its name when it has begun, for which nobody waits.
        assert time.monotonic() < end
    assert spaces(user, *KEEP, file) == second
    file.unlink()
    assert user.run(*KEEP, file, "true").returncode == 125
    # Nobody has to ask for it: those that wait look now and then.
    left.check()


def test_an_image_of_the_store_that_was_removed_or_has_another_name(
    user: User, left: Leftovers, tmp_path: Path
) -> None:
    images.busybox_layout(tmp_path / "layout")
    name = f"oci:{tmp_path}/layout:latest"
    # Outside any launcher it is pulled, as without --keep.
    done = user.run(*KEEP, "--quiet", name, "true")
    assert done.returncode == 0, done.stderr
    first = spaces(user, *KEEP, "--quiet", name)
    assert spaces(user, *KEEP, "--quiet", name) == first
    assert user.run("udi", "tag", name, "my/box:1").returncode == 0
    tagged = spaces(user, *KEEP, "my/box:1")
    assert spaces(user, *KEEP, "my/box:1") == tagged
    assert user.run("udi", "rm", "my/box:1").returncode == 0
    done = user.run(*KEEP, "--pull=never", "my/box:1", "true")
    assert done.returncode == 125 and "is in no image store" in done.stderr
    assert spaces(user, *KEEP, "--quiet", name) == first
    assert user.run("udi", "rm", name).returncode == 0
    left.check()


def test_pruning_counts_no_container_that_waits(
    user: User, left: Leftovers, tmp_path: Path
) -> None:
    images.busybox_layout(tmp_path / "layout")
    name = f"oci:{tmp_path}/layout:latest"
    spaces(user, *KEEP, "--quiet", name)
    before = user.run("udi", "images", "--names").stdout
    assert before
    done = user.run("udi", "prune", "--until-free=1000000G")
    assert "freed " in done.stderr and user.run("udi", "images", "--names").stdout == ""
    left.check()


def test_stopping_one(user: User, image: Path, left: Leftovers) -> None:
    spaces(user, *KEEP, image)
    (row,) = table(user)
    assert row[3:5] == ["0", "0s"] or row[3] == "0"
    name = row[0]
    assert name.startswith("keep-") and user.run("udi", "ps", "--names").stdout == f"{name}\n"
    done = user.run("udi", "exec", name, "echo", "inside")
    assert done.stdout == "inside\n"
    done = user.run("udi", "stop", name[:8])
    assert (done.returncode, done.stdout) == (0, f"stopped {name} ({image})\n")
    left.check()
    spaces(user, *KEEP, image)
    long = Rank(user, *KEEP, image).ready()
    done = user.run("udi", "stop", "--all")
    assert done.stdout == f"{name} ({image}) is not kept any more, and ends with its 1 process\n"
    done = user.run("udi", "stop", name)
    assert done.returncode == 125
    assert f"the container {name} is not kept: it ends with its command" in done.stderr
    assert f"kill {long.pid}" in done.stderr
    assert spaces(user, *KEEP, image) == long.namespaces
    assert long.end()[0] == 0
    left.check()
    for words in ([], ["--all", "x"]):
        assert "udi stop: which one?" in user.run("udi", "stop", *words).stderr
    assert "is called x" in user.run("udi", "stop", "x").stderr
    assert user.run("udi", "stop", "--all").returncode == 0


@pytest.mark.parametrize("name", ["udi-keep", "udi-helper", "udi-image"])
@pytest.mark.parametrize("busy", [False, True])
def test_whichever_of_its_processes_is_killed(
    user: User, image: Path, left: Leftovers, name: str, busy: bool
) -> None:
    """It ends, or goes on without being kept; the next start gets a new one or joins."""
    spaces(user, *KEEP, image)
    before = helpers(left, "udi-keep")
    long = Rank(user, *KEEP, image).ready() if busy else None
    kill(helpers(left, name))
    assert user.run(*KEEP, image, "sh", "-c", SHOW).returncode == 0
    if name == "udi-image":
        # A new process takes this name a moment after it was started.
        wait_for(lambda: set(helpers(left, "udi-keep")) - set(before))
    user.run("udi", "stop", "--all", check=True)
    if long:
        long.kill()
    left.check()


def test_signals_for_jobs_do_not_end_it(user: User, image: Path, left: Leftovers) -> None:
    first = spaces(user, *KEEP, image)
    for name in ("udi-keep", "udi-helper", "udi-image"):
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGUSR1):
            os.kill(helpers(left, name)[0], number)
    assert spaces(user, *KEEP, image) == first


def test_a_record_of_before_a_reboot(user: User, image: Path, left: Leftovers) -> None:
    """/tmp may outlive the node's processes: the record is there, and nobody of it."""
    spaces(user, *KEEP, image)
    (record,) = (user.home / "run/rootless_udi").glob("*.2")
    before = record.read_bytes()
    user.run("udi", "stop", "--all", check=True)
    left.check()
    record.touch(mode=0o600)
    record.write_bytes(before)
    second = spaces(user, *KEEP, image)
    assert record.read_bytes() != before
    assert spaces(user, *KEEP, image) == second
    record.write_bytes(b"udi 2 99999999\n\0\xff")
    assert spaces(user, *KEEP, image)[0]


def test_starts_while_it_is_stopped_again_and_again(
    user: User, image: Path, left: Leftovers
) -> None:
    """Whoever starts is in, or gets a new one; nobody gets an error."""
    script = 'for i in 1 2 3 4 5 6 7 8 9 10; do udi-run --keep=600 "$0" true || exit 1; done'
    starts = [user.popen("sh", "-c", script, image, stderr=subprocess.PIPE) for _ in range(3)]
    while any(one.poll() is None for one in starts):
        for pid in helpers(left, "udi-keep"):
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
    assert [(one.returncode, one.communicate()[1]) for one in starts] == [(0, "")] * 3


def test_a_record_of_many_starts_is_written_anew(user: User, image: Path, left: Leftovers) -> None:
    """The lines of 2,000 members that have ended; who lives, and who came meanwhile, stays."""
    first = spaces(user, *KEEP, image)
    (record,) = (user.home / "run/rootless_udi").glob("*.2")
    long = Rank(user, *KEEP, image).ready()
    small = record.stat().st_size
    with open(record, "ab") as file:
        file.write(b"".join(b"%d 7\n" % pid for pid in range(4190000, 4192000)))
    while record.stat().st_size > small + 200:
        assert spaces(user, *KEEP, image) == first
    assert b"\n%d " % long.pid in record.read_bytes()
    os.kill(helpers(left, "udi-keep")[0], signal.SIGKILL)
    assert spaces(user, *KEEP, image) == first
    assert long.end()[0] == 0


def test_too_many_are_not_kept(user: User, image: Path, left: Leftovers) -> None:
    state = user.home / "run/rootless_udi"
    state.mkdir(mode=0o700)
    for number in range(70):
        (state / f"keep-{number:032x}.of-another-version").touch()
    spaces(user, *KEEP, image)
    assert helpers(left, "udi-keep") == []
    for path in state.glob("*.of-another-version"):
        path.unlink()


@pytest.mark.parametrize("text", ["-1", "1.5", "86401", "9" * 50, "x", "1e3", " 5", "٣"])
def test_what_is_no_number_of_seconds(user: User, image: Path, text: str) -> None:
    for words, env in (([f"--keep={text}"], {}), ([], {"UDI_KEEP": text})):
        done = user.run("udi-run", *words, image, "true", env=env)
        assert done.returncode == 125
        assert f"={text}: not a number of seconds from 0 to 86400" in done.stderr


SNAKEFILE = """
rule all:
    input: expand("{name}.out", name=["a", "b", "c", "d", "e"])
rule one:
    output: "{name}.out"
    shell: "udi-run IMAGE sh -c 'readlink /proc/self/ns/mnt >{output}'"
"""


@pytest.mark.slow
@pytest.mark.needs("snakemake")
def test_the_steps_of_a_snakemake_workflow(user: User, image: Path, left: Leftovers) -> None:
    """By the settings of docs/keep.md, with the Snakemake that is on the PATH."""
    program = shutil.which("snakemake")
    assert program
    user.env["PATH"] += f":{os.path.dirname(program)}"
    flow = user.home / "flow"
    flow.mkdir()
    (flow / "Snakefile").write_text(SNAKEFILE.replace("IMAGE", str(image)))
    done = user.run("snakemake", "--cores", "2", cwd=flow, env={"UDI_KEEP": "600"})
    assert done.returncode == 0, done.stderr
    assert len({path.read_text() for path in flow.glob("*.out")}) == 1
    assert len(helpers(left, "udi-keep")) == 1
