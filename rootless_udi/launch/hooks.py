"""Run the hooks of modules in the container, before the user's command, with a time limit.

A hook is a process of the user. It can prepare files (a cache, a socket, a licence); it can't
change the command's environment.
"""

import os
from _signal import SIGKILL
from select import POLLIN, poll
from time import monotonic, sleep

from rootless_udi.base.errors import NOT_FOUND, UdiError
from rootless_udi.base.process import complain
from rootless_udi.launch import command
from rootless_udi.plan.steps import Hook

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

_STEP = 0.01
"""Seconds between two looks whether a hook has ended, where the kernel has no pidfd_open(2)."""


class NotThere(UdiError):
    """A hook's program is not in the image."""


def run(
    hooks: "Iterable[Hook]", environ: "Mapping[str, str]", asked: bool = True, told: bool = True
) -> None:
    """Run the hooks one after the other, with empty standard input and their output on stderr.

    Call this when the root directory is the container's. `asked`: the modules were asked for by
    name; if not, a hook whose program is not in the image is skipped, and with `told` a message
    says so. Raises UdiError for a hook that can't be started, fails, is killed, or takes too long;
    then its whole process group is killed.
    """
    for hook in hooks:
        try:
            _run(hook, environ, asked or told)
        except NotThere as error:
            if asked:
                raise
            if told:
                complain("udi-run", f"{error.message}; it is left out")


def _run(hook: Hook, environ: "Mapping[str, str]", told: bool) -> None:
    what = f"hook of {hook.reason}: {hook.argv[0] if len(hook.argv) == 1 else hook.argv[-1]}"
    child = os.fork()
    if child == 0:
        _become(hook, environ, told)
    status = _wait(child, hook.seconds)
    if status is None:
        try:
            os.killpg(child, SIGKILL)
        except OSError:
            os.kill(child, SIGKILL)
        os.waitpid(child, 0)
        raise UdiError(
            f"{what}: not done after {hook.seconds:g} s, killed",
            "see why it hangs, or give it more `seconds` in the module's file",
        )
    code = os.waitstatus_to_exitcode(status)
    if code == NOT_FOUND:
        raise NotThere(f"{what}: not found, or something it runs is not", "is it in the image?")
    if code < 0:
        raise UdiError(f"{what}: killed by signal {-code}", "the module's author can tell why")
    if code:
        raise UdiError(f"{what}: failed with status {code}", "its own output is above")


def _become(hook: Hook, environ: "Mapping[str, str]", told: bool) -> None:
    """In the child: become the hook.

    It gets a process group of its own, so that its children can be killed with it.
    """
    try:
        os.setpgid(0, 0)
        null = os.open("/dev/null", os.O_RDONLY)
        os.dup2(null, 0)
        # The command's stdout may be a pipe into another program: a hook must not write there.
        os.dup2(2, 1)
        command.signals()
        os.execvpe(hook.argv[0], hook.argv, dict(environ))
    except OSError as error:
        if told:
            complain("udi-run", f"{hook.argv[0]}: {os.strerror(error.errno or 0)}")
    finally:
        os._exit(NOT_FOUND)


def _wait(child: int, seconds: float) -> int | None:
    """Wait for the child's end; return its wait status, None after `seconds`."""
    try:
        handle = os.pidfd_open(child)
    except (OSError, AttributeError):
        return _wait_slowly(child, seconds)
    try:
        waiter = poll()
        waiter.register(handle, POLLIN)
        ready = waiter.poll(max(1, int(seconds * 1000)))
    finally:
        os.close(handle)
    return os.waitpid(child, 0)[1] if ready else None


def _wait_slowly(child: int, seconds: float) -> int | None:
    """Do what `_wait` does on Linux before 5.3, or with a Python built there: without a pidfd."""
    end = monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        if monotonic() > end:
            return None
        sleep(_STEP)
