"""`udi sshd` with real OpenSSH: who gets in, what runs there, and what is left."""

import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from rootless_udi.base.process import start_and_parent
from tests.conftest import User
from tests.kit.nodes import Leftovers, busybox, counted

pytestmark = pytest.mark.needs("sshd", "userns", "fuse", "mksquashfs", "busybox")
HOST = os.uname().nodename.partition(".")[0]


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


@pytest.fixture
def left(user: User) -> Iterator[Leftovers]:
    """After each test no process and no file is left, in the state directory or at home."""
    with counted(user) as found:
        yield found
    assert not (user.home / ".local/state/rootless_udi/ssh-jobs").exists()


class Served:
    """A running `udi sshd` without a command; `words` are its options."""

    def __init__(self, user: User, image: Path, *words: object) -> None:
        self.user, self.text = user, ""
        self.process = user.popen(
            *("udi", "sshd", *words, image),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout and self.process.stderr
        while "known_hosts there" not in self.text and "# and in" not in self.text:
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError(self.process.stderr.read())
            self.text += line
        self.job = user.home / f".local/state/rootless_udi/ssh-jobs/{HOST}"

    def ssh(
        self, *words: object, input: str | None = None, env: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run ssh by the job's configuration; `words` are its options and the command."""
        argv = ("ssh", "-F", self.job / "config", *words)
        return self.user.run(*argv, input=input, env=env)

    def end(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def served(user: User, image: Path, left: Leftovers) -> Iterator[Served]:
    one = Served(user, image, "--env=FOO=bar")
    yield one
    one.end()


def test_a_command_runs_inside_with_its_own_status_and_input(served: Served) -> None:
    done = served.ssh(HOST, "cat /var/word - && exit 7", input="typed\n")
    assert (done.returncode, done.stdout) == (7, "word\ntyped\n"), done.stderr


def test_the_environment_is_no_jobs(user: User, image: Path, left: Leftovers) -> None:
    """It is of a login, with the container's changes and what the options say."""
    user.env["SLURM_JOB_ID"] = "4711"
    user.env["SECRET"] = "1"
    one = Served.__new__(Served)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.HOST", "4711")
        one.__init__(user, image, "--env=FOO=bar", f"--volume={user.home}")  # type: ignore[misc]
    done = one.ssh(HOST, "env; pwd", env={"LC_ALL": "C.UTF-8"})
    one.end()
    lines = done.stdout.splitlines()
    found = dict(line.split("=", 1) for line in lines[:-1])
    assert (found["FOO"], found["HOME"], found["USER"]) == ("bar", str(user.home), user.name)
    assert lines[-1] == str(user.home)
    assert not {"SLURM_JOB_ID", "SECRET", "SSH_ORIGINAL_COMMAND", "LC_CTYPE"} & set(found)


def test_files_by_sftp_and_scp(served: Served, user: User) -> None:
    """/tmp is the host's, and /var/word the image's: this is the container's tree."""
    data = os.urandom(3_000_000)
    there = user.home / "big ü"
    there.write_bytes(data)
    place = f"/tmp/udi-sftp-{os.getpid()}"
    argv = ["scp", "-F", served.job / "config"]
    assert user.run(*argv, "-p", there, f"{HOST}:{place}").returncode == 0
    try:
        assert Path(place).read_bytes() == data
        assert user.run(*argv, f"{HOST}:{place}", user.home / "back").returncode == 0
    finally:
        os.unlink(place)
    assert (user.home / "back").read_bytes() == data
    batch = f"get /var/word {user.home}/word\nls -l /var\nput {user.home}/word /var/no\n"
    done = user.run("sftp", "-F", served.job / "config", "-b", "-", HOST, input=batch)
    assert (user.home / "word").read_text() == "word\n"
    assert done.returncode == 1
    assert "/var/no" in done.stderr and "word" in done.stdout


def test_what_the_image_lacks_is_said(served: Served) -> None:
    done = served.ssh(HOST, "rsync --version")
    assert done.returncode == 127 and "rsync: not found" in done.stderr


def test_nobody_else_gets_in(served: Served, user: User) -> None:
    """Another key, no key, another name; and a key that only ~/.ssh/authorized_keys has."""
    key = user.home / "other"
    user.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key, check=True)
    (user.home / ".ssh").mkdir()
    (user.home / ".ssh/authorized_keys").write_text(Path(f"{key}.pub").read_text())
    port = next(line.split()[1] for line in served.text.splitlines() if " Port " in line)
    known = f"UserKnownHostsFile={served.job}/nodes/{HOST}.key"
    base = ["ssh", "-F", "none", "-p", port, "-o", known, "-o", f"HostKeyAlias=udi-{HOST}-{HOST}"]
    base += ["-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes", "-i"]
    good = served.job / "key/id"
    assert user.run(*base, good, "127.0.0.1", "echo in").stdout == "in\n"
    for words in (
        (key, "127.0.0.1"),
        ("/dev/null", "127.0.0.1"),
        (good, "-l", "root", "127.0.0.1"),
        (good, "-l", "nobody", "127.0.0.1"),
    ):
        done = user.run(*base, *words, "echo in")
        assert (done.returncode, done.stdout) == (255, ""), words
        assert "Permission denied (publickey)" in done.stderr, done.stderr


def test_a_key_of_ones_own(user: User, image: Path, left: Leftovers) -> None:
    key = user.home / "laptop"
    user.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key, check=True)
    one = Served(user, image, f"--authorize={key}.pub", "--jump=login.site.example")
    assert "ProxyJump login.site.example\n" in one.text
    assert "IdentityFile" not in one.text and "scp " not in one.text
    done = one.ssh("-i", key, HOST, "echo in")
    one.end()
    assert done.stdout == "in\n"


def test_the_hosts_key_is_pinned(served: Served) -> None:
    path = served.job / f"nodes/{HOST}.key"
    name, kind, _ = path.read_text().split()
    path.write_text(f"{name} {kind} {(served.job / 'key/id.pub').read_text().split()[1]}\n")
    done = served.ssh(HOST, "echo in")
    assert (done.returncode, done.stdout) == (255, "")
    assert "Host key verification failed" in done.stderr


def test_a_port_that_is_taken(user: User, image: Path, left: Leftovers) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = user.run("udi", "sshd", f"--port={port}", image)
        assert done.returncode == 125
        assert f"udi sshd: port {port} can't be used: Address already in use" in done.stderr
        one = Served(user, image, f"--port={port}-{port + 20}")
        one.end()
    assert f"Port {port}\n" not in one.text and "Port " in one.text


def test_one_a_node_and_job(served: Served, user: User, image: Path) -> None:
    done = user.run("udi", "sshd", image)
    assert done.returncode == 125
    assert f"udi sshd serves this job on {HOST} already" in done.stderr
    assert served.ssh(HOST, "echo in").stdout == "in\n"


def test_it_ends_with_its_command(user: User, image: Path, left: Leftovers) -> None:
    done = user.run("udi", "sshd", "-q", image, "sh", "-c", "cat /var/word; exit 3")
    assert (done.returncode, done.stdout) == (3, "word\n"), done.stderr
    assert "the image has no ssh client" in done.stderr


def test_killed_with_a_session_that_left_a_process(served: Served, left: Leftovers) -> None:
    """SIGKILL to `udi sshd`, to the process that serves, or to a command's own."""
    done = served.ssh(HOST, "(trap '' HUP; sleep 1000) >/dev/null 2>&1 & echo $!")
    assert done.stdout.strip().isdecimal(), done.stderr
    assert any("sleep 1000" in words for words in left.processes().values())
    served.process.kill()
    left.check()


def test_a_session_of_a_container_that_has_ended(
    served: Served, user: User, left: Leftovers
) -> None:
    """As one that came just before the end: sshd had let it in."""
    enter = next((user.home / "run").rglob("enter"))
    text = enter.read_text()
    served.end()
    left.check_processes()
    done = user.run("sh", "-c", text)
    assert done.returncode == 125 and "udi sshd: the container has ended" in done.stderr


def test_many_at_once(served: Served, user: User) -> None:
    """As a launcher's: none is turned away, whatever sshd's own defaults are."""
    argv = ("ssh", "-F", served.job / "config", HOST, "cat /var/word")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    running = [user.popen(*argv, **pipes) for _ in range(24)]
    assert [one.communicate()[0] for one in running] == ["word\n"] * 24


@pytest.mark.parametrize("outer", [True, False])
def test_who_serves_is_killed(served: Served, left: Leftovers, outer: bool) -> None:
    """There are two of that name: if the inner one is killed, the outer one cleans up."""
    watch = served.user.popen(
        *("ssh", "-F", served.job / "config", HOST, "echo up; exec sleep 1000"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert watch.stdout and watch.stdout.readline() == "up\n"
    pair = [pid for pid, words in left.processes().items() if words == "udi-sshd"]
    assert len(pair) == 2
    (inner,) = [pid for pid in pair if start_and_parent(pid)[1] in pair]
    if outer:
        (other,) = {*pair} - {inner}
        os.kill(other, signal.SIGKILL)
        assert served.ssh(HOST, "echo in").stdout == "in\n"
        served.process.kill()
        assert watch.wait(60) == 255
        watch.communicate()
        return
    os.kill(inner, signal.SIGKILL)
    _, err = served.process.communicate(timeout=60)
    assert "the container has ended, or the process that serves it" in err
    assert watch.wait(60) == 255
    watch.communicate()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "udi sshd: no image is given"),
        (("--port=0", "{image}"), "--port=0: not a port"),
        (("--share=off", "{image}"), "udi sshd --share=off"),
        (("--authorize=/nowhere", "{image}"), "--authorize=/nowhere: No such file"),
        (("./no.sqfs",), "opening image"),
        (("--folder=/a b", "{image}"), "can't name a path with ' ' in it"),
        (("--folder=/dev/null/x", "{image}"), "making /dev/null/x/"),
        (("--edf=nowhere", "--"), "nowhere"),
    ],
)
def test_refused(
    user: User, image: Path, left: Leftovers, words: tuple[str, ...], line: str
) -> None:
    done = user.run("udi", "sshd", *(word.replace("{image}", str(image)) for word in words))
    assert done.returncode == 125, done.stderr
    assert line in done.stderr and "Traceback" not in done.stderr


def test_help_names_both_kinds_of_options(user: User) -> None:
    assert "--authorize" in user.run("udi", "sshd", "--help").stdout
