"""A gateway of a test's own, its clients, and a munged."""

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import User

NGINX = """
daemon off; error_log {folder}/error.log; pid {folder}/pid; worker_processes 1;
events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2;
  fastcgi_temp_path {folder}/t3; uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  upstream udi_gateway {{ server 127.0.0.1:{port}; }}
  server {{
    listen unix:{folder}/front;
    {included}
  }}
}}
"""
"""nginx in front of a gateway on `port`, by the Unix socket `folder`/front."""

SYSTEM = "perlmutter"


class Answer(NamedTuple):
    """What a request was answered: the status, the JSON document or the text."""

    status: int
    body: Any
    headers: dict[str, str]


class _Local(HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("gateway", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(60)
        self.sock.connect(self._path)


class Gateway:
    """`udi gateway serve` for the store `store`, started as `user` by `start`."""

    def __init__(self, user: User, store: Path, *options: object, name: str = "") -> None:
        self.user, self.store, self.options, self.name = user, store, options, name
        self.said: list[str] = []
        self.log = store.parent / f"{store.name}{name}.log"
        self.process: subprocess.Popen[str] | None = None
        self.before: tuple[str, ...] = ()

    def start(self, **env: str) -> "Gateway":
        words = [
            *self.before,
            "udi",
            "gateway",
            "serve",
            f"--store={self.store}",
            f"--system={SYSTEM}",
        ]
        words += ["--listen=127.0.0.1:0", f"--listen=unix:{self.socket}", *map(str, self.options)]
        with open(self.log, "a") as log:
            self.process = self.user.popen(*words, stdout=subprocess.PIPE, stderr=log, env=env)
        assert self.process.stdout is not None
        told = ("--starts", "--listen")
        lines = 2 + sum(str(one).startswith(told) for one in self.options)
        self.said = [self.process.stdout.readline().strip() for _ in range(lines)]
        assert any(line.endswith(str(self.socket)) for line in self.said), (
            self.said,
            self.log.read_text(),
        )
        return self

    @property
    def socket(self) -> Path:
        return self.store.parent / f"socket{self.name}"

    @property
    def complaints(self) -> str:
        """What it has said on standard error, but for that a test's folder is closed to others."""
        closed = r"udi gateway: .* is closed to others.*\nudi gateway: hint: chmod a\+x .*\n"
        return re.sub(closed, "", self.log.read_text())

    @property
    def port(self) -> int:
        found = re.search(r":(\d+)$", self.said[0])
        assert found
        return int(found[1])

    def connect(self) -> HTTPConnection:
        """Return a connection to its Unix socket."""
        return _Local(str(self.socket))

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | dict[str, Any] | None = None,
        loopback: bool = False,
        **headers: str,
    ) -> Answer:
        """Send one request, by the Unix socket unless `loopback`."""
        one = HTTPConnection("127.0.0.1", self.port) if loopback else self.connect()
        data = json.dumps(body).encode() if isinstance(body, dict) else body
        try:
            # What is refused unread is answered, and the connection closed, while it is being sent.
            with contextlib.suppress(BrokenPipeError):
                one.request(method, path, data, headers)
            reply = one.getresponse()
            text = reply.read()
        finally:
            one.close()
        kind = reply.headers.get("Content-Type", "")
        found = json.loads(text) if kind.startswith("application/json") else text.decode()
        return Answer(reply.status, found, {k.lower(): v for k, v in reply.headers.items()})

    def get(self, path: str, **headers: str) -> Answer:
        return self.ask("GET", path, None, False, **headers)

    def pull(self, tag: str, **body: Any) -> Answer:
        return self.ask("POST", f"/api/pull/{SYSTEM}/docker/{tag}/", body)

    def pulled(self, tag: str, *until: str, **body: Any) -> dict[str, Any]:
        """Ask for a pull, as Shifter's clients do, until it has one of these states."""
        states = until or ("READY", "FAILURE")
        end = time.monotonic() + 60
        while time.monotonic() < end:
            found = self.pull(tag, **body)
            assert found.status == 200, found
            if found.body["status"] in states:
                return dict(found.body)
            time.sleep(0.05)
        text = f"{self.log.read_text()}\nits processes: {self.processes()}"
        raise AssertionError(f"{tag} is {found.body} after a minute: {text}")

    def children(self) -> list[str]:
        """The numbers of the processes that it has started and that live."""
        assert self.process is not None
        tasks = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return "".join(path.read_text() for path in tasks).split()

    def processes(self) -> list[str]:
        """What its processes wait for in the kernel, and how long they have run, a text each."""
        found = []
        for number in self.children():
            for task in Path(f"/proc/{number}/task").iterdir():
                with contextlib.suppress(OSError):
                    ran = task.joinpath("stat").read_text().rpartition(")")[2].split()
                    waits = task.joinpath("wchan").read_text()
                    found.append(f"{number}/{task.name} {ran[0]} {ran[11]}+{ran[12]} in {waits}")
        return found

    def kill(self) -> None:
        """End it as a crash of its node does."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> int:
        if self.process is None or self.process.returncode is not None:
            return 0
        self.process.terminate()
        return self.process.wait(60)


@contextlib.contextmanager
def gateway(
    user: User,
    store: Path,
    *options: object,
    name: str = "",
    before: tuple[str, ...] = (),
    **env: str,
) -> Iterator[Gateway]:
    """A gateway that serves `store`; `name` tells it from others of the same. The words `before`
    its command line start it."""
    one = Gateway(user, store, *options, name=name)
    one.before = before
    try:
        yield one.start(**env)
    finally:
        one.stop()
        log = one.log.read_text()
        assert "Traceback" not in log, log


def until(true: Callable[[], bool], log: Path) -> None:
    """Ask until it is so: another gateway hears of a change within a second or so."""
    for _ in range(1200):
        if true():
            return
        threading.Event().wait(0.05)
    raise AssertionError(log.read_text())


def status(one: Gateway, tag: str) -> int:
    return one.get(f"/api/lookup/{SYSTEM}/docker/{tag}/").status


@contextlib.contextmanager
def munged(folder: Path, shared: bytes = b"") -> Iterator[Path]:
    """A munged with a key of its own, or one that is `shared`; yields its socket."""
    folder.mkdir(mode=0o755)
    key, path = folder / "key", folder / "socket"
    key.write_bytes(shared or os.urandom(128))
    key.chmod(0o400)
    program = shutil.which("munged", path="/usr/sbin:/usr/bin") or "munged"
    words = [program, "--foreground", "--force", f"--key-file={key}", f"--socket={path}"]
    words += [f"--pid-file={folder}/pid", f"--log-file={folder}/log", f"--seed-file={folder}/seed"]
    with open(folder / "out", "w") as out:
        process = subprocess.Popen(words, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while not path.exists():
            assert process.poll() is None and time.monotonic() < end, (folder / "out").read_text()
            time.sleep(0.02)
        yield path
    finally:
        process.terminate()
        process.wait()


def credential(socket: Path, payload: str = "", *options: str) -> str:
    """A new munge credential of the caller's."""
    argv = ["munge", f"--socket={socket}", f"--string={payload}", *options]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
