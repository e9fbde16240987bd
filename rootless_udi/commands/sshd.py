"""udi sshd: ssh into a container, on each node of a job, with no sshd in the image.

The machine's sshd runs as the user, started for each connection by a process of ours
(`rootless_udi.ssh.serve`), and every session enters the container. It is a command of its own and
no option of udi-run: a start pays nothing for it, the container has two more mounts, and who wants
it runs it once on each node.
"""

import argparse
import os
import pwd
import shutil
import socket
import subprocess
import sys
from typing import NoReturn

from rootless_udi.base import program
from rootless_udi.base.errors import OURS, UdiError
from rootless_udi.base.privilege import refuse_privilege
from rootless_udi.base.process import complain, page, started
from rootless_udi.commands import sshd_peers
from rootless_udi.commands.common import containers
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command
from rootless_udi.commands.common.words import Split, split
from rootless_udi.commands.run import udi_run
from rootless_udi.commands.shell import SHELL
from rootless_udi.launch import command as last
from rootless_udi.node import places
from rootless_udi.node.record import alive, member
from rootless_udi.ssh import folder, place, serve, texts
from rootless_udi.ssh.place import JobNode

_TEXT = "ssh into a container on each node of a job, with no sshd in the image"
_USAGE = "udi sshd [--port N[-M]] [--authorize FILE] [OPTIONS of udi-run] IMAGE [COMMAND [ARG...]]"
_PORTS = "22022-22521"
_PATH = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/bin"
_NO_LOGIN = ("nologin", "false", "true")


def add(commands: Parsers) -> None:
    """Add the parser of `udi sshd`."""
    one = command(commands, "sshd", sshd, _TEXT)
    _own(one)
    one.add_argument("word", nargs=argparse.REMAINDER, metavar="[OPTIONS] IMAGE [COMMAND ...]")


def _own(parser: argparse.ArgumentParser) -> None:
    """Add the options that are not udi-run's."""
    parser.add_argument("--port", default="", metavar="N[-M]", help=f"the first free of {_PORTS}")
    parser.add_argument(
        "--authorize",
        action="append",
        default=[],
        metavar="FILE",
        help="let in the public keys in FILE, besides the job's own",
    )
    parser.add_argument("--folder", metavar="DIR", help="for the job's key; all its nodes share it")
    parser.add_argument("--jump", default="", metavar="HOST", help="the login node, for ProxyJump")


def sshd(arguments: Arguments) -> int:
    """udi sshd: serve until COMMAND has ended, or without one until this is. Raises UdiError."""
    parser = argparse.ArgumentParser(prog="udi sshd", add_help=False, allow_abbrev=False)
    _own(parser)
    asked = split(arguments.word, parser, _USAGE)
    if asked.given.get("help"):
        whole = argparse.ArgumentParser(prog="udi sshd", description=_TEXT)
        _own(whole)
        page(whole.format_help())
        return 0
    refuse_privilege("udi")
    if asked.given.get("share") == "off":
        raise UdiError("udi sshd --share=off: who comes by ssh could not join", "leave it out")
    return _Node(asked, last.given()).run()


