"""`udi exec`: a command in a container that lives, as a rank that joins would run it."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.nodes import SHOW, Leftovers, Rank, busybox, counted
from tests.kit.terminal import shown

pytestmark = pytest.mark.needs("userns", "fuse", "mksquashfs", "busybox")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    with counted(user) as found:
        yield found


@pytest.fixture
def job(user: User, image: Path, left: Leftovers) -> Iterator[Rank]:
    """A container of --share=NAME, with one process."""
    one = Rank(user, "udi-run", "--share=job", "--env=OWN=1", image).ready()
    yield one
    assert one.end()[0] == 0


def names(user: User) -> list[str]:
    return user.run("udi", "ps", "--names", check=True).stdout.split()


def test_it_is_inside_whatever_names_the_container(user: User, job: Rank) -> None:
    """By what `udi ps` shows, its beginning, the name of --share, and a process in it."""
    (name,) = names(user)
    (child,) = [user.popen("udi", "exec", name, "sleep", "1000")]
    for word in (name, name[:5], "job", job.pid):
        done = user.run("udi", "exec", word, "sh", "-c", SHOW)
        assert tuple(done.stdout.split()) == job.namespaces, done.stderr
    child.kill()
    child.wait()


def test_a_process_that_a_member_has_started_names_it(user: User, job: Rank) -> None:
    assert job.process.stdin and job.process.stdout
    job.process.stdin.write("sleep 1000 & echo $!; read line; kill $!\n")
    job.process.stdin.flush()
    child = job.process.stdout.readline().strip()
    done = user.run("udi", "exec", child, "sh", "-c", SHOW)
    assert tuple(done.stdout.split()) == job.namespaces, done.stderr


def test_a_run_that_shares_with_nobody(user: User, image: Path, left: Leftovers) -> None:
    alone = Rank(user, "udi-run", image).ready()
    done = user.run("udi", "exec", f"alone-{alone.pid}", "sh", "-c", SHOW)
    assert tuple(done.stdout.split()) == alone.namespaces
    assert alone.end()[0] == 0


def test_the_environment_is_the_callers_with_the_containers_changes(user: User, job: Rank) -> None:
    """As in a join: --env of the first rank is that rank's own."""
    env = {"MINE": "2", "LD_LIBRARY_PATH": "/host", "PYTHONPATH": "/host", "here": "3"}
    done = user.run("udi", "exec", "-e", "MORE=4", "--quiet", "job", "env", env=env)
    inside = dict(line.split("=", 1) for line in done.stdout.splitlines())
    joined = user.run(
        "udi-run", "--share=job", "-e", "MORE=4", "--quiet", image_of(user), "env", env=env
    )
    assert inside == dict(line.split("=", 1) for line in joined.stdout.splitlines())
    assert (inside["MINE"], inside["MORE"], inside["here"]) == ("2", "4", "3")
    assert not {"OWN", "LD_LIBRARY_PATH", "PYTHONPATH"} & set(inside)
    cleared = user.run("udi", "exec", "--clearenv", "job", "env", env=env)
    assert "MINE" not in cleared.stdout


def image_of(user: User) -> str:
    line = user.run("udi", "ps").stdout.splitlines()[1]
    return line.split()[1]


def test_no_locale_and_no_signal_of_pythons_is_inherited(user: User, job: Rank) -> None:
    """Python sets LC_CTYPE where there is no locale, and ignores SIGPIPE (signal 13)."""
    script = "env; grep SigIgn /proc/self/status"
    for words in (("udi", "exec", "job"), ("udi", "run", image_of(user))):
        argv = (*words, "sh", "-c", script)
        done = subprocess.run(
            ["env", "-u", "LANG", *argv],
            env=user.env,
            cwd=user.home,
            capture_output=True,
            text=True,
        )
        assert "LC_CTYPE" not in done.stdout and done.returncode == 0
        ignored = int(done.stdout.rpartition("SigIgn:")[2], 16)
        assert not ignored & 1 << 12


def test_the_folder(user: User, image: Path, left: Leftovers) -> None:
    """The caller's where it is inside, else / with a note; --workdir says another one."""
    here = user.home / "here"
    here.mkdir()
    job = Rank(user, "udi-run", "--share=job", f"--volume={here}", image).ready()
    done = user.run("udi", "exec", "job", "pwd", cwd=here)
    assert (done.stdout, done.stderr) == (f"{here}\n", "")
    done = user.run("udi", "exec", "job", "pwd", cwd=Path("/var"))
    assert done.stdout == "/var\n"
    elsewhere = Path("/usr/share")
    for _ in range(2):
        done = user.run("udi", "exec", "job", "pwd", cwd=elsewhere)
        assert done.stdout == "/\n"
        assert f"udi: the folder {elsewhere} is not in this container; starting in /" in done.stderr
    done = user.run("udi", "exec", "--quiet", "job", "pwd", cwd=elsewhere)
    assert (done.stdout, done.stderr) == ("/\n", "")
    done = user.run("udi", "exec", "-w", "/tmp", "job", "pwd", cwd=elsewhere)
    assert (done.stdout, done.stderr) == ("/tmp\n", "")
    done = user.run("udi", "exec", "--workdir=/none", "job", "pwd")
    assert done.returncode == 125 and "--workdir=/none can't be entered" in done.stderr
    assert job.end()[0] == 0


