"""Has the site's CPU the instructions that the command needs? It is run here to see.

Notes in ELF files say next to nothing, so the command is run: under qemu-user as the site's CPU,
with all programs that it starts; or as it is, where this CPU has no instruction that the site's
lacks (a run on a CPU that has more proves nothing). Without a command there are only signs.
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.forecast import command, imagetree, isa_models, isa_process, isa_qemu, isa_run
from rootless_udi.forecast.asked import MPI_GOES_IN, Asked
from rootless_udi.forecast.finding import FAILS, RUNS, UNKNOWN, UNLOOKED, CheckFinding, Evidence
from rootless_udi.forecast.needs import Unreadable
from rootless_udi.forecast.site import Capture

_NAME = "instructions"
_MACHINE = "x86_64"


class Processor(Record):
    """A CPU: archspec's name, its ancestors' names (nearest first), features, and words for it."""

    name: str
    ancestors: tuple[str, ...]
    features: frozenset[str]
    generic: str
    model: str

    def __str__(self) -> str:
        return f"{self.name} ({self.model})" if self.model else self.name


def check(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Iterator[CheckFinding]:
    """Run the command as on the site's CPU (check.Check)."""
    theirs = processor(site)
    if not command.argv(facts, asked):
        yield from _signs(facts, theirs)
        return
    there = Evidence("cpu.name", str(theirs) if theirs else "not known")
    why = "" if theirs else "the capture names no x86-64 CPU that archspec knows"
    try:
        one = trial(facts, asked)
        if isinstance(one, isa_run.Trial) and theirs:
            yield _tried(theirs, one, there)
            return
        why = one if isinstance(one, str) else why
    except (OSError, UdiError, Unreadable) as error:
        why = str(error)
    yield CheckFinding(_NAME, UNKNOWN, f"the command was not tried: {why}", site=there)


def processor(site: Capture) -> Processor | None:
    """Return the site's CPU as archspec knows it; None for one that it does not know."""
    import archspec.cpu

    cpu = site.table("cpu")
    known = archspec.cpu.TARGETS.get(str(cpu.get("name") or cpu.get("generic")))
    if known is None or known.family.name != _MACHINE:
        return None
    said = cpu.get("features")
    features = {one for one in said if isinstance(one, str)} if isinstance(said, list) else set()
    model = cpu.get("model")
    return Processor(
        known.name,
        tuple(one.name for one in known.ancestors),
        frozenset(features or known.features),
        known.generic.name,
        model if isinstance(model, str) else "",
    )


def trial(facts: Mapping[str, Any], asked: Asked) -> isa_run.Trial | str:
    """Return what is to be run; why it can't be, where that is so. Raises UdiError, Unreadable."""
    file = command.found(facts, asked)
    machine = (facts.get("elf") or {}).get("machine") or _MACHINE
    here = os.uname().machine
    if file is None or file.why:
        return "there is no such program"
    if here != _MACHINE or machine != _MACHINE:
        return f"an image for {machine} is not run on this machine ({here})"
    words = command.argv(facts, asked)
    if not (file.entry and file.elf) or file.elf.interp:
        return isa_run.Trial(asked, words, mpi=bool(asked.memo.get(MPI_GOES_IN)))
    with imagetree.opened(asked.path, asked.offset) as tree:
        return _static(tree, asked, words, file.entry.path)


def _static(
    tree: imagetree.ImageTree, asked: Asked, words: tuple[str, ...], path: str
) -> isa_run.Trial | str:
    """Return how a static program is run, or a script for one: qemu must be put before it."""
    content = tree.content(path)
    head = content.head[:256] if content else b""
    if head[:2] == b"#!":
        # As execve(2) does: the interpreter, at most one argument, the script, its arguments.
        first = head[2:].partition(b"\n")[0].decode("utf-8", "replace").strip().split(None, 1)
        entry = imagetree.find(tree, first[0]) if first else None
        content = tree.content(entry.path) if entry else None
        if entry and content and content.head[:4] == b"\x7fELF":
            return isa_run.Trial(asked, (*first, path, *words[1:]), entry.path)
    if head[:4] == b"\x7fELF":
        return isa_run.Trial(asked, words, path)
    return f"the interpreter of {path} is a script for a static program"


