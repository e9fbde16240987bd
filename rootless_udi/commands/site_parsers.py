"""The parsers of udi config, udi mpi and udi gpu."""

import argparse
from typing import Any

from rootless_udi.commands.config import config_check, config_compile, config_import, config_show
from rootless_udi.commands.gpu import gpu_cdi, gpu_report
from rootless_udi.commands.mpi import mpi_capture, mpi_check


def add(commands: Any) -> None:
    """Add the parsers of this module's commands to `commands`, argparse's subparsers."""
    one = commands.add_parser("config", help="show and check the configuration").add_subparsers(
        metavar="ACTION", required=True
    )
    action = _action(
        one, "show", config_show, "print the merged configuration and where it comes from"
    )
    action.add_argument("--json", action="store_true", help="as JSON")
    _action(one, "check", config_check, "print what is wrong with it, by file and line")
    _action(one, "compile", config_compile, "write the site's copy that launches read quickly")
    action = _action(one, "import", config_import, "translate Shifter's udiRoot.conf")
    action.add_argument("file")
    action.add_argument("--to", metavar="DIR", help="write the files there; else print them")

    one = commands.add_parser("mpi", help="the host's MPI in an image").add_subparsers(
        metavar="ACTION", required=True
    )
    action = _action(
        one, "check", mpi_check, "tell whether --mpi would work, and why; runs nothing"
    )
    action.add_argument("image")
    action.add_argument("--profile", default="", help="of the site's, or auto, mpich, openmpi, abi")
    action.add_argument("--compat", default="", choices=("", "warn", "major", "full", "strict"))
    profile = one.add_parser("profile", help="MPI profiles").add_subparsers(
        metavar="ACTION", required=True
    )
    action = _action(profile, "capture", mpi_capture, "write a profile of the MPI on the PATH")
    action.add_argument("name")
    action.add_argument("--launcher", default="", help='before the program: "srun -n 2 --mpi=pmi2"')
    action.add_argument("--family", default="", choices=("", "mpich", "openmpi", "abi"))

    gpu = commands.add_parser("gpu", help="the host's GPUs: what --gpu would put in, and why")
    gpu.set_defaults(command=gpu_report)
    gpu.add_argument("--gpu", metavar="WHICH", help="default: auto, and none with --device")
    gpu.add_argument("--device", action="append", default=[], metavar="VENDOR/CLASS=NAME")
    gpu.add_argument("--json", action="store_true", help="what would be put in, as JSON")
    one = gpu.add_subparsers(metavar="ACTION")
    action = _action(one, "cdi", gpu_cdi, "write CDI specifications of what was found")
    action.add_argument("--to", metavar="DIR", help="write the files there; else print them")


def _action(commands: Any, name: str, command: Any, text: str) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    one.set_defaults(command=command)
    return one
