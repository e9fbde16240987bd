"""What VS Code's Remote-SSH and PyCharm do with OpenSSH's clients, through the printed block.

A script by standard input starts a server that outlives the session; its port or Unix socket is
reached by -L, -D and -R; one connection serves several sessions; and all of it jumps over a login
node, which is an sshd that ssh starts as a command (ProxyCommand).
"""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import User
from tests.kit.nodes import busybox, counted

pytestmark = pytest.mark.needs("sshd", "userns", "fuse", "mksquashfs", "busybox", "curl")
LOGIN = "login.site.example"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return busybox(tmp_path_factory.mktemp("image"))


class Desk:
    """A user's own computer: a configuration with the printed block, and a key."""

    def __init__(self, user: User, folder: Path, image: Path) -> None:
        self.user, self.folder, self.held = user, folder, ExitStack()
        self.key = folder / "laptop"
        user.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key, check=True)
        words = (f"--authorize={self.key}.pub", f"--jump={LOGIN}", f"--volume={user.home}", image)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self.job = user.popen("udi", "sshd", *words, **pipes)
        assert self.job.stdout and self.job.stderr
        text = ""
        while "# and in" not in text:
            line = self.job.stdout.readline()
            assert line, self.job.stderr.read()
            text += line
        known = self.job.stdout.readline().removeprefix("#").strip()
        block = text[text.index("Host udi-") : text.index("# and in")]
        self.host = block.split()[1]
        assert f"ProxyJump {LOGIN}\n" in block
        self._files(block, known)

    def _files(self, block: str, known: str) -> None:
        """Write the two files, which a test must not have at home, and what the login node is."""
        login = f"{self.folder}/login"
        self.user.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", login, check=True)
        kind, key, *_ = Path(f"{login}.pub").read_text().split()
        (self.folder / "known_hosts").write_text(f"{known}\n{LOGIN} {kind} {key}\n")
        sshd = shutil.which("sshd", path="/usr/sbin:/usr/bin")
        Path(f"{login}.conf").write_text(
            f"HostKey {login}\nAuthorizedKeysFile {self.key}.pub\nStrictModes no\nUsePAM no\n"
            "PidFile none\n"
        )
        (self.folder / "config").write_text(
            f"{block}\nHost {LOGIN}\n    ProxyCommand {sshd} -i -f {login}.conf\nHost *\n"
            f"    IdentityFile {self.key}\n    UserKnownHostsFile {self.folder}/known_hosts\n"
            "    BatchMode yes\n    ExitOnForwardFailure yes\n"
        )

    def argv(self, *words: object, program: str = "ssh") -> tuple[object, ...]:
        return (program, "-F", self.folder / "config", *words)

    def port(self) -> int:
        """Return a port that nobody else is given: a bound socket holds it until the end, beside
        which one that sets SO_REUSEADDR, as all programs here do, may listen."""
        sock = self.held.enter_context(socket.socket())
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])

    def ssh(self, *words: object, input: str | None = None) -> str:
        done = self.user.run(*self.argv(*words), input=input)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def get(self, *words: object) -> str:
        """Return what curl gets; it tries again while the server is not up."""
        tries = ("--retry", "20", "--retry-connrefused", "--retry-delay", "1")
        done = self.user.run("curl", "-sS", "--fail", "--noproxy", "", *tries, *words)
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def desk(user: User, image: Path) -> Iterator[Desk]:
    with counted(user):
        one = Desk(user, user.home, image)
        with one.held:
            yield one
        one.job.kill()
        one.job.communicate(timeout=240)


INSTALL = """
set -e
uname -sm
mkdir -p "$HOME/.vscode-server/bin"
cp /var/word "$HOME/.vscode-server/bin/word"
cd "$HOME/.vscode-server/bin"
httpd -f -p 127.0.0.1:PORT -h . >"$HOME/.vscode-server/log" 2>&1 </dev/null &
echo "listeningOn==PORT=="
"""


