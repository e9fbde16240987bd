"""The image as such, run by an ordinary user and read-only: what would go wrong at any site.

Most of it is decided by running the command here, as udi-run does: first as it will be at the site,
and if that fails once more with a writable root, to see whether that is the reason, and what is
written. What files say besides (rights, variables, ports, ENTRYPOINT) is compared with how udi-run
does it.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.forecast import command, imagetree, isa, isa_process, isa_run
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import (
    FAILS,
    RUNS,
    UNKNOWN,
    UNLOOKED,
    WITH,
    CheckFinding,
    Evidence,
)
from rootless_udi.forecast.needs import ImageEntry, Unreadable
from rootless_udi.forecast.site import Capture

Findings = Iterator[CheckFinding]
_PRIVILEGED = 1024
"""The first port on which ordinary users may listen (net.ipv4.ip_unprivileged_port_start)."""
_STEERS_MPI = ("OMPI_MCA_", "I_MPI_", "FI_PROVIDER", "UCX_TLS", "UCX_NET_DEVICES", "MPICH_")
_GPU_FOLDERS = ("/stubs", "/compat")
_SHOWN = 5


def run(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Findings:
    """Run the command here, and see whether it writes into the image (check.Check)."""
    if not command.argv(facts, asked):
        return
    try:
        trial = isa.trial(facts, asked)
        if not isinstance(trial, isa_run.Trial):
            return  # the check of instructions says why
        done = isa_run.native(trial)
        if done.fine:
            how = "with a writable root" if asked.request.writable else "with a read-only root"
            how += " and this machine's MPI" if isa_run.has_mpi(trial) else ""
            what = f"the command ran here, as an ordinary user and {how}"
            yield CheckFinding("image", RUNS, what, _of(asked))
        elif isa_run.wants_writable(trial):
            yield _writes(site, isa_run.native(trial, writable=True).written or (), asked)
        elif done.state == isa_process.ENDED:
            yield _fails(done, asked)
    except (OSError, UdiError, Unreadable) as error:
        yield CheckFinding("image", UNKNOWN, f"the command was not tried: {error}")


def _of(asked: Asked, fact: str = "") -> Evidence:
    file = asked.memo.get("command")
    return Evidence(file.entry.path if file and file.entry else "", fact)


def _fails(done: isa_process.Outcome, asked: Asked) -> CheckFinding:
    last = done.said.strip().rpartition("\n")[2]
    what = f"the command fails here too, with status {done.status}{': ' + last if last else ''}"
    remedy = "check a command that ends well here; GPUs, MPI and the site's files are not here"
    return CheckFinding("image", UNKNOWN, what, _of(asked, last), remedy=remedy)


def _writes(site: Capture, paths: tuple[str, ...], asked: Asked) -> CheckFinding:
    """Return the finding for a command that ends well only with a writable root."""
    names = " ".join(paths[:_SHOWN]) + (
        f" and {len(paths) - _SHOWN} more" if paths[_SHOWN:] else ""
    )
    what = f"the command writes into the image: {names or 'where, was not seen'}"
    folder = os.path.dirname(paths[0]) if paths else "THE FOLDER"
    volume = f"a volume of your own there (--volume=FOLDER:{folder})"
    image = Evidence(paths[0] if paths else "", "is written")
    if site.table("system").get("overlay") is False:
        there = Evidence("system.overlay", "no overlay for ordinary users")
        return CheckFinding("image", FAILS, what, image, there, volume)
    there = Evidence("", "the root is read-only")
    remedy = f"--writable (in memory, gone at the end), or {volume}"
    return CheckFinding("image", WITH, what, image, there, remedy, ("--writable",))


def rights(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Findings:
    """Tell whether files are closed to whoever runs the image (check.Check)."""
    found = (facts.get("forecast") or {}).get("asis")
    if not isinstance(found, dict):
        yield CheckFinding("rights", UNKNOWN, "who may read the image's files was not looked at")
        return
    closed = [row for row in found.get("private", ()) if not _open(asked, row[1], row[2])]
    user = str(facts.get("user") or "")
    who = f"USER is {user}, and it runs as yourself" if user not in ("", "0", "root") else ""
    yield from _command_rights(facts, asked)
    setuid = {*found.get("setuid", ()), *_left_out(facts)}
    file = command.found(facts, asked)
    if file and file.entry and file.entry.path in setuid:
        what = f"{file.entry.path} is a setuid program, and gets no rights by it in a container"
        remedy = "use a program that needs none"
        yield CheckFinding(
            "rights", UNKNOWN, what, Evidence(file.entry.path, "setuid"), remedy=remedy
        )
    if closed:
        path, mode, uid = closed[0]
        what = f"{len(closed)} files and folders are closed to others than their owner"
        if who:
            what += f"; {who}"
        fact = f"mode {mode:04o}, user {uid}"
        remedy = "in the image: chmod -R o+rX; or make it a squashfs file, of which all is yours"
        yield CheckFinding("rights", UNLOOKED, what, Evidence(path, fact), remedy=remedy)
    elif who or found.get("private"):
        what = "all files are the caller's own in the container"
        yield CheckFinding(
            "rights", RUNS, f"{who}; {what}" if who else what, Evidence("USER", user)
        )


def _left_out(facts: Mapping[str, Any]) -> list[str]:
    rows = (facts.get("left_out") or {}).get("setuid_paths") or ()
    return [f"/{str(path).lstrip('/')}" for path in rows]


def _open(asked: Asked, mode: int, uid: int, need: int = 4) -> bool:
    """Tell whether the caller has the right `need` (as in chmod) to an entry.

    Our image server gives all files to the caller, squashfuse those of root; in a directory they
    are whose they are.
    """
    if not asked.size:
        mine = uid == os.geteuid()
    else:
        mine = asked.request.fuse in (None, "auto", "udi", "pyfuse3") or uid == 0
    return bool((mode >> 6 if mine else mode) & need)


def _command_rights(facts: Mapping[str, Any], asked: Asked) -> Findings:
    """Yield where the command's file, or a folder above it, is closed to the caller."""
    file = command.found(facts, asked)
    if file is None or file.entry is None:
        return
    try:
        with imagetree.opened(asked.path, asked.offset) as tree:
            rows = [*_above(tree, file.entry.path), file.entry]
    except (UdiError, Unreadable):
        return  # the check of the command says so
    for one in rows:
        if not _open(asked, one.mode, one.uid, 1):
            what = (
                f"{one.path} is closed to you: its owner is user {one.uid}, its mode {one.mode:04o}"
            )
            fact = f"mode {one.mode:04o}, user {one.uid}"
            remedy = "in the image: chmod o+rx; or make it a squashfs file, of which all is yours"
            yield CheckFinding("rights", FAILS, what, Evidence(one.path, fact), remedy=remedy)
            return


