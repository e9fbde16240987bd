"""udi: everything but the launch itself. What `udi X` does is in the module of that name.

A module of a command has `add(commands)`, which adds its parser, and a function of the command's
name, which gets the parsed words and returns the exit status. Its imports at the top are few,
since each start of udi makes them; what only the command needs is imported within its function.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

from rootless_udi.base.privilege import refuse_privilege
from rootless_udi.base.process import guarded, streams
from rootless_udi.commands import (
    bundle,
    check,
    completion,
    config,
    df,
    doctor,
    exec_,
    export,
    extract,
    fetch,
    gateway,
    gpu,
    history,
    images,
    import_,
    inspect,
    jupyter,
    login,
    logout,
    mpi,
    optimize,
    pack,
    profile,
    prune,
    ps,
    pull,
    push,
    rm,
    run,
    search,
    share,
    shell,
    sign,
    site,
    sshd,
    stats,
    stop,
    tag,
    tags,
    update,
    verify,
)
from rootless_udi.commands.common import unknown
from rootless_udi.commands.common.given import Arguments
from rootless_udi.version import VERSION

COMMANDS = (
    *(run, shell, pull, fetch, images, rm, prune, df, verify, tag, export, pack, import_, history),
    *(update, search, tags, push, sign),
    *(inspect, login, logout, extract, ps, exec_, stop, bundle, profile, optimize, completion),
    *(config, mpi, gpu, doctor, site, check, jupyter, sshd, gateway, share, stats),
)
"""The modules of the commands, in the order of --help."""


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
    by_udi_run = {"run": run.run, "shell": shell.shell, "exec": exec_.exec_}
    if argv and argv[0] in by_udi_run:
        # Not by argparse, which would take udi-run's options for its own.
        return by_udi_run[argv[0]](Arguments(word=argv[1:]))
    if argv[:2] == ["jupyter", "install"]:
        refuse_privilege("udi")
        return jupyter.install(Arguments(word=argv[2:]))
    if argv[:1] == ["sshd"]:
        return sshd.sshd(Arguments(word=argv[1:]))
    if argv[:1] == ["check"]:
        refuse_privilege("udi")
        return check.check(Arguments(word=argv[1:]))
    whole = parser()
    names = [name for action in whole._actions for name in action.choices or ()]
    if argv and not argv[0].startswith("-") and argv[0] not in names:
        raise unknown.command(argv, names)
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


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; completion and the man page are made from it too."""
    top = argparse.ArgumentParser(
        prog="udi",
        description="Images for udi-run: pull, list, inspect, remove; check the machine.",
    )
    top.add_argument("--version", action="version", version=f"udi {VERSION}")
    # For `udi completion`, which writes about all commands.
    top.set_defaults(whole=top)
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add(commands)
    return top


if __name__ == "__main__":
    main()
