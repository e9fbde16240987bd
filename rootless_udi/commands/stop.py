"""udi stop: end a container that waits for the next start (`udi-run --keep`)."""

import os
import select
import signal

from rootless_udi.base.errors import UdiError, counted
from rootless_udi.base.process import say
from rootless_udi.commands.common import containers
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command
from rootless_udi.node.record import alive, member

_SECONDS = 10.0
"""For so long the end of the image server is waited for."""


def add(commands: Parsers) -> None:
    """Add the parser of `udi stop`."""
    one = command(commands, "stop", stop, "end containers that wait for the next start (--keep)")
    one.add_argument("container", nargs="*", help="its name as `udi ps` shows it")
    one.add_argument("--all", action="store_true", help="all that wait on this node")


def stop(arguments: Arguments) -> int:
    """udi stop: the container is not kept any more. It ends now, or with its last process."""
    environ = dict(os.environ)
    if bool(arguments.container) == arguments.all:
        raise UdiError("udi stop: which one?", "udi stop NAME, as `udi ps` shows it, or --all")
    if arguments.all:
        found = [one for one in containers.containers(environ) if one.keep]
    else:
        found = [containers.named(word, environ) for word in arguments.container]
    for one in found:
        if not one.keep:
            raise UdiError(
                f"the container {containers.short(one.name)} is not kept: it ends with its command",
                f"kill {' '.join(map(str, one.members))}",
            )
    for one in found:
        _stop(one)
    return 0


def _stop(one: containers.Container) -> None:
    name = f"{containers.short(one.name)} ({one.image})"
    try:
        server = member(containers.opened(one)[0].get("server").encode())
    except UdiError:
        return
    _wait(one.pin, kill=True)
    if one.members:
        processes = counted(len(one.members), "process", "processes")
        say(f"{name} is not kept any more, and ends with its {processes}")
        return
    if server:
        _wait(server)
    say(f"stopped {name}")


def _wait(process: tuple[int, int], kill: bool = False) -> None:
    """Wait until a process (pid, start time) has ended, some seconds at most; `kill` it first."""
    pid, _ = process
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except (OSError, AttributeError):
        # Linux before 5.3.
        if kill and alive(*process):
            os.kill(pid, signal.SIGKILL)
        return
    try:
        # Looked at behind the open: it is not another process that has its number.
        if not alive(*process):
            return
        if kill:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
        waiter = select.poll()
        waiter.register(fd, select.POLLIN)
        waiter.poll(_SECONDS * 1000)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