def _above(tree: imagetree.ImageTree, path: str) -> list[ImageEntry]:
    parts = path.strip("/").split("/")[:-1]
    paths = ["/" + "/".join(parts[: n + 1]) for n in range(len(parts))]
    return [entry for one in paths if (entry := tree.at(one)) and entry.kind == "directory"]


def configuration(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Findings:
    """Compare ports, ENTRYPOINT and variables of the image's configuration (check.Check)."""
    ran = asked.memo.get("run")
    ran_here = isinstance(ran, isa_process.Outcome) and ran.fine
    low = [port for port in map(str, facts.get("ports") or ()) if _number(port) < _PRIVILEGED]
    if low and not ran_here:
        what = f"it may want to listen on {', '.join(low)}, where only root may"
        remedy = f"let it listen on {_PRIVILEGED} or above, by its configuration"
        yield CheckFinding("ports", UNKNOWN, what, Evidence("EXPOSE", " ".join(low)), remedy=remedy)
    yield from _entrypoint(facts, asked, ran_here)
    yield from _variables(facts, asked)


def _number(port: str) -> int:
    digits = port.partition("/")[0].partition("-")[0]
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 6 else _PRIVILEGED


def _entrypoint(facts: Mapping[str, Any], asked: Asked, ran_here: bool) -> Findings:
    entrypoint = [str(word) for word in facts.get("entrypoint") or ()]
    if not entrypoint:
        return
    side = Evidence("ENTRYPOINT", " ".join(entrypoint))
    if asked.request.entrypoint != "":
        what = "the image's ENTRYPOINT is not run; some set variables in it that programs need"
        yield CheckFinding("entrypoint", UNLOOKED, what, side, remedy="udi check ... --entrypoint")
        return
    rows = ((facts.get("forecast") or {}).get("asis") or {}).get("scripts") or ()
    words = [row[1] for row in rows if row[0] in entrypoint or row[0].endswith("/" + entrypoint[0])]
    if words and not ran_here:
        what = f"the image's ENTRYPOINT expects to be started by root: it has {words[0]!r}"
        remedy = "leave --entrypoint out and name the program itself"
        yield CheckFinding("entrypoint", UNKNOWN, what, side, remedy=remedy)


def _variables(facts: Mapping[str, Any], asked: Asked) -> Findings:
    """Yield variables of the image that reach the host's libraries too."""
    pairs = dict(str(row).partition("=")[::2] for row in facts.get("env") or ())
    given = {row.partition("=")[0] for row in asked.request.env}
    env = {name: value for name, value in pairs.items() if value and name not in given}
    if asked.request.clearenv:
        return
    mpi = asked.request.mpi not in (None, "none")
    gpu = asked.request.gpu not in (None, "none")
    for name, value in env.items():
        why = ""
        if mpi and name.startswith(_STEERS_MPI):
            why = "it steers the host's MPI, too, which may lack what it names"
        elif (mpi or gpu) and name == "LD_PRELOAD":
            why = "it is loaded before the host's libraries"
        elif gpu and name == "LD_LIBRARY_PATH":
            folders = [f for f in value.split(":") if f.rstrip("/").endswith(_GPU_FOLDERS)]
            why = f"{folders[0]} may hide the driver's libcuda" if folders else ""
        if why:
            remedy = f"--env={name}= takes it away"
            what = f"the image sets {name}: {why}"
            yield CheckFinding(
                "variables", UNKNOWN, what, Evidence(f"ENV {name}", value), remedy=remedy
            )
    home = env.get("HOME", "")
    if home and not asked.request.home:
        what = f"the image sets HOME to {home}; in the container it is your own"
        yield CheckFinding("variables", UNLOOKED, what, Evidence("ENV HOME", home))
