"""Can the image's own MPI talk to the site's launcher? PMI-1, PMI-2 and PMIx.

Ranks that don't find their launcher's interface each become a job of one: the failure that costs
most hours, since it is no error. One process alone, and an mpiexec of the image's own on one node,
work in any case.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rootless_udi.forecast.finding import FAILS, RUNS, UNKNOWN, CheckFinding, Evidence
from rootless_udi.forecast.site import Capture
from rootless_udi.mpi_inject.libraries import abi

_NAME = "mpi launcher"
_REBUILD = "rebuild the image with an MPI of the site's family, and run it with --mpi"


def wanted(elf: Mapping[str, Any]) -> tuple[str, tuple[str, ...]]:
    """Return (the image's own MPI in words, the interfaces that it speaks); ("", ()) for none.

    The first library that there is counts; of two the programs' family comes first.
    """
    families = [*elf.get("consumers", {}), *abi.FAMILIES]
    mains = [one for one in elf.get("libraries", ()) if one.get("role") == "C"]
    mains.sort(key=lambda one: families.index(one["family"]) if one["family"] in families else 99)
    for one in mains:
        needed = " ".join(one.get("needed", ()))
        release = f" {one['release']}" if one.get("release") else ""
        text = f"{abi.NAMES.get(one['family'], 'MPI')}{release}"
        if one["family"] == abi.OPENMPI or "libopen" in needed:
            return text, ("pmix",)
        if "libpmix" in needed:
            return text, ("pmix",)
        if "libpmi2" in needed:
            return text, ("pmi2",)
        return text, ("pmi1", "pmi2")
    if elf.get("static"):
        return "an MPI that is linked in", ()
    return "", ()


_HOSTS = {
    abi.OPENMPI: ("pmix",),
    abi.MPICH: ("pmi1", "pmi2", "cray_shasta", "cray_alps"),
    abi.ABI: ("pmi1", "pmi2", "pmix", "cray_shasta", "cray_alps"),
}
"""Family of the site's MPI -> interfaces of a launcher that starts its ranks as one job."""


def starts(site: Capture, family: str) -> tuple[str, bool]:
    """Return the launcher that starts ranks on the site's MPI of a family, and if any is known."""
    rows = [one for one in site.rows("launchers") if isinstance(one.get("pmi"), list)]
    for row in rows:
        fits = [word for word in _words(row) if _speaks(word, _HOSTS.get(family, ()))]
        if fits:
            slurm = row.get("name") == "slurm"
            return f"srun --mpi={fits[-1]}" if slurm else str(row.get("name")), True
    return "", bool(rows)


def none_starts(site: Capture, image: Evidence, family: str) -> CheckFinding:
    """Return the finding for a site whose launchers know nothing of its own MPI."""
    what = f"the site's {abi.NAMES.get(family, 'MPI')} fits, but no launcher that is known there"
    what += " starts its ranks: each would be a job of one"
    remedy = "load the module of that MPI with its mpiexec, and capture the site with it"
    return CheckFinding(_NAME, FAILS, what, image, _launchers(site), remedy)


def look(
    site: Capture, elf: Mapping[str, Any], image: Evidence, refused: str
) -> Iterator[CheckFinding]:
    """Yield whether several ranks on the image's own MPI find each other there.

    `refused` says why the site's MPI can't be put in, "" where nobody asked for it.
    """
    text, speaks = wanted(elf)
    before = f"the site's MPI can't be put in: {refused}; " if refused else ""
    if not text:
        what = f"{before or 'without --mpi there is a fault: '}the image has no MPI of its own"
        yield CheckFinding(_NAME, FAILS, what, image, _launchers(site), _REBUILD)
        return
    own = Evidence(image.file, f"{text} speaks {' or '.join(speaks) or 'an unknown interface'}")
    rows = [one for one in site.rows("launchers") if isinstance(one.get("pmi"), list)]
    if not rows or not speaks:
        what = f"{before}whether {text} of the image can talk to the site's launcher is not known"
        remedy = "capture the site where srun or mpiexec is on the PATH, or use --mpi"
        yield CheckFinding(_NAME, UNKNOWN, what, own, _launchers(site), remedy)
        return
    for row in rows:
        fits = [word for word in _words(row) if _speaks(word, speaks)]
        if fits and row.get("name") == "openmpi" and not _same_major(row, text):
            what = f"{before}{text} of the image under mpiexec of Open MPI {row.get('version')}"
            what += ": releases that differ may not find each other"
            remedy = "use srun --mpi=pmix, or --mpi"
            yield CheckFinding(_NAME, UNKNOWN, what, own, _launchers(site), remedy)
            return
        if fits:
            how = f"srun --mpi={fits[-1]}" if row.get("name") == "slurm" else str(row.get("name"))
            how = how.replace("--mpi=pmi1", "--mpi=pmi2")
            what = f"{before}{text} of the image finds its ranks by {how}, without the site's"
            what += " network where it was not built for it"
            yield CheckFinding(_NAME, RUNS, what, own, _launchers(site))
            return
    what = f"{before}{text} of the image speaks {' or '.join(speaks)}, which no launcher of the"
    what += " site does: each rank would be a job of one"
    yield CheckFinding(_NAME, FAILS, what, own, _launchers(site), _REBUILD)


def _words(row: Mapping[str, Any]) -> list[str]:
    found = row.get("pmi")
    return [word for word in found if isinstance(word, str)] if isinstance(found, list) else []


def _speaks(word: str, speaks: tuple[str, ...]) -> bool:
    return word.partition("_v")[0] in speaks


def _same_major(row: Mapping[str, Any], text: str) -> bool:
    own = text.rpartition(" ")[2].partition(".")[0]
    return str(row.get("version", "")).partition(".")[0] == own


def _launchers(site: Capture) -> Evidence:
    rows = site.rows("launchers")
    texts = [
        f"{one.get('name')} {one.get('version', '')} ({', '.join(_words(one))})" for one in rows
    ]
    return Evidence("launchers", "; ".join(texts) or "none is known")
