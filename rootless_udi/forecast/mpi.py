"""The check "mpi": do the image's MPI programs run at the site, on its MPI or on their own?

Whether the host's MPI can be put in is asked of the very planner that a launch asks, with the
captured libraries as files (`hosttree`). Where it can't, or isn't asked for, the image's own MPI is
left: then its ranks must find each other through the site's launcher (`pmi`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rootless_udi.base.errors import UdiError
from rootless_udi.base.records import Record
from rootless_udi.forecast import command, hosttree, pmi
from rootless_udi.forecast.asked import MPI_GOES_IN, Asked
from rootless_udi.forecast.finding import (
    FAILS,
    RUNS,
    UNKNOWN,
    UNLOOKED,
    WITH,
    CheckFinding,
    Evidence,
)
from rootless_udi.forecast.site import Capture
from rootless_udi.mpi_inject.libraries import abi
from rootless_udi.mpi_inject.mpi import command as loaded
from rootless_udi.mpi_inject.mpi import planner, profiles
from rootless_udi.plan.steps import Injection, Mount

_NAME = "mpi"


class Verdict(Record):
    """What the planner said: the `plan`, or why it refuses and what it advises."""

    plan: Injection | None
    why: str = ""
    hint: str = ""


def look(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Iterator[CheckFinding]:
    """Yield what is known of MPI for this image at this site."""
    elf = facts.get("elf")
    wish = asked.request.mpi
    if wish is None and _module(site, asked):
        wish = "auto"
    if not _shaped(elf):
        if wish is None:
            yield CheckFinding(_NAME, UNLOOKED, "whether the image has MPI programs is not known")
        else:
            what = "nothing is known of the image's libraries: --mpi can't put an MPI in"
            yield CheckFinding(_NAME, FAILS, what, remedy="udi pull it, or check its file here")
        return
    assert isinstance(elf, dict)
    image = _image(elf, facts, asked)
    if image is None and wish in (None, "none"):
        yield CheckFinding(_NAME, RUNS, "the command, or the image, has no MPI program")
        return
    if wish == "none":
        yield from pmi.look(site, elf, image or Evidence(), "")
        return
    if not site.knows("mpi"):
        what = "which MPIs the site has is not in the capture"
        yield CheckFinding(_NAME, UNKNOWN, what, image or Evidence(), remedy="capture it anew")
        return
    verdict = _planned(site, elf, facts, asked, wish or "auto")
    if verdict is None:
        what = f"the libraries of {site.machine} can't be looked at here"
        yield CheckFinding(_NAME, UNKNOWN, what, image or Evidence())
    elif wish is None:
        asked.memo[MPI_GOES_IN] = verdict.plan is not None
        yield from _not_asked(site, elf, image or Evidence(), verdict)
    else:
        asked.memo[MPI_GOES_IN] = verdict.plan is not None
        yield from _asked_for(site, elf, image or Evidence(), verdict)


def _module(site: Capture, asked: Asked) -> bool:
    """Tell whether a module asks for the host's MPI, given or the site's default."""
    if asked.request.module is not None:
        return "mpi" in asked.request.module.split(",")
    return "mpi" in site.words("config", "default_modules")


_LISTS = ("libraries", "libc_versions", "static", "unread")
_TABLES = ("consumers", "provides")


def _shaped(elf: Any) -> bool:
    """Tell whether the facts have the parts that the planner reads, of the right kind."""
    return (
        isinstance(elf, dict)
        and all(isinstance(elf.get(key), list) for key in _LISTS)
        and all(isinstance(elf.get(key), dict) for key in _TABLES)
        and all(isinstance(elf.get(key), str) for key in ("machine", "libc"))
        and isinstance(elf.get("bits"), int)
    )


def _environment(facts: Mapping[str, Any]) -> dict[str, str]:
    return dict(str(pair).partition("=")[::2] for pair in facts.get("env") or ())


def _image(elf: dict[str, Any], facts: Mapping[str, Any], asked: Asked) -> Evidence | None:
    """Return the image's MPI programs that the command loads, or all; None where there is none."""
    files = loaded.loaded(elf, command.argv(facts, asked), _environment(facts))
    part = loaded.part(elf, files) if files else elf
    if files is not None and not files:
        return None
    for family, one in part["consumers"].items():
        name = abi.NAMES.get(family, "an old MPI")
        count, paths = one["count"], ", ".join(one["files"][:2])
        more = f" and {count - 2} more" if count > 2 else ""
        return Evidence(f"{paths}{more}", f"built for {name} ({', '.join(one['libraries'][:3])})")
    if elf["static"]:
        return Evidence(", ".join(elf["static"][:2]), "an MPI is linked in statically")
    return None


