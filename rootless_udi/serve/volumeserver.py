"""The process that serves squashfs volumes with our own server: udi-volume, a thread for each.

A thread opens its file while udi-run still plans, waits for the FUSE connection, and answers until
the mount is gone. Python runs one thread at a time, but reading and decompressing let others run.
"""

import os
from _thread import allocate_lock, stack_size, start_new_thread

from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import receive
from rootless_udi.serve import outside, server
from rootless_udi.serve.outside import BUG, VOLUME

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from _thread import LockType
    from collections.abc import Sequence
    from typing import NoReturn

    from rootless_udi.fuse.raw_transport import Server
    from rootless_udi.plan.steps import Squashfs

_DATA, _LEAST = 64 << 20, 8 << 20
"""Bytes of decompressed data that are cached: for all volumes together, and at least for each."""
_METADATA, _LEAST_METADATA = 36 << 20, 3 << 20
"""The same of metadata."""
_STACK = 1 << 20
"""Bytes of a thread's stack; thirty of the usual 8 MiB would not fit into a limit of memory."""


def line(number: int, why: str) -> bytes:
    """Return what udi-run is told: why the volume `number` (-1: all of them) is not served."""
    return f"{number} {' '.join(why.splitlines())}\n".encode("utf-8", "replace")


def run(
    steps: "Sequence[Squashfs]", numbers: "list[int]", sock: "_socket.socket", said: int
) -> "NoReturn":
    """Serve those of `steps` that have `numbers`, and end the process when all mounts are gone.

    A message over `sock` is a number, with its FUSE connection. `said` is the pipe to udi-run.
    """
    import gc

    status = BUG
    try:
        outside.title(VOLUME)
        gc.freeze()
        gc.enable()
        stack_size(_STACK)
        served = {number: _Served(steps[number], number, len(numbers), said) for number in numbers}
        for one in served.values():
            one.start()
        while True:
            text, fds = receive(sock)
            if not text:
                break
            served[int(text)].connect(fds[0])
        # udi-run has made all mounts, or has ended.
        sock.close()
        for one in served.values():
            one.connect(-1)
        for one in served.values():
            one.ended.acquire()
        status = 0
    except Exception as error:
        server.log(f"the server of volumes failed: {type(error).__name__}: {error}", VOLUME)
    finally:
        os._exit(status)


class _Served:
    """A volume and the thread that serves it; `share` is how many volumes share the caches."""

    def __init__(self, step: "Squashfs", number: int, share: int, said: int) -> None:
        self.step, self.number, self.share, self.said = step, number, share, said
        self.fuse: int | None = None
        self.connected, self.ended = _locked(), _locked()

    def start(self) -> None:
        try:
            start_new_thread(self._run, ())
        except RuntimeError as error:
            self._say(f"{error}: a limit of processes may be reached (ulimit -u, the job's)")
            self.fuse = -1
            self.ended.release()

    def connect(self, fuse: int) -> None:
        """Give the thread its connection, once; -1 where there will be none."""
        if self.fuse is None:
            self.fuse = fuse
            self.connected.release()
        elif fuse >= 0:
            os.close(fuse)

    def _run(self) -> None:
        """Open the file, and serve it."""
        found = None
        try:
            found = self._opened()
        except UdiError as error:
            self._say(error.message.removeprefix(f"mounting failed on {self.step.root.path}: "))
        except OSError as error:
            self._say(str(error.strerror or error))
        except Exception as error:
            self._say(f"its server failed: {type(error).__name__}: {error}")
        self.connected.acquire()
        fuse = -1 if self.fuse is None else self.fuse
        try:
            if found is not None and fuse >= 0:
                found.fd = fuse
                found.run()
                found.fs.close()
        except Exception as error:
            self._log(f"the server of a volume failed: {type(error).__name__}: {error}")
        finally:
            # Whoever still reads gets ENOTCONN.
            if fuse >= 0:
                os.close(fuse)
            self.ended.release()

    def _opened(self) -> "Server":
        from rootless_udi.fuse import raw_transport

        root, share = self.step.root, self.share
        fs = raw_transport.opened(
            root.path,
            max(_DATA // share, _LEAST),
            None if share == 1 else 0,
            server.owned(),
            server.opener(self.step.verify),
            base=root.offset,
            metadata=max(_METADATA // share, _LEAST_METADATA),
        )
        return raw_transport.Server(fs, self._log, warm=False)

    def _say(self, why: str) -> None:
        try:
            os.write(self.said, line(self.number, why))
        except OSError:
            # udi-run has ended.
            pass

    def _log(self, text: str) -> None:
        server.log(text, VOLUME)


def _locked() -> "LockType":
    lock = allocate_lock()
    lock.acquire()
    return lock
