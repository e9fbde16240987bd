"""udi mpi: whether the host's MPI fits an image, and profiles of it."""

import os
import shlex

from rootless_udi.base.errors import UdiError
from rootless_udi.base.process import page
from rootless_udi.commands.common.given import Arguments, any_image
from rootless_udi.commands.common.parsers import Parsers, command, group
from rootless_udi.config import load


def add(commands: Parsers) -> None:
    """Add the parsers of `udi mpi` and its actions."""
    actions = group(commands, "mpi", "the host's MPI in an image")
    one = command(actions, "check", _check, "tell whether --mpi would work, and why; runs nothing")
    one.add_argument("image")
    one.add_argument("--profile", default="", help="of the site's, or auto, mpich, openmpi, abi")
    one.add_argument("--compat", default="", choices=("", "warn", "major", "full", "strict"))
    one.add_argument("--mpi-glibc", default="auto", choices=("auto", "never"))
    profile = group(actions, "profile", "MPI profiles")
    one = command(profile, "capture", _capture, "write a profile of the MPI on the PATH")
    one.add_argument("name")
    one.add_argument("--launcher", default="", help='before the program: "srun -n 2 --mpi=pmi2"')
    one.add_argument("--family", default="", choices=("", "mpich", "openmpi", "abi"))


def _check(arguments: Arguments) -> int:
    """udi mpi check: 1 where a launch would be refused."""
    from rootless_udi.mpi_inject.mpi import check, profiles

    site = load.load(os.environ)
    elf = any_image(arguments.image, site).facts.get("elf")
    if not elf:
        raise UdiError(
            f"nothing is known of the libraries of {arguments.image}",
            "`udi pull` finds out what --mpi needs, and so does `udi import FILE NAME`",
        )
    known = [profiles.from_dict(name, table) for name, table in site.mpi.items()]
    asked = arguments.profile, arguments.compat
    text, possible = check.check(elf, os.environ, known, *asked, glibc=arguments.mpi_glibc)
    page(text if text.endswith("\n") else f"{text}\n")
    return 0 if possible else 1


def _capture(arguments: Arguments) -> int:
    """udi mpi profile capture: TOML on standard output."""
    from rootless_udi.mpi_inject.mpi import check

    launcher = shlex.split(arguments.launcher)
    page(check.capture(arguments.name, os.environ, launcher, arguments.family))
    return 0
