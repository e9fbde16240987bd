"""Other programs that can serve an image (squashfuse_ll and others)."""

import os

from rootless_udi.base.calls import spawn
from rootless_udi.base.messages import tell
from rootless_udi.base.process import started
from rootless_udi.serve import outside

TYPE_CHECKING = False
if TYPE_CHECKING:
    import _socket
    from collections.abc import Callable

    from rootless_udi.plan.image import Root


def command(root: "Root", connection: str) -> tuple[str, list[str]]:
    """Return path and argv of the program that serves `root`.

    `connection` is the mounted connection as /dev/fd/N, or a folder to mount on.
    """
    if root.program:
        options = (*root.options, *(("-o", f"offset={root.offset}") if root.offset else ()))
        return root.program, [root.program, "-f", *options, root.path, connection]
    from rootless_udi.base import program

    # A new Python: pyfuse3 and fuse-python are in site-packages, which this one does not read.
    words = f"--transport={root.server}", f"--offset={root.offset}", root.path, connection
    argv = program.argv("from rootless_udi.fuse.main import main; sys.exit(main())", *words)
    return argv[0], argv


def serve(sock: "_socket.socket", root: "Root", fuse: int, hold: "Callable[[int], None]") -> str:
    """Run another program as image server on the connection `fuse`; return why it failed, or "".

    `hold` is called with its process's id once it runs.
    """
    program, argv = command(root, f"/dev/fd/{fuse}")
    os.set_inheritable(fuse, True)
    # Its standard error goes to memory and not to a pipe, which nobody would read before the end:
    # a full pipe would stop the server.
    said = os.memfd_create("stderr")
    try:
        # A program that an environment module brought may need this to find its libraries.
        known = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
        env = {"PATH": "/usr/bin:/bin", **known}
        pid = spawn(program, argv, env, [(said, 2)])
    except OSError as error:
        tell(sock, f"! starting {program} failed: {error.strerror}")
        return f"{program} could not be started"
    finally:
        os.close(fuse)
    tell(sock, f"pid {pid} {started(pid)}")
    hold(pid)
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    if code == 0:
        return ""
    words = outside.printed(said)
    why = f"{root.server} ended ({outside.ending(code)}){': ' + words if words else ''}"
    tell(sock, f"! {why}")
    return why
