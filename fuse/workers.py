"""Threads that read and decompress while the server answers: both release the GIL.

On `_thread` and `_queue` in place of `threading` and `queue`, which cost a launch 5 ms of import. A
worker never touches metadata: one thread does that.
"""

import _thread
from os import nice, sched_yield

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _queue import SimpleQueue
    from collections.abc import Callable, Hashable

MOST = 1024
"""Jobs that wait at once. They are hints: beyond it who wants a result makes it. A program of 8 MiB
in blocks of 4 KiB asks for 2048, and a thousand such programs would for two million."""
_NICE = 8
"""Not more: who waits for a worker, or for the GIL that one holds, does so on a busy node too."""


class Workers:
    """`threads` threads, started at the first request, that call what they are given.

    A job is a call with one argument, which is also its name: a data block's place, or the number
    of a window of the image. It puts what it makes into a cache, and nobody sees its errors: who
    wants the result does not find it there, makes it, and meets the same error.
    """

    def __init__(self, threads: int, yielding: bool = False) -> None:
        """`yielding`: there is no CPU for these, and whoever else wants to run comes first.

        With two CPUs, for the launcher and the server, a worker of equal right made one of them
        wait for the scheduler's 4 ms in every other start.
        """
        self.threads = threads
        self._yielding = yielding
        self._jobs: list[tuple[Callable[..., object], Hashable]] = []
        self._queue: SimpleQueue[bool]
        """True for each of the jobs, False for a thread to end."""
        self._pending: dict[Hashable, _thread.LockType] = {}
        """Jobs that are not done; who waits for one waits for its lock."""
        self._idle: dict[Hashable, bool] = {}
        """Those of them that no thread has begun. Any step on either is one dict operation."""
        self._running = -1
        """Threads that could be started; -1 before the first request."""

    def ask(self, call: "Callable[..., object]", name: "Hashable", first: bool = False) -> None:
        """Have `call(name)` made, `first` before all that waits, unless it is on its way."""
        if name in self._pending or len(self._jobs) >= MOST:
            return
        if self._running < 0:
            self._start()
        if not self._running:
            return  # nobody would do it, and `wait` would wait for ever
        done = _thread.allocate_lock()
        done.acquire()
        if self._pending.setdefault(name, done) is done:  # a worker may have asked meanwhile
            self._idle[name] = True
            self._jobs.insert(0 if first else len(self._jobs), (call, name))
            self._queue.put(True)

    def _start(self) -> None:
        from _queue import SimpleQueue  # a file of its own in some builds of Python

        self._queue = SimpleQueue()
        self._running = 0
        for _ in range(self.threads):
            try:
                _thread.start_new_thread(self._work, (self._queue,))
            except RuntimeError:
                return  # a limit of processes or of memory: the asking thread does it all
            self._running += 1

    def wait(self, name: "Hashable") -> None:
        """Wait for the job called `name` where it is being done; take it back where it waits.

        Whoever wants it does it at once, then, in place of waiting for all that was asked before.
        """
        done = self._pending.get(name)
        if done is None:
            return
        if self._idle.pop(name, False):
            # For another thread that waits for the same: it finds nothing, and makes it too.
            self._pending.pop(name).release()
            return
        with done:
            pass

    def close(self) -> None:
        """End the threads once they are done with what they were asked; ask for nothing after."""
        for _ in range(max(0, self._running)):
            self._queue.put(False)
        self._running = 0

    def _work(self, queue: "SimpleQueue[bool]") -> None:
        if self._yielding:
            nice(_NICE)  # of this thread alone, on Linux (sched(7))
        while True:
            if not queue.get():
                return
            call, name = self._jobs.pop(0)
            if not self._idle.pop(name, False):
                continue  # taken back
            try:
                call(name)
            except Exception:
                pass  # see the class's docstring
            finally:
                self._pending.pop(name).release()
            if self._yielding:
                # Who is woken on this CPU would wait for the end of a slice, 3 ms, even so.
                sched_yield()
