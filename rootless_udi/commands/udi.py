"""udi: everything but the hot path. One argparse parser; each command is a small function below.

What a command does lives in the module it calls; here are words in, words out.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Callable
from typing import NoReturn

from rootless_udi.base import jsontext
from rootless_udi.base.errors import UdiError
from rootless_udi.base.privilege import refuse_privilege
from rootless_udi.base.process import guarded, page, say, streams
from rootless_udi.commands import running, site_parsers, store_parsers
from rootless_udi.commands.given import Arguments
from rootless_udi.commands.images import extract, inspect
from rootless_udi.commands.login import login, logout
from rootless_udi.commands.optimize import optimize, profile
from rootless_udi.commands.pull import pull
from rootless_udi.version import VERSION


def main(argv: list[str] | None = None) -> NoReturn:
    """Run udi on `argv` (without the program's name); never returns."""
    streams()
    words = sys.argv[1:] if argv is None else argv
    try:
        status = guarded("udi", lambda: run(words))
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def run(argv: list[str]) -> int:
    """Do what `argv` asks; returns the exit status."""
    # Python 3.13 makes programs by posix_spawn(3), and the C library that by clone3(2), without
    # another way where a filter refuses it. vfork(2) is as fast. subprocess documents the switch.
    vars(subprocess)["_USE_POSIX_SPAWN"] = False
    if argv[:1] in (["run"], ["shell"]):
        # Not through argparse: the options are udi-run's.
        running.become(argv[1:]) if argv[0] == "run" else running.shell(argv[1:])
    whole = parser()
    names = [name for action in whole._actions for name in action.choices or ()]
    if argv and not argv[0].startswith("-") and argv[0] not in names:
        raise running.unknown(argv[0], names)
    arguments = whole.parse_args(argv)
    if arguments.command is not bundle:
        refuse_privilege("udi")
    command: Callable[[Arguments], int] = arguments.command
    return command(arguments)


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands; completion and the man page are made from it too."""
    top = argparse.ArgumentParser(
        prog="udi",
        description="Images for udi-run: pull, list, inspect, remove; check the machine.",
    )
    top.add_argument("--version", action="version", version=f"udi {VERSION}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)

    def add(name: str, command: Callable[[Arguments], int], text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.set_defaults(command=command)
        return one

    for name, text in (("run", "run a command in an image"), ("shell", "a shell in an image")):
        one = add(name, doctor, f"{text}, with udi-run's options")
        one.add_argument("word", nargs=argparse.REMAINDER, metavar="[OPTIONS] IMAGE ...")
    one = add("pull", pull, "fetch an image and make one squashfs file of it")
    one.add_argument("image")
    one.add_argument("--platform", help="OS/ARCHITECTURE[/VARIANT], this machine's by default")
    one.add_argument("--compression", help="zstd[:LEVEL], gzip[:LEVEL], xz, lz4, lzo or none")
    one.add_argument("--insecure", action="store_true", help="plain HTTP (loopback is always)")
    one.add_argument("--force", action="store_true", help="make it anew though it is there")
    one.add_argument("--keep-blobs", action="store_true", help="keep the compressed layers")
    one.add_argument("--writer", default="", help="tar2sqfs or mksquashfs, by name or path")
    one.add_argument("--quiet", "-q", action="store_true", help="say nothing but errors")
    store_parsers.add(add)
    one = add("inspect", inspect, "print what is known of an image, as JSON")
    one.add_argument("image")
    one.add_argument("--platform", help="that of the image, as it was pulled")
    one = add("login", login, "try a registry's credentials and keep them")
    one.add_argument("registry", nargs="?", default="docker.io")
    one.add_argument("--username", "-u", help="asked for where it is not given")
    one.add_argument("--password-stdin", action="store_true", help="read it from standard input")
    one.add_argument("--insecure", action="store_true", help="plain HTTP (loopback is always)")
    one = add("logout", logout, "forget a registry's credentials")
    one.add_argument("registry", nargs="?", default="docker.io")
    one = add("extract", extract, "unpack an image into a directory of the store")
    one.add_argument("image")
    one.add_argument("--platform", help="that of the image, as it was pulled")
    one = add("ps", ps, "list the containers that live on this node")
    one.add_argument("--json", action="store_true", help="as JSON")
    add("bundle", bundle, "put udi-run's modules into two files, for a shared file system")
    one = add("profile", profile, "run a command and note what it reads of its image")
    one.add_argument("--output", "-o", metavar="FILE", default="udi.profile")
    one.add_argument("image")
    one.add_argument("word", nargs=argparse.REMAINDER, metavar="[--] COMMAND")
    one = add("optimize", optimize, "lay an image out anew for what was noted")
    one.add_argument("--output", "-o", metavar="FILE", help="write it there; else into the store")
    one.add_argument("--compact", action="store_true", help="leave what starts read compressed")
    one.add_argument("image")
    one.add_argument("profile", nargs="+")
    one = add("completion", completion, "print a completion script for a shell")
    one.add_argument("shell", choices=("bash", "zsh", "fish", "tcsh"))
    site_parsers.add(commands)
    one = add(
        "doctor", doctor, "check what this machine lets an ordinary user do, with the remedies"
    )
    one.add_argument("--json", action="store_true", help="as JSON")
    return top


def ps(arguments: Arguments) -> int:
    """udi ps: see `rootless_udi.commands.ps`."""
    from rootless_udi.commands import ps as listing

    found = listing.containers(dict(os.environ))
    if arguments.json:
        page(jsontext.text([dict(zip(c.FIELDS, c.values(), strict=True)) for c in found]) + "\n")
    else:
        page(listing.table(found))
    return 0


def completion(arguments: Arguments) -> int:
    """udi completion: bash: source <(udi completion bash)."""
    from rootless_udi.commands import completion as completing

    page(completing.script(arguments.shell, parser()))
    return 0


def bundle(arguments: Arguments) -> int:
    """udi bundle: for an installation that its users may not write to. Prints the files."""
    from rootless_udi import bundle as bundling

    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not bundling.write(package):
        raise UdiError(
            f"writing {bundling.path(package)} failed", "run it as who installed udi-run"
        )
    for stem in bundling.FILES:
        say(bundling.path(package, stem))
    return 0


def doctor(arguments: Arguments) -> int:
    """udi doctor: see `rootless_udi.commands.doctor`."""
    from rootless_udi.commands import doctor as checks

    return checks.report(dict(os.environ), arguments.json)


if __name__ == "__main__":
    main()
