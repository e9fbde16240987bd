"""The helper: a process outside the container that starts the image server and cleans up.

`Helper` is udi-run's side of it: it starts the process and tells it what to serve.
"""

import os
from sys import meta_path

from rootless_udi.base.calls import close_others
from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import pair, receive, send, tell
from rootless_udi.base.process import started
from rootless_udi.base.syscalls import CLONE_NEWUSER, setns
from rootless_udi.serve import outside, programs
from rootless_udi.serve.outside import AHEAD, BUG, HELPER

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from rootless_udi.fuse.precheck import Beforehand
    from rootless_udi.plan.image import Root
    from rootless_udi.plan.start import Start
    from rootless_udi.serve.outside import Place
    from rootless_udi.serve.volumes import Volumes


_SOON = 3000
"""Milliseconds after which all ranks of a launcher have loaded their MPI, mostly."""
_LAST = 19
"""The lowest priority, of nice(2)."""
_LIMITS = "a limit may be reached: of processes (ulimit -u, the job's), or of memory (ulimit -v)"


class Helper:
    """udi-run's side of the helper.

    `known` is the path of what an earlier such start read (`serve.prefetch`), "" for none; `keeps`
    says, before `hand_over`, that `keep` will be called. `volumes` serves the squashfs volumes.
    """

    def __init__(self, place: "Place", beside: "Callable[[], None] | None" = None) -> None:
        """Start the helper. It loads the image server while udi-run gathers facts and plans.

        When the container has ended, it removes the record at `place`. `beside` is called in a
        process that ends afterwards. Raises UdiError where no process can be started.
        """
        self._server = ""
        self._said = ""
        self.known = self._key = self._keep = ""
        self._behind = self._compared = False
        self.keeps = self.ranks = False
        self.volumes: Volumes | None = None
        self._mine, theirs = pair()
        self._source, source = pair()
        outside.arguments()
        launcher = os.getpid()
        try:
            child = os.fork()
        except OSError as error:
            raise UdiError(f"starting a process failed: {error.strerror}", _LIMITS) from None
        if child == 0:
            status = BUG
            try:
                if os.fork():
                    if beside is not None:
                        beside()
                    os._exit(0)
                outside.leave(HELPER, theirs.fileno(), source.fileno())
                work(theirs, source, place, launcher)
                status = 0
            finally:
                os._exit(status)
        # The kernel often puts the child on this very CPU, where it would wait for the end of our
        # time slice (3 ms) while another CPU is idle. Yielding lets it start at once.
        os.sched_yield()
        # This child forks the helper, does what is asked for beside, and ends; `close` reaps it.
        self._between = child
        theirs.close()
        source.close()

    def announce(
        self, root: "Root", program: str, start: "Start", fds: "tuple[int, ...]" = ()
    ) -> None:
        """Tell our own server what it will serve, so that it opens the image meanwhile.

        `program` is the command's first word: if it is in the image, it will be read next. `fds`
        are a remote image's file and the socket to who fetches it (`distant.opened`).
        """
        if not root.trace:
            self.known, self._behind = start.known, start.behind
        self._key, self._keep = start.key, start.keep
        self._compared = bool(start.verify) and not fds
        try:
            told = root.path, root.trace, program, start.keep, start.key, start.verify
            numbers = str(root.offset), str(start.timeout)
            send(self._source, (*told, *numbers, start.digest, start.there), list(fds))
        except OSError:
            # The server has ended; `failure` will say why.
            pass

    def hand_over(self, root: "Root", fuse: int | None, watch: int | None) -> None:
        """Tell the helper what to serve, and give it the descriptors.

        `fuse` is the FUSE connection, `watch` tells the container's end (`execute`). Raises
        UdiError where the helper is dead.
        """
        fds = [] if watch is None else [watch]
        kinds = "w" * len(fds)
        if root.server != "udi":
            # So that our own server, which is not needed, ends.
            self._source.close()
            if fuse is not None:
                fds.append(fuse)
                kinds += "f"
        elif fuse is not None:
            try:
                send(self._source, ("fuse",), [fuse])
            except OSError:
                # The server could not open the image, and has sent the reason, which `failure`
                # reads.
                pass
        kinds += "k" if self.keeps else ""
        kinds += "r" if self.ranks else ""
        kinds += "b" if self._behind else ""
        kinds += "c" if self._compared else ""
        what = root.server, kinds, root.path, root.program, self.known, self._key, self._keep
        try:
            send(self._mine, (*what, str(root.offset), *root.options), fds)
        except OSError:
            raise UdiError("the image server ended before it began", _LIMITS) from None

    def ask_ahead(self, space: int, top: int) -> None:
        """Have a further process prefetch what `known` lists; call this after `hand_over`.

        `space` is a descriptor of the mount's user namespace, `top` one of a copy of the mount.
        """
        try:
            send(self._mine, ("ask",), [space, top])
        except OSError:
            # The helper is dead, which `answer` will say.
            pass

    def answer(self) -> str:
        """Wait until the image server is started; return its process id and start time ("12 345").

        Return "" where there is no server. Raises UdiError where the helper was killed.
        """
        if not self._said:
            self._said, _ = receive(self._mine)
            if not self._said:
                raise UdiError("the image server's helper ended before it began", _LIMITS)
            if self._said.startswith("pid "):
                self._server = self._said[4:]
        return self._server

    def keep(self, seconds: int, job: tuple[int, int]) -> str:
        """Have the caller's container kept for the next start (`serve.keeper`); call this inside.

        `job` is the batch job's first process (pid, start). Returns "PID START" of the process that
        keeps it; "" where none could be started, or the helper is dead.
        """
        spaces = [
            os.open(f"/proc/self/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("user", "mnt")
        ]
        try:
            send(self._mine, ("keep", str(seconds), *map(str, job)), spaces)
            said, _ = receive(self._mine)
        except OSError:
            return ""
        finally:
            for fd in spaces:
                os.close(fd)
        return said[len("pin ") :]

    def failure(self, root: "Root") -> str:
        """Return why the image server does not serve; for a reader that got ENOTCONN."""
        sock = self._source if root.server == "udi" else self._mine
        said = self._said
        try:
            while not said.startswith("! "):
                said = receive(sock)[0] or "! it ended"
        except OSError:
            return "the image server ended"
        return said[2:]

    def close(self) -> None:
        """Close the sockets and reap the child, before the command is executed."""
        if self.volumes is not None:
            self.volumes.close()
        self._mine.close()
        self._source.close()
        os.waitpid(self._between, 0)


def work(
    sock: "_socket.socket",
    source: "_socket.socket",
    place: "Place",
    launcher: int,
    ahead: "Beforehand | None" = None,
) -> None:
    """The helper: have the image served, wait for the container's end, remove its record.

    `sock` is for messages with udi-run, `source` for those of our own server, a child of this one.
    `launcher` is udi-run's process, which becomes the command; it is told if the server dies. For
    `ahead` see `server.run`."""
    child = os.fork()
    if child == 0:
        sock.close()
        from rootless_udi.serve.server import run

        run(source, place, ahead)
    source.close()
    message, fds = receive(sock)
    if not message:
        # udi-run has ended. Our own server sees that too.
        _end(place)
        return
    server, kinds, path, program, known, key, keep, offset, *options = message.split("\0")
    watch = fds.pop(0) if "w" in kinds else None
    fuse = fds.pop(0) if "f" in kinds else None
    if server == "udi":
        tell(sock, f"pid {child} {started(child)}")
    asked = _asked(sock, known, kinds, key, watch) if known else ("", [])
    hold = _holder(sock, "k" in kinds, asked, place)
    if "r" in kinds and "k" not in kinds:
        hold = _looker(launcher, watch)
    if server == "udi":
        hold(child)
    status = _reaped(child)
    why = ""
    if server == "udi":
        if status == 0:
            # The mount is gone, and the server has removed the record.
            return
        why = f"it was killed by signal {-status}" if status < 0 else "it failed"
        _forget(place, keep, child)
    elif fuse is None:
        outside.hold(path)
        tell(sock, "pid ")
        hold(0)
    else:
        from rootless_udi.plan.image import Root

        root = Root(server, path, program, options=tuple(options), offset=int(offset))
        why = programs.serve(sock, root, fuse, hold)
    if why:
        _lost(place, why, sock, launcher)
    sock.close()
    if watch is not None:
        # Wait for the only event: the private tmpfs is unmounted, so the container has ended.
        os.read(watch, 4096)
    if watch is not None or fuse is not None or server == "udi":
        _end(place)


def _reaped(child: int) -> int:
    """Return the exit status of a child once it has ended, whichever others end before."""
    while True:
        ended, status = os.wait()
        if ended == child:
            return os.waitstatus_to_exitcode(status)


def _forget(place: "Place", keep: str, server: int) -> None:
    """Remove what the image server, which has died, began to note in the file `keep`."""
    if keep and place[0]:
        from rootless_udi.serve import prefetch

        prefetch.drop(place[0], keep, server)


def _asked(
    sock: "_socket.socket", known: str, kinds: str, key: str, watch: int | None
) -> tuple[str, list[int]]:
    """Start the process that prefetches if udi-run asks for it; return the message if it is another
    one, else ("", [])."""
    said, fds = receive(sock)
    if said != "ask":
        return said, fds
    _ask_ahead(known, kinds, key, fds, watch)
    return "", []


def _holder(
    sock: "_socket.socket", kept: bool, asked: tuple[str, list[int]], place: "Place"
) -> "Callable[[int], None]":
    """Return a function that keeps the container where udi-run asks for it, until it is to end.

    `asked` is udi-run's message if it has come, else ("", []). The function gets the id of the
    image server's process, 0 for none.
    """

    def hold(served: int) -> None:
        said, fds = asked if asked[0] or not kept else receive(sock)
        if said:
            from rootless_udi.serve import keeper

            keeper.hold(sock, said, fds, place, served)

    return hold


def _looker(launcher: int, watch: int | None) -> "Callable[[int], None]":
    """Return a function that looks for bare ranks once, when all ranks have begun; it gets the id
    of the image server's process, 0 for none."""

    def look(served: int) -> None:
        from select import POLLIN, poll

        try:
            fd = os.pidfd_open(served) if served else -1 if watch is None else os.dup(watch)
            waiting = poll()
            waiting.register(fd, POLLIN)
            ended = waiting.poll(_SOON)
            os.close(fd)
            if not ended:
                from rootless_udi.serve import bareranks

                bareranks.tell(launcher)
        except Exception:
            # Linux before 5.3, a process that has ended, or whatever is odd there: the container
            # needs its helper.
            pass

    return look


def _lost(place: "Place", why: str, sock: "_socket.socket", launcher: int) -> None:
    """Print to the command's user that the image server has died; write it into the record.

    The record tells it to ranks that want to join later.
    """
    from rootless_udi.serve import lastwords

    if lastwords.gone(sock):
        text = f"the image can't be read any more, since its server has ended: {why}"
        lastwords.say(launcher, text, "start the command again")
    _end(place, why)


def _end(place: "Place", why: str = "") -> None:
    """Remove the container's record, or write into it `why` the image server has ended."""
    if place[0]:
        from rootless_udi.node import ending

        ending.end(*place, why)


def _ask_ahead(known: str, kinds: str, key: str, fds: list[int], watch: int | None) -> None:
    """Start a process that prefetches.

    `known` is the path of the questions, with "b" in `kinds` of an image's file to which they are
    appended for `key`; `fds` are the mount's user namespace and a copy of the mount.
    """
    from rootless_udi.serve import prefetch

    questions = prefetch.behind(known, key) if "b" in kinds else prefetch.find(known)
    try:
        child = os.fork() if questions else -1
    except OSError:
        # A limit of processes is reached; prefetching is not worth an error.
        child = -1
    if child == 0:
        try:
            outside.title(AHEAD)
            if "c" in kinds:
                # Where windows are compared, it asks faster than they are. The command first.
                os.nice(_LAST)
            space, top = fds
            over = prefetch.over(watch)
            # Only processes in the mount's user namespace may use the mount (fuse(4), allow_other).
            setns(space, CLONE_NEWUSER)
            # Sockets among them: other processes wait until all copies of these are closed.
            close_others(top, *(() if watch is None else (watch,)))
            os.fchdir(top)
            # The image becomes the root directory, so that no link leads out of it. Python must not
            # import anything now, since that would be code of the image.
            os.chroot(".")
            meta_path.clear()
            prefetch.ask(questions, over)
        finally:
            os._exit(0)
    for fd in fds:
        os.close(fd)
