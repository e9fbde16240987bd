"""The launcher's end of the processes outside the container: start them, say what to serve."""

import os
from sys import meta_path

from rootless_udi.base.calls import close_others, spawn
from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import pair, receive, send, tell
from rootless_udi.base.process import started
from rootless_udi.base.syscalls import CLONE_NEWUSER, setns
from rootless_udi.serve import outside
from rootless_udi.serve.outside import AHEAD, BUG, HELPER
from rootless_udi.serve.programs import command

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket

    from rootless_udi.plan.image import Root
    from rootless_udi.plan.start import Start
    from rootless_udi.serve.outside import Place


_LIMITS = "a limit may be reached: of processes (ulimit -u, the job's), or of memory (ulimit -v)"


class Helper:
    """The launcher's end of the helper.

    `known` is the file with what the last such start asked (`serve.prefetch`), "" for none.
    """

    def __init__(self, place: "Place") -> None:
        """Fork the helper, which loads the image server while the launcher gathers facts and plans.

        The helper removes the record at `place` when the container has ended. Raises UdiError where
        no process can be started.
        """
        self._server = ""
        self._said = ""
        self.known = self._key = self._keep = ""
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
                    os._exit(0)
                outside.leave(HELPER, theirs.fileno(), source.fileno())
                work(theirs, source, place, launcher)
                status = 0
            finally:
                os._exit(status)
        # The kernel often puts the child on this very CPU, where it would wait for the end of our
        # time slice (3 ms) while another CPU is idle. Yielding lets it start at once.
        os.sched_yield()
        # The process between us and the helper ends at once; `close` reaps it.
        self._between = child
        theirs.close()
        source.close()

    def announce(self, root: "Root", program: str, start: "Start") -> None:
        """Say what our own server will serve, so that it opens it while the launcher goes on.

        `program` is the command's first word, which is read next if it is in the image.
        """
        if not root.trace:
            self.known = start.known
        self._key, self._keep = start.key, start.keep
        try:
            send(self._source, (root.path, root.trace, program, start.keep, start.key), [])
        except OSError:
            # It has ended, which `failure` will say.
            pass

    def hand_over(self, root: "Root", fuse: int | None, watch: int | None) -> None:
        """Say what is to be served and cleaned up, and send the descriptors.

        Raises UdiError where the helper is dead already.
        """
        fds = [] if watch is None else [watch]
        kinds = "w" * len(fds)
        if root.server != "udi":
            # Our own server is not wanted, and ends.
            self._source.close()
            if fuse is not None:
                fds.append(fuse)
                kinds += "f"
        elif fuse is not None:
            try:
                send(self._source, ("fuse",), [fuse])
            except OSError:
                # It could not open the image, and has said so: who looks at the mount asks
                # `failure`.
                pass
        what = root.server, kinds, root.path, root.program, self.known, self._key, self._keep
        try:
            send(self._mine, (*what, *root.options), fds)
        except OSError:
            raise UdiError("the image server ended before it began", _LIMITS) from None

    def ask_ahead(self, space: int, top: int) -> None:
        """Have another process prefetch from the image what `known` tells; after `hand_over`.

        `space` is a descriptor of the mount's user namespace, `top` one of a copy of the mount.
        """
        try:
            send(self._mine, ("ask",), [space, top])
        except OSError:
            # The helper is dead, which `answer` will say.
            pass

    def answer(self) -> str:
        """Wait for the image server to be started; return its process id and start time ("12 345"),
        "" where there is none. Raises UdiError where the helper has been killed."""
        if not self._said:
            self._said, _ = receive(self._mine)
            if not self._said:
                raise UdiError("the image server's helper ended before it began", _LIMITS)
            if self._said.startswith("pid "):
                self._server = self._said[4:]
        return self._server

    def failure(self, root: "Root") -> str:
        """Say why the image server does not serve; call this after a reader met ENOTCONN."""
        sock = self._source if root.server == "udi" else self._mine
        said = self._said
        try:
            while not said.startswith("! "):
                said = receive(sock)[0] or "! it ended"
        except OSError:
            return "the image server ended"
        return said[2:]

    def close(self) -> None:
        """Close the launcher's ends and reap what is left, before the command is executed."""
        self._mine.close()
        self._source.close()
        os.waitpid(self._between, 0)