def _planned(
    site: Capture, elf: dict[str, Any], facts: Mapping[str, Any], asked: Asked, wanted: str
) -> Verdict | None:
    """Ask the planner; None where the site's libraries can't be written as files."""
    request = asked.request
    table = site.table("config").get("mpi")
    with hosttree.made(site) as tree:
        if tree is None:
            return None
        try:
            known = [
                profiles.from_dict(str(name), one)
                for name, one in (table.items() if isinstance(table, dict) else ())
                if isinstance(one, dict)
            ]
            plan = planner.inject(
                wanted,
                request.mpi_compat or "",
                elf,
                tree.environ,
                known,
                tree.root,
                command.argv(facts, asked),
                _environment(facts),
                glibc=request.mpi_glibc or "auto",
            )
        except UdiError as error:
            return Verdict(None, error.message.removeprefix("--mpi: "), error.hint)
        return Verdict(plan)


def _host(site: Capture, plan: Injection) -> Evidence:
    """Return the host's MPI that would be put in, by the binds of its libraries."""
    for step in plan.steps:
        if isinstance(step, Mount) and abi.identify(step.target.rpartition("/")[2])[1] == "C":
            path = step.source.partition(f"/{hosttree.FOLDER}/")[2]
            row = next((one for one in _found(site) if f"/{path}".startswith(one[0] + "/")), None)
            return Evidence(f"/{path}", row[1] if row else step.reason)
    return Evidence("mpi.found", "; ".join(text for _folder, text in _found(site)))


def _family(plan: Injection) -> str:
    """Return the family of the MPI that a plan puts in, "" where it can't be told."""
    for step in plan.steps:
        if isinstance(step, Mount):
            family, role = abi.identify(step.target.rpartition("/")[2])
            if role == "C":
                return family
    return ""


def _found(site: Capture) -> list[tuple[str, str]]:
    rows = site.table("mpi").get("found")
    return [
        (str(one.get("folder", "")), f"{one.get('version', '')} in {one.get('folder', '')}")
        for one in (rows if isinstance(rows, list) else ())
        if isinstance(one, dict)
    ]


def _notes(plan: Injection) -> str:
    said = [*plan.warnings, *plan.notes]
    return f" ({'; '.join(text.removeprefix('--mpi: ') for text in said[:3])})" if said else ""


def _asked_for(
    site: Capture, elf: dict[str, Any], image: Evidence, verdict: Verdict
) -> Iterator[CheckFinding]:
    if verdict.plan is None:
        there = Evidence("mpi.found", "; ".join(text for _, text in _found(site)) or "no MPI")
        yield CheckFinding(_NAME, FAILS, verdict.why, image, there, verdict.hint or "see docs/mpi")
        return
    launcher, known = pmi.starts(site, _family(verdict.plan))
    if known and not launcher and image.file:
        yield pmi.none_starts(site, image, _family(verdict.plan))
        return
    by = f", started by {launcher}" if launcher else ""
    what = f"the site's MPI goes in by --mpi{by}{_notes(verdict.plan)}"
    yield CheckFinding(_NAME, RUNS, what, image, _host(site, verdict.plan))


def _not_asked(
    site: Capture, elf: dict[str, Any], image: Evidence, verdict: Verdict
) -> Iterator[CheckFinding]:
    if verdict.plan is not None:
        launcher, known = pmi.starts(site, _family(verdict.plan))
        if known and not launcher:
            yield pmi.none_starts(site, image, _family(verdict.plan))
            return
        what = "the image's MPI programs run on the site's MPI, and its network, with --mpi"
        what += f", started by {launcher}" if launcher else ""
        notes = _notes(verdict.plan)
        options = ("--mpi",)
        there = _host(site, verdict.plan)
        yield CheckFinding(_NAME, WITH, what + notes, image, there, options=options)
        return
    # With --mpi it would be refused; without, the image's own MPI has a chance.
    yield from pmi.look(site, elf, image, verdict.why)