def test_the_exit_status_is_the_commands(user: User, job: Rank) -> None:
    for words, status in ((["sh", "-c", "exit 7"], 7), (["/none"], 127), (["/etc"], 126)):
        assert user.run("udi", "exec", "job", *words).returncode == status
    killed = user.run("udi", "exec", "job", "--", "sh", "-c", "kill -9 $$")
    assert killed.returncode == -9


def test_a_shell_on_a_terminal(user: User, job: Rank) -> None:
    leader, follower = os.openpty()
    streams = {"stdin": follower, "stdout": follower, "stderr": follower}
    process = user.popen("udi", "exec", "-it", "job", start_new_session=True, **streams)
    os.close(follower)
    os.write(leader, b"test -t 0 && echo a te''rminal; exit 3\n")
    text = shown(leader)
    assert process.wait(60) == 3 and b"a terminal" in text


def test_the_container_lives_as_long_as_what_was_brought_in(
    user: User, image: Path, left: Leftovers
) -> None:
    first = Rank(user, "udi-run", "--share=job", image).ready()
    second = Rank(user, "udi", "exec", "job").ready()
    assert first.end()[0] == 0
    third = Rank(user, "udi-run", "--share=job", image).ready()
    assert first.namespaces == second.namespaces == third.namespaces
    assert second.end()[0] == third.end()[0] == 0


def test_what_is_no_container(user: User, job: Rank) -> None:
    done = user.run("udi", "exec", "nosuch", "id")
    assert done.returncode == 125
    assert done.stderr == (
        "udi: no container of yours on this node is called nosuch\n"
        "udi: hint: `udi ps` lists them; a new one is: udi run IMAGE COMMAND\n"
    )
    init = user.run("udi", "exec", "1", "id")
    assert init.returncode == 125 and "process 1 is user root's: a container is" in init.stderr
    assert "no container is named" in user.run("udi", "exec").stderr
    assert "no container is named" in user.run("udi", "exec", "-e", "A=1").stderr
    assert "called " in user.run("udi", "exec", "", "id").stderr


def test_options_that_make_a_container(user: User, job: Rank) -> None:
    done = user.run("udi", "exec", "-v", "/tmp:/x", "job", "id")
    assert done.returncode == 125
    assert "udi exec: --volume makes a container, and this one is there already" in done.stderr
    assert "unknown option --nosuch" in user.run("udi", "exec", "--nosuch", "job").stderr
    assert "usage: udi exec [OPTIONS] CONTAINER" in user.run("udi", "exec", "--help").stdout
    assert "--volume" not in user.run("udi", "exec", "--help").stdout


def test_what_means_several(user: User, image: Path, job: Rank) -> None:
    """Two containers of one --share=NAME, for two requests; each has a name of its own."""
    other = Rank(user, "udi-run", "--share=job", "--no-cwd", image).ready()
    done = user.run("udi", "exec", "job", "id")
    assert done.returncode == 125 and "job may mean several containers: " in done.stderr
    assert all(name in done.stderr for name in names(user))
    found = {
        tuple(user.run("udi", "exec", name, "sh", "-c", SHOW).stdout.split())
        for name in names(user)
    }
    assert found == {job.namespaces, other.namespaces}
    assert other.end()[0] == 0


def test_a_container_whose_server_is_gone(user: User, image: Path, left: Leftovers) -> None:
    job = Rank(user, "udi-run", "--share=job", image).ready()
    server = next(pid for pid, words in left.processes().items() if words == "udi-image")
    os.kill(server, 9)
    done = user.run("udi", "exec", "job", "id")
    assert done.returncode == 125 and "has lost its image server" in done.stderr
    job.kill()


def test_a_container_that_ends_meanwhile(
    user: User, image: Path, left: Leftovers, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rootless_udi.base.errors import UdiError
    from rootless_udi.commands.common import containers

    job = Rank(user, "udi-run", "--share=job", image).ready()
    found = containers.named("job", user.env)
    assert job.end()[0] == 0
    left.check()
    with pytest.raises(UdiError, match=r"the container .* has ended"):
        containers.opened(found)
