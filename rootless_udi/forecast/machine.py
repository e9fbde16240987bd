"""Checks of processor and kernel: architecture, levels of x86-64 that files ask for, oldest Linux.

Notes in ELF files are all that this looks at. They say little: a compiler writes them only where it
is told to (-Wl,-z,x86-64-v3), so what a program really executes is for the check "instructions".
"""

from collections.abc import Iterator, Mapping
from typing import Any

from rootless_udi.forecast.asked import Asked
from rootless_udi.forecast.finding import FAILS, RUNS, UNKNOWN, CheckFinding, Evidence
from rootless_udi.forecast.site import Capture
from rootless_udi.host.facts import release
from rootless_udi.plan.platforms import suitability
from rootless_udi.plan.reference import Platform, platform_of

_COMPATIBLE = {("i386", "x86_64"), ("arm", "aarch64")}
"""(program, processor): 32-bit programs that Linux runs on a 64-bit processor where it is built so.
"""
_LEVELS = {"x86_64": 1, "x86_64_v2": 2, "x86_64_v3": 3, "x86_64_v4": 4}


def of_image(facts: Mapping[str, Any]) -> tuple[str, str]:
    """Return the machine that most of an image's programs are for, and one of them; ("", "")."""
    table = programs(facts).get("machines")
    rows = table if isinstance(table, dict) else {}
    if not rows:
        return "", ""
    machine = max(rows, key=lambda name: (rows[name][0], name))
    return machine, next(iter(rows[machine][1]), "")


