"""udi gpu: the host's GPUs, and CDI specifications of them."""

import json
import os

from rootless_udi.base import jsontext
from rootless_udi.base.process import page
from rootless_udi.commands.common.given import Arguments, write_files
from rootless_udi.commands.common.parsers import Parsers, add_json, command
from rootless_udi.config import load


def add(commands: Parsers) -> None:
    """Add the parsers of `udi gpu` and `udi gpu cdi`."""
    one = commands.add_parser("gpu", help="the host's GPUs: what --gpu would put in, and why")
    one.set_defaults(command=_report)
    one.add_argument("--gpu", metavar="WHICH", help="default: auto, and none with --device")
    one.add_argument("--device", action="append", default=[], metavar="VENDOR/CLASS=NAME")
    add_json(one, "what would be put in, as JSON")
    actions = one.add_subparsers(metavar="ACTION")
    one = command(actions, "cdi", _cdi, "write CDI specifications of what was found")
    one.add_argument("--to", metavar="DIR", help="write the files there; else print them")


def _report(arguments: Arguments) -> int:
    """udi gpu: what the node has, and what --gpu would put in."""
    from rootless_udi.mpi_inject.gpu import report

    places = load.load(os.environ).cdi_spec_dirs
    devices = tuple(arguments.device)
    request = ("" if devices else "auto") if arguments.gpu is None else arguments.gpu
    if arguments.json:
        from rootless_udi.launch import explain
        from rootless_udi.mpi_inject.gpu import planner

        planned = planner.plan(request, devices, {}, os.environ, directories=places)
        page(jsontext.text(explain.as_data(planned)) + "\n")
        return 0
    lines = report.report(request, devices, os.environ, directories=places)
    page("\n".join(lines) + "\n")
    return 0


def _cdi(arguments: Arguments) -> int:
    """udi gpu cdi: write or print the files."""
    from rootless_udi.mpi_inject.gpu import report

    found = report.specifications(environ=os.environ)
    if arguments.to is None and len(found) == 1:
        page(jsontext.text(json.loads(next(iter(found.values())))) + "\n")
        return 0
    write_files(found.items(), arguments.to)
    return 0
