"""The process that fetches a remote image's windows for the image server; its name is udi-remote.

HTTP and TLS are not in the image server, which would need 80 ms to load them, and which stays a
reader of files: the windows come into a sparse file that both have open, and the two speak over a
socket. So the server reads one sort of file, and one process of a node fetches for all its ranks.

- first message to udi-run: "ok", and what `serve.distant.Distant` says, with the file's descriptor;
  "none" where an image of a registry has no squashfs that could be read in place; "broken" where
  one is damaged, or does not come in time; "there" where the store has it; or "!", a message and a
  hint.
- from the server: an operation (GET or AGAIN) and a window's number, 8 bytes little-endian.
- to the server: the number, and why the window can't be had; "" if it is in the file now, CHECKED
  if this process has compared it with the list and written it; or, where the disk is full, with a
  descriptor of a file in memory that has it.

It ends when nobody has the other end of the socket any more: with the image server, whatever ended
that. Only while it fills a store it goes on, until the image is there whole (`remote.filler`).
Nobody ever waits longer than the site's time, neither for a window nor for the start: an answer is
sent then, whatever a thread does.
"""

import os
import sys
import time
from _thread import allocate_lock, start_new_thread
from select import POLLIN, poll

from rootless_udi.base import fastjson
from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import give, send
from rootless_udi.base.superblock import HEAD
from rootless_udi.base.windows import CHECKED
from rootless_udi.fuse.format import Corrupt, Superblock
from rootless_udi.plan.reference import REMOTE
from rootless_udi.remote import opening, places
from rootless_udi.remote.kept import Kept
from rootless_udi.remote.places import WindowsPlace
from rootless_udi.remote.sources import Remote, RemoteRequest
from rootless_udi.serve import outside
from rootless_udi.serve.distant import AGAIN, BROKEN, NAME, THERE

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from _thread import LockType

_TABLES = 4 << 20
"""Most bytes of an image's tables, from its end, that are fetched before they are asked for."""
_SWITCH = 0.0005
"""Seconds after which a thread has to let others go on."""
_MORE = 0.5
"""Seconds that a start has beyond the site's time: who waits for an answer says best which."""
_HINT = "is the network there? image.timeout says how long to wait; `udi pull` is more patient"


def main(sock: "_socket.socket", *words: str) -> None:
    """Serve windows of an image to the other end of `sock`, and end this process.

    `words` are the fields of `RemoteRequest`, "" for no flag. This is a child of udi-run, which has
    loaded a half of what is needed; it leaves it here.
    """
    image, timeout, insecure, fill, platform, folder = words
    asked = RemoteRequest(image, float(timeout), bool(insecure), bool(fill), platform, folder)
    mask = os.umask(0o077)
    # Who answers the server is not to wait 5 ms for each thread that has taken a window.
    sys.setswitchinterval(_SWITCH)
    try:
        outside.leave(NAME, sock.fileno())
        _Fetcher(sock, asked, mask).run()
    except UdiError as error:
        _tell(sock, "!", error.message, error.hint)
    except (OSError, ValueError, RuntimeError) as error:
        why = getattr(error, "strerror", None) or error
        _tell(sock, "!", f"reading {asked.image.partition('?')[0]} failed: {why}", "")
    finally:
        os._exit(0)


def _tell(sock: "_socket.socket", *words: str) -> None:
    try:
        send(sock, words, [])
    except OSError:
        return  # udi-run has ended


def _first(remote: Remote) -> tuple[tuple[int, int], ...]:
    """Return what every start reads first, each (position, length): inodes and folders, from which
    the server looks up all else, and what the image says itself."""
    try:
        head = Superblock(bytes(remote.head[:HEAD]))
        tables = max(head.inode_table, remote.used - _TABLES)
        return (tables, remote.used - tables), *head.hot()
    except Corrupt:
        return ()  # whoever reads the image will say what is wrong