def programs(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what `programfacts` gathered, {} where it did not."""
    found = (facts.get("forecast") or {}).get("programs")
    return found if isinstance(found, dict) else {}


def architecture(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Iterator[CheckFinding]:
    """Compare the machine of the image's programs with the site's."""
    machine, file = of_image(facts)
    said = str(facts.get("architecture") or "")
    image = Evidence(file, f"for {machine or said or 'no machine: there is no ELF file'}")
    there = Evidence("system.machine", site.machine)
    if not site.machine:
        yield _unknown("architecture", "the capture does not say which machine it is", image)
        return
    if not machine and (not said or said == platform_of(site.machine).architecture):
        yield CheckFinding("architecture", RUNS, "no program is for another machine", image, there)
        return
    same = machine == site.machine if machine else said == platform_of(site.machine).architecture
    if same or (machine, site.machine) in _COMPATIBLE:
        what = f"the image is for {machine or said}, as the site is"
        if not same:
            what = f"the image's programs are for {machine}, which {site.machine} runs too"
        yield CheckFinding("architecture", RUNS, what, image, there)
        yield from _variant(site, facts)
        return
    yield CheckFinding(
        "architecture",
        FAILS,
        f"the image's programs are for {machine or said}, the site's processors are {site.machine}",
        image,
        there,
        f"build or pull the image for {platform_of(site.machine)}: udi pull --platform="
        f"{platform_of(site.machine)} {asked.image}",
    )


def _variant(site: Capture, facts: Mapping[str, Any]) -> Iterator[CheckFinding]:
    """A launch refuses an image whose platform's variant the processor has not."""
    variant = str(facts.get("variant") or "")
    if facts.get("architecture") != "amd64" or variant in ("", "v1"):
        return
    level = _level(site)
    image = Evidence("platform", f"linux/amd64/{variant}")
    there = Evidence("cpu.generic", site.word("cpu", "generic"))
    if not level:
        yield _unknown("architecture", f"the image is for the variant {variant}", image)
        return
    ours = Platform("linux", "amd64", f"v{level}")
    if suitability(Platform("linux", "amd64", variant), ours) < 0:
        yield CheckFinding(
            "architecture",
            FAILS,
            f"the image is for amd64/{variant}, the site's {site.word('cpu', 'name')} has v{level}",
            image,
            there,
            f"udi pull --platform=linux/amd64/v{level}, or build it with -march=x86-64-v{level}",
        )


def levels(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Iterator[CheckFinding]:
    """Compare the levels of x86-64 that files ask for by their notes with the processor's."""
    table = programs(facts).get("levels")
    if site.machine != "x86_64" or of_image(facts)[0] != "x86_64" or not isinstance(table, dict):
        return
    level = _level(site)
    there = Evidence("cpu.generic", site.word("cpu", "generic") or "not known")
    above = {int(n): paths for n, paths in table.items() if n.isdigit() and int(n) > (level or 1)}
    if not above:
        what = "no file asks for more of the processor by its notes (few say so)"
        yield CheckFinding("level", RUNS, what, Evidence("", "ELF property notes"), there)
        return
    for needed, paths in sorted(above.items()):
        files = [path for path in paths if isinstance(path, str)]
        image = Evidence(", ".join(files[:3]), f"needs x86-64-v{needed} by its note")
        if not level:
            yield _unknown("level", f"{files[0]} needs x86-64-v{needed}", image)
        elif any(_is_loaded_always(path) for path in files):
            yield CheckFinding(
                "level",
                FAILS,
                f"the image's C library is built for x86-64-v{needed}, the site's"
                f" {site.word('cpu', 'name')} has v{level}",
                image,
                there,
                f"use a base image for x86-64-v{level} (RHEL 9 needs v2, RHEL 10 v3)",
            )
        else:
            what = f"programs that load {files[0]} end with 'CPU ISA level is lower than required'"
            yield CheckFinding(
                "level",
                UNKNOWN,
                f"{what}; whether the command does is not known",
                image,
                there,
                f"build it with -march=x86-64-v{level}, and look at the command: udi check ... --"
                " COMMAND",
            )


def _level(site: Capture) -> int:
    """Return the level of the site's processor, 0 where it is not known."""
    return _LEVELS.get(site.word("cpu", "generic"), 0)


def _is_loaded_always(path: str) -> bool:
    name = path.rpartition("/")[2]
    return name.startswith(("libc.so.", "libc-2.", "ld-linux", "ld-2."))


def kernel(site: Capture, facts: Mapping[str, Any], asked: Asked) -> Iterator[CheckFinding]:
    """Compare the oldest Linux that programs are built for with the site's."""
    have = site.word("system", "kernel")
    there = Evidence("system.kernel", have)
    table = programs(facts).get("kernels")
    rows = table if isinstance(table, dict) else {}
    if not have:
        yield _unknown("kernel", "the capture does not say which kernel the site has", Evidence())
        return
    if release(have) < (4, 18):
        yield CheckFinding(
            "kernel",
            FAILS,
            f"Linux {have} mounts no FUSE file system in a user namespace",
            Evidence(),
            there,
            "ask the site for Linux 4.18 or newer (RHEL 8, SLES 15 SP2, Ubuntu 20.04)",
        )
        return
    newer = {need: paths for need, paths in rows.items() if _numbers(need) > _numbers(have)}
    if not newer:
        oldest = max(rows, key=_numbers, default="")
        what = f"built for Linux {oldest} or newer" if oldest else "nothing asks for a kernel"
        yield CheckFinding("kernel", RUNS, what, Evidence("", ".note.ABI-tag"), there)
        return
    need = max(newer, key=_numbers)
    paths = [path for one in newer.values() for path in one if isinstance(path, str)]
    image = Evidence(", ".join(paths[:3]), f"is built for Linux {need} or newer (.note.ABI-tag)")
    always = any(_is_loaded_always(path) for path in paths)
    yield CheckFinding(
        "kernel",
        FAILS if always else UNKNOWN,
        f"the image's {'C library' if always else 'file'} needs Linux {need}, the site has {have}"
        + ("" if always else "; whether the command loads it is not known"),
        image,
        there,
        "use an older base image (Debian 12 and RHEL 9 need Linux 3.2)",
    )


def _numbers(text: str) -> tuple[int, ...]:
    """Return the numbers at the beginning of a kernel's release: 4.18.0-553 is (4, 18, 0)."""
    found = []
    for part in text.split("."):
        digits = part[: len(part) - len(part.lstrip("0123456789"))]
        if not digits:
            break
        found.append(int(digits[:9]))
        if digits != part:
            break
    return tuple(found)


def _unknown(check: str, what: str, image: Evidence) -> CheckFinding:
    return CheckFinding(
        check, UNKNOWN, what, image, Evidence("", "not known"), "capture the site anew"
    )
