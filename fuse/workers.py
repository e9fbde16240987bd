"""Threads that read and decompress data blocks while the server answers: both release the GIL.

On `_thread` and `_queue`, which are compiled into Python, in place of `threading` and `queue`,
which cost a launch 5 ms of import. A worker never touches metadata: one thread does that.
"""

import _thread
from _queue import SimpleQueue

from rootless_udi.fuse.blocks import Blocks, Place


class Workers:
    """`threads` threads, started at the first request, that put blocks into the blocks' cache."""

    def __init__(self, blocks: Blocks, threads: int) -> None:
        self.blocks = blocks
        self.threads = threads
        self._queue: SimpleQueue[tuple[Place, _thread.LockType] | None] = SimpleQueue()
        self._pending: dict[Place, _thread.LockType] = {}
        self._started = False

    def ask(self, place: Place) -> None:
        """Have the block at `place` read and decompressed, unless it is there or on its way."""
        if place in self._pending or place in self.blocks.cache:
            return
        if not self._started:
            self._started = True
            for _ in range(self.threads):
                _thread.start_new_thread(self._work, ())
        done = _thread.allocate_lock()
        done.acquire()
        self._pending[place] = done
        self._queue.put((place, done))

    def busy(self, place: Place) -> bool:
        """Tell whether the block at `place` is on its way."""
        return place in self._pending

    def get(self, place: Place) -> bytes:
        """Return the block at `place`, waiting for it where it is on its way. As Blocks.get."""
        done = self._pending.get(place)
        if done is not None:
            with done:
                pass
        return self.blocks.get(place)

    def close(self) -> None:
        """End the threads once they are done with what they were asked."""
        if self._started:
            self._started = False
            for _ in range(self.threads):
                self._queue.put(None)

    def _work(self) -> None:
        blocks = self.blocks
        while True:
            job = self._queue.get()
            if job is None:
                return
            place, done = job
            try:
                blocks.get(place)
            except Exception:
                pass  # whoever wants the block meets the same error and reports it
            finally:
                del self._pending[place]
                done.release()
