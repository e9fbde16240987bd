"""A link with a delay and a rate, and behind it a web server's file and a registry's image.

Nothing but a server on loopback, in a process of its own: it answers a request after a round trip,
a connection's first one after two, and sends all answers together at a rate. File data goes by
sendfile(2), so that the server takes little of the machine that is measured.
"""

import http.server
import json
import multiprocessing
import os
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rootless_udi.base import windows
from rootless_udi.base.superblock import SIZE, USED
from rootless_udi.base.windows import place
from rootless_udi.pull import artifact
from rootless_udi.pull.manifest import OCI_INDEX, OCI_MANIFEST, Descriptor, sha256
from rootless_udi.store import inside

Documents = dict[str, tuple[str, bytes | str]]
"""Path -> (media type, content, or the name of a file)."""
_PIECE = 1 << 18
_TOKEN = "Bearer bench"


class Link:
    """Where a link's server is, and what was asked of it: (begun, first byte, byte after the last,
    path), by time.monotonic()."""

    def __init__(self, port: int, log: Path) -> None:
        self.host = f"127.0.0.1:{port}"
        self._log = log

    def clear(self) -> None:
        self._log.write_text("")

    def asked(self, until: float) -> list[tuple[float, int, int, str]]:
        """Return what was asked before `until`, in order."""
        rows = (line.split() for line in self._log.read_text().splitlines())
        found = [(float(w[0]), int(w[1]), int(w[2]), w[3]) for w in rows]
        return sorted(row for row in found if row[0] < until)

    def settle(self) -> None:
        """Wait until nothing is asked any more."""
        before = -1
        while before != (size := self._log.stat().st_size):
            before = size
            time.sleep(0.3)


@contextmanager
def link(
    documents: Documents, folder: Path, delay: float, rate: float, tokens: bool
) -> Iterator[Link]:
    """Serve `documents` with round trips of `delay` seconds, `rate` bytes a second; with `tokens`
    below /v2/ only to who has got one."""
    log = folder / f"log-{time.monotonic_ns()}"
    log.touch()
    port: multiprocessing.Queue[int] = multiprocessing.Queue()
    words = documents, delay, rate, tokens, port, str(log)
    server = multiprocessing.Process(target=_serve, args=words, daemon=True)
    server.start()
    try:
        yield Link(port.get(), log)
    finally:
        server.terminate()
        server.join()


def _serve(
    documents: Documents,
    delay: float,
    rate: float,
    tokens: bool,
    port: "multiprocessing.Queue[int]",
    log: str,
) -> None:
    turn = threading.Lock()
    free = [0.0]
    notes = os.open(log, os.O_WRONLY | os.O_APPEND)
    files = {f: os.open(f, os.O_RDONLY) for _, f in documents.values() if isinstance(f, str)}

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def setup(self) -> None:
            super().setup()
            self.delay = 2 * delay

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            begun = time.monotonic()
            time.sleep(self.delay)
            self.delay = delay
            path = self.path.partition("?")[0]
            media, content = documents.get(path, ("", b""))
            status, head = 200 if media else 404, {"Content-Type": media or "text/plain"}
            if path == "/token":
                content, status = json.dumps({"token": "bench"}).encode(), 200
            elif tokens and path.startswith("/v2/") and self.headers["Authorization"] != _TOKEN:
                status, content = 401, b"{}"
                realm = f"http://{self.headers['Host']}/token"
                head["WWW-Authenticate"] = f'Bearer realm="{realm}",scope="repository:app:pull"'
            fd = files[content] if isinstance(content, str) else -1
            size = len(content) if fd < 0 else os.fstat(fd).st_size
            at, stop = 0, size
            if found := re.match(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
                at, stop, status = int(found[1]), min(int(found[2]) + 1, size), 206
                head["Content-Range"] = f"bytes {at}-{stop - 1}/{size}"
            os.write(notes, f"{begun} {at} {stop} {path}\n".encode())
            self.send_response(status)
            for name, value in {**head, "Content-Length": str(stop - at)}.items():
                self.send_header(name, value)
            self.end_headers()
            while at < stop:
                number = min(_PIECE, stop - at)
                self._wait(number)
                if fd < 0:
                    self.wfile.write(content[at : at + number])  # type: ignore[arg-type]
                    at += number
                else:
                    at += os.sendfile(self.connection.fileno(), fd, at, number)

        def _wait(self, number: int) -> None:
            with turn:
                free[0] = max(free[0], time.monotonic()) + number / rate
                due = free[0]
            late = due - time.monotonic()
            if late > 0.0005:  # a sleep lasts longer than asked; the next piece makes up for it
                time.sleep(late)

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, *_: object) -> None:
            pass

    server = Server(("127.0.0.1", 0), Handler)
    port.put(server.server_address[1])
    server.serve_forever()


