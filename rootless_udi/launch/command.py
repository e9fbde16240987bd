"""The last step of every start, in a new container or a joined one: environment, folder, exec."""

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
from rootless_udi.base.process import complain
from rootless_udi.node.record import NodeRecord, first_to_tell, join
from rootless_udi.plan import environment
from rootless_udi.plan.options import Request

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn

    from rootless_udi.plan.environment import Operation

SHELL = "/bin/sh"


class Defaults:
    """What a container gives to each of its commands, from the plan or from the node's record."""

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


def own_variables(request: Request) -> "list[Operation]":
    """Read --env-file and --env, in that order; on the host, before the container is entered."""
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
    """Return the command line, by Shifter's rules: see docs/semantics.md."""
    if request.entrypoint:
        return [request.entrypoint, *request.command]
    if request.entrypoint is None:
        return list(request.command) or [SHELL]
    if not defaults.entrypoint:
        raise UdiError(
            "--entrypoint: the image has no ENTRYPOINT", "give one: --entrypoint=COMMAND"
        )
    return [*defaults.entrypoint, *(request.command or defaults.command)]


def workdir(request: Request, defaults: Defaults, names: "list[str]") -> "list[str]":
    """Return names of the folder to start in: the caller's, or --workdir's or the image's one."""
    if request.workdir is None:
        return names
    if request.workdir or defaults.workdir:
        return [request.workdir or defaults.workdir]
    raise UdiError("--workdir: the image has no WORKDIR", "give one: --workdir=DIR")


def variables(
    environ: "dict[str, str]", request: Request, defaults: Defaults, own: "Sequence[Operation]"
) -> dict[str, str]:
    """Return the command's environment."""
    result = dict(environ)
    environment.apply(result, environment.of_caller(environ, request.clearenv, request.shifter))
    for operations in (defaults.before, own, defaults.after):
        environment.apply(result, operations)
    result.setdefault("PATH", environment.DEFAULT_PATH)
    if "NVIDIA_VISIBLE_DEVICES" in result or "NVIDIA_VISIBLE_DEVICES" in environ:
        # A node's ranks share one container with all its GPUs; which are whose, variables say.
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
    """Join through `record` and become the command; return where no member lives."""
    defaults = Defaults(
        record.before,
        record.after,
        record.lists.get("entrypoint", []),
        record.lists.get("cmd", []),
        record.get("workdir"),
    )
    words = argv(request, defaults)
    env = variables(environ, request, defaults, own)
    names = workdir(request, defaults, current(environ))
    if join(record, fd):
        folder, lost = arrive(request, names)
        if lost and first_to_tell(fd, record.tail_at):
            complain("udi-run", *outside(request, lost, environ))
        execute(words, env, folder)


def current(environ: "dict[str, str]") -> "list[str]":
    """Return the working directory's names: by $PWD where that is it, and the physical one.

    "/" if it is deleted.
    """
    try:
        real = os.getcwd()
        logical = environ.get("PWD", "")
        if logical.startswith("/") and logical != real and os.path.samefile(logical, real):
            return [logical, real]
        return [real]
    except OSError:
        return ["/"]


def arrive(request: Request, names: "list[str]") -> tuple[str, str]:
    """Change to the first folder of `names` that is inside; return (folder, what is to be told).

    Where none is, that is "/", and the name of the caller's folder unless he does not want to be
    told. Raises UdiError for one that --workdir asks for.
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
    """Return the message about a `folder` of the caller's that is not inside, and its hint."""
    if request.shifter:
        return f"Failed to switch to working dir: {folder}, staying in /", ""
    hint = "--volume=$PWD brings it in, --workdir=DIR starts elsewhere, --quiet says nothing"
    if folder == environ.get("HOME"):
        hint = "--home brings it in, --workdir=DIR starts elsewhere, --quiet says nothing"
    return f"the folder {folder} is not in the container; starting in /", hint


def execute(words: "list[str]", env: "dict[str, str]", folder: str) -> "NoReturn":
    """Become the command in `folder`, the current one.

    Raises UdiError with status 127 (not found) or 126 (not executable).
    """
    if "PWD" in env:
        env["PWD"] = folder
    signals()
    raise _execute(words, env)


def signals() -> None:
    """Give SIGPIPE and SIGXFSZ back what the caller had: Python ignores them, and that would stay.

    What that was the launcher's shell has seen; of a signal that is blocked it could not see it.
    """
    ignored = sys._xoptions.get("ignored") or ""
    blocked = _signal.pthread_sigmask(_signal.SIG_BLOCK, ())
    for name, number in (("+PIPE", _signal.SIGPIPE), ("+XFSZ", _signal.SIGXFSZ)):
        if name not in ignored or number in blocked:
            _signal.signal(number, _signal.SIG_DFL)


def _execute(words: "list[str]", env: "dict[str, str]") -> UdiError:
    """execvpe(3) on the container's PATH; returns why it could not.

    os.execvpe would import `warnings` and has no shell for a script without "#!".
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
