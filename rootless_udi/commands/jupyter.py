"""udi jupyter: a kernel of Jupyter that runs in an image.

A kernel specification (jupyter-client's documentation, "Kernel specs") is a folder with
kernel.json: the command that starts the kernel, in which {connection_file} stands for a file that
Jupyter has written. That command is `udi jupyter start`, which becomes udi-run with that file's
folder inside. So the kernel is Jupyter's own child: interrupts, restarts and its end are as bare.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from rootless_udi.base.errors import OURS, UdiError
from rootless_udi.base.process import page, say, tell
from rootless_udi.commands.common import newfile
from rootless_udi.commands.common.given import Arguments
from rootless_udi.commands.common.parsers import Parsers, add_json, command, group
from rootless_udi.commands.common.words import split
from rootless_udi.commands.run import become, udi_run

_USAGE = "udi jupyter install IMAGE [--name NAME] [OPTIONS of udi-run] [-- COMMAND ...]"
_INSTALL = "write a kernel specification for an image"
_FILE = "{connection_file}"
_PYTHON = ("python3", "-m", "ipykernel_launcher", "-f", _FILE)
_VERSION = ("python3", "-c", "import ipykernel, platform; print(platform.python_version())")
_SECONDS = 300
"""How long an image may take to say which Python it has; it may be pulled first."""


def add(commands: Parsers) -> None:
    """Add the parsers of `udi jupyter`."""
    actions = group(commands, "jupyter", "kernels of Jupyter that run in images")
    _own(command(actions, "install", install, _INSTALL))
    one = command(actions, "list", list_, "the kernels that run in images")
    add_json(one)
    one = command(actions, "remove", remove, "remove kernel specifications")
    one.add_argument("name", nargs="+")
    one = command(actions, "start", start, "what Jupyter starts; becomes udi-run")
    one.add_argument("connection_file", metavar="CONNECTION_FILE")
    one.add_argument("word", nargs=argparse.REMAINDER, metavar="[OPTIONS] IMAGE COMMAND ...")


def _own(parser: argparse.ArgumentParser) -> None:
    """Add what `udi jupyter install` takes besides the options of udi-run."""
    parser.add_argument("word", nargs=argparse.REMAINDER, metavar="IMAGE [OPTIONS] [-- COMMAND]")
    _options(parser)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="", help="the kernel's name, made of the image's without")
    parser.add_argument("--display", default="", metavar="TEXT", help="what Jupyter shows")
    parser.add_argument("--language", default="python", help="the kernel's language")
    parser.add_argument("--force", action="store_true", help="replace a kernel of that name")


def install(arguments: Arguments) -> int:
    """udi jupyter install: print the path of kernel.json. `arguments.word` are all of its words."""
    if {"-h", "--help"}.intersection(arguments.word[:1]):
        whole = argparse.ArgumentParser(prog="udi jupyter install", description=_INSTALL)
        _own(whole)
        page(whole.format_help())
        return 0
    own, before, image, kernel = _parsed(arguments.word)
    name = own.name or re.sub(r"[^A-Za-z0-9._-]+", "-", os.path.basename(image)).strip("-.")
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name):
        raise UdiError(
            f"udi jupyter install: {name!r} is no kernel's name",
            "letters, digits, '.', '_' and '-': --name=NAME",
        )
    display = own.display
    if not kernel:
        version = _python(before, image)
        display = display or f"Python {version} ({image})"
    path = _folder() / name / "kernel.json"
    if path.exists() and _ours(path) is None and not own.force:
        raise UdiError(f"{path} is there already, and not of an image", "--force replaces it")
    document = {
        "argv": [
            os.path.abspath(sys.argv[0]),
            *("jupyter", "start", _FILE, "--pull=never", *before, image),
            *(kernel or _PYTHON),
        ],
        "display_name": display or name,
        "language": own.language,
        "interrupt_mode": "signal",
        "metadata": {"rootless_udi": {"image": image, "options": before}},
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UdiError(f"writing {path} failed: {error.strerror}") from None
    with newfile.writing(str(path), own.force) as out:
        out.write((json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode())
    tell(f"the kernel {name} is there: Jupyter shows it as {document['display_name']}")
    say(str(path))
    return 0


def _parsed(words: list[str]) -> tuple[Arguments, list[str], str, list[str]]:
    """Return our own options, those of udi-run as words, the image, and the kernel's command.

    Both kinds of options may stand before and after the image. Raises UdiError.
    """
    parser = argparse.ArgumentParser(prog="udi jupyter install", add_help=False, allow_abbrev=False)
    _options(parser)
    found = split(words, parser, _USAGE)
    kernel = list(found.command)
    if kernel and not found.marked:
        raise UdiError(f"udi jupyter install: {kernel[0]}: what is that?", _USAGE)
    if not found.image:
        raise UdiError("udi jupyter install: no image is given", _USAGE)
    if kernel and not any(_FILE in word for word in kernel):
        raise UdiError(
            f"udi jupyter install: the command has no {_FILE}",
            f"it stands for the file that tells the kernel where to listen: CMD {_FILE}",
        )
    return found.own, list(found.words), found.image, kernel


def _python(before: list[str], image: str) -> str:
    """Return the version of the image's Python, in which ipykernel can be imported."""
    argv = udi_run(["--quiet", *before, image, *_VERSION])
    try:
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
        )
    except OSError as error:
        raise UdiError(f"starting {argv[0]} failed: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise UdiError(
            f"image {image} did not say within {_SECONDS} s what Python it has"
        ) from None
    lines = [line.removeprefix("udi-run: ") for line in done.stderr.strip().splitlines()]
    if done.returncode == 0 and done.stdout.strip():
        return done.stdout.strip().splitlines()[-1]
    if done.returncode == OURS:
        hint = next((x.partition("hint: ")[2] for x in lines if "hint: " in x), "")
        why = next((x for x in lines if "hint: " not in x and not x.startswith("resolv")), "")
        raise UdiError(f"trying image {image} failed: {why.removeprefix('udi: ')}", hint)
    why = lines[-1] if lines else f"status {done.returncode}"
    raise UdiError(
        f"image {image} can't run a kernel of Python: {why}",
        f"build it with ipykernel (pip install ipykernel); for another kernel: -- CMD {_FILE}",
    )