class _Node:
    """This node's part of the job."""

    def __init__(self, asked: Split, environ: dict[str, str]) -> None:
        self.asked, self.environ = asked, environ
        self.place: JobNode = place.here(environ)
        self.account = _account()
        self.sshd, self.keygen = _program("sshd"), _program("ssh-keygen")
        self.share = str(asked.given.get("share") or f"ssh-{self.place.job}-{self.place.node}")
        self.made = False
        self.owner = os.getpid(), started(os.getpid())

    def run(self) -> int:
        above = folder.parent(self.environ, self.asked.own.folder)
        allowed = [key for one in self.asked.own.authorize for key in texts.keys(_read(one), one)]
        sock = _listen(self.asked.own.port)
        port = sock.getsockname()[1]
        self.local = self._take()
        try:
            folder.sweep(above)
            self.job = folder.job(above, self.place.job)
            self.made = True
            mine = folder.key(self.job, self.keygen)
            self._write([mine, *allowed])
            news, wait = serve.start(self._work(sock))
        except BaseException:
            self.clean()
            raise
        words = _line(news)
        if words[:1] != ["ready"]:
            # udi-run has said why.
            os.read(wait, 1)
            return int(words[1]) if words[1:] else OURS
        client = "ssh" in words
        node = self._node(port)
        self._enter()
        folder.register(self.job, node)
        if not client:
            complain(
                "udi sshd",
                "the image has no ssh client: ssh, and an mpirun that starts ranks by it, do not "
                "work from inside",
                "install openssh-client in the image; ways in from outside need nothing in it",
            )
        if self.asked.command:
            if self.place.rank:
                sshd_peers.follow(self.job, _program("ssh"), wait)
                return 0
            self._command(client, wait)
        page(texts.people(node, self.job, self.asked.own.jump, bool(allowed)))
        sys.stdout.flush()
        os.read(wait, 1)
        self.clean()
        raise UdiError("udi sshd: the container has ended, or the process that serves it")

    def _command(self, client: bool, wait: int) -> NoReturn:
        """Become the command, on the first node of the job."""
        sshd_peers.all_there(self.job, self.place.size, wait)
        env = sshd_peers.without_rank(self.environ)
        if client and self.place.size > 1:
            env = sshd_peers.by_ssh(env)
        argv = udi_run([*self._options(), *self.asked.command])
        last.signals()
        os.execve(argv[0], argv, env)

    def _options(self, *more: str) -> list[str]:
        """Return udi-run's words up to the command: those that were given, and what ssh needs.

        They are the same for the holder and the command, but for what each rank has of its own.
        """
        volumes = [self.job, f"{self.local}/ssh_config:/etc/ssh/ssh_config:ro"]
        if "volume" not in self.asked.given and self.environ.get("UDI_VOLUME"):
            # An option takes the place of the variable.
            volumes.insert(0, self.environ["UDI_VOLUME"])
        return self.asked.run(
            *(f"--volume={one}" for one in volumes), f"--share={self.share}", *more
        )

    def _work(self, sock: socket.socket) -> serve.Work:
        config = f"{self.local}/sshd_config"
        checked = subprocess.run([self.sshd, "-t", "-f", config], capture_output=True, text=True)
        if checked.returncode:
            raise UdiError(f"{self.sshd} refuses what it is to do: {checked.stderr.strip()}")
        holder = udi_run(
            [*self._options("--entrypoint=/bin/sh", "--workdir=/"), "-c", serve.SCRIPT]
        )
        errors = os.dup(2) if self.asked.given.get("verbose") else -1
        listen = [self.sshd, "-i", "-e", "-f", config]
        return serve.Work(sock, listen, holder, self.environ, errors, self.clean)

    def _node(self, port: int) -> texts.SshNode:
        key = folder.public(f"{self.local}/host_key")
        here = self.place
        return texts.SshNode(
            here.job, here.names, here.host, port, self.account.pw_name, key, here.rank, *self.owner
        )

    # The node's own folder, in the state directory

    def _take(self) -> str:
        """Make this node's folder; return its path. Raises UdiError where one serves already."""
        path, fd = places.find(self.environ, make=True)
        if fd < 0:
            raise UdiError("udi sshd: there is no state directory", "set XDG_RUNTIME_DIR")
        os.close(fd)
        local = texts.plain(
            f"{path}/sshd-{self.place.job}-{self.place.node}", "the state directory"
        )
        for _ in range(2):
            try:
                os.mkdir(local, 0o700)
                folder.write(f"{local}/owner", "%d %d\n" % self.owner)
                return local
            except FileExistsError:
                if alive(*_owner(local)):
                    break
                shutil.rmtree(local, ignore_errors=True)
            except OSError as error:
                raise UdiError(f"making {local} failed: {error.strerror}") from None
        raise UdiError(
            f"udi sshd serves this job on {self.place.node} already: one a node and job",
            "srun --ntasks-per-node=1 udi sshd ...",
        )

    def _write(self, keys: list[str]) -> None:
        """Write what sshd reads."""
        local, user = self.local, self.account.pw_name
        folder.generate(f"{local}/host_key", self.keygen)
        try:
            os.mkdir(f"{local}/empty", 0o500)
            folder.write(f"{local}/authorized_keys", "".join(f"{key}\n" for key in keys))
            folder.write(f"{local}/sshd_config", texts.server(local, user, _terminal()))
            folder.write(f"{local}/ssh_config", f"Include {self.job}/nodes/*.conf\n")
        except OSError as error:
            raise UdiError(f"writing in {local} failed: {error.strerror}") from None

    def _enter(self) -> None:
        """Write what sshd starts for a session: it names the container's record."""
        found = containers.named(self.share, self.environ)
        words = found.directory, found.name, self.environ.get("HOME") or self.account.pw_dir
        argv = program.argv(
            "from rootless_udi.ssh.session import main; main()",
            *(*words, os.getcwd(), SHELL, *self.asked.words),
            site=False,
        )
        try:
            folder.write(f"{self.local}/enter", texts.enter(argv))
        except OSError as error:
            raise UdiError(f"writing in {self.local} failed: {error.strerror}") from None

    def clean(self) -> None:
        """Remove this node's files. Never raises."""
        if self.made:
            folder.leave(self.job, self.place.node, self.owner)
        if _owner(self.local) in (self.owner, (0, 0)):
            shutil.rmtree(self.local, ignore_errors=True)


