"""The last step of each start, in a new or a joined container: prepare and execute the command.

That is its argv, its environment, its working directory and execve(2).
"""

import _signal
import os
import sys
from errno import (
    E2BIG,
    EACCES,
    ECONNABORTED,
    EIO,
    EISDIR,
    ELOOP,
    ENAMETOOLONG,
    ENOENT,
    ENOEXEC,
    ENOTCONN,
    ENOTDIR,
)

from rootless_udi.base.errors import NOT_EXECUTABLE, NOT_FOUND, UdiError
from rootless_udi.base.process import complain, current
from rootless_udi.node.record import NodeRecord, first_to_tell, join
from rootless_udi.plan import environment
from rootless_udi.plan.options import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from rootless_udi.plan.environment import Operation

SHELL = "/bin/sh"
"""The command if none is given; it also runs scripts without "#!"."""


class Defaults:
    """What a container gives to all its commands, from its plan or from the node's record.

    `before` and `after` are operations on the environment (`plan.planner.Plan`); `entrypoint`,
    `command` and `workdir` are the image's.
    """

    def __init__(
        self,
        before: "Sequence[Operation]",
        after: "Sequence[Operation]",
        entrypoint: "Sequence[str]",
        command: "Sequence[str]",
        workdir: str,
    ) -> None:
        self.before, self.after = before, after
        self.entrypoint, self.command, self.workdir = entrypoint, command, workdir


def given() -> dict[str, str]:
    """Return the caller's environment, without what the interpreter added.

    In the C locale Python sets LC_CTYPE (PEP 538). The launcher script passes -X lc_ctype if the
    caller had none.
    """
    environ = dict(os.environ)
    if "lc_ctype" in sys._xoptions:
        environ.pop("LC_CTYPE", None)
    return environ


def own_variables(request: Request) -> "list[Operation]":
    """Return the operations of --env-file and --env, in this order.

    The files are the host's: call this before the container is entered. Raises UdiError.
    """
    operations: list[Operation] = []
    for path in request.env_file:
        try:
            with open(path, encoding="utf-8", errors="surrogateescape") as file:
                text = file.read()
        except OSError as error:
            raise UdiError(f"reading --env-file {path} failed: {error.strerror}") from None
        operations += environment.of_file(text, path)
    return operations + environment.of_options(request.env)


def argv(request: Request, defaults: Defaults) -> list[str]:
    """Return the command's argv, by Shifter's rules (docs/semantics.md). Raises UdiError."""
    if request.entrypoint:
        return [request.entrypoint, *request.command]
    if request.entrypoint is None:
        return list(request.command) or [SHELL]
    if not defaults.entrypoint and request.edf is not None:
        return list(request.command or defaults.command) or [SHELL]
    if not defaults.entrypoint:
        raise UdiError(
            "--entrypoint: the image has no ENTRYPOINT", "give one: --entrypoint=COMMAND"
        )
    return [*defaults.entrypoint, *(request.command or defaults.command)]


def workdir(request: Request, defaults: Defaults, names: "list[str]") -> "list[str]":
    """Return the names of the folder to start in: the caller's (`names`), --workdir's or the
    image's.

    Raises UdiError where --workdir means the image's, and it has none.
    """
    if request.workdir is None:
        return names
    if request.workdir or defaults.workdir:
        return [request.workdir or defaults.workdir]
    if request.edf is not None:
        return ["/"]
    raise UdiError("--workdir: the image has no WORKDIR", "give one: --workdir=DIR")


def variables(
    environ: "dict[str, str]", request: Request, defaults: Defaults, own: "Sequence[Operation]"
) -> dict[str, str]:
    """Return the command's environment, made of the caller's; `own` is of `own_variables`."""
    result = dict(environ)
    environment.apply(result, environment.of_caller(environ, request.clearenv, request.shifter))
    environment.apply(result, defaults.before)
    for operations in (environment.expanded(own, result), defaults.after):
        environment.apply(result, operations)
    result.setdefault("PATH", environment.DEFAULT_PATH)
    if "NVIDIA_VISIBLE_DEVICES" in result or "NVIDIA_VISIBLE_DEVICES" in environ:
        # The ranks of a node share one container with all GPUs: variables tell each rank its own.
        from rootless_udi.mpi_inject.gpu import select

        environment.apply(result, select.select(environ, result))
    return result


def enter(
    record: NodeRecord,
    fd: int,
    request: Request,
    environ: "dict[str, str]",
    own: "list[tuple[str, str, str]]",
) -> None:
    """Join the container of `record` and become the command; return if it has no living member.

    `fd` is the record's file, `own` is of `own_variables`. Raises UdiError, OSError.
    """
    words, env, names = planned(record, request, environ, own)
    if join(record, fd):
        folder, lost = arrive(request, names)
        if lost and first_to_tell(fd, record.tail_at):
            complain("udi-run", *outside(request, lost, environ))
        execute(words, env, folder)


