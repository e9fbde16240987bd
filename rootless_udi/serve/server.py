"""The process that serves an image with our own server, until the mount is gone."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import receive, tell
from rootless_udi.idmap import maps
from rootless_udi.serve import outside
from rootless_udi.serve.outside import BUG, LISTED, SERVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import NoReturn

    from rootless_udi.fuse.checkedfile import Early
    from rootless_udi.fuse.filesystem import Attributes, FileSystem
    from rootless_udi.fuse.imagefile import Opener
    from rootless_udi.fuse.precheck import Beforehand
    from rootless_udi.fuse.recorder import Question
    from rootless_udi.serve.outside import Place


def run(source: "_socket.socket", place: "Place", ahead: "Beforehand | None" = None) -> "NoReturn":
    """Serve the image that udi-run names, remove the record at `place`, and end the process.

    `source` is for messages with udi-run; `ahead` tells which of the image's windows were compared
    already. The exit status is 0, or 1 or BUG for an error.
    """
    status = BUG
    try:
        outside.title(SERVER)
        served = _serve(source, ahead)
        # If the connection was aborted, udi-run may wait for the end of `source`, and hold the
        # record's lock meanwhile.
        source.close()
        if served and place[0]:
            from rootless_udi.node import ending

            ending.end(*place)
        status = 0
    except (OSError, UdiError, ValueError) as error:
        why = f"the image server ended: {error}"
        # Send the reason first: udi-run reads it when it sees that the connection has ended.
        tell(source, f"! {why}")
        log(why)
        status = 1
    except Exception as error:
        # A bug, which must not look like a damaged image.
        why = f"the image server failed: {type(error).__name__}: {error}"
        tell(source, f"! {why}")
        log(why)
    finally:
        os._exit(status)


def _serve(source: "_socket.socket", ahead: "Beforehand | None") -> bool:
    """Serve until the mount is gone; return False where udi-run needs no server of ours."""
    import gc

    # After fork(2) both processes share memory, until one writes to a page. Garbage collection
    # writes to each object: without freeze() it would copy all pages.
    gc.freeze()
    gc.enable()
    # Importing takes 4 ms, during which udi-run plans and makes the namespaces.
    from rootless_udi.fuse import raw_transport
    from rootless_udi.fuse.decompress import available

    def connection(wait: bool) -> int:
        """Return the FUSE connection, -1 where it is not there yet."""
        source.setblocking(wait)
        try:
            _, fds = receive(source)
        except BlockingIOError:
            return -1
        source.setblocking(True)
        if not fds:
            # udi-run has ended.
            os._exit(0)
        return fds[0]

    # While waiting: `udi pull` makes images with it.
    available("zstd")
    message, fds = receive(source)
    if not message:
        return False
    path, trace, program, keep, key, verify, offset, *remote = message.split("\0")
    image = fds[0] if fds else path
    if fds:
        reads = _remote(fds[1], path, verify, *remote)
    else:
        reads = opener(verify, lambda fd, base: ahead or _begin(fd, base, source.fileno()))
    if trace:
        from rootless_udi.fuse.profile import serve_traced

        known = {"log": log, "opener": reads, "called": path, "base": int(offset)}
        serve_traced(image, connection(True), trace, key, **known)
    else:
        raw_transport.serve(
            image,
            connection,
            log=log,
            filesystem=owned(),
            program=os.fsencode(program),
            keep=_keeper(keep) if keep else None,
            opener=reads,
            called=path,
            base=int(offset),
        )
    return True


def owned() -> "type[FileSystem]":
    """Return the class of file systems that udi-run's containers have."""
    from rootless_udi.fuse.filesystem import FileSystem

    class Owned(FileSystem):
        """The image with all files owned by root of the outer namespace, who is the caller.

        Other owners have no id in that namespace: the overlay could not change their files, nor
        make a mount point in their folders.
        """

        def attributes(self, node: int) -> "Attributes":
            found = super().attributes(node)
            return (*found[:6], maps.OUTER, maps.OUTER, found[8])

    return Owned


def opener(verify: str, early: "Early | None" = None) -> "Opener":
    """Return what opens the image's file; `verify` is `plan.start.Start`'s, `early` that of
    `checkedfile.opener`."""
    if not verify:
        from rootless_udi.fuse.imagefile import plain

        return plain
    from rootless_udi.fuse import checkedfile

    return checkedfile.opener(verify == LISTED, early)


def _begin(fd: int, base: int, source: int) -> "Beforehand | None":
    """Start to compare the windows of the image open at `fd`; `source` is the socket's."""
    from _signal import SIG_IGN, SIGCHLD, signal

    from rootless_udi.fuse import precheck

    # Then no parent need reap it.
    signal(SIGCHLD, SIG_IGN)
    return precheck.begin(os.dup(fd), base, (source,))


def _remote(sock: int, url: str, verify: str, timeout: str, digest: str, there: str) -> "Opener":
    """Return what opens a remote image's file; `sock` leads to the process that fetches it."""
    from rootless_udi.fuse.remotefile import opener

    right = tuple(map(int, there.split()))
    return opener(sock, url, int(timeout), bool(verify), digest, verify == LISTED, right)


def _keeper(name: str) -> "Callable[[list[Question]], object]":
    """Return a function that writes the questions of a start to the file `name`."""

    def keep(questions: "list[Question]") -> None:
        from rootless_udi.serve import prefetch

        prefetch.keep(os.environ, os.getuid(), name, questions)

    return keep


def log(text: str, name: str = SERVER) -> None:
    """Write a line to the system's log: this process has left the caller's terminal."""
    import syslog

    syslog.openlog(name, syslog.LOG_PID, syslog.LOG_USER)
    syslog.syslog(syslog.LOG_ERR, text)
