"""Namespaces that services are started in, so that all of it ends with the test session.

A cage is a PID, mount, UTS and network namespace (it takes root) whose first process reaps orphans
and ends when its standard input does. The kernel then kills whatever is left in the PID namespace,
also where the test session itself was killed. Ports, host name, /etc/hosts and mounts are the
cage's own; /tmp, /dev/shm and the users are the machine's.
"""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from tests.conftest import User

_INIT = """
import fcntl, os, signal, socket, struct, subprocess, sys
print(os.readlink("/proc/self"), flush=True)
name, hosts = sys.argv[1:]
socket.sethostname(name)
with socket.socket() as s:
    IFF_UP, SIOCSIFFLAGS, SIOCSIFADDR = 1, 0x8914, 0x8916
    fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))
    # With none but 127.0.0.1, getaddrinfo(3) with AI_ADDRCONFIG, as srun calls it, finds nothing.
    address = socket.inet_aton("10.1.1.1")
    packed = struct.pack("16sHH4s16x", b"lo:1", socket.AF_INET, 0, address)
    fcntl.ioctl(s, SIOCSIFADDR, packed)
subprocess.run(["mount", "-t", "proc", "proc", "/proc"], check=True)
subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)
def reap(*_):
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
signal.signal(signal.SIGCHLD, reap)
print("ready", flush=True)
sys.stdin.read()
"""


def reachable(path: Path) -> Path:
    """Let every user walk to `path`: pytest's temporary folders are for root's eyes alone."""
    for folder in (path, *path.parents):
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode & 0o7777 | 0o011)
    return path


def ok(done: "subprocess.CompletedProcess[str]") -> str:
    """Return what a command printed, which must have succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Cage:
    """A running cage; use it with `with`.

    `folder` holds its /etc/hosts; `name` is its host name, which resolves to 127.0.0.1 and back
    (Grid Engine insists).
    """

    def __init__(self, folder: Path, name: str = "udi-node") -> None:
        self.name = name
        hosts = folder / "hosts"
        hosts.write_text(f"127.0.0.1 {name} localhost\n::1 ip6-localhost\n")
        hosts.chmod(0o644)
        argv = ["unshare", "--fork", "--kill-child", "--pid", "--mount", "--uts", "--net"]
        self._init = subprocess.Popen(
            [*argv, "python3", "-c", _INIT, name, hosts],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._init.stdout
        self.pid = int(self._init.stdout.readline())
        if self._init.stdout.readline() != "ready\n":
            raise RuntimeError("the namespaces for the services could not be set up")

    def __enter__(self) -> "Cage":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End every process of the cage and wait until the last is gone."""
        assert self._init.stdin and self._init.stdout
        self._init.stdin.close()
        self._init.stdout.close()
        self._init.wait()

    def argv(self, argv: Sequence[object], cwd: Path | str = "/") -> list[str]:
        """Return `argv` with what makes it run in the cage, in the folder `cwd`."""
        enter = ["nsenter", f"--target={self.pid}", "--pid", "--mount", "--uts", "--net"]
        return [*enter, "env", "-C", str(cwd), *map(str, argv)]

    def run(
        self, *argv: object, env: Mapping[str, str] | None = None, timeout: float = 240
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command in the cage as root; its failure is an error with its output."""
        done = subprocess.run(
            self.argv(argv),
            env={"PATH": os.environ["PATH"], "LANG": "C.UTF-8", **(env or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if done.returncode:
            raise RuntimeError(f"{argv} ended with {done.returncode}: {done.stdout}")
        return done

    def processes(self) -> dict[int, str]:
        """Return the cage's processes, its first one left out: pid here -> command line."""
        mine = os.readlink(f"/proc/{self.pid}/ns/pid")
        found = {}
        for name in filter(str.isdigit, os.listdir("/proc")):
            try:
                if int(name) != self.pid and os.readlink(f"/proc/{name}/ns/pid") == mine:
                    words = Path(f"/proc/{name}/cmdline").read_bytes().split(b"\0")
                    found[int(name)] = b" ".join(words).decode(errors="replace").strip()
            except OSError:  # it has just ended
                continue
        return found


class Scheduler:
    """A workload manager in a cage, in which users run commands; use it with `with`.

    A subclass sets `cage`, and `settings`, the variables by which users' commands find it.
    """

    DAEMONS: tuple[str, ...] = ()
    cage: Cage
    settings: Mapping[str, str]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cage.close()

    def argv(self, user: User, *argv: object) -> list[str]:
        """Return `argv` with what makes `user` run it in the cage, from the user's home."""
        return self.cage.argv(user.argv(*argv), user.home)

    def env(self, user: User, env: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the environment of the user's commands."""
        return {**user.env, **self.settings, **(env or {})}

    def run(
        self,
        user: User,
        *argv: object,
        env: Mapping[str, str] | None = None,
        timeout: float = 120,
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command (srun, qsub, ...) as `user`."""
        return subprocess.run(
            self.argv(user, *argv),
            env=self.env(user, env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def leftovers(self) -> dict[int, str]:
        """Return the cage's processes that are none of the daemons: pid -> command line."""
        found = {}
        for pid, words in self.cage.processes().items():
            try:
                program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
            except FileNotFoundError:  # it has just ended
                continue
            if program.removesuffix("-wlm") not in self.DAEMONS:
                found[pid] = words
        return found

    def kill_leftovers(self) -> None:
        """End what a failed test left, so that it harms no other."""
        for pid in self.leftovers():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def gone(self, state: Callable[[], list[str]] = list, seconds: float = 60) -> None:
        """Wait until no leftover lives and `state` names no file; kill them and fail otherwise."""
        end = time.monotonic() + seconds
        while left := self.leftovers() or state():
            if time.monotonic() > end:
                self.kill_leftovers()
                raise AssertionError(left)
            time.sleep(0.05)