def _account() -> pwd.struct_passwd:
    """Return the caller's account. Raises UdiError where sshd would let nobody in."""
    try:
        found = pwd.getpwuid(os.getuid())
    except KeyError:
        raise UdiError(
            f"user id {os.getuid()} has no name on this node, and sshd lets in no other user"
        ) from None
    shell = found.pw_shell or "/bin/sh"
    if os.path.basename(shell) in _NO_LOGIN or not os.access(shell, os.X_OK):
        raise UdiError(
            f"your login shell on this node is {shell}: sshd, which starts it, would let nobody in",
            "the site can give you another one (chsh)",
        )
    return found


def _program(name: str) -> str:
    """Return the path of one of OpenSSH's programs. Raises UdiError."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_PATH}")
    if found is None:
        raise UdiError(
            f"udi sshd: this machine has no {name}",
            "OpenSSH's programs must be installed (openssh-server, openssh-client); no service of "
            "theirs need run",
        )
    return os.path.realpath(found)


def _terminal() -> bool:
    """Tell whether sshd can give a terminal: it gives up where the terminal's group is not tty and
    it may not change that (devpts without gid=5, as containers have)."""
    import grp

    try:
        wanted = grp.getgrnam("tty").gr_gid
        main, other = os.openpty()
    except (KeyError, OSError):
        return True
    group = os.fstat(other).st_gid
    os.close(main)
    os.close(other)
    if group == wanted:
        return True
    complain(
        "udi sshd",
        "/dev/pts of this machine has not the group tty, so sshd can give no terminal",
        "mount it as systemd does: devpts with gid=5; commands, sftp and rsync work all the same",
    )
    return False


def _listen(text: str) -> socket.socket:
    """Return a socket that listens on the first free port. Raises UdiError."""
    first, dash, final = (text or _PORTS).partition("-")
    final = final if dash else first
    good = first.isdecimal() and final.isdecimal() and 0 < int(first) <= int(final) < 65536
    if not good:
        raise UdiError(f"--port={text}: not a port, or two with a dash between", f"--port={_PORTS}")
    why = ""
    for port in range(int(first), int(final) + 1):
        for family in (socket.AF_INET6, socket.AF_INET):
            try:
                sock = socket.socket(family, socket.SOCK_STREAM)
            except OSError as error:
                why = error.strerror or ""
                continue
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                sock.bind(("", port))
                sock.listen(128)
                sock.setblocking(False)
                return sock
            except OSError as error:
                why = error.strerror or ""
                sock.close()
    which = f"port {first}" if first == final else f"none of the ports {first}-{final}"
    verb = "can't be" if first == final else "can be"
    raise UdiError(f"udi sshd: {which} {verb} used: {why}", "--port=N-M takes the first free one")


def _owner(local: str) -> tuple[int, int]:
    try:
        with open(f"{local}/owner", "rb") as file:
            return member(file.read(64).strip()) or (0, 0)
    except OSError:
        return 0, 0


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 16)
    except OSError as error:
        raise UdiError(f"--authorize={path}: {error.strerror}") from None


def _line(fd: int) -> list[str]:
    """Return the words of a pipe's first line, [] where it ends before."""
    text = b""
    while not text.endswith(b"\n") and (data := os.read(fd, 256)):
        text += data
    return text.decode().split()
