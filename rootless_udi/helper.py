"""What a container leaves outside: a process that cleans up at the end, and one that serves.

They are forked before the namespaces are made, are no children of the command (which would get a
SIGCHLD it never made), and hold nothing of the caller's: no descriptor, no terminal, no directory.
Two socket pairs carry a message or two each:

    launcher -> server   the image, as soon as it is known that our own server will serve it
    launcher -> server   the image and the FUSE connection (SCM_RIGHTS)
    launcher -> helper   what is served, the inotify descriptor; the FUSE connection for others
    launcher -> helper   the mount's user namespace and root, to ask what the last start asked
    helper -> launcher   "pid PID" of the image server, or "! WHY"

After that the kernel tells it all: the connection ends when the mount namespace does, and so does
the private tmpfs, which inotify reports (IN_UNMOUNT). The server is a process of its own, so that
somebody is there to say so when it is killed.
"""

import _signal
import _socket
import os
from sys import byteorder, meta_path

from rootless_udi.errors import UdiError
from rootless_udi.idmap import maps
from rootless_udi.syscalls import (
    CLONE_NEWUSER,
    PR_SET_NAME,
    PR_SET_NO_NEW_PRIVS,
    close_others,
    prctl,
    setns,
    spawn,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from rootless_udi.early import Start
    from rootless_udi.image import Root
    from rootless_udi.starts import Question

_LIMITS = "a limit may be reached: of processes (ulimit -u, the job's), or of memory (ulimit -v)"
HELPER, SERVER, AHEAD = b"udi-helper", b"udi-image", b"udi-ahead"
"""What ps(1) shows; at most 15 bytes (prctl(2), PR_SET_NAME)."""


class Helper:
    """The launcher's end. `pid` is the image server's, 0 where the rung has none; `known` the file
    with what the last such start asked."""

    def __init__(self) -> None:
        """Fork the helper, which loads the image server while the launcher gathers and plans."""
        self.pid = 0
        self._said = ""
        self.known = self._key = ""
        self._mine, theirs = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        self._server, source = _socket.socketpair(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            child = os.fork()
        except OSError as error:
            raise UdiError(f"starting a process failed: {error.strerror}", _LIMITS) from None
        if child == 0:
            status = 70
            try:
                if os.fork():
                    os._exit(0)
                _detach(theirs.fileno(), source.fileno())
                _work(theirs, source)
                status = 0
            finally:
                os._exit(status)
        # Half of the time the kernel puts the child on this very CPU, where it would wait for the
        # end of a slice, 3 ms, while another CPU is idle.
        os.sched_yield()
        # Ends at once; reaped in `close`, not waited for here.
        self._between = child
        theirs.close()
        source.close()

    def announce(self, root: "Root", program: str, start: "Start") -> None:
        """Say what our own server will serve, so that it opens it while the launcher goes on.

        `program` is the command's first word, which is read next if it is in the image.
        """
        if not root.trace:
            self.known = start.known
        self._key = start.key
        try:
            send(self._server, (root.path, root.trace, program, start.keep, start.key), [])
        except OSError:
            # It failed, which `failure` will say.
            pass

    def hand_over(
        self, root: "Root", place: tuple[str, str, str], fuse: int | None, watch: int | None
    ) -> None:
        """Say what is to be served and cleaned up, and send the descriptors.

        `place` is the state directory, the record's name and token; empty where there is none.
        Raises UdiError where the helper is dead already.
        """
        fds = [] if watch is None else [watch]
        kinds = "w" * len(fds)
        try:
            if root.server == "udi" and fuse is not None:
                self._connect(root, fuse)
            elif fuse is not None:
                fds.append(fuse)
                kinds += "f"
            self._server.close()
            what = kinds, root.server, root.path, root.program
            send(self._mine, (*what, *place, self.known, self._key, *root.options), fds)
        except OSError:
            raise UdiError("the image server ended before it began", _LIMITS) from None

    def _connect(self, root: "Root", fuse: int) -> None:
        try:
            send(self._server, ("fuse",), [fuse])
        except BrokenPipeError:
            # It could not open the image, and has said so: who looks at the mount asks `failure`.
            pass

    def ask_ahead(self, space: int, top: int) -> None:
        """Have what is known to be asked of the image asked now, by another process.

        `space` is a descriptor of the mount's user namespace, `top` one of a copy of the mount.
        Only where something is known, after `hand_over`.
        """
        try:
            send(self._mine, (), [space, top])
        except OSError:
            # The helper is dead, which `answer` will say.
            pass

    def answer(self) -> int:
        """Wait for the image server to be started; return its process id (0: there is none)."""
        if not self.pid and not self._said:
            self._said = self._mine.recv(4096).decode("utf-8", "replace")
            if self._said.startswith("pid "):
                self.pid = int(self._said[4:])
        return self.pid

    def failure(self) -> str:
        """Say why the image server does not serve; call this after a reader met ENOTCONN."""
        said = self._said
        try:
            # The helper may be waiting for `ask_ahead`, and says nothing meanwhile.
            self._mine.shutdown(_socket.SHUT_WR)
            while not said.startswith("! "):
                said = self._mine.recv(4096).decode("utf-8", "replace") or "! it ended"
        except OSError:
            return "the image server ended"
        return said[2:]

    def close(self) -> None:
        """Close the launcher's ends and reap what is left, before the command is executed."""
        self._mine.close()
        self._server.close()
        os.waitpid(self._between, 0)


def _detach(*keep: int) -> None:
    """Leave the caller's session, folder, terminal and descriptors, but for those to `keep`."""
    os.setsid()
    os.chdir("/")
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    close_others(*keep)
    prctl(PR_SET_NAME, HELPER)
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def _work(sock: "_socket.socket", source: "_socket.socket") -> None:
    """Receive the descriptors, see that the image is served, wait for the end, clean up."""
    child = os.fork()
    if child == 0:
        try:
            _serve(sock, source)
        except Exception as error:
            # A bug, which must not look like a damaged image.
            why = f"the image server failed: {type(error).__name__}: {error}"
            _tell(sock, f"! {why}")
            _log(why)
            os._exit(70)
        os._exit(0)
    source.close()
    message, fds = receive(sock)
    if not message:
        return
    kinds, server, path, program, directory, name, token, *rest = message.split("\0")
    known, key, *options = rest
    watch = fds.pop(0) if "w" in kinds else None
    fuse = fds.pop(0) if "f" in kinds else None
    if server == "udi":
        sock.send(b"pid %d" % child)
    if known:
        _, fds = receive(sock)
        if fds:
            _ask_ahead(known, path, key, fds)
    ended, status = os.wait()
    while ended != child:
        ended, status = os.wait()
    status = os.waitstatus_to_exitcode(status)
    why = ""
    if server == "udi":
        if status:
            why = f"it was killed by signal {-status}" if status < 0 else "it failed"
    elif fuse is None:
        sock.send(b"pid 0")
    else:
        from rootless_udi.image import Root

        why = _program(sock, Root(server, path, program, options=tuple(options)), fuse)
    sock.close()
    if not directory:
        return
    from rootless_udi import publish

    if why:
        publish.end(directory, name, token, why)
    if watch is not None:
        # One event: the tmpfs is gone, and the namespace with it.
        os.read(watch, 4096)
    if watch is not None or fuse is not None or server == "udi":
        publish.end(directory, name, token)


def _ask_ahead(known: str, image: str, key: str, fds: list[int]) -> None:
    """Have a child ask what is known. `fds` are a user namespace and a directory."""
    from rootless_udi import starts

    questions = starts.behind(image, key) if known == image else starts.find(known)
    try:
        child = os.fork() if questions else -1
    except OSError:
        # Of the limits on processes the command needs what is left.
        child = -1
    if child == 0:
        try:
            prctl(PR_SET_NAME, AHEAD)
            space, top = fds
            # FUSE answers those in the mount's user namespace (fuse(4), allow_other).
            setns(space, CLONE_NEWUSER)
            # Somebody waits for the end of each of these. The copy of the mount goes with its own.
            close_others(top)
            os.fchdir(top)
            # So that no link leads out of the image; and nothing is imported from there.
            os.chroot(".")
            meta_path.clear()
            starts.ask(questions)
        finally:
            os._exit(0)
    for fd in fds:
        os.close(fd)


def send(sock: "_socket.socket", words: "tuple[str, ...]", fds: "list[int]") -> None:
    """Send a message and descriptors (SCM_RIGHTS, unix(7)). Raises OSError."""
    data = b"".join(fd.to_bytes(4, byteorder) for fd in fds)
    rights = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, data)] if fds else []
    sock.sendmsg(["\0".join(words).encode("utf-8", "surrogateescape")], rights)


