"""Completion in the real shells, and manual pages by the real formatter."""

import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest

from rootless_udi.commands import completion
from rootless_udi.commands.common import manpages
from rootless_udi.commands.common import tree as commandtree
from rootless_udi.commands.udi import parser
from rootless_udi.plan import options
from rootless_udi.shifter import options as shifter
from rootless_udi.shifter import shifterimg
from tests.kit.places import TREE

UDI = """#!/bin/sh
case "$1 $2" in
"images --names") echo 'ubuntu:24.04
alpine:3
host:5000/me/app:1' ;;
"ps --names") echo 'a1b2c3d4e5f6
alone-17' ;;
"config show") echo 'module: mpich (enabled) The MPICH  # /x
module: cvmfs (enabled)  # /x' ;;
esac
"""
"""Stands for a machine with three images and two modules."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with scripts, files to complete, and `udi` on its bin."""
    for shell in completion.SHELLS:
        (tmp_path / f"udi.{shell}").write_text(completion.script(shell, parser()))
    for name in ("data", "datum", "home", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "vars.env").touch()
    (tmp_path / "bin/udi").write_text(UDI)
    (tmp_path / "bin/udi").chmod(0o755)
    return tmp_path


def run(place: Path, *argv: str) -> list[str]:
    env = {"PATH": f"{place}/bin:/usr/bin:/bin", "HOME": f"{place}/home", "LANG": "C.UTF-8"}
    done = subprocess.run(argv, env=env, cwd=place, capture_output=True, text=True, timeout=120)
    assert done.stderr == ""
    return done.stdout.splitlines()


def bash(place: Path, line: str) -> list[str]:
    code = """
        source udi.bash; COMP_LINE=$1 COMP_POINT=${#1} COMPREPLY=()
        compopt() { :; }
        _udi_complete "${1%% *}"; printf '%s\\n' "${COMPREPLY[@]}"
    """
    return sorted(set(run(place, "bash", "-c", code, "bash", line)))


def fish(place: Path, line: str) -> list[str]:
    found = run(place, "fish", "-c", 'source udi.fish; complete -C "$argv[1]"', line)
    return sorted({one.partition("\t")[0] for one in found})


ALPINE, UBUNTU = "alpine:3", "ubuntu:24.04"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("udi-run --cl", ["--clearenv"]),
        ("udi-run --mo", ["--module="]),
        ("udi-run ", [ALPINE, "host:5000/me/app:1", UBUNTU]),
        ("udi-run ubu", [UBUNTU]),
        ("udi-run ubuntu:2", ["24.04"]),
        ("udi-run --verbose host:50", ["5000/me/app:1"]),
        ("udi-run --image a", [ALPINE]),
        ("udi-run --image=a", [ALPINE]),
        ("udi-run --pull=", ["always", "lazy", "missing", "never"]),
        ("udi-run --pull n", ["never"]),
        ("udi-run --explain=", ["json", "wide"]),
        ("udi-run -m ", ["cvmfs", "gpu", "mpi", "mpich", "none"]),
        ("udi-run --module=cvmfs,mpi", ["mpi", "mpich"]),
        ("udi-run --env-file=va", ["vars.env"]),
        ("udi-run --volume da", ["data", "datum"]),
        ("udi-run alpine datu", ["datum"]),
        ("udi-run --image=alpine datu", ["datum"]),
        ("udi-run alpine ls --cl", [""]),
        ("udi pul", ["pull"]),
        ("udi exec ", ["a1b2c3d4e5f6", "alone-17"]),
        ("udi exec --env=A=1 al", ["alone-17"]),
        ("udi exec --wor", ["--workdir="]),
        ("udi exec alone-17 datu", ["datum"]),
        ("udi exec --vol", [""]),
        ("udi config s", ["show"]),
        ("udi images --d", ["--digests"]),
        ("udi rm one a", [ALPINE]),
        ("udi inspect one a", [""]),
        ("udi config import va", ["vars.env"]),
        ("shifter --im", ["--image="]),
        ("shifter --image=a", [ALPINE]),
        ("shifter --image=a datu", ["datum"]),
        ("shifterimg pu", ["pull", "pullnb"]),
        ("shifterimg pull a", [ALPINE]),
        ("/usr/bin/shifterimg lo", ["login", "lookup"]),
    ],
)
def test_bash(place: Path, line: str, words: list[str]) -> None:
    assert bash(place, line) == words


@pytest.mark.needs("fish")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("udi-run --cl", ["--clearenv"]),
        ("udi-run --image a", [ALPINE]),
        ("udi-run ubu", [UBUNTU]),
        ("udi-run --pull=", ["--pull=always", "--pull=lazy", "--pull=missing", "--pull=never"]),
        ("udi-run -m mp", ["mpi", "mpich"]),
        ("udi-run alpine ls --clearenv", []),
        ("udi pul", ["pull"]),
        ("udi config s", ["show"]),
        ("udi images --d", ["--digests"]),
        ("udi exec al", ["alone-17"]),
        ("udi exec --wor", ["--workdir", "--workdir="]),
        ("udi run ubu", [UBUNTU]),
        ("udi run --cl", ["--clearenv"]),
        ("udi --cl", []),
        ("shifterimg pu", ["pull", "pullnb"]),
        ("shifterimg pull a", [ALPINE]),
    ],
)
def test_fish(place: Path, line: str, words: list[str]) -> None:
    assert fish(place, line) == words