def _here() -> tuple[str, frozenset[str]]:
    """Return this machine's CPU as the kernel names it, and all of its flags."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            rows = [row.partition(":") for row in file.read().split("\n\n")[0].splitlines()]
    except OSError:
        return "", frozenset()
    said = {key.strip(): value.strip() for key, _, value in rows}
    return " ".join(said.get("model name", "").split()), frozenset(said.get("flags", "").split())


def stands_for(theirs: Processor) -> bool:
    """Tell whether what runs on this CPU runs on the site's: it is the same, or has no more.

    Compared are the features that archspec knows of any x86-64 CPU.
    """
    import archspec.cpu

    model, flags = _here()
    if model and model == theirs.model and archspec.cpu.host().name == theirs.name:
        return True
    every = [one for one in archspec.cpu.TARGETS.values() if one.family.name == _MACHINE]
    known = {isa_models.spelled(feature) for one in every for feature in one.features}
    mine = {isa_models.spelled(flag) for flag in flags} & known
    return bool(flags) and mine <= {isa_models.spelled(one) for one in theirs.features}


def _tried(theirs: Processor, one: isa_run.Trial, there: Evidence) -> CheckFinding:
    """Return the finding of a run."""
    asked = one.asked
    if stands_for(theirs):
        done = isa_run.native(one, isa_run.wants_writable(one))
        if not done.illegal:
            return _seen(done, one, there, "on this CPU, which has nothing that the site's lacks")
    qemu = asked.memo.setdefault("qemu", isa_qemu.InstalledQemu(isa_qemu.found()))
    if not qemu.path:
        what = (
            "the command was not tried: this CPU has more than the site's, and qemu-x86_64-static"
            " is not installed"
        )
        return CheckFinding(_NAME, UNKNOWN, what, site=there, remedy="install qemu-user-static")
    how = isa_models.choose((theirs.name, *theirs.ancestors), theirs.features, qemu)
    if how is None:
        what = f"the command was not tried: {qemu.path} has no model for {theirs.name}"
        return CheckFinding(_NAME, UNKNOWN, what, site=there, remedy="install a newer qemu")
    done = isa_run.emulated(one, isa_run.Emulator(qemu.path, how.cpu))
    if done.illegal:
        return _refused(done, theirs, how, asked, there)
    model = how.cpu.partition(",")[0]
    how_run = f"under qemu as {theirs.name} ({model}), with all dynamic programs that it starts"
    return _seen(done, one, there, how_run)


def _of(asked: Asked, fact: str = "") -> Evidence:
    file = asked.memo.get("command")
    return Evidence(file.entry.path if file and file.entry else "", fact)


def _seen(done: isa_process.Outcome, one: isa_run.Trial, there: Evidence, how: str) -> CheckFinding:
    """Return the finding of a run in which no instruction was refused."""
    asked = one.asked
    how += ", with this machine's MPI" if isa_run.has_mpi(one) else ""
    if done.fine:
        return CheckFinding(_NAME, RUNS, f"the command ran here {how}", _of(asked), there)
    if done.state == isa_process.RUNNING:
        what = (
            f"the command was still running after {done.seconds:.0f} s here, {how}; until then no"
            " instruction was refused"
        )
        return CheckFinding(_NAME, UNKNOWN, what, _of(asked), there, "check a shorter command")
    last = done.said.strip().rpartition("\n")[2]
    if done.state == isa_process.REFUSED:
        rows = [row for row in done.said.splitlines() if not row.startswith("udi-run: hint: ")]
        what = f"the command was not tried: {rows[-1] if rows else last}"
        return CheckFinding(_NAME, UNKNOWN, what, _of(asked), there)
    what = (
        f"the command ended with status {done.status} here, {how}; until then no instruction was"
        f" refused{': ' + last if last else ''}"
    )
    return CheckFinding(
        _NAME, UNKNOWN, what, _of(asked, last), there, "check a command that ends well"
    )


def _refused(
    done: isa_process.Outcome,
    theirs: Processor,
    how: isa_models.Emulation,
    asked: Asked,
    there: Evidence,
) -> CheckFinding:
    """Return the finding of a run that was ended for an instruction."""
    words = " ".join(f"{byte:02x}" for byte in done.code[:15])
    kind = isa_models.kind(done.code)
    fact = f"the instruction {words}{f', {kind}' if kind else ''}" if words else ""
    need = isa_models.needs(done.code, theirs.features, how.lacks)
    if need:
        what = (
            f"a program uses an instruction that this qemu does not emulate, maybe of {need}, which"
            f" {theirs.name} has"
        )
        return CheckFinding(_NAME, UNKNOWN, what, _of(asked, fact), there, "install a newer qemu")
    march = theirs.generic.replace("_", "-").replace("x86-64", "x86-64", 1)
    what = f'{kind or "an instruction"} is used that {theirs.name} lacks: "Illegal instruction"'
    remedy = f"rebuild for that CPU: -march={march}, or for several and chosen at run time"
    return CheckFinding(_NAME, FAILS, what, _of(asked, fact), there, remedy)


def _signs(facts: Mapping[str, Any], theirs: Processor | None) -> Iterator[CheckFinding]:
    """Yield what file names say of instructions, and that no more is known without a command."""
    names = ((facts.get("forecast") or {}).get("isa") or {}).get("names") or []
    what = "which instructions its programs need was not looked at: no command was given"
    if names:
        what += f"; {len(names)} files are by their names for certain CPUs"
    there = Evidence("cpu.name", str(theirs) if theirs else "not known")
    image = Evidence(names[0], "by its name for a certain CPU") if names else Evidence()
    yield CheckFinding(_NAME, UNLOOKED, what, image, there, "udi check IMAGE -- COMMAND runs it")