def receive(sock: "_socket.socket") -> "tuple[str, list[int]]":
    """Return a message and its descriptors; ("", []) where the other side has gone."""
    message, ancillary, _, _ = sock.recvmsg(1 << 16, 256)
    data = b"".join(data for _, kind, data in ancillary if kind == _socket.SCM_RIGHTS)
    fds = [int.from_bytes(data[i : i + 4], byteorder) for i in range(0, len(data), 4)]
    return message.decode("utf-8", "surrogateescape"), fds


def _serve(sock: "_socket.socket", source: "_socket.socket") -> None:
    """Serve with our own server in this process, if it is told to."""
    import gc

    prctl(PR_SET_NAME, SERVER)
    # The launcher's objects are left where they are: a collection would copy the pages of them all.
    gc.freeze()
    gc.enable()
    # While the launcher plans and makes the namespaces: loading it takes 4 ms.
    from rootless_udi.fuse import raw
    from rootless_udi.fuse.decompress import available
    from rootless_udi.fuse.filesystem import Attributes, FileSystem

    class Owned(FileSystem):
        """The image's files as root's, who is the caller: other owners are in no id map, and the
        overlay could neither change such a file nor make a mount point beside it."""

        def attributes(self, node: int) -> "Attributes":
            found = super().attributes(node)
            return (*found[:6], maps.OUTER, maps.OUTER, found[8])

    def connection(wait: bool) -> int:
        """Return the FUSE connection, -1 where it is not there yet."""
        source.setblocking(wait)
        try:
            _, fds = receive(source)
        except BlockingIOError:
            return -1
        if not fds:
            # The launcher has given up, and said why.
            os._exit(0)
        return fds[0]

    # Most images are zstd, as `udi pull` makes them.
    available("zstd")
    title = _titler()
    message, _ = receive(source)
    if not message:
        return
    path, trace, program, keep, key = message.split("\0")
    title(f"udi-image {path}")
    try:
        if trace:
            from rootless_udi.fuse.profile import serve_traced

            serve_traced(path, connection(True), trace, key, log=_log)
        else:
            raw.serve(
                path,
                connection,
                log=_log,
                filesystem=Owned,
                program=os.fsencode(program),
                keep=_keeper(keep) if keep else None,
            )
    except (OSError, UdiError, ValueError) as error:
        why = f"the image server ended: {error}"
        # The launcher hears of the end of the connection after the reason.
        _tell(sock, f"! {why}")
        _log(why)
        os._exit(1)