def planned(
    record: NodeRecord,
    request: Request,
    environ: "dict[str, str]",
    own: "list[tuple[str, str, str]]",
) -> "tuple[list[str], dict[str, str], list[str]]":
    """Return what a rank that joins gets: argv, environment, names of the folder to start in.

    `own` is of `own_variables`. Raises UdiError.
    """
    defaults = Defaults(
        record.before,
        record.after,
        record.lists.get("entrypoint", []),
        record.lists.get("cmd", []),
        record.get("workdir"),
    )
    words = argv(request, defaults)
    env = variables(environ, request, defaults, own)
    return words, env, workdir(request, defaults, current(environ))


def arrive(request: Request, names: "list[str]") -> tuple[str, str]:
    """Change to the first folder of `names` that is in the container; return (folder, lost).

    If none is, the folder is "/". `lost` is then the name of the caller's folder, if the caller is
    to be told (`outside`); else "". Raises UdiError for a folder that --workdir asks for.
    """
    why = ""
    for folder in names:
        try:
            os.chdir(folder)
            return folder, ""
        except OSError as error:
            why = error.strerror or str(error)
    if request.workdir is not None and not request.shifter:
        asked = f"--workdir={names[0]}" if request.workdir else f"--workdir: {names[0]}"
        raise UdiError(
            f"{asked} can't be entered in the container: {why}",
            "a folder of the host comes in by --volume=DIR",
        )
    told = names != ["/"] and not request.quiet and not request.no_cwd
    return "/", names[0] if told else ""


def outside(request: Request, folder: str, environ: "dict[str, str]") -> tuple[str, str]:
    """Return the message that the caller's `folder` is not in the container, and a hint."""
    if request.shifter:
        return f"Failed to switch to working dir: {folder}, staying in /", ""
    hint = "--volume=$PWD brings it in, --workdir=DIR starts elsewhere, --quiet says nothing"
    if folder == environ.get("HOME"):
        hint = "--home brings it in, --workdir=DIR starts elsewhere, --quiet says nothing"
    return f"the folder {folder} is not in the container; starting in /", hint


def execute(words: "list[str]", env: "dict[str, str]", folder: str) -> "NoReturn":
    """Become the command; `folder` is the name of the working directory, for $PWD.

    Raises UdiError, with status 127 if the command is not found, 126 if it can't be executed.
    """
    if "PWD" in env:
        env["PWD"] = folder
    signals()
    raise _execute(words, env)


def signals() -> None:
    """Handle SIGPIPE and SIGXFSZ as the caller did.

    Python ignores these two signals, and the command would inherit that. The shell part of
    bin/udi-run has seen which ones the caller ignored (-X ignored). It can't see that for a signal
    that is blocked; such a one gets the default.
    """
    ignored = sys._xoptions.get("ignored") or ""
    blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    for name, number in (("+PIPE", _signal.SIGPIPE), ("+XFSZ", _signal.SIGXFSZ)):
        if name not in ignored or number in blocked:
            _signal.signal(number, _signal.SIG_DFL)


def _execute(words: "list[str]", env: "dict[str, str]") -> UdiError:
    """Execute the command, looked for in $PATH of `env`; return why that failed.

    As execvpe(3), with the shell for a script without "#!". os.execvpe knows no such scripts, and
    imports `warnings`.
    """
    name = words[0]
    if not name:
        return UdiError("the command is an empty word", "", NOT_FOUND)
    paths = [name] if "/" in name else [f"{d or '.'}/{name}" for d in env["PATH"].split(":")]
    refused: OSError | None = None
    for path in paths:
        try:
            try:
                os.execve(path, words, env)
            except OSError as error:
                if error.errno != ENOEXEC:
                    raise
                os.execve(SHELL, [SHELL, path, *words[1:]], env)
        except OSError as error:
            if error.errno in (ENOENT, ENOTDIR) and not os.path.isfile(path):
                continue
            refused = error
            if error.errno != EACCES:
                break
        except UnicodeError as error:
            return UdiError(f"the command or its environment holds no text: {error}")
        except ValueError:
            return UdiError("the command or its environment holds a NUL character")
    if refused is None:
        where = "" if "/" in name else f" on the container's PATH ({env['PATH']})"
        image, hint = env.get("UDI_IMAGE"), ""
        if image:
            hint = f"UDI_IMAGE is set to {image}, so the first word is the command; "
            hint += "another image is --image=IMAGE"
        return UdiError(f"{name}: not found{where}", hint, NOT_FOUND)
    if refused.errno == ENOENT:
        return UdiError(
            f"{name}: its interpreter or dynamic loader is not in the image",
            "a program of the host? what it needs is not inside",
            NOT_FOUND,
        )
    if refused.errno in (EACCES, ENOEXEC, EISDIR, ELOOP, ENAMETOOLONG):
        return UdiError(f"{name}: not executable: {refused.strerror}", "", NOT_EXECUTABLE)
    if refused.errno == E2BIG:
        return UdiError(f"{name}: the arguments and the environment are too long", "")
    hint = ""
    if refused.errno in (EIO, ENOTCONN, ECONNABORTED):
        hint = "the image is damaged, or its server has ended (see `udi ps`): pull it anew"
    return UdiError(f"executing {name} failed: {refused.strerror}", hint)
