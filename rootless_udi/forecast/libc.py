"""The check "C library": does the image's fit what of the site is put beside it?

Of the site's MPI the check "mpi" tells, by the planner. Here it is NVIDIA's driver, whose libraries
need glibc; AMD's and Intel's bring none.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rootless_udi.forecast import capturempi, gpucode_check
from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import FAILS, RUNS, UNLOOKED, CheckFinding, Evidence
from rootless_udi.forecast.site import Capture

_NAME = "C library"


def look(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Iterator[CheckFinding]:
    """Yield whether the image's programs can load NVIDIA's driver, where it is put in."""
    elf = facts.get("elf")
    if not isinstance(elf, dict) or not isinstance(elf.get("libc_versions", []), list):
        return
    kind = str(elf.get("libc") or "")
    number = capturempi.newest_glibc(str(v) for v in elf.get("libc_versions", ()))
    image = Evidence("libc.so.6" if number else "", f"{kind or 'none'} {number}".rstrip())
    files = site.table("libc").get("files")
    theirs = files.get("libc.so.6") if isinstance(files, dict) else None
    host = ""
    if isinstance(theirs, list) and len(theirs) == 2 and isinstance(theirs[1], list):
        host = capturempi.newest_glibc(str(version) for version in theirs[1])
    there = Evidence("libc", f"glibc {host}" if host else "not known")
    vendors = {one.get("vendor") for one in site.rows("gpus")}
    driver = asked.request.gpu in (None, "", "auto", "all", "nvidia") and "nvidia" in vendors
    if not driver or not gpucode_check.wants_gpu(site, asked):
        what = "the image's programs use its own; without --mpi and --gpu nothing is put beside it"
        if not kind:
            what = "the image has none: its programs are static, or there are none"
        yield CheckFinding(_NAME, RUNS, what, image, there)
    elif kind == "musl":
        yield CheckFinding(
            _NAME,
            FAILS,
            "the image's C library is musl; the GPU driver's libraries need glibc",
            image,
            Evidence("drivers.nvidia", "libraries for glibc"),
            "use an image made of Debian, Ubuntu, Rocky, SUSE, ... in place of Alpine",
        )
    else:
        what = (
            "which glibc the GPU driver's libraries need is not in the capture; where it is newer"
        )
        what += " than the image's, the site's comes along if it fits"
        yield CheckFinding(_NAME, UNLOOKED, what, image, there)