def _keeper(name: str) -> "Callable[[list[Question]], object]":
    """Return what keeps the questions of a start in the file of that name."""

    def keep(questions: "list[Question]") -> None:
        from rootless_udi import starts

        starts.keep(os.environ, os.getuid(), name, questions)

    return keep


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
        sock.send(f"! starting {program} failed: {error.strerror}".encode())
        return f"{program} could not be started"
    finally:
        os.close(fuse)
    sock.send(b"pid %d" % pid)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return ""
    words = os.pread(said, 2048, 0).decode("utf-8", "replace").strip().replace("\n", "; ")
    name = root.server
    how = f"killed by signal {-code}" if code < 0 else f"exit status {code}"
    why = f"{name} ended ({how}){': ' + words if words else ''}"
    _tell(sock, f"! {why}")
    return why


def command(root: "Root", connection: str) -> tuple[str, list[str]]:
    """Return program and argv of a server that is another program, on a connection or a folder."""
    if root.program:
        return root.program, [root.program, "-f", *root.options, root.path, connection]
    from rootless_udi import child

    # pyfuse3 and fuse-python are in site-packages, which this interpreter was started without.
    words = f"--transport={root.server}", root.path, connection
    argv = child.argv("from rootless_udi.fuse.main import main; sys.exit(main())", *words)
    return argv[0], argv


def _titler() -> "Callable[[str], object]":
    """Return what shows a text as the command line: python-prctl where it is installed."""
    try:
        from prctl import set_proctitle
    except ImportError:
        return str
    show: Callable[[str], object] = set_proctitle
    return show


def _tell(sock: "_socket.socket", text: str) -> None:
    try:
        sock.send(text.encode("utf-8", "replace"))
    except OSError:
        # The launcher has long become the command.
        pass


def _log(text: str) -> None:
    """Write a line to the system's log: the caller's terminal is not the helper's to keep."""
    import syslog

    syslog.openlog("udi-image", syslog.LOG_PID, syslog.LOG_USER)
    syslog.syslog(syslog.LOG_ERR, text)
