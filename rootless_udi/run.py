"""udi-run: parse the options, join the node's container or build it, become the command.

This runs at every start of every rank, so it imports little: a rank that joins loads this module,
`plan.options`, `node.record`, `launch.command` and what they need; only a process that builds loads
the planner and the executor. Neither loads what pulls images. tests/test_start.py holds both to a
list of modules and counts the files that are opened.
"""

import os
import sys

from rootless_udi.base import process
from rootless_udi.base.errors import UdiError
from rootless_udi.base.privilege import refuse_privilege
from rootless_udi.base.process import guarded, occupy, page
from rootless_udi.launch import command
from rootless_udi.node import launcher, places
from rootless_udi.node.record import read_record
from rootless_udi.plan import options

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main(argv: "list[str] | None" = None) -> "NoReturn":
    """Run udi-run on `argv` (without the program's name); never returns."""
    occupy()
    sys.exit(guarded("udi-run", lambda: run(sys.argv[1:] if argv is None else argv)))


def run(argv: "list[str]") -> int:
    """Do what `argv` asks: become the command, or return a status (--help, --explain)."""
    environ = command.given()
    request = options.parse(argv, environ)
    if request.help or request.version:
        from rootless_udi.version import VERSION

        page(options.usage() if request.help else f"udi-run {VERSION}\n")
        return 0
    refuse_privilege()
    defined: list[tuple[str, str, str]] = []
    if request.edf is not None:
        from rootless_udi.launch import edf

        request, defined = edf.apply(request, environ)
    own = defined + command.own_variables(request)
    near: list[tuple[str, int]] = []
    who, kept = owners(request, environ, near)
    name, key = launcher.key(request, kept or who, environ) if kept or who else ("", "")
    if environ.get("UDI_JOIN_PLAN") == "1":
        from rootless_udi.launch import joinplan

        return joinplan.show(request, environ, own, name, key)
    if name and request.explain is None:
        # Who comes with the lock has looked, and is to build.
        if "lock" not in sys._xoptions:
            _join(request, environ, own, name, key)
        if who or request.keep is not None:
            from rootless_udi.launch import shared

            return shared.run(request, environ, own, kept or who, name, key)
    helper = None
    place = "", -1, ""
    fields: dict[str, str] = {}
    if request.explain is None:
        from rootless_udi.serve.helper import Helper

        place, fields = _alone(environ, near)
        # The helper first: while this process loads the planner, the image server loads on another
        # CPU and opens the image.
        helper = Helper((place[0], place[2], fields["token"]))
    from rootless_udi.launch import facts

    found = facts.find(request, environ, who, helper, place[0])
    if helper and found.site.keep and request.keep is None:
        from rootless_udi.node.kept import owner

        if kept := owner(request, environ):
            # The site keeps containers: this one is to be found by its record, as one of ranks.
            helper.close()
            from rootless_udi.launch import shared

            name, key = launcher.key(request, kept, environ)
            return shared.run(request, environ, own, kept, name, key)
    from rootless_udi.launch import container

    return container.run(request, environ, own, place, fields, found, helper)


def owners(
    request: options.Request,
    environ: "dict[str, str]",
    near: "list[tuple[str, int]] | None" = None,
) -> tuple[str, str]:
    """Return who shares the request's container: its launcher, and the starts for which it is kept.

    Each is "" for nobody. Whether a start without --keep may join a kept container is looked for
    only where there is one: the site's configuration, which no joiner reads, has kept it. `near`
    gets the state directory if it was looked for and is the one to use: path and descriptor.
    """
    who = launcher.launcher(environ, request.share or "auto")
    plain = not who and request.keep is None and request.share != "off"
    if plain and environ.get("UDI_JOIN_PLAN") != "1":
        path, directory = places.find(environ, make=False)
        plain = directory >= 0 and any(n.startswith("keep-") for n in os.listdir(directory))
        if near is not None and directory >= 0 and not plain and places.final(environ, path):
            near.append((path, directory))
        elif directory >= 0:
            os.close(directory)
    if not plain and not (request.keep or "").strip("0"):
        return who, ""
    from rootless_udi.node import kept

    return who, kept.owner(request, environ)


def _alone(
    environ: "dict[str, str]", near: "list[tuple[str, int]]"
) -> "tuple[tuple[str, int, str], dict[str, str]]":
    """Return place and fields of a record for a container that nobody joins; see `container.build`.

    The record is there so that `udi ps` shows this run. `near` is of `owners`.
    """
    me = os.getpid()
    start = process.started(me)
    try:
        path, directory = near[0] if near else places.find(environ, make=True)
    except UdiError:
        # `udi ps` won't see this run; nothing else depends on the record.
        path, directory = "", -1
    place = path, directory, f"alone-{me}-{start}"
    return place, {"request": "", "job": "", "token": f"{me}.{start}"}


def _join(
    request: options.Request,
    environ: "dict[str, str]",
    own: "list[tuple[str, str, str]]",
    name: str,
    key: str,
) -> None:
    """Join the container of the record and become the command; return where there is none."""
    path, directory = places.find(environ, make=False)
    if directory < 0:
        return
    record, fd = read_record(directory, name)
    if record is not None and record.long:
        from rootless_udi.node.compact import compact

        compact(path, directory, name, record, fd)
        os.close(fd)
        record, fd = read_record(directory, name)
    os.close(directory)
    if record is None:
        return
    if record.get("request") == key and not record.lost() and not record.changed():
        command.enter(record, fd, request, environ, own)
    os.close(fd)


if __name__ == "__main__":
    main()
