"""udi exec: a command in a container that lives, beside what runs there: a shell, a debugger."""

import argparse
import os
from typing import NoReturn

from rootless_udi.base.errors import UdiError
from rootless_udi.base.privilege import refuse_privilege
from rootless_udi.base.process import complain, page
from rootless_udi.commands.common import containers
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, command
from rootless_udi.commands.shell import SHELL
from rootless_udi.plan import options

OWN = ("env", "env-file", "clearenv", "workdir", "quiet", "help")
"""The options of udi-run that are a command's own; the others make a container."""


def add(commands: Parsers) -> None:
    """Add the parser of `udi exec`."""
    one = command(commands, "exec", exec_, "a command in a container that lives (see udi ps)")
    one.add_argument("word", nargs=argparse.REMAINDER, metavar="[OPTIONS] CONTAINER ...")


def exec_(arguments: Arguments) -> int:
    """udi exec: enter the container as a rank that joins does, and become the command."""
    refuse_privilege("udi")
    values, rest = options.leading(list(arguments.word))
    if "help" in values:
        page(_usage())
        return 0
    if others := [one.name for one in options.OPTIONS if one.field in values]:
        others = [name for name in others if name not in OWN]
    if others:
        raise UdiError(
            f"udi exec: --{others[0]} makes a container, and this one is there already",
            f"its options are {', '.join(f'--{name}' for name in OWN)}",
        )
    if not rest:
        raise UdiError("udi exec: no container is named", "`udi ps` lists them")
    words = rest[2 if rest[1:2] == ["--"] else 1 :] or ["/bin/sh", "-c", SHELL, "sh"]
    request = options.Request(image=rest[0], command=tuple(words), **values)  # type: ignore[arg-type]
    return _enter(containers.named(rest[0], dict(os.environ)), request)


def _enter(container: containers.Container, request: options.Request) -> NoReturn:
    from rootless_udi.launch import command as last
    from rootless_udi.node.record import join

    if container.trouble:
        raise UdiError(
            f"the container {containers.short(container.name)} has lost its image server "
            f"({container.trouble}), and nothing can be executed in it",
            "end its commands; a new start makes a new container",
        )
    environ = last.given()
    own = last.own_variables(request)
    record, fd = containers.opened(container)
    words, env, names = last.planned(record, request, environ, own)
    if not join(record, fd):
        raise containers.ended(container)
    folder, lost = last.arrive(request, names)
    if lost:
        complain("udi", *_outside(lost, environ))
    last.execute(words, env, folder)


def _outside(folder: str, environ: dict[str, str]) -> tuple[str, str]:
    """Return the message that the caller's folder is not in the container, and a hint."""
    where = "your home directory" if folder == environ.get("HOME") else f"the folder {folder}"
    hint = "--workdir=DIR starts elsewhere, --quiet says nothing"
    return f"{where} is not in this container; starting in /", hint


def _usage() -> str:
    rows = [line for line in options.usage().splitlines() if line.startswith("  ")]
    mine = [row for row in rows if any(f"--{name}" in row.split("=")[0] for name in OWN)]
    return "\n".join(
        [
            "usage: udi exec [OPTIONS] CONTAINER [COMMAND [ARG...]]",
            "",
            "options:",
            *mine,
            "",
            "CONTAINER is what `udi ps` shows, or the beginning of a name; the NAME of --share; or",
            "the id of a process in the container. Without a command it is a shell.",
            "The exit status is the command's; 125: it could not be entered, 126: not runnable,",
            "127: not found.",
            "",
        ]
    )
