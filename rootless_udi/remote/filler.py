"""Fill a store with the rest of a remote image, in the background, and make it an image there.

One process fills, of all nodes that share the store: the one that has the lock of the image's
digest. The others read what is there and fetch what they need; if the one dies, another goes on.
It works at the lowest priority, and fetches while nobody waits for a window. `udi rm` ends it.
"""

import contextlib
import os
import syslog
import threading
from collections.abc import Callable, Mapping
from random import uniform
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.syscalls import is_local
from rootless_udi.base.windows import WINDOW, WRONG
from rootless_udi.remote.kept import Kept
from rootless_udi.remote.places import WindowsPlace
from rootless_udi.store import adding, filling, windows
from rootless_udi.store.locks import Lock
from rootless_udi.store.windows import Checked

_TOGETHER = 4
"""Windows in one request: more would keep a link of 1 Gb/s from whoever waits for longer."""
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
"""Seconds between two looks whether another process still fills, or the network is there again."""
_PASSES = 3
"""How often the whole file is compared and what is wrong fetched anew."""
_FAILURES = 20
"""Failures in a row after which it is given up, about ten minutes; the next start goes on."""


class FillingEnded(Exception):
    """Filling ended before the image was whole; the text says why."""


class Filler:
    """Fills `place` with what `kept` fetches; `facts` are what the image will have in the store.

    `waits` is called with seconds to wait; `told` with how many windows are there, and of how many;
    `together` is how many are asked for in one request.
    """

    def __init__(
        self,
        kept: Kept,
        place: WindowsPlace,
        facts: Mapping[str, Any],
        waits: Callable[[float], object] | None = None,
        told: Callable[[int, int], object] = lambda there, windows: None,
        together: int = _TOGETHER,
    ) -> None:
        assert place.filling is not None and place.store is not None
        self._kept, self._place, self._facts = kept, place, facts
        self._what, self._store = place.filling, place.store
        self._waits = waits or threading.Event().wait
        self._told, self._together = told, together
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin in a thread. Without one, where a limit is reached, nothing is filled."""
        self._thread = threading.Thread(target=self._quietly, daemon=True)
        try:
            self._thread.start()
        except RuntimeError:
            self._thread = None

    def join(self) -> None:
        """Wait until the image is there, or given up."""
        if self._thread is not None:
            self._thread.join()

    def _quietly(self) -> None:
        with contextlib.suppress(OSError):
            # Of this thread alone: others answer whoever waits.
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
        try:
            self.run()
        except FillingEnded as error:
            log(f"filling {self._what.origin} ended: {error}; the next start goes on")
        except UdiError as error:
            log(f"filling {self._what.origin} failed: {error.message}")
        except OSError as error:
            log(f"filling {self._what.origin} failed: {error}")

    def run(self) -> None:
        """Fill, once no other process does, and make the image.

        Raises FillingEnded, UdiError, OSError.
        """
        try:
            self._alone()
        except (FillingEnded, UdiError, OSError):
            # A node whose locks don't meet ours may have made it meanwhile.
            if not self._place.made(fresh=True):
                raise

    def _alone(self) -> None:
        self._check_room()
        lock = self._store.lock(self._what.digest)
        wait = _FIRST_WAIT
        try:
            while not self._place.made():
                self._still_wanted()
                if lock.acquire():
                    self._may_go_on(lock)
                    # It may have been made between the two looks.
                    if not self._place.made(fresh=True):
                        self._fill()
                        self._make()
                        self._place.made()
                    break
                self._say(len(self._kept.missing()))
                # At random, so that thousands of nodes don't look together.
                self._waits(wait * uniform(0.75, 1.25))
                wait = min(wait * 1.5, _LONGEST_WAIT)
        finally:
            lock.release()

    def _still_wanted(self) -> None:
        if filling.wanted(self._store, self._what) is None:
            raise FillingEnded("it was removed (udi rm)")

    def _may_go_on(self, lock: Lock) -> None:
        """Without locks all nodes would fill a store that they share."""
        if not lock.works and not is_local(self._place.fd):
            raise FillingEnded("the store's file system has no locks, and other nodes may share it")

    def _check_room(self) -> None:
        left = len(self._kept.missing()) * WINDOW
        free = self._store.free()
        if left > free:
            raise FillingEnded(f"{left >> 20} MiB are missing, and {free >> 20} MiB free")

    def _fill(self) -> None:
        failures = 0
        for _ in range(_PASSES):
            while missing := self._kept.missing():
                for at in range(0, len(missing), self._together):
                    self._still_wanted()
                    self._say(len(missing) - at)
                    why = self._kept.fill(missing[at : at + self._together])
                    if self._kept.full is not None:
                        raise FillingEnded(f"a window can't be kept: {self._kept.full.strerror}")
                    if why == WRONG:
                        # Also when it was asked for anew.
                        raise FillingEnded("what comes is not what its list of windows says")
                    failures = failures + 1 if why else 0
                    if failures >= _FAILURES:
                        raise FillingEnded(why)
                    if why:
                        self._waits(min(_FIRST_WAIT * 2**failures, _LONGEST_WAIT))
                # What somebody waited for was under way, and is there or failed meanwhile.
                self._waits(0.01)
            bad = self._damaged()
            if not bad:
                self._say(0)
                return
            # A journal that was wrong, after a crash.
            self._kept.lost(bad)
        raise FillingEnded("what was written comes back wrong: is the disk damaged?")

    def _say(self, missing: int) -> None:
        self._told(self._what.windows - missing, self._what.windows)

    def _damaged(self) -> list[int]:
        assert self._place.known is not None
        return windows.damaged([Checked(self._place.fd, self._place.known)])[0]

    def _make(self) -> None:
        """Make the file the image, as it is and with the list that it has."""
        self._still_wanted()
        os.fchmod(self._place.fd, 0o666 & ~self._place.mask)
        adding.add(self._store, self._what.digest, self._place.path, self._facts, self._place.known)


def log(text: str) -> None:
    """Write a line to the system's log."""
    syslog.openlog("udi-remote", syslog.LOG_PID, syslog.LOG_USER)
    syslog.syslog(syslog.LOG_NOTICE, text)