def test_a_server_as_vs_codes(desk: Desk) -> None:
    """By -D of the session whose script starts it; by -L of a second one, when that is gone."""
    port, socks, local = desk.port(), desk.port(), desk.port()
    script = INSTALL.replace("PORT", str(port))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    first = desk.user.popen(*desk.argv("-T", "-D", socks, desk.host, "sh"), **pipes)
    assert first.stdin and first.stdout
    first.stdin.write(script)
    first.stdin.flush()
    assert first.stdout.readline().startswith("Linux ")
    found = re.match(r"listeningOn==(\d+)==", first.stdout.readline())
    assert found and int(found[1]) == port
    url = f"http://127.0.0.1:{port}/word"
    assert desk.get("--socks5-hostname", f"127.0.0.1:{socks}", url) == "word\n"
    first.communicate(timeout=240)
    second = desk.user.popen(
        *desk.argv("-T", "-L", f"127.0.0.1:{local}:127.0.0.1:{port}", desk.host, "echo up; cat"),
        **pipes,
    )
    assert second.stdout and second.stdout.readline() == "up\n"
    assert desk.get(f"http://127.0.0.1:{local}/word") == "word\n"
    second.communicate(timeout=240)
    assert "httpd" in desk.ssh(desk.host, "ps")


def test_a_socket_in_place_of_a_port(desk: Desk) -> None:
    """-L to a Unix socket, as VS Code does where it is told to listen on one, and -R of one."""
    port, local, remote = desk.port(), desk.port(), f"/tmp/udi-{os.getpid()}.back"
    serve = f"httpd -f -p 127.0.0.1:{port} -h /var >/dev/null 2>&1 &"
    script = f"{serve} echo up; test -S {remote} && echo socket; cat"
    process = desk.user.popen(
        *desk.argv(
            *("-T", "-R", f"{remote}:127.0.0.1:{port}", "-L", f"{local}:{remote}"),
            *(desk.host, script),
        ),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout
        assert [process.stdout.readline() for _ in range(2)] == ["up\n", "socket\n"]
        assert desk.get(f"http://127.0.0.1:{local}/word") == "word\n"
    finally:
        process.communicate(timeout=240)
        Path(remote).unlink(missing_ok=True)


def test_one_connection_for_several_sessions(desk: Desk) -> None:
    """ControlMaster: commands, SFTP and a forwarding that is asked for later."""
    control, port, local = desk.folder / "control", desk.port(), desk.port()
    shared = ("-o", f"ControlPath={control}")
    desk.ssh("-o", "ControlMaster=yes", "-o", "ControlPersist=60", *shared, desk.host, "true")
    try:
        running = [
            desk.user.popen(*desk.argv(*shared, desk.host, "cat /var/word"), stdout=subprocess.PIPE)
            for _ in range(12)
        ]
        assert [one.communicate(timeout=240)[0] for one in running] == ["word\n"] * 12
        batch = f"get /var/word {desk.folder}/word\n"
        argv = desk.argv(*shared, "-b", "-", desk.host, program="sftp")
        assert desk.user.run(*argv, input=batch).returncode == 0
        assert (desk.folder / "word").read_text() == "word\n"
        forward = f"{local}:127.0.0.1:{port}"
        desk.ssh(*shared, "-O", "forward", "-L", forward, desk.host)
        desk.ssh(*shared, desk.host, f"httpd -p 127.0.0.1:{port} -h /var")
        assert desk.get(f"http://127.0.0.1:{local}/word") == "word\n"
    finally:
        desk.ssh(*shared, "-O", "exit", desk.host)


def test_what_pycharm_does(desk: Desk) -> None:
    """Files by SFTP, the interpreter looked for, a program that calls back through -R."""
    there = desk.user.home / "project"
    batch = f"mkdir {there}\nput {desk.key}.pub {there}/main.py\nchmod 755 {there}/main.py\n"
    argv = desk.argv("-b", "-", desk.host, program="sftp")
    done = desk.user.run(*argv, input=batch)
    assert done.returncode == 0, done.stderr
    assert desk.ssh(desk.host, f"ls {there}; test -x /bin/sh && echo $HOME").split() == [
        "main.py",
        str(desk.user.home),
    ]
    remote = desk.port()
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(240)
        where = f"{remote}:127.0.0.1:{server.getsockname()[1]}"
        argv = desk.argv("-R", where, desk.host, f"echo hit | nc 127.0.0.1 {remote}")
        program = desk.user.popen(*argv)
        with server.accept()[0] as call, call.makefile() as lines:
            assert lines.readline() == "hit\n"
        program.communicate(timeout=240)