def tcsh(place: Path, line: str) -> list[str]:
    """Return what tcsh lists for a line, typed at a terminal: it completes nowhere else."""
    fd, terminal = pty.openpty()
    env = {"PATH": f"{place}/bin:/usr/bin:/bin", "HOME": f"{place}/home", "TERM": "vt100"}
    child = subprocess.Popen(
        ["setsid", "--ctty", "tcsh", "-f"],
        env=env | {"LANG": "C.UTF-8"},
        cwd=place,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)

    def typed(text: str) -> str:
        """Return what is written from here to the next prompt."""
        os.write(fd, text.encode())
        found = b""
        while b"@> " not in found:
            found += os.read(fd, 4096)
        return found.decode().partition("@> ")[0]

    try:
        typed('set prompt="@""> "; source udi.tcsh\n')  # in two parts: a terminal has an echo
        listed = typed(f"{line}\4")  # Control-D at the end of a line lists
        os.write(fd, b"\25exit\n")
    finally:
        os.close(fd)
        child.wait()
    return sorted(listed.removeprefix(line).split())


@pytest.mark.needs("tcsh")
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("udi-run --cl", ["clearenv"]),
        ("udi-run --mo", ["module="]),
        ("udi-run ", [ALPINE, "host:5000/me/app:1", UBUNTU]),
        ("udi-run ubuntu:2", [UBUNTU]),
        ("udi-run --verbose host:50", ["host:5000/me/app:1"]),
        ("udi-run --module mpi u", [UBUNTU]),
        ("udi-run --image a", [ALPINE]),
        ("udi-run --image=a", [ALPINE]),
        ("udi-run --image=alpine datu", ["datum/"]),
        ("udi-run -i alpine datu", ["datum/"]),
        ("udi-run --pull=", ["always", "lazy", "missing", "never"]),
        ("udi-run --pull n", ["never"]),
        ("udi-run --explain=", ["json", "wide"]),
        ("udi-run -m ", ["cvmfs", "gpu", "mpi", "mpich", "none"]),
        ("udi-run --env-file=va", ["vars.env"]),
        ("udi-run --volume da", ["data/", "datum/"]),
        ("udi-run alpine datu", ["datum/"]),
        ("udi pul", ["pull"]),
        ("udi config s", ["show"]),
        ("udi mpi profile ", ["capture"]),
        ("udi images --d", ["database=", "days=", "device=", "digests", "display=", "dry-run"]),
        ("udi config import va", ["vars.env"]),
        ("shifter --im", ["image="]),
        ("shifter --image=a", [ALPINE]),
        ("udi exec al", ["alone-17"]),
        ("shifterimg pu", ["pull", "pullnb"]),
        ("shifterimg pull a", [ALPINE]),
    ],
)
def test_tcsh(place: Path, line: str, words: list[str]) -> None:
    assert tcsh(place, line) == words


@pytest.mark.needs("zsh")
def test_zsh_reads_the_script(place: Path) -> None:
    (place / "_udi").write_text(completion.script("zsh", parser()))
    code = """
        fpath=($PWD $fpath); autoload -U compinit; compinit -D -u
        print -rl -- ${_comps[udi-run]} ${_comps[shifterimg]}
        _arguments() { print -rl -- "$@"; }; _describe() { :; }
        service=udi-run; source ./_udi; service=udi; _udi_do_udi_pull
        compadd() { shift; print -rl -- ${(P)1}; }; _files() { :; }; _udi_images
    """
    found = run(place, "zsh", "-f", "-c", code)
    assert found[:2] == ["_udi", "_udi"]
    assert (
        "*--module=[site modules, in place of the site's default ones]:A,B|none:_udi_modules"
        in (found)
    )
    assert (
        "*--pull=[fetch the image: missing, lazy, never, always]:WHEN:(missing lazy never always)"
        in found
    )
    assert "*::command:_normal" in found
    assert "*--keep-blobs[keep the compressed layers]" in found
    assert found[-3:] == [UBUNTU, ALPINE, "host:5000/me/app:1"]


def test_every_option_and_mode_is_there() -> None:
    tree = {command.name: command for command in commandtree.all_commands(parser())}
    assert {f"--{o.name}" for o in options.OPTIONS} == {o.long for o in tree["udi-run"].options}
    assert {f"--{name}" for name in shifter.LONG} == {o.long for o in tree["shifter"].options}
    assert {c.name for c in tree["shifterimg"].commands} == set(shifterimg.MODES)
    assert all(o.text for o in tree["shifter"].options)
    assert all(c.text for c in tree["shifterimg"].commands)


@pytest.mark.parametrize("name", ["udi-run.1", "udi.1", "shifter.1", "shifterimg.1"])
def test_manual_pages(name: str) -> None:
    text = manpages.pages()[name]
    if shutil.which("groff"):
        argv = ["groff", "-man", "-Tutf8", "-ww", "-z"]
        done = subprocess.run(argv, input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
    command = next(c for c in commandtree.all_commands(parser()) if f"{c.name}.1" == name)
    for _, one in commandtree.walk(command):
        for option in one.options:
            if option.long != "--help":
                assert option.long.replace("-", "\\-") in text


def test_writing_the_manual_pages(tmp_path: Path) -> None:
    argv = ["python3", "-m", "rootless_udi.commands.common.manpages", str(tmp_path / "man")]
    tree = TREE
    subprocess.run(argv, cwd=tree, env={**os.environ, "PYTHONPATH": str(tree)}, check=True)
    assert sorted(path.name for path in (tmp_path / "man").iterdir()) == sorted(manpages.pages())
