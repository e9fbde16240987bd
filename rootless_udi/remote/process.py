"""The process that fetches a remote image's windows for the image server; its name is udi-remote.

HTTP and TLS are not in the image server, which would need 80 ms to load them, and which stays a
reader of files: the windows come into a sparse file that both have open, and the two speak over a
socket. So the server reads one sort of file, and one process of a node fetches for all its ranks.

- first message to udi-run: "ok", with the file's descriptor; or "!", a message and a hint.
- from the server: an operation (GET or AGAIN) and a window's number, 8 bytes little-endian.
- to the server: the number, and why the window can't be had, "" if it is in the file now.

It ends when nobody has the other end of the socket any more: with the image server, whatever ended
that. Nobody ever waits longer than the site's time: an answer is sent then, whatever a thread does.
"""

import os
import socket
import sys
import threading
import time
from select import POLLIN, poll

from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import send
from rootless_udi.base.superblock import HEAD, MAGIC, SIZE, USED
from rootless_udi.base.windows import WINDOW, place
from rootless_udi.base.windows import behind as behind_of
from rootless_udi.fuse.format import Corrupt, Superblock
from rootless_udi.remote.kept import Kept
from rootless_udi.remote.origins import Web
from rootless_udi.remote.ranges import Ranges
from rootless_udi.serve import outside
from rootless_udi.serve.distant import AGAIN, NAME

_BEHIND_MAX = 80 << 20
"""Most bytes behind a squashfs: its list of windows, its facts and what starts ask."""
SOCKET = 3
"""The descriptor of the socket that udi-run gives."""


def main() -> None:
    """Serve windows of the URL sys.argv[1]; [2] is the timeout in seconds, [3] "insecure" or "".

    [4] is the folder in which the windows are kept for the next start, "" for none.
    The process that udi-run started ends at once: its child, which nobody waits for, does the work.
    """
    if os.fork():
        os._exit(0)
    url, timeout, insecure, folder = sys.argv[1:5]
    sock = socket.socket(fileno=SOCKET)
    try:
        outside.leave(NAME, SOCKET)
        _Fetcher(sock, url, float(timeout), insecure == "insecure").run(folder)
    except UdiError as error:
        _tell(sock, "!", error.message, error.hint)
    except (OSError, ValueError, RuntimeError) as error:
        _tell(sock, "!", f"reading {url} failed: {error}", "")
    finally:
        os._exit(0)


def _tell(sock: socket.socket, *words: str) -> None:
    try:
        send(sock, words, [])
    except OSError:
        return  # udi-run has ended


class _Fetcher:
    def __init__(self, sock: socket.socket, url: str, timeout: float, insecure: bool) -> None:
        self._sock = sock
        self._timeout = timeout
        self._source = Ranges(Web(url, timeout, insecure), timeout)
        self._waiting: dict[int, float] = {}
        self._lock = threading.Lock()

    def run(self, folder: str) -> None:
        """Open the image, tell udi-run, and answer the server until it has ended."""
        head = self._source.begin(WINDOW)
        name = self._source.shown
        if len(head) < SIZE or int.from_bytes(head[:4], "little") != MAGIC:
            raise UdiError(f"image {name} is no squashfs file", "is it the URL of a web page?")
        used = int.from_bytes(head[USED], "little")
        behind = self._source.size - place(used)
        if used > self._source.size or behind > _BEHIND_MAX:
            raise UdiError(
                f"image {name} is no whole squashfs file: {self._source.size} bytes of {used}"
            )
        tail = bytearray()
        if behind > 0:
            self._source.read(place(used), behind, lambda _, piece: tail.extend(piece))
        fd, journal = _files(folder, bytes(tail), used, self._source.size)
        os.ftruncate(fd, self._source.size)
        kept = Kept(self._source, fd, used, self._answer, journal)
        kept.put(0, head)
        kept.known(0)
        kept.put(place(used), tail)
        try:
            hot = Superblock(head[:HEAD]).hot()
        except Corrupt:
            hot = ()  # whoever reads the image will say what is wrong
        kept.start()
        send(self._sock, ("ok",), [fd])
        kept.expect(hot)
        self._serve(kept)

    def _serve(self, kept: Kept) -> None:
        ready = poll()
        ready.register(self._sock, POLLIN)
        while True:
            if ready.poll(self._patience()):
                message = self._sock.recv(64)
                if not message:
                    return
                number = int.from_bytes(message[1:9], "little")
                with self._lock:
                    self._waiting[number] = time.monotonic() + self._timeout
                if kept.want(number, fresh=message[:1] == AGAIN):
                    self._answer(number, "")
            now = time.monotonic()
            with self._lock:
                late = [number for number, end in self._waiting.items() if end <= now]
            for number in late:
                why = f"no answer in time ({self._timeout:g} s)"
                self._answer(number, f"reading {self._source.shown} failed: {why}")

    def _patience(self) -> "float | None":
        """Return the milliseconds until somebody has waited too long; None where nobody waits."""
        with self._lock:
            ends = list(self._waiting.values())
        return max(min(ends) - time.monotonic(), 0) * 1000 + 1 if ends else None

    def _answer(self, number: int, why: str) -> None:
        """Answer for a window, if somebody waits for it. Any thread may call this."""
        with self._lock:
            if self._waiting.pop(number, None) is None:
                return
            try:
                self._sock.send(number.to_bytes(8, "little") + why.encode()[:1000])
            except OSError:
                return  # the server has ended, which the other thread sees


def _files(folder: str, tail: bytes, used: int, size: int) -> tuple[int, int]:
    """Return the file for the windows, and the journal of those that are in it (-1: there is none).

    In `folder` they are named by the image's list, so that the next start finds what is there,
    whatever ended this one; nothing of it is used before it was compared with the list. Without a
    folder or a list it is a file without a name, in TMPDIR or in memory.
    """
    try:
        known = behind_of(lambda at, most: tail[at - place(used) :][:most], used)
    except ValueError:
        known = None
    if folder and known is not None:
        name = f"{folder}/{known.digest.replace(':', '-')}.{size}"
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            fd = os.open(f"{name}.windows", flags, 0o600)
            # For whoever removes what has not been used for long.
            os.utime(fd)
            return fd, os.open(f"{name}.journal", flags | os.O_APPEND, 0o600)
        except OSError:
            pass  # the store is another's, or full
    elsewhere = os.environ.get("TMPDIR") or "/tmp"
    try:
        return os.open(elsewhere, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600), -1
    except OSError:
        pass
    path = f"{elsewhere}/.udi-remote-{os.urandom(8).hex()}"
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return os.memfd_create("udi-remote"), -1
    os.unlink(path)
    return fd, -1