def documents(image: Path, facts: dict[str, Any]) -> tuple[Documents, str]:
    """Return an image's file as /image.sqfs, and as a registry's image app:1 that it was pushed
    for; and the digest of that."""
    used = int.from_bytes(image.open("rb").read(SIZE)[USED], "little")
    with image.open("rb") as file:
        known = windows.behind(lambda at, size: os.pread(file.fileno(), size, at), used)
    assert known is not None
    found: Documents = {"/image.sqfs": ("application/octet-stream", str(image))}

    def blob(media: str, content: bytes) -> Descriptor:
        digest = sha256(content)
        found[f"/v2/app/blobs/{digest}"] = media, content
        return Descriptor(media, digest, len(content))

    def manifest(content: bytes, media: str, *names: str) -> Descriptor:
        digest = sha256(content)
        for name in (digest, *names):
            found[f"/v2/app/manifests/{name}"] = media, content
        return Descriptor(media, digest, len(content))

    layer = Descriptor("application/vnd.oci.image.layer.v1.tar+gzip", sha256(b"layer"), 5)
    rootfs = {"type": "layers", "diff_ids": [layer.digest]}
    config = {"architecture": "amd64", "os": "linux", "rootfs": rootfs}
    of_config = blob("application/vnd.oci.image.config.v1+json", json.dumps(config).encode())
    parts = {"config": artifact.described(of_config), "layers": [artifact.described(layer)]}
    body = json.dumps({"schemaVersion": 2, "mediaType": OCI_MANIFEST, **parts}).encode()
    subject = manifest(body, OCI_MANIFEST, "1")
    # What is read of it is proved by the list; nobody reads all of it to find its digest.
    squashfs = Descriptor(artifact.SQUASHFS, sha256(known.digest.encode()), image.stat().st_size)
    found[f"/v2/app/blobs/{squashfs.digest}"] = artifact.SQUASHFS, str(image)
    listed = blob(artifact.WINDOWS, windows.packed(known))
    of_facts = blob(artifact.FACTS, json.dumps(facts).encode())
    pushed = artifact.made(squashfs, listed, of_facts, known.digest, subject)
    entry = {**artifact.described(manifest(pushed, OCI_MANIFEST)), "artifactType": artifact.TYPE}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}
    found[f"/v2/app/referrers/{subject.digest}"] = OCI_INDEX, json.dumps(index).encode()
    return found, subject.digest


def grown(source: Path, target: Path, size: int) -> None:
    """Copy a squashfs file so that it has about `size` bytes, by zeros before its tables.

    No file has these. The positions of all that follows them are changed, in the superblock and in
    the lists of metadata blocks (squashfs 4.0: at 48 to 95, each 8 bytes, little-endian).
    """
    data = bytearray(source.read_bytes())
    used = int.from_bytes(data[USED], "little")
    with source.open("rb") as whole:
        at, length = inside.parts(whole.fileno())[1]
    asks = data[at : at + length]  # without the list of windows, which is for another size
    gap = max(size - used, 0) >> 20 << 20
    cut = _number(data, 64)  # the inode table, the first of the tables
    inodes, fragments = _number(data, 4, 4), _number(data, 16, 4)
    lists = [(_number(data, 48), -(-_number(data, 26, 2) // 2048))]
    lists += [(_number(data, 80), -(-fragments // 512)), (_number(data, 88), -(-inodes // 1024))]
    xattrs = _number(data, 56)
    if xattrs < used:
        lists += [(xattrs, 1), (xattrs + 16, -(-_number(data, xattrs + 8, 4) // 512))]
    for at, count in (*lists, (48, 6), (40, 1)):
        for row in range(at, at + 8 * count, 8) if at < used else ():
            if _number(data, row) < 1 << 63:
                data[row : row + 8] = (_number(data, row) + gap).to_bytes(8, "little")
    assert place(used + gap) == place(used) + gap
    with target.open("wb") as file:
        file.write(data[:cut])
        file.seek(gap, os.SEEK_CUR)
        file.write(data[cut:used] + bytes(place(used) - used) + asks)


def _number(data: bytearray, at: int, size: int = 8) -> int:
    return int.from_bytes(data[at : at + size], "little")


def sparsely(target: Path) -> "Any":
    """Return an open file whose `write` leaves out what is zeros; to be closed."""
    return _Sparse(target)


class _Sparse:
    def __init__(self, target: Path) -> None:
        self._file = target.open("wb", buffering=0)

    def write(self, data: bytes) -> None:
        if data.count(0) == len(data):
            self._file.seek(len(data), os.SEEK_CUR)
        else:
            assert self._file.write(data) == len(data)

    def close(self) -> None:
        self._file.truncate()
        self._file.close()
