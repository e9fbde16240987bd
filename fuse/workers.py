"""Threads that read and decompress data while the server's thread answers requests.

Reading and decompressing release Python's lock (the GIL), so that the threads really work at the
same time. A worker never reads metadata; the server's thread does that. This uses the C modules
`_thread` and `_queue`: importing `threading` and `queue` costs a start 5 ms.
"""

import _thread
from os import nice, sched_yield

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _queue import SimpleQueue
    from collections.abc import Callable, Hashable

MOST = 1024
"""Most jobs that wait; more are not taken, and whoever needs the result makes it. A program of 8
MiB in blocks of 4 KiB makes 2048 jobs, a thousand such programs two million."""
_NICE = 8
"""nice(2) of a yielding worker. Not more, since the server may have to wait for a worker, or for
the GIL that one holds, on a busy node too."""


class Workers:
    """A number of threads, started with the first job, which do jobs.

    A job is a call with one argument, which is also the job's name: a data block's place, or the
    number of a window of the image. A job puts its result into a cache. Its errors are ignored:
    whoever needs the result does not find it in the cache, does the same, and gets the error.
    """

    def __init__(self, threads: int, yielding: bool = False) -> None:
        """`yielding` threads let all others run first, for a machine that has no CPU left for them.

        Launcher and server fill two CPUs: with a worker of the same priority one of them lost 4 ms,
        a slice of the scheduler, in every other start.
        """
        self.threads = threads
        self._yielding = yielding
        self._jobs: list[tuple[Callable[..., object], Hashable]] = []
        self._queue: SimpleQueue[bool]
        """True for each job, False to end a thread."""
        self._pending: dict[Hashable, _thread.LockType] = {}
        """Jobs that are not done yet. To wait for a job is to wait for its lock."""
        self._idle: dict[Hashable, bool] = {}
        """Those of them that no thread has begun. Each change of both dicts is one dict operation,
        which needs no lock."""
        self._running = -1
        """Threads that were started; -1 before the first job."""

    def ask(self, call: "Callable[..., object]", name: "Hashable", first: bool = False) -> None:
        """Have a worker call `call(name)`, unless that job waits already; `first` before others."""
        if name in self._pending or len(self._jobs) >= MOST:
            return
        if self._running < 0:
            self._start()
        if not self._running:
            return  # no thread could be started: `wait` would wait for ever
        done = _thread.allocate_lock()
        done.acquire()
        if self._pending.setdefault(name, done) is done:  # a worker may ask at the same time
            self._idle[name] = True
            self._jobs.insert(0 if first else len(self._jobs), (call, name))
            self._queue.put(True)

    def _start(self) -> None:
        from _queue import SimpleQueue  # some builds of Python load a file for it

        self._queue = SimpleQueue()
        self._running = 0
        for _ in range(self.threads):
            try:
                _thread.start_new_thread(self._work, (self._queue,))
            except RuntimeError:
                return  # at a limit of processes or of memory: the asking thread does it all
            self._running += 1

    def wait(self, name: "Hashable") -> None:
        """Wait for the job called `name` if a worker is at it; if none has begun it, remove it.

        A removed job is done by the caller at once, which needs not wait for the jobs before it.
        """
        done = self._pending.get(name)
        if done is None:
            return
        if self._idle.pop(name, False):
            # Another thread may wait for the same job: it finds no result, and does it too.
            self._pending.pop(name).release()
            return
        with done:
            pass

    def close(self) -> None:
        """End the threads when they have done their jobs. Call `ask` no more afterwards."""
        for _ in range(max(0, self._running)):
            self._queue.put(False)
        self._running = 0

    def _work(self, queue: "SimpleQueue[bool]") -> None:
        if self._yielding:
            nice(_NICE)  # on Linux of this thread alone (sched(7))
        while True:
            if not queue.get():
                return
            call, name = self._jobs.pop(0)
            if not self._idle.pop(name, False):
                continue  # `wait` has removed it
            try:
                call(name)
            except Exception:
                pass  # see the class's docstring
            finally:
                self._pending.pop(name).release()
            if self._yielding:
                # Without this, a task that is woken on this CPU waits for the slice's end, 3 ms.
                sched_yield()
