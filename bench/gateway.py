#!/usr/bin/env python3
"""The image gateway: lookups a second, against an empty application of the same server in the same
run; 50 users who ask for one image at once; an image's bytes to 32 clients, alone and behind nginx,
against nginx alone.

    bench/gateway.py [IMAGES [MEGABYTES]]      100,000 images in the catalogue, an image of 1,000 MB
"""

import os
import random
import select
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.conftest import User
from tests.kit.gateway import NGINX, SYSTEM, gateway
from tests.kit.images import Layout, tar
from tests.kit.pulling import HERE
from tests.kit.registry import flaky, open_registry

ROUNDS, REQUESTS, CLIENTS, USERS, READERS = 3, 2000, 16, 50, 32
EMPTY = """
import sys, trio
from pathlib import Path
from rootless_udi.gateway import listen, serve

class Nothing:
    async def run(self): await trio.sleep_forever()
    async def write_counts(self): pass

async def app(scope, receive, send):
    head = [(b"content-type", b"application/json"), (b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b"{}"})

one = listen.Listener(listen.parsed(sys.argv[1]))
serve.run(app, Nothing(), [one], lambda: print("ready", flush=True))
"""


def load(path: Path, targets: list[str]) -> tuple[float, float, float]:
    """Send REQUESTS requests by CLIENTS connections; return (a second, median, 99th), in ms."""
    sockets = {}
    for _ in range(CLIENTS):
        one = socket.socket(socket.AF_UNIX)
        one.connect(str(path))
        sockets[one.fileno()] = one
    epoll = select.epoll()
    begun: dict[int, float] = {}
    spent: list[float] = []
    answers: dict[int, bytes] = {}
    heads = [f"GET {target} HTTP/1.1\r\nHost: g\r\n\r\n".encode() for target in targets]
    left = iter(random.Random(1).choices(heads, k=REQUESTS))

    def send(number: int) -> None:
        if (head := next(left, None)) is not None:
            begun[number] = time.perf_counter()
            sockets[number].sendall(head)

    start = time.perf_counter()
    for number in sockets:
        epoll.register(number, select.EPOLLIN)
        send(number)
    while len(spent) < REQUESTS:
        for number, _ in epoll.poll(30):
            answers[number] = data = answers.get(number, b"") + sockets[number].recv(1 << 16)
            head, _, rest = data.partition(b"\r\n\r\n")
            length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or 1)
            if len(rest) < length:
                continue
            assert data.startswith(b"HTTP/1.1 200"), data[:200]
            answers[number] = b""
            spent.append((time.perf_counter() - begun[number]) * 1e3)
            send(number)
    whole = time.perf_counter() - start
    for one in sockets.values():
        one.close()
    spent.sort()
    return REQUESTS / whole, median(spent), spent[int(len(spent) * 0.99)]


def fill(store: Path, images: int) -> list[str]:
    """Write a catalogue of so many images, none of which has a file; return their names."""
    from sqlalchemy import insert

    from rootless_udi.gateway.database import Database
    from rootless_udi.gateway.tables import IMAGES, NAMES

    facts = '{"ENV": ["PATH=/usr/bin", "A=1"], "ENTRY": ["/bin/sh"], "WORKDIR": "/", "LABELS": {}}'
    names = [f"user{n % 700}/image{n}:1" for n in range(images)]
    rows, named = [], []
    for number, name in enumerate(names):
        digest = f"sha256:{number:064x}"
        values = {"size": 1 << 30, "pulled": 1e9, "used": 1e9, "public": True, "facts": facts}
        rows.append({"digest": digest, **values})
        named.append(
            {
                "platform": HERE.key(),
                "name": f"docker.io/{name}",
                "digest": digest,
                "pulled": 1e9,
            }
        )
    database = Database(str(store))
    database.write_now(lambda connection: connection.execute(insert(IMAGES), rows) and None)
    database.write_now(lambda connection: connection.execute(insert(NAMES), named) and None)
    database.close()
    return names


def lookups(user: User, folder: Path, images: int) -> None:
    """Print how many lookups a second there are, and the empty application's."""
    store = folder / "catalogue"
    with gateway(user, store, "--rate=1e9") as one:
        # Filled while it runs: at a start it would forget images that have no file.
        one.kill()
        names = fill(store, images)
        code = "import rootless_udi.gateway.catalogue as c; c.adopt = lambda *a: None; "
        code += "from rootless_udi.commands.udi import main; main()"
        words = ["gateway", "serve", f"--store={store}", f"--listen=unix:{one.socket}"]
        words += [f"--system={SYSTEM}", "--rate=1e9"]
        served = user.popen(
            sys.executable, "-c", code, *words, stdout=subprocess.PIPE, env=HERE_ENV
        )
        assert served.stdout is not None and served.stdout.readline()
        path = folder / "empty.socket"
        empty = user.popen(
            sys.executable, "-c", EMPTY, f"unix:{path}", stdout=subprocess.PIPE, env=HERE_ENV
        )
        assert empty.stdout is not None and empty.stdout.readline()
        targets = [f"/api/lookup/{SYSTEM}/docker/{name}/" for name in names]
        few = random.Random(2).sample(targets, min(2000, len(targets)))
        found: dict[str, list[tuple[float, float, float]]] = {}
        for _ in range(ROUNDS):
            found.setdefault("empty application", []).append(load(path, ["/"]))
            found.setdefault(f"lookups of any of {images:,}", []).append(load(one.socket, targets))
            found.setdefault("lookups of 2,000 of them", []).append(load(one.socket, few))
        for process in (served, empty):
            process.terminate()
            process.wait()
    base = median(row[0] for row in found["empty application"])
    for name, rows in found.items():
        rate, middle, late = (median(column) for column in zip(*rows, strict=True))
        print(
            f"{name:32} {rate:7.0f}/s  median {middle:5.1f} ms  p99 {late:5.1f} ms  "
            f"{rate / base:.2f} of the empty one's"
        )


