"""udi config, udi mpi, udi gpu: what the site configured and what the host would put in."""

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import Any

from rootless_udi import config, jsontext, oci, resolve, store_find
from rootless_udi.errors import UdiError
from rootless_udi.guard import page, say, tell

Arguments = argparse.Namespace


def add(commands: Any) -> None:
    """Add the parsers of this module's commands to `commands`, argparse's subparsers."""
    one = commands.add_parser("config", help="show and check the configuration").add_subparsers(
        metavar="ACTION", required=True
    )
    _action(one, "show", config_show, "print the merged configuration and where it comes from")
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
    one = gpu.add_subparsers(metavar="ACTION")
    action = _action(one, "cdi", gpu_cdi, "write CDI specifications of what was found")
    action.add_argument("--to", metavar="DIR", help="write the files there; else print them")


def _action(commands: Any, name: str, command: Any, text: str) -> argparse.ArgumentParser:
    one: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    one.set_defaults(command=command)
    return one


def config_show(arguments: Arguments) -> int:
    """udi config show."""
    from rootless_udi import configshow

    site, problems = configshow.merged(os.environ)
    page(configshow.show(site))
    tell(*configshow.report(problems).splitlines())
    return 1 if problems else 0


def config_check(arguments: Arguments) -> int:
    """udi config check: 1 where there is a problem."""
    from rootless_udi import configshow

    problems = list(configshow.check(os.environ))
    page(configshow.report(problems))
    return 1 if problems else 0


def config_compile(arguments: Arguments) -> int:
    """udi config compile: print the file that was written."""
    from rootless_udi import configtoml

    say(configtoml.compile_site(os.environ))
    return 0


def config_import(arguments: Arguments) -> int:
    """udi config import: what has no counterpart goes to standard error, a line each."""
    from rootless_udi import udiroot

    try:
        text = Path(arguments.file).read_text(errors="surrogateescape")
    except OSError as error:
        raise UdiError(f"reading {arguments.file} failed: {error.strerror}") from None
    made = udiroot.convert(text, _listing)
    _files(made.files, arguments.to)
    for note in made.notes:
        tell(f"{arguments.file}: {note}")
    return 0


def _listing(folder: str) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def _files(files: Any, folder: str | None) -> None:
    """Write (name, text) pairs below `folder`, or print them one after the other."""
    for name, text in files:
        if folder is None:
            page(f"# {name}\n{text}\n")
            continue
        path = Path(folder, name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        except OSError as error:
            raise UdiError(f"writing {path} failed: {error.strerror}") from None
        say(str(path))


def _facts(image: str) -> dict[str, Any]:
    site = config.load(os.environ)
    reference = oci.parse(image, site.registry)
    if reference.kind in ("squashfs", "directory", "path"):
        return resolve.local(image, os.path.abspath(reference.path)).facts
    found = resolve.find(resolve.all_stores(site, os.environ), reference)
    if found is None:
        unseen = store_find.closed(resolve.all_stores(site, os.environ))
        raise UdiError(f"image {image} is in no image store{unseen}", f"udi pull {image}")
    return resolve.read(found.facts, store_find.owners(found))


def mpi_check(arguments: Arguments) -> int:
    """udi mpi check: 1 where a launch would be refused."""
    from rootless_udi.mpi_inject import mpicheck, profiles

    elf = _facts(arguments.image).get("elf")
    if not elf:
        raise UdiError(
            f"nothing is known of the libraries of {arguments.image}",
            "only images of `udi pull` can have the host's MPI put in",
        )
    site = config.load(os.environ)
    known = [profiles.from_dict(name, table) for name, table in site.mpi.items()]
    text, possible = mpicheck.check(elf, os.environ, known, arguments.profile, arguments.compat)
    page(text if text.endswith("\n") else f"{text}\n")
    return 0 if possible else 1


def mpi_capture(arguments: Arguments) -> int:
    """udi mpi profile capture: TOML on standard output."""
    from rootless_udi.mpi_inject import mpicheck

    launcher = shlex.split(arguments.launcher)
    page(mpicheck.capture(arguments.name, os.environ, launcher, arguments.family))
    return 0


def gpu_report(arguments: Arguments) -> int:
    """udi gpu."""
    from rootless_udi.mpi_inject import gpu_report as reporting

    places = config.load(os.environ).cdi_spec_dirs
    devices = tuple(arguments.device)
    request = ("" if devices else "auto") if arguments.gpu is None else arguments.gpu
    lines = reporting.report(request, devices, os.environ, directories=places)
    page("\n".join(lines) + "\n")
    return 0


def gpu_cdi(arguments: Arguments) -> int:
    """udi gpu cdi."""
    from rootless_udi.mpi_inject import gpu_report as reporting

    found = reporting.specifications(environ=os.environ)
    if arguments.to is None and len(found) == 1:
        page(jsontext.text(json.loads(next(iter(found.values())))) + "\n")
        return 0
    _files(found.items(), arguments.to)
    return 0
