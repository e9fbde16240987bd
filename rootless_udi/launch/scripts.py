"""Source the scripts of an Apptainer image that set variables, in the container, by its own sh.

Apptainer sources them before each command, with none of the caller's variables but HOME, so that
they set the same each time; what they set wins over the caller's. So once for a container will do,
by its first rank: those that join, also in C, get it from the record. The image's sh may do what it
likes, but not for long, and nothing that it prints reaches the terminal as it is. Only starts of
such images import this.
"""

import os
from _signal import SIG_DFL, SIGCHLD, SIGKILL, signal
from select import POLLIN, poll
from time import monotonic

from rootless_udi.base.errors import NOT_FOUND, UdiError
from rootless_udi.base.process import complain
from rootless_udi.launch import command
from rootless_udi.plan import environment
from rootless_udi.plan.planner import Plan
from rootless_udi.plan.steps import Env

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from rootless_udi.plan.environment import Operation

SECONDS = 20
"""How long all scripts together may take."""
MOST = 1 << 20
"""Most bytes of variables."""
_SAID = 4096
"""Bytes that are kept of what they print."""
_PIPE = 16
"""Most reads of 64 KiB of what is still in a pipe at the end."""
_STEP = 0.05
"""Seconds between two looks whether sh has ended, where the kernel has no pidfd_open(2)."""
_SOURCE = 'for s in "$0"/*.sh; do [ -f "$s" ] && . "$s"; done; exec cat /proc/self/environ >&3 3>&-'
"""$0 is the folder. Descriptor 3 is ours; output of the scripts themselves is for messages."""
LIBRARIES = "/.singularity.d/libs"
"""Where Apptainer binds the host's GPU libraries; udi-run has a place of its own for them."""
OWN = ("_", "HOME", "HOSTNAME", "OLDPWD", "PWD", "PS1", "SHLVL", "USER")
PREFIXES = ("APPTAINER_", "SINGULARITY_", "SHIFTER_", "UDI_")
"""Variables that are the caller's, sh's or another tool's; and beginnings of such."""


def sourced(made: Plan, path: str, environ: "Mapping[str, str]", quiet: bool) -> Plan:
    """Return the plan with what its scripts set; `environ` is the caller's, `path` the image's.

    Call this in the container. Raises UdiError where the scripts fail, or take too long.
    """
    name = path.rpartition("/")[2]
    before = {"HOME": environ.get("HOME") or "/", "PATH": environment.DEFAULT_PATH, "PWD": "/"}
    for tool in ("APPTAINER", "SINGULARITY"):
        before |= {f"{tool}_CONTAINER": path, f"{tool}_NAME": name}
    after = _run(made.image, made.scripts, before)
    if after is None:
        if not quiet:
            text = f"the variables of {made.image} are not known: it has no sh or no cat"
            complain("udi-run", f"warning: {text}")
        return made
    reason = f"the image's {made.scripts}/*.sh"
    added = [Env(*one, reason) for one in changes(before, after)]
    return made.replace(before=(*made.before, *added))


def changes(before: "dict[str, str]", after: "dict[str, str]") -> "list[Operation]":
    """Return the operations that set what `after` has and `before` has not, and PATH.

    Names in OWN and PREFIXES are left out.
    """
    found: list[Operation] = []
    for name, value in after.items():
        if name == "LD_LIBRARY_PATH":
            value = ":".join(one for one in value.split(":") if one and one != LIBRARIES)
        same = before.get(name, "") == value and name != "PATH"
        if not same and name not in OWN and not name.startswith(PREFIXES):
            found.append(("set", name, value))
    return found


def _run(image: str, folder: str, environ: "dict[str, str]") -> "dict[str, str] | None":
    """Return the variables after the scripts; None where the image has no sh, or no cat."""
    mine, theirs = os.pipe2(os.O_CLOEXEC)
    heard, said = os.pipe2(os.O_CLOEXEC)
    # Were it ignored, as the caller may have it, the kernel would reap the child.
    ignored = signal(SIGCHLD, SIG_DFL)
    child = os.fork()
    if child == 0:
        _become(folder, environ, theirs, said)
    os.close(theirs)
    os.close(said)
    # Also if the child has not come so far (setpgid(2)).
    try:
        os.setpgid(child, child)
    except OSError:
        pass
    data, words, status = _listen(child, mine, heard)
    signal(SIGCHLD, ignored)
    os.close(mine)
    os.close(heard)
    what = f"sourcing {folder}/*.sh of {image} failed"
    hint = "`udi import FILE NAME` goes on without them"
    if status is None:
        raise UdiError(f"{what}: they took more than {SECONDS} s", hint)
    code = os.waitstatus_to_exitcode(status)
    if code == NOT_FOUND and not data:
        return None
    if code:
        why = f"killed by signal {-code}" if code < 0 else f"the image's sh ended with {code}"
        text = words.decode("utf-8", "surrogateescape").strip().splitlines()
        raise UdiError(f"{what}: {why}{': ' + text[0] if text else ''}", hint)
    if len(data) > MOST:
        raise UdiError(f"{what}: they set more than a megabyte", hint)
    pairs = (one.partition("=") for one in data.decode("utf-8", "surrogateescape").split("\0"))
    return {name: value for name, _, value in pairs if name}


def _become(folder: str, environ: "dict[str, str]", theirs: int, said: int) -> None:
    """In the child: become the image's sh, in a process group that can be killed as one."""
    try:
        os.setpgid(0, 0)
        null = os.open("/dev/null", os.O_RDONLY)
        # Above those that are given away, so that none of them is overwritten.
        theirs, said = os.dup(theirs), os.dup(said)
        os.dup2(null, 0)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.dup2(theirs, 3)
        command.signals()
        os.execve(command.SHELL, [command.SHELL, "-c", _SOURCE, folder], environ)
    except OSError:
        pass
    finally:
        os._exit(NOT_FOUND)


def _listen(child: int, mine: int, heard: int) -> "tuple[bytes, bytes, int | None]":
    """Read from both pipes until the child has ended; return what came, and its wait status.

    The status is None where it took too long. Whatever it has started is killed with it.
    """
    end, waiter = monotonic() + SECONDS, poll()
    try:
        handle = os.pidfd_open(child)
    except (OSError, AttributeError):
        handle = -1
    known: dict[int, bytearray] = {mine: bytearray(), heard: bytearray()}
    for fd in (*known, *((handle,) if handle >= 0 else ())):
        waiter.register(fd, POLLIN)
    for fd in known:
        os.set_blocking(fd, False)
    status: int | None = None
    while status is None and (left := end - monotonic()) > 0:
        for fd, _ in waiter.poll(1000 * (left if handle >= 0 else min(left, _STEP))):
            if fd in known and not _took(fd, known[fd], MOST + 1 if fd == mine else _SAID):
                waiter.unregister(fd)
        ended, found = os.waitpid(child, os.WNOHANG)
        status = found if ended else None
    try:
        os.killpg(child, SIGKILL)
    except OSError:
        pass
    if status is None:
        os.waitpid(child, 0)
    for _ in range(_PIPE if status is not None else 0):
        if not _took(mine, known[mine], MOST + 1):
            break
    if handle >= 0:
        os.close(handle)
    return bytes(known[mine]), bytes(known[heard]), status


def _took(fd: int, text: bytearray, most: int) -> bool:
    """Read once, and keep up to `most` bytes of all; return False at the end, or where there is
    nothing now."""
    try:
        data = os.read(fd, 1 << 16)
    except OSError:
        return False
    text += data[: max(0, most - len(text))]
    return bool(data)