def one_image(user: User, folder: Path, megabytes: int) -> None:
    """Print what 50 users cause who ask for one image at once."""
    layout = Layout(folder / "layout")
    eighth = megabytes * 1_000_000 // 8
    layers = [tar([(f"f{n}", random.Random(n).randbytes(eighth), {})]) for n in range(8)]
    layout.image("1", layers, {}, HERE.architecture)
    del layers
    with open_registry(folder / "r", folder / "data") as registry, flaky(registry.host) as proxy:
        registry.push(layout.path, "1", "big:1")
        with gateway(user, folder / "store", "--rate=1e9") as one:
            tag, states, peak, over = f"{proxy.host}/big:1", [], [0], threading.Event()

            def watch() -> None:
                while not over.wait(0.05):
                    peak[0] = max(peak[0], resident(one.process.pid if one.process else 0))

            watcher = threading.Thread(target=watch)
            threads = [
                threading.Thread(target=lambda: states.append(one.pulled(tag)["status"]))
                for _ in range(USERS)
            ]
            start = time.perf_counter()
            for thread in (watcher, *threads):
                thread.start()
            for thread in threads:
                thread.join()
            whole = time.perf_counter() - start
            over.set()
            watcher.join()
        blobs = proxy.paths("/blobs/")
    print(
        f"{USERS} ask for an image of {megabytes} MB: {states.count('READY')} READY, {whole:.1f} s"
    )
    print(f"{len(blobs)} downloads of {len(set(blobs))} blobs, with workers {peak[0]} MiB")


def files(user: User, folder: Path, megabytes: int) -> None:
    """Print how fast 32 clients get an image: of the gateway, behind nginx, of nginx alone."""
    store, image = folder / "files", folder / "image"
    layout = Layout(folder / "noise")
    layer = tar([("f", random.Random(1).randbytes(megabytes * 1_000_000), {})])
    layout.image("1", [layer], {}, HERE.architecture)
    with open_registry(folder / "r2", folder / "data2") as registry:
        registry.push(layout.path, "1", "big:1")
        with gateway(user, store, "--rate=1e9") as one:
            digest = f"sha256:{one.pulled(f'{registry.host}/big:1')['id']}"
            path, name = f"/api/v1/images/{digest}", f"{digest.replace(':', '-')}.sqfs"
            image = store / "images" / name
            found = {"the gateway alone": [fetched(one.socket, path, image)]}
            one.stop()
            one.options = ("--rate=1e9", "--accel=/udi-store", "--anonymous")
            one.start()
            text = (Path(__file__).parent.parent / "contrib/gateway/nginx.conf").read_text()
            included = text.replace("/shared/udi/images", str(store))
            conf = folder / "nginx.conf"
            plain = f"location /plain/ {{ alias {store}/images/; sendfile on; tcp_nopush on; }}"
            values = {"folder": folder, "port": one.port, "included": f"{plain}\n{included}"}
            conf.write_text(NGINX.format(**values))
            words = ["/usr/sbin/nginx", "-c", str(conf), "-e", f"{folder}/error.log"]
            process = user.popen(*words)
            try:
                while not (folder / "front").exists() and process.poll() is None:
                    time.sleep(0.05)
                for _ in range(ROUNDS):
                    for word, target in (("nginx alone", f"/plain/{name}"), ("behind nginx", path)):
                        found.setdefault(word, []).append(fetched(folder / "front", target, image))
            finally:
                process.terminate()
                process.wait()
    base = median(found["nginx alone"])
    for word, rates in found.items():
        rate = median(rates)
        print(f"image to {READERS} clients, {word:18} {rate:7.0f} MB/s  {rate / base:.2f} of nginx")


def fetched(path: Path, target: str, image: Path) -> float:
    """Have READERS clients fetch `target` by the socket `path`; return MB/s, all together."""
    words = ["curl", "-sSf", "-o", "/dev/null", "--unix-socket", str(path), f"http://g{target}"]
    start = time.perf_counter()
    readers = [subprocess.Popen(words) for _ in range(READERS)]
    statuses = [one.wait() for one in readers]
    assert not any(statuses)
    return READERS * image.stat().st_size / 1e6 / (time.perf_counter() - start)


def resident(pid: int) -> int:
    """Return the MiB that a process and all below it take, shared pages once for each."""
    todo, total = [pid], 0
    while todo:
        one = Path(f"/proc/{todo.pop()}")
        try:
            total += int((one / "statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
            for task in (one / "task").iterdir():
                todo += map(int, (task / "children").read_text().split())
        except OSError:
            continue
    return total >> 20


HERE_ENV = {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def main() -> None:
    """Print the medians of rounds that alternate, and what one image takes."""
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    megabytes = int(sys.argv[2]) if len(sys.argv) > 2 else 1000
    with tempfile.TemporaryDirectory(dir="/var/tmp") as text:
        folder = Path(text)
        (folder / "home/run").mkdir(parents=True)
        user = User(folder / "home")
        lookups(user, folder, images)
        one_image(user, folder, megabytes)
        files(user, folder, min(megabytes, 100))


if __name__ == "__main__":
    main()
