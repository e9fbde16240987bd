"""udi-run: the hot path. Parse, join the node's container or build it, become the command.

A rank that joins imports this, `options`, `node`, `begin` and what they need; `launch`, with the
planner and the executor, only the process that builds. Neither ever imports the pull side: a test
holds both to a list of modules and counts file opens.
"""

import _signal
import os
import sys

from rootless_udi import begin, node, options
from rootless_udi.errors import OURS, UdiError, remedy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import NoReturn


def main(argv: "list[str] | None" = None) -> "NoReturn":
    """Run udi-run on `argv` (without the program's name); never returns."""
    occupy()
    sys.exit(guarded("udi-run", lambda: run(sys.argv[1:] if argv is None else argv)))


def occupy() -> None:
    """Put /dev/null in closed standard descriptors, so that no file of ours is taken for one.

    Closed on exec: the command finds them as they were.
    """
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)


def run(argv: "list[str]") -> int:
    """Do what `argv` asks: become the command, or return a status (--help, --explain)."""
    environ = _environ()
    request = options.parse(argv, environ)
    if request.help or request.version:
        from rootless_udi.version import VERSION

        sys.stdout.write(options.usage() if request.help else f"udi-run {VERSION}\n")
        return 0
    refuse_privilege()
    own = begin.own_variables(request)
    who = node.launcher(environ, request.share or "auto")
    name, key = node.key(request, who, environ) if who else ("", "")
    if who and request.explain is None:
        _join(request, environ, own, name, key)
        from rootless_udi import elect

        return elect.run(request, environ, own, who, name, key)
    from rootless_udi import launch

    return launch.run(request, environ, own, who)


def _join(
    request: options.Request,
    environ: "dict[str, str]",
    own: "list[tuple[str, str, str]]",
    name: str,
    key: str,
) -> None:
    """Join the container of the record and become the command; return where there is none."""
    _, directory = node.state(node.directories(environ, os.getuid()), make=False)
    if directory < 0:
        return
    record, fd = node.read(directory, name)
    os.close(directory)
    if record is None:
        return
    if record.get("request") == key and not record.get("dead"):
        enter(record, fd, request, environ, own)
    os.close(fd)


def enter(
    record: node.Record,
    fd: int,
    request: options.Request,
    environ: "dict[str, str]",
    own: "list[tuple[str, str, str]]",
) -> None:
    """Join through `record` and become the command; return where no member lives."""
    start = begin.Start(
        record.operations("before"),
        record.operations("after"),
        record.lists.get("entrypoint", []),
        record.lists.get("cmd", []),
        record.get("workdir"),
    )
    words = begin.argv(request, start)
    env = begin.variables(environ, request, start, own)
    folder = begin.workdir(request, start, current(environ))
    if node.join(record, fd):
        begin.execute(words, env, folder)


def current(environ: "dict[str, str]") -> str:
    """Return the working directory, by $PWD where that is the same directory, "/" if deleted."""
    try:
        real = os.getcwd()
        logical = environ.get("PWD", "")
        if logical.startswith("/") and logical != real and os.path.samefile(logical, real):
            return logical
        return real
    except OSError:
        return "/"


def refuse_privilege(program: str = "udi-run") -> None:
    """Raise UdiError for root and for a setuid or setgid program: neither has a place here."""
    uid, gid = os.getuid(), os.getgid()
    if uid != os.geteuid() or gid != os.getegid():
        raise UdiError(
            f"{program} is setuid or setgid, and refuses to run so",
            "it needs no privilege: chmod ug-s it",
        )
    if uid == 0 or gid == 0:
        what = "root" if uid == 0 else "a member of group 0 (root)"
        raise UdiError(
            f"{program} runs as an ordinary user, and this is {what}",
            f"become one: setpriv --reuid=USER --regid=GROUP --init-groups {program} ...",
        )


def _environ() -> dict[str, str]:
    """Return the caller's environment, without what the interpreter put in.

    Where the C locale is in force Python sets LC_CTYPE (PEP 538); the launcher script says so.
    """
    environ = dict(os.environ)
    if "lc_ctype" in sys._xoptions:
        environ.pop("LC_CTYPE", None)
    return environ


def guarded(program: str, body: "Callable[[], int]") -> int:
    """Call `body`; print what a user can mend as "PROGRAM: WHAT" with a hint, and return a status.

    SIGINT ends the process as it would any other: there is nothing to clean up.
    """
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
        _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    try:
        return body()
    except UdiError as error:
        complain(program, error.message, error.hint)
        return error.status
    except BrokenPipeError:
        # Whoever read our output has gone; that is its business (--explain | head).
        os.dup2(os.open("/dev/null", os.O_WRONLY), 1)
        return OURS
    except OSError as error:
        call = getattr(error, "call", "")
        about = f" on {error.filename}" if error.filename else ""
        what = f"{call or 'a system call'} failed{about}: {error.strerror}"
        complain(program, what, remedy(call, error.errno))
        return OURS


def complain(program: str, message: str, hint: str = "") -> None:
    """Write a message to standard error in one piece, since ranks share it."""
    text = f"{program}: {message}\n" + (f"{program}: hint: {hint}\n" if hint else "")
    try:
        os.write(2, text.encode("utf-8", "backslashreplace"))
    except OSError:
        # Standard error is closed: the exit status remains.
        pass


if __name__ == "__main__":
    main()
