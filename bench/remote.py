#!/usr/bin/env python3
"""`import numpy` of an image that is nowhere local, from a URL, against the same file on this disk.

    python3 -m bench.remote IMAGE [--optimize] [--rounds=N]

The links are a server on loopback that answers a request after a delay and sends all answers
together at a rate. Before that the local file is read with each window checked (image.verify) and
without. IMAGE is copied with the list of its windows (`udi export` does); with
--optimize it is laid out for this command first. Prints medians, ratios to the local file, and what
was fetched: requests and bytes, against the windows that were needed.
"""

import http.server
import multiprocessing
import os
import re
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

from bench.fuse_cold import COMMAND, TREE, forgetful, once, optimised
from rootless_udi.store import inside, resolve

LINKS = ((1, 10_000), (20, 1_000))
"""Milliseconds of a round trip, Mb/s."""


def serve(
    path: str, delay: float, rate: float, port: "multiprocessing.Queue[int]", log: str
) -> None:
    """Serve the file at `path` after `delay` seconds, `rate` bytes a second; ranges go to `log`."""
    size, fd = os.path.getsize(path), os.open(path, os.O_RDONLY)
    turn = threading.Lock()
    free = [0.0]

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            found = re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            assert found is not None
            at, last = int(found[1]), min(int(found[2]), size - 1)
            with open(log, "a") as file:
                file.write(f"{at} {last + 1}\n")
            time.sleep(delay)
            self.send_response(206)
            self.send_header("Content-Length", str(last + 1 - at))
            self.send_header("Content-Range", f"bytes {at}-{last}/{size}")
            self.end_headers()
            while at <= last:
                data = os.pread(fd, min(1 << 18, last + 1 - at), at)
                with turn:
                    free[0] = max(free[0], time.monotonic()) + len(data) / rate
                    due = free[0]
                time.sleep(max(0.0, due - time.monotonic()))
                self.wfile.write(data)
                at += len(data)

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    port.put(server.server_address[1])
    server.serve_forever()


def listed(image: str, target: Path) -> str:
    """Return a copy of `image` with the list of its windows and its facts inside."""
    facts = resolve.local(image, image).facts
    with open(image, "rb") as source, target.open("wb") as out:
        inside.copy(source.fileno(), image, facts, out.write)
    return str(target)


def main(argv: list[str]) -> None:
    """Run the benchmark."""
    rounds = next((int(w[9:]) for w in argv if w.startswith("--rounds=")), 5)
    image = next(w for w in argv if not w.startswith("--"))
    run = str(TREE / "bin/udi-run")
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        if "--optimize" in argv:
            image = optimised(image, folder)
        path = listed(image, folder / "listed.sqfs")
        first = forgetful(folder)
        always = folder / "always.toml"
        always.write_text('[image]\nverify = "always"\n')
        checked, unchecked = [], []
        for round_ in range(rounds + 1):
            one = once([run, path, *COMMAND], first)
            other = once([run, path, *COMMAND], {**first, "UDI_CONFIG": str(always)})
            if round_:
                unchecked.append(one)
                checked.append(other)
        ratio = statistics.median(a / b for a, b in zip(checked, unchecked, strict=True))
        print(f"a local file, image.verify = always: {ratio:.2f} of unchecked")
        for delay, rate in LINKS:
            log = folder / f"log-{delay}"
            port: multiprocessing.Queue[int] = multiprocessing.Queue()
            words = path, delay / 1000, rate * 1e6 / 8, port, str(log)
            server = multiprocessing.Process(target=serve, args=words, daemon=True)
            server.start()
            url = f"http://127.0.0.1:{port.get()}/listed.sqfs"
            here, away = [], []
            for round_ in range(rounds + 1):
                local = once([run, "--fuse=udi", path, *COMMAND], first)
                log.write_text("")
                remote = once([run, url, *COMMAND], first)
                if round_:
                    here.append(local)
                    away.append(remote)
            server.terminate()
            ranges = [tuple(map(int, line.split())) for line in log.read_text().splitlines()]
            came = sum(stop - at for at, stop in ranges)
            ratio = statistics.median(a / b for a, b in zip(away, here, strict=True))
            print(
                f"{delay} ms, {rate} Mb/s: local {statistics.median(here) * 1000:.0f} ms, "
                f"by URL {statistics.median(away) * 1000:.0f} ms: {ratio:.2f} of it; "
                f"{len(ranges)} requests, {came / 1e6:.1f} MB"
            )


if __name__ == "__main__":
    main(sys.argv[1:])
