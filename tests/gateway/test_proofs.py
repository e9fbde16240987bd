"""Proofs that are over, administrators by name, and a thousand clients at once."""

import os
import resource
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

import pytest

from rootless_udi.gateway.serve import OF_ONE_USER
from tests.conftest import User
from tests.kit.gateway import SYSTEM, credential, gateway, munged
from tests.kit.registry import Registry

pytestmark = pytest.mark.needs("registry", "skopeo", "gateway")

CLIENTS = 1000
MEBIBYTES = 300


@pytest.mark.needs("munge")
def test_a_credential_is_no_proof_after_its_time(user: User, tmp_path: Path) -> None:
    """Many that are good for a second are held, and the oldest asked with, until one is over."""
    with (
        munged(tmp_path / "munge") as path,
        gateway(user, tmp_path / "s", f"--munge={path}") as one,
    ):
        # One proves its sender once: to a page's error too.
        for page in ("nothing", f"image?id=sha256:{'0' * 64}"):
            proof = {"authentication": credential(path)}
            failed = one.ask("GET", f"/page/{page}", None, True, **proof)
            assert failed.status == 404 and f"<span>{user.name}" in failed.body
        held = deque(credential(path, "", "--ttl=1") for _ in range(200))
        for _ in range(2000):
            text = held.popleft()
            found = one.ask("GET", f"/api/list/{SYSTEM}/", loopback=True, authentication=text)
            if found.status == 401:
                break
            held.append(credential(path, "", "--ttl=1"))
        assert found.status == 401 and "it has expired" in found.body["message"]


@pytest.mark.root
def test_administrators_by_name(user: User, tmp_path: Path, registry: Registry) -> None:
    """bin is one, games is not; root always is."""

    def asked(by: str) -> Callable[[str], str]:
        def get(path: str) -> str:
            argv = ["setpriv", f"--reuid={by}", "--regid=nogroup", "--clear-groups", "curl", "-sS"]
            argv += ["--unix-socket", str(one.socket), "-w", "%{http_code}", f"http://g{path}"]
            return subprocess.run(argv, capture_output=True, check=True, text=True).stdout

        return get

    with gateway(user, tmp_path / "site", "--admin=bin", "--admin=daemon") as one:
        for name, may in (("bin", True), ("daemon", True), ("root", True), ("games", False)):
            get = asked(name)
            for path in ("/api/v1/stats/", "/api/v1/audit/", f"/api/autoexpire/{SYSTEM}/"):
                assert get(path).endswith("200" if may else "403"), (name, path)


HOLD = """
import resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
held = []
for _ in range(int(sys.argv[2]) + 1):
    held.append(socket.socket(socket.AF_UNIX))
    held[-1].connect(sys.argv[1])
print(held[-1].recv(1 << 16).decode(), flush=True)
sys.stdin.read()
"""


@pytest.mark.root
def test_one_user_does_not_take_all_connections(user: User, tmp_path: Path) -> None:
    with gateway(user, tmp_path / "site") as one:
        words = ["setpriv", "--reuid=games", "--regid=nogroup", "--clear-groups"]
        words += [sys.executable, "-c", HOLD, str(one.socket), str(OF_ONE_USER)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as hold:
            assert hold.stdout is not None
            said = hold.stdout.readline() + hold.stdout.readline() + hold.stdout.readline()
            assert said.startswith(b"HTTP/1.1 503"), said
            assert one.get(f"/api/list/{SYSTEM}/").status == 200
            hold.communicate()
        assert one.complaints == ""


def test_a_thousand_clients_fetch_an_image_at_once(
    user: User, tmp_path: Path, registry: Registry
) -> None:
    """None reads at first: the gateway has bounded memory for each, and answers another one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
    with gateway(user, tmp_path / "site", "--rate=1e9") as one:
        ready = one.pulled(f"{registry.host}/site/big:1")
        image = one.store / f"images/sha256-{ready['id']}.sqfs"
        head = f"GET /api/v1/images/sha256:{ready['id']} HTTP/1.1\r\nHost: g\r\n\r\n".encode()
        clients = []
        try:
            for _ in range(CLIENTS):
                client = socket.socket(socket.AF_UNIX)
                client.settimeout(120)
                client.connect(str(one.socket))
                client.sendall(head)
                clients.append(client)
            assert all(client.recv(12) == b"HTTP/1.1 200" for client in clients)
            assert one.get(f"/api/list/{SYSTEM}/").status == 200
            assert one.process is not None
            pages = int(Path(f"/proc/{one.process.pid}/statm").read_text().split()[1])
            assert pages * os.sysconf("SC_PAGESIZE") < MEBIBYTES << 20
            size, got = image.stat().st_size, 0
            # The last one is served to its end whatever the others do.
            while part := clients[-1].recv(1 << 20):
                got += len(part)
                if got >= size:
                    break
            assert got >= size
        finally:
            for client in clients:
                client.close()
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert one.get(f"/api/list/{SYSTEM}/").status == 200