def work(sock: "_socket.socket", source: "_socket.socket", place: "Place", launcher: int) -> None:
    """Receive the descriptors, see that the image is served, wait for the end, clean up.

    `launcher` is the process that becomes the command, which is told where the server dies.
    """
    child = os.fork()
    if child == 0:
        sock.close()
        from rootless_udi.serve.server import run

        run(source, place)
    source.close()
    message, fds = receive(sock)
    if not message:
        # The launcher has given up. The server sees that too.
        _end(place)
        return
    server, kinds, path, program, known, key, keep, *options = message.split("\0")
    watch = fds.pop(0) if "w" in kinds else None
    fuse = fds.pop(0) if "f" in kinds else None
    if server == "udi":
        tell(sock, f"pid {child} {started(child)}")
    if known:
        _, fds = receive(sock)
        if fds:
            _ask_ahead(known, path, key, fds, watch)
    ended, status = os.wait()
    while ended != child:
        ended, status = os.wait()
    status = os.waitstatus_to_exitcode(status)
    why = ""
    if server == "udi":
        if status == 0:
            # The mount has gone, and the server has taken the record away.
            return
        why = f"it was killed by signal {-status}" if status < 0 else "it failed"
        if keep and place[0]:
            from rootless_udi.serve import prefetch

            prefetch.drop(place[0], keep, child)
    elif fuse is None:
        tell(sock, "pid ")
    else:
        from rootless_udi.plan.image import Root

        why = _program(sock, Root(server, path, program, options=tuple(options)), fuse)
    if why:
        _lost(place, why, sock, launcher)
    sock.close()
    if watch is not None:
        # Wait for the one event: the private tmpfs was unmounted, so the container has ended.
        os.read(watch, 4096)
    if watch is not None or fuse is not None or server == "udi":
        _end(place)


def _lost(place: "Place", why: str, sock: "_socket.socket", launcher: int) -> None:
    """Tell the command's user that the image server has died, and the ranks to come."""
    from rootless_udi.serve import lastwords

    if lastwords.gone(sock):
        text = f"the image can't be read any more, since its server has ended: {why}"
        lastwords.say(launcher, text, "start the command again")
    _end(place, why)


def _end(place: "Place", why: str = "") -> None:
    if place[0]:
        from rootless_udi.node import publish

        publish.end(*place, why)


def _ask_ahead(known: str, image: str, key: str, fds: list[int], watch: int | None) -> None:
    """Have a child prefetch. `fds` are the mount's user namespace and a copy of the mount."""
    from rootless_udi.serve import prefetch

    questions = prefetch.behind(image, key) if known == image else prefetch.find(known)
    try:
        child = os.fork() if questions else -1
    except OSError:
        # A limit of processes is reached; prefetching is not worth an error.
        child = -1
    if child == 0:
        try:
            outside.title(AHEAD)
            space, top = fds
            over = prefetch.over(watch)
            # Only processes in the mount's user namespace may use it (fuse(4), allow_other).
            setns(space, CLONE_NEWUSER)
            # Other processes wait until the descriptors that we inherited are closed everywhere.
            close_others(top, *(() if watch is None else (watch,)))
            os.fchdir(top)
            # The image becomes the root directory, so that no link leads out of it; and nothing may
            # be imported from it.
            os.chroot(".")
            meta_path.clear()
            prefetch.ask(questions, over)
        finally:
            os._exit(0)
    for fd in fds:
        os.close(fd)


def _program(sock: "_socket.socket", root: "Root", fuse: int) -> str:
    """Run another program on the connection; return how it ended, "" for well."""
    program, argv = command(root, f"/dev/fd/{fuse}")
    os.set_inheritable(fuse, True)
    # Not a pipe: nobody reads it before the server's end, and a full one would stop the server.
    said = os.memfd_create("stderr")
    try:
        # A program of an environment module may find its libraries by LD_LIBRARY_PATH alone.
        known = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        env = {"PATH": "/usr/bin:/bin", **known}
        pid = spawn(program, argv, env, [(said, 2)])
    except OSError as error:
        tell(sock, f"! starting {program} failed: {error.strerror}")
        return f"{program} could not be started"
    finally:
        os.close(fuse)
    tell(sock, f"pid {pid} {started(pid)}")
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return ""
    words = os.pread(said, 2048, 0).decode("utf-8", "replace").strip().replace("\n", "; ")
    name = root.server
    how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    why = f"{name} ended ({how}){': ' + words if words else ''}"
    tell(sock, f"! {why}")
    return why
