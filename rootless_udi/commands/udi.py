"""udi: everything but the launch itself. What `udi X` does is in the module of that name.

A module of a command has `add(commands)`, which adds its parser, and a function of the command's
name, which gets the parsed words and returns the exit status. Only the module of the command that
is asked for is imported, which is half of the time of a short command; --help, completion and the
man page import all of them, so imports at the top of a module are few all the same.
"""

import argparse
import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NoReturn

from rootless_udi.base.privilege import refuse_privilege
from rootless_udi.base.process import guarded, streams
from rootless_udi.commands.common import unknown
from rootless_udi.commands.common.given import Arguments
from rootless_udi.version import VERSION

COMMANDS = (
    *("run", "shell", "pull", "fetch", "images", "rm", "prune", "df", "verify", "tag", "export"),
    *("pack", "import", "history", "update", "search", "tags", "push", "sign", "inspect", "login"),
    *("logout", "extract", "ps", "exec", "stop", "bundle", "profile", "optimize", "completion"),
    *("config", "mpi", "gpu", "doctor", "site", "check", "jupyter", "sshd", "gateway", "share"),
    "stats",
)
"""The commands, in the order of --help."""

_PYTHONS_OWN = {"exec": "exec_", "import": "import_"}
"""Modules of commands that Python has a meaning of its own for."""


def main(argv: list[str] | None = None) -> NoReturn:
    """Run udi on `argv` (without the program's name); never returns."""
    streams()
    words = sys.argv[1:] if argv is None else argv
    sys.exit(guarded("udi", lambda: do(words)))


def do(argv: list[str]) -> int:
    """Do what `argv` asks; return the exit status."""
    # Python 3.13 starts programs by posix_spawn(3), for which the C library calls clone3(2). Where
    # a seccomp filter refuses that, it fails; so subprocess shall use vfork(2), which is as fast.
    # The switch is in its documentation.
    vars(subprocess)["_USE_POSIX_SPAWN"] = False
    word = argv[0] if argv else ""
    # Not by argparse, which would take udi-run's options for the command's own.
    if word in ("run", "shell", "exec", "sshd"):
        return _function(word)(Arguments(word=argv[1:]))
    if word == "check":
        refuse_privilege("udi")
        return _function(word)(Arguments(word=argv[1:]))
    if argv[:2] == ["jupyter", "install"]:
        refuse_privilege("udi")
        return _function(*argv[:2])(Arguments(word=argv[2:]))
    if word and not word.startswith("-") and word not in COMMANDS:
        raise unknown.command(argv, COMMANDS)
    whole = parser((word,) if word in COMMANDS else COMMANDS)
    arguments, rest = whole.parse_known_args(argv)
    if rest:
        raise unknown.words(argv, rest, whole)
    function: Callable[[Arguments], int] = arguments.command
    if {*os.getresuid()} == {0} and len({*os.getresgid()}) == 1:
        from rootless_udi.commands.common import as_root

        status = as_root.serve(function, arguments, argv)
        return function(arguments) if status is None else status
    refuse_privilege("udi")
    return function(arguments)


def parser(names: Sequence[str] = COMMANDS) -> argparse.ArgumentParser:
    """Return the parser of the commands `names`; completion and the man page are made from it."""
    top = argparse.ArgumentParser(
        prog="udi",
        description="Images for udi-run: pull, list, inspect, remove; check the machine.",
    )
    top.add_argument("--version", action="version", version=f"udi {VERSION}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name in names:
        _module(name).add(commands)
    return top


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"rootless_udi.commands.{_PYTHONS_OWN.get(name, name)}")


def _function(name: str, part: str = "") -> Callable[[Arguments], int]:
    """Return the function of the command `name`, or of a `part` of it."""
    found: Callable[[Arguments], int] = getattr(_module(name), part or _PYTHONS_OWN.get(name, name))
    return found


if __name__ == "__main__":
    main()
