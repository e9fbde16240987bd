"""Mount a FUSE server as udi-run does: /dev/fuse opened and mounted in a user and mount namespace
of a process that then sleeps, the server outside of it. For tests and benchmarks.

Only processes inside of the namespaces may use the mount (the kernel's rule for FUSE in user
namespaces), so `Mount.run` starts commands in there with nsenter(1).
"""

import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from tests.kit.places import TREE

NEWNS, NEWUSER = 0x20000, 0x10000000
RDONLY, NOSUID, NODEV, REC, PRIVATE = 1, 2, 4, 1 << 14, 1 << 18


def _call(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def _mount(source: str, target: str, kind: str, flags: int, data: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [w.encode() or None for w in (source, target, kind)]
    _call(libc.mount(*words, ctypes.c_ulong(flags), data.encode() or None), f"mount {target}")


def _holder(channel: socket.socket, point: str, overlay: bool, inside: bool) -> None:
    """In the child: make namespaces, mount, send the descriptor, wait for the end of `channel`."""
    uid, gid = os.getuid(), os.getgid()
    libc = ctypes.CDLL(None, use_errno=True)
    if uid:
        _call(libc.unshare(NEWUSER | NEWNS), "unshare")
        Path("/proc/self/setgroups").write_text("deny")
        user = 0 if inside else uid
        Path("/proc/self/uid_map").write_text(f"{user} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{0 if inside else gid} {gid} 1")
    else:
        _call(libc.unshare(NEWNS), "unshare")
        user = 0
    _mount("", "/", "", REC | PRIVATE, "")
    fuse = -1
    if not inside:
        fuse = os.open("/dev/fuse", os.O_RDWR)
        data = f"fd={fuse},rootmode=40000,user_id={user},group_id={gid if user else 0}"
        data += ",default_permissions,allow_other"
        _mount("udi", point, "fuse.udi", RDONLY | NOSUID | NODEV, data)
        socket.send_fds(channel, [b"m"], [fuse])
        os.close(fuse)
    else:
        channel.send(b"m")
    assert channel.recv(1) == b"s"  # the server is up
    if overlay:
        space = f"{point}.over"
        _mount("tmpfs", space, "tmpfs", NOSUID | NODEV, "mode=755")
        os.mkdir(f"{space}/upper")
        os.mkdir(f"{space}/work")
        data = f"lowerdir={point},upperdir={space}/upper,workdir={space}/work,userxattr"
        _mount("overlay", point, "overlay", NOSUID | NODEV, data)
    channel.send(b"r")
    channel.recv(1)


class Mount:
    """`server` is an argv in which `IMAGE` and `MOUNT` are replaced; served at `point`.

    With `inside` the server runs in the namespaces and mounts `point` itself (libfuse 2).
    """

    def __init__(
        self,
        server: Sequence[str],
        image: Path,
        point: Path,
        *,
        overlay: bool = False,
        inside: bool = False,
        env: dict[str, str] | None = None,
        log: Path | None = None,
        ready: bool = True,
    ) -> None:
        self.point = point
        self.inside = inside
        point.mkdir(parents=True, exist_ok=True)
        Path(f"{point}.over").mkdir(exist_ok=True)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.settimeout(60)
        # A process of its own, not a fork of this one, which has the threads of other tests.
        words = [str(theirs.fileno()), str(point), *["overlay"] * overlay, *["inside"] * inside]
        self._holder = subprocess.Popen(
            [sys.executable, "-m", "tests.kit.fusemount", *words],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            cwd=TREE,
        )
        self.holder = self._holder.pid
        theirs.close()
        fds: list[int] = []
        if inside:
            assert self._ours.recv(1) == b"m"
        else:
            message, fds, _, _ = socket.recv_fds(self._ours, 1, 1)
            assert message == b"m", "the holder failed; see above"
        where = str(point) if inside else f"/dev/fd/{fds[0]}"
        self.log = log or Path(f"{point}.log")
        readiness, written = os.pipe()
        stands = {"IMAGE": str(image), "MOUNT": where, "READY": str(written)}
        argv = [stands.get(w, w.replace("READY", str(written))) for w in server]
        if inside:
            argv = [*self._enter(), *argv]
        before = time.perf_counter()
        with open(self.log, "wb") as out:
            self.server = subprocess.Popen(
                argv,
                pass_fds=[*fds, written],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=TREE,
                start_new_session=True,
                env={**os.environ, "PYTHONPATH": str(TREE), **(env or {})},
            )
        os.close(written)
        for fd in fds:
            os.close(fd)
        if any("READY" in w for w in server):
            got = os.read(readiness, 1)
            if ready and not got:
                text = self.log.read_text(errors="replace")
                self.close()
                raise AssertionError(f"the server failed: {text}")
        os.close(readiness)
        self.seconds = time.perf_counter() - before
        """From execve(2) of the server to where it answers."""
        if inside:
            self._wait_for_mount()
        self._ours.send(b"s")
        if self._ours.recv(1) != b"r":
            raise AssertionError("the holder failed; see above")

    def _wait_for_mount(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            if f" {self.point} " in Path(f"/proc/{self.holder}/mounts").read_text():
                return
            time.sleep(0.02)
        raise AssertionError(f"the server did not mount: {self.log.read_text()}")

    def _enter(self) -> list[str]:
        who = ["--user", "--preserve-credentials"] if os.getuid() else []
        return ["nsenter", *who, "--mount", "-t", str(self.holder), "--"]

    def run(
        self, *argv: object, timeout: float = 120, env: dict[str, str] | None = None
    ) -> "subprocess.CompletedProcess[str]":
        """Run a command where the mount is to be seen; text in, text out."""
        return subprocess.run(
            [*self._enter(), *map(str, argv)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=timeout,
            env={**os.environ, **(env or {})},
        )

    def python(self, code: str, *argv: object, timeout: float = 120) -> str:
        """Run Python code where the mount is to be seen; return what it prints."""
        done = self.run(sys.executable, "-IS", "-c", code, *argv, timeout=timeout)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self, timeout: float = 60) -> int:
        """End the namespaces; return the status of the server, which must end by itself."""
        self._ours.close()
        self._holder.wait()
        if self.inside:
            self.server.terminate()  # it is one of the namespace's processes
        try:
            return self.server.wait(timeout)
        except subprocess.TimeoutExpired:
            os.kill(self.server.pid, signal.SIGKILL)
            self.server.wait()
            raise AssertionError(f"the server did not end: {self.log.read_text()}") from None

    def __enter__(self) -> "Mount":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def ours(transport: str = "raw", *options: str) -> list[str]:
    """Return the argv of our own server."""
    name = f"--transport={transport}"
    argv = [sys.executable, "-m", "rootless_udi.fuse.main", name, *options]
    return [*argv, "--ready-fd=READY", "IMAGE", "MOUNT"]


def squashfuse() -> list[str]:
    """Return the argv of squashfuse_ll."""
    return [shutil.which("squashfuse_ll") or "squashfuse_ll", "-f", "IMAGE", "MOUNT"]


if __name__ == "__main__":
    with socket.socket(fileno=int(sys.argv[1])) as given:
        _holder(given, sys.argv[2], "overlay" in sys.argv[3:], "inside" in sys.argv[3:])
