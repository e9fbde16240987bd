"""The process that serves an image with our own server, from its fork to the mount's end."""

import os

from rootless_udi.base.errors import UdiError
from rootless_udi.base.messages import receive, tell
from rootless_udi.idmap import maps
from rootless_udi.serve import outside
from rootless_udi.serve.outside import BUG, SERVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable
    from typing import NoReturn

    from rootless_udi.fuse.filesystem import Attributes
    from rootless_udi.fuse.recorder import Question
    from rootless_udi.serve.outside import Place


def run(source: "_socket.socket", place: "Place") -> "NoReturn":
    """Serve what the launcher says, take the record at `place` away, end. Status 0: all is well."""
    status = BUG
    try:
        outside.title(SERVER)
        served = _serve(source)
        # A launcher whose connection was aborted holds the record's lock until it sees our end.
        source.close()
        if served and place[0]:
            from rootless_udi.node import publish

            publish.end(*place)
        status = 0
    except (OSError, UdiError, ValueError) as error:
        why = f"the image server ended: {error}"
        # First the reason: then the launcher has it when it sees that the connection has ended.
        tell(source, f"! {why}")
        _log(why)
        status = 1
    except Exception as error:
        # A bug, which must not look like a damaged image.
        why = f"the image server failed: {type(error).__name__}: {error}"
        tell(source, f"! {why}")
        _log(why)
    finally:
        os._exit(status)


def _serve(source: "_socket.socket") -> bool:
    """Serve, if it is told to, until the mount's end; tell whether there was one."""
    import gc

    # The memory of the launcher is shared until it is written. A garbage collection would write to
    # every object of it, and so copy all pages.
    gc.freeze()
    gc.enable()
    # Loading takes 4 ms, during which the launcher plans and makes the namespaces.
    from rootless_udi.fuse import raw_transport
    from rootless_udi.fuse.decompress import available
    from rootless_udi.fuse.filesystem import FileSystem

    class Owned(FileSystem):
        """The image with all files owned by root, which is the caller outside.

        Other owners are in no id map: the overlay could not change such a file, nor make a mount
        point beside it.
        """

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
        source.setblocking(True)
        if not fds:
            # The launcher has given up, and said why; or it is dead.
            os._exit(0)
        return fds[0]

    # Most images are zstd, as `udi pull` makes them.
    available("zstd")
    message, _ = receive(source)
    if not message:
        return False
    path, trace, program, keep, key = message.split("\0")
    if trace:
        from rootless_udi.fuse.profile import serve_traced

        serve_traced(path, connection(True), trace, key, log=_log)
    else:
        raw_transport.serve(
            path,
            connection,
            log=_log,
            filesystem=Owned,
            program=os.fsencode(program),
            keep=_keeper(keep) if keep else None,
        )
    return True


def _keeper(name: str) -> "Callable[[list[Question]], object]":
    """Return what keeps the questions of a start in the file of that name."""

    def keep(questions: "list[Question]") -> None:
        from rootless_udi.serve import prefetch

        prefetch.keep(os.environ, os.getuid(), name, questions)

    return keep


def _log(text: str) -> None:
    """Write a line to the system's log: the caller's terminal is not the server's to keep."""
    import syslog

    syslog.openlog(SERVER, syslog.LOG_PID, syslog.LOG_USER)
    syslog.syslog(syslog.LOG_ERR, text)