def list_(arguments: Arguments) -> int:
    """udi jupyter list: name, image and options of each kernel."""
    rows = []
    for path in sorted(_folder().glob("*/kernel.json")):
        found = _ours(path)
        if found is not None:
            rows.append({"name": path.parent.name, **found})
    if arguments.json:
        page(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")
        return 0
    width = max((len(row["name"]) for row in rows), default=0)
    for row in rows:
        say(f"{row['name']:<{width}}  {' '.join((row['image'], *row['options']))}")
    if not rows:
        tell("no kernel runs in an image: udi jupyter install IMAGE")
    return 0


def remove(arguments: Arguments) -> int:
    """udi jupyter remove: remove the folders of kernels of ours. Raises UdiError for others."""
    paths = [_folder() / name / "kernel.json" for name in arguments.name]
    for name, path in zip(arguments.name, paths, strict=True):
        if "/" in name or _ours(path) is None:
            raise UdiError(f"{name} is no kernel that runs in an image", "udi jupyter list")
    for path in paths:
        try:
            shutil.rmtree(path.parent)
        except OSError as error:
            raise UdiError(f"removing {path.parent} failed: {error.strerror}") from None
    return 0


def start(arguments: Arguments) -> NoReturn:
    """udi jupyter start: become udi-run, with the connection file's folder inside.

    It is not read-only: with the transport "ipc" the kernel's sockets lie beside the file.
    """
    folder = os.path.dirname(os.path.abspath(arguments.connection_file))
    if not os.path.exists(arguments.connection_file):
        raise UdiError(
            f"starting a kernel: {arguments.connection_file} is not there", "Jupyter makes it"
        )
    become([f"--volume={folder}", *arguments.word])


def _folder() -> Path:
    """Return where Jupyter looks for a user's kernels (jupyter_core.paths.jupyter_data_dir)."""
    data = os.environ.get("JUPYTER_DATA_DIR")
    if data:
        return Path(data, "kernels")
    home = os.environ.get("HOME", "")
    data = os.environ.get("XDG_DATA_HOME") or (f"{home}/.local/share" if home else "")
    if not data:
        raise UdiError("no place for Jupyter's kernels: HOME is not set", "set JUPYTER_DATA_DIR")
    return Path(data, "jupyter/kernels")


def _ours(path: Path) -> dict[str, Any] | None:
    """Return image and options of a kernel.json that `install` wrote; None for any other."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = document["metadata"]["rootless_udi"]
        return {"image": str(found["image"]), "options": [str(x) for x in found["options"]]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