class _Fetcher:
    def __init__(self, sock: "_socket.socket", asked: RemoteRequest, mask: int) -> None:
        self._sock = sock
        self._asked = asked
        self._mask = mask
        self._shown = ""
        self._kept: Kept | None = None
        self._waiting: dict[int, float] = {}
        self._lock = allocate_lock()
        self._opened = False
        self._pullable = False

    def run(self) -> None:
        """Open the image, tell udi-run, and answer the server until it has ended."""
        remote = self._found()
        if isinstance(remote, str):
            _tell(self._sock, *remote.split("\0"))
            return
        self._shown = remote.ranges.shown
        where = places.opened(self._asked, remote, self._mask)
        if where.made():
            _tell(self._sock, THERE)
            return
        for further in (places.nameless, places.in_memory):
            try:
                kept = self._begun(remote, where)
                break
            except OSError as error:
                # Its disk is full, or a quota used up.
                where = further(remote, error.strerror or str(error))
        else:
            kept = self._begun(remote, where)
        self._kept = kept
        kept.start()
        self._introduce(remote, where, kept)
        kept.expect(_first(remote))
        filler = None
        if self._asked.fill:
            from rootless_udi.remote.filler import Filler, log

            if where.filling is not None:
                filler = Filler(kept, where, remote.facts)
                filler.start()
            else:
                log(f"the store does not get {self._shown}: {where.why}")
        self._serve(kept)
        if filler is not None:
            filler.join()

    def _found(self) -> Remote | str:
        """Return what `opening.found` does; after the site's time tell udi-run, and end."""
        over = allocate_lock()
        over.acquire()
        start_new_thread(self._late, (over,))
        try:
            return opening.found(self._asked, self._can_be_pulled)
        finally:
            with self._lock:
                self._opened = True
            over.release()

    def _can_be_pulled(self) -> None:
        self._pullable = True

    def _late(self, over: "LockType") -> None:
        """End where each answer comes in time, but not all that a start needs."""
        if over.acquire(True, self._asked.timeout + _MORE):
            return
        with self._lock:
            if self._opened:
                return
            name, seconds = self._asked.image.partition("?")[0], f"{self._asked.timeout:g} s"
            why = f"what a start needs of {name} did not come in {seconds}"
            if self._pullable:
                _tell(self._sock, BROKEN, why)
            else:
                _tell(self._sock, "!", why, _HINT)
            os._exit(0)

    def _begun(self, remote: Remote, where: WindowsPlace) -> Kept:
        """Return the windows in a file, which has the first and what is behind them."""
        kept = Kept(remote.ranges, where.fd, remote.used, self._answer, where.journal, remote.known)
        kept.begin(remote.head, remote.tail, remote.last)
        return kept

    def _introduce(self, remote: Remote, where: WindowsPlace, kept: Kept) -> None:
        listed = remote.known.digest if remote.known is not None else ""
        # Those of a web server's file are in it.
        known = {} if self._asked.image.startswith(REMOTE) else dict(remote.facts)
        facts = fastjson.dumps(known) if known else ""
        there = " ".join(map(str, kept.checked))
        words = "ok", where.path, listed, remote.digest, self._shown, there, facts
        send(self._sock, words, [where.fd])

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
                    self._waiting[number] = time.monotonic() + self._asked.timeout
                if kept.want(number, fresh=message[:1] == AGAIN):
                    self._answer(number, "", b"")
            now = time.monotonic()
            with self._lock:
                late = [number for number, end in self._waiting.items() if end <= now]
            for number in late:
                why = f"no answer in time ({self._asked.timeout:g} s)"
                self._answer(number, f"reading {self._shown} failed: {why}", b"")

    def _patience(self) -> "float | None":
        """Return the milliseconds until somebody has waited too long; None where nobody waits."""
        with self._lock:
            ends = list(self._waiting.values())
        return max(min(ends) - time.monotonic(), 0) * 1000 + 1 if ends else None

    def _answer(self, number: int, why: str, window: bytes) -> None:
        """Answer for a window, if somebody waits for it. Any thread may call this."""
        with self._lock:
            if self._waiting.pop(number, None) is None:
                return
            if not why and self._kept is not None and number in self._kept.checked:
                why = CHECKED
            fds = []
            try:
                if window:
                    fds.append(os.memfd_create("window"))
                    os.pwrite(fds[0], window, 0)
                message = number.to_bytes(8, "little") + why.encode()[:1000]
                give(self._sock, message, fds)
            except OSError:
                return  # the server has ended, which the other thread sees
            finally:
                for fd in fds:
                    os.close(fd)
